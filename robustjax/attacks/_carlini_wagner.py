"""Carlini & Wagner's l2 attack: Adam on |delta|^2 + c * hinge over tanh-space (2017)."""

import jax.numpy as jnp

from robustjax import base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LossFn, ModelFn, SuccessFn


def carlini_wagner(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat,
    num_binary_search_steps: int,
    num_steps: int,
    learning_rate,
    init_weight=1e-3,
    confidence=0.0,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn=loops.scan,
) -> AttackResult:
    """Minimum-norm l2 attack: min |delta|^2 + c max(confidence - loss, 0), c by binary search per example.

    Args:
      key, model_fn, x, y, loop_fn: as for `pgd`.
      threat: an `L2`; its eps decides success, inf for curves, and if it is per coordinate |delta / eps| is made small. For linf see
        `carlini_wagner_linf`, for l0 `carlini_wagner_l0`.
      num_binary_search_steps: rounds; 9 is the paper's.
      num_steps: Adam steps a round, from x each time; the paper's 10,000 is far beyond need.
      learning_rate: of Adam; .01 is the paper's.
      init_weight: the first c; grows tenfold until the model is fooled.
      confidence: margin by which the model must be fooled (kappa).
      loss_fn: positive where fooled.
      success_fn: what counts as fooled.

    Returns:
      The smallest perturbation that fooled the model with the confidence asked for; loss = -norm.

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
