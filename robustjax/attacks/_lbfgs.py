"""The first attack on deep networks: box-constrained L-BFGS (Szegedy et al., 2014)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn

_DECREASE = 1e-4  # Armijo's constant
_BACKTRACK = 0.5  # of the step after a refused point
_MAX_MOVE = 0.5  # of a coordinate at once, in units of x: the first step along a gradient has no scale


class _Memory(NamedTuple):
    base: Array  # [B, ...] last accepted perturbation, in units of eps where that is per coordinate
    value: Array  # [B] its objective
    grad: Array  # [B, ...] its gradient, zero where the box holds the coordinate
    direction: Array  # [B, ...] of descent from there
    length: Array  # [B] of the step being tried
    promise: Array  # [B] decrease that the point being tried must at least bring, negative
    history: tuple  # of optax.scale_by_lbfgs


def lbfgs(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_binary_search_steps: int,
    num_steps: int,
    init_weight: Numeric = 1e-2,
    memory_size: int = 10,
    loss_fn: LossFn = losses.runner_up,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l2 attack: min |delta|^2 - c loss by L-BFGS, c by binary search per example.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L2`; its eps decides success.
      num_binary_search_steps: rounds of the search for c.
      num_steps: points tried in each round, with one forward and one backward pass each; points that are refused count.
      init_weight: the first c; it grows tenfold until the model is fooled.
      memory_size: number of past gradients kept.
      loss_fn: (logits, y) -> [B], at most zero; `losses.runner_up` is minus the cross-entropy to the likeliest wrong label, for a target
        label take `losses.targeted(losses.cross_entropy)`.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Szegedy et al., ICLR 2014, section 4.1, arXiv:1312.6199. Differs: projected L-BFGS (clipped
      steps, coordinates held by the box left out) with Armijo backtracking; one search per example; reverse mode takes the curvature
      for constant and sees gradient steps.
    """
    objective.check(model_fn, x, y, threat, num_binary_search_steps=num_binary_search_steps, num_steps=num_steps, memory_size=memory_size)
    checks.positive(init_weight=init_weight)
    objective.require_threat(threat, (threats.L2,), "lbfgs")
    optimizer = optax.scale_by_lbfgs(memory_size=memory_size)
    low, high = (jnp.broadcast_to(threat.to_unit(bound), x.shape) for bound in threat.delta_bounds(x))
    return penalty.search(
        key, objective.Problem(model_fn, x, y, threat, loss_fn, success_fn),
        num_rounds=num_binary_search_steps, num_steps=num_steps, init_weight=init_weight,
        violation_fn=jnp.negative, origin=jnp.zeros_like(x), decode_fn=_from_unit, init_fn=base.bind(_init, optimizer=optimizer),
        update_fn=base.bind(_update, optimizer=optimizer, low=low, high=high, threat=threat), loop_fn=loop_fn,
    )  # fmt: skip


def _from_unit(unit, x, threat):
    del x
    return threat.from_unit(unit)


def _init(delta, *, optimizer):
    ones, zeros = jnp.ones(delta.shape[0], delta.dtype), jnp.zeros_like(delta)
    return _Memory(delta, jnp.inf * ones, zeros, zeros, ones, 0.0 * ones, jax.vmap(optimizer.init)(delta))


def _update(value, grad, memory, delta, *, optimizer, low, high, threat):
    """The next point to try: along a new direction if this one is accepted, else half as far along the old."""
    # Armijo: a point is accepted if the objective fell by a fixed fraction of what the slope promised.
    accepted = value <= memory.value + memory.promise
    # The gradient projected on the box: a coordinate held by its bound takes no part in the step.
    grad = jnp.where((delta <= low) & (grad > 0) | (delta >= high) & (grad < 0), 0.0, grad)
    # Two-loop recursion: -H grad from past differences of points and gradients. The derivative sees a plain gradient step instead.
    step, history = jax.vmap(optimizer.update)(*jax.lax.stop_gradient((grad, memory.history, delta)))
    direction = jnp.where(grad == 0, 0.0, jax.lax.stop_gradient(grad) - step - grad)
    uphill = arrays.sum_examples(grad * direction) >= 0  # curvature of the wrong sign: fall back on the gradient
    direction = jnp.where(arrays.per_example(uphill, grad), -grad, direction)
    # H has no scale before its first difference, so that no coordinate moves farther than this at once.
    length = jnp.minimum(1.0, arrays.ratio(_MAX_MOVE, arrays.norm(threat.from_unit(direction), jnp.inf), 1.0))
    # A refused point leaves point and direction as they were, and halves the step.
    fresh = memory._replace(base=delta, value=value, grad=grad, direction=direction, length=length, history=history)
    memory = arrays.where_example(accepted, fresh, memory._replace(length=_BACKTRACK * memory.length))
    tried = jnp.clip(memory.base + arrays.per_example(memory.length, delta) * memory.direction, min=low, max=high)
    promise = _DECREASE * arrays.sum_examples(memory.grad * (tried - memory.base))
    return tried, memory._replace(promise=promise)
