"""Carlini & Wagner's l2 attack: Adam on |delta|^2 + c * hinge over tanh-space (2017)."""

import jax.numpy as jnp

from robustjax import base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn


def carlini_wagner(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_binary_search_steps: int,
    num_steps: int,
    learning_rate: Numeric,
    init_weight: Numeric = 1e-3,
    confidence: Numeric = 0.0,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l2 attack: min |delta|^2 + c max(confidence - loss, 0), c by binary search per example.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L2`; its eps decides success (inf: every norm is a success), and if it is per coordinate |delta / eps| is made small. For
        linf see `carlini_wagner_linf`, for l0 `carlini_wagner_l0`.
      num_binary_search_steps: rounds of the search for c; 9 is the paper's.
      num_steps: Adam steps in each round, which starts at x; the paper's 10,000 is far more than is needed.
      learning_rate: of Adam; .01 is the paper's.
      init_weight: the first c; it grows tenfold until the model is fooled.
      confidence: the loss that must be reached for the model to count as fooled (kappa).
      loss_fn: (logits, y) -> [B], positive where fooled.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model with the confidence asked for; loss = -norm.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> attack = rj.bind(rj.attacks.carlini_wagner, num_binary_search_steps=9, num_steps=100, learning_rate=0.01)
      >>> x, y = jnp.array([[0.8, 0.4]]), jnp.array([0])  # the boundary x_0 = x_1 is .4 / sqrt(2) = .28 away
      >>> result = attack(jax.random.key(0), lambda x: x, x, y, threat=rj.L2(0.5))
      >>> bool(result.success[0]), round(float(result.info.norm[0]), 2)
      (True, 0.28)

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Carlini & Wagner, IEEE S&P 2017, arXiv:1608.04644. Differs: no early abort; a coordinate without two finite
      bounds moves freely, without tanh; the norm is that of the kept delta.
    """
    objective.check(model_fn, x, y, threat, num_binary_search_steps=num_binary_search_steps, num_steps=num_steps)
    checks.positive(learning_rate=learning_rate, init_weight=init_weight)
    objective.require_threat(threat, (threats.L2,), "carlini_wagner")
    confident = base.bind(_confident, success_fn=success_fn, loss_fn=loss_fn, confidence=confidence)
    return penalty.search(
        key, objective.Problem(model_fn, x, y, threat, loss_fn, confident),
        num_rounds=num_binary_search_steps, num_steps=num_steps, init_weight=init_weight,
        violation_fn=base.bind(_hinge, confidence=confidence), origin=penalty.to_free(x, threat), decode_fn=penalty.to_delta,
        init_fn=penalty.adam_init, update_fn=base.bind(_adam, learning_rate=learning_rate), loop_fn=loop_fn,
    )  # fmt: skip


def _adam(value, grad, memory, free, *, learning_rate):
    del value
    return penalty.adam_step(grad, memory, free, learning_rate)


def _hinge(loss, *, confidence):
    return jnp.maximum(confidence - loss, 0.0)


def _confident(logits, y, *, success_fn, loss_fn, confidence):
    return success_fn(logits, y) & (loss_fn(logits, y) >= confidence)
