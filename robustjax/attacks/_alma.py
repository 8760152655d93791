"""Augmented Lagrangian attack: the norm is minimised under the constraint of fooling the model (Rony et al., 2021)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn

_OPTIMIZER = optax.chain(optax.scale_by_rms(decay=0.9, initial_scale=1.0), optax.trace(decay=0.9))
_CHECK_EVERY = 10  # steps between two looks at the penalty weight
_PROGRESS = 0.95  # the constraint must have fallen below this fraction meanwhile,
_GROWTH = 1.2  # else the weight grows by this factor
_AVERAGING = 0.9  # of the multiplier
_FINAL_RATE = 0.01  # of the learning rate, reached exponentially after the first success
_NUM_STRETCHES, _STRETCH = 8, 4.0  # of the first step, where the box shortens it, and at most by how much each
_OFFSET = 1e-4  # the constraint is met only beyond the boundary


class _State(NamedTuple):
    delta: Array  # [B, ...]
    memory: tuple  # of the optimizer
    rate: Array  # [B] learning rate before decay
    multiplier: Array  # [B] mu
    weight: Array  # [B] rho
    checked: Array  # [B] constraint at the last check
    first: Array  # [B] step of the first success, inf before
    found: objective.Found


def alma(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    init_distance: Numeric = 0.1,
    loss_fn: LossFn = losses.dlr,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm attack: minimise |delta| + P(constraint; weight, multiplier); weight and multiplier adapt to each example.

    The constraint is -loss_fn, met where negative; P is the paper's P2, quadratic and more beyond zero.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `L2` or `L1`, whose norm is minimised; its eps decides success.
      num_steps: 100 to 1,000; one forward and one backward pass each.
      init_distance: length of the first step in the threat's norm; .1 for l2 and .5 for l1 are usual for images.
      loss_fn: (logits, y) -> [B], positive where fooled and of scale 1, such as `losses.dlr` (`losses.margin` for two classes).
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Rony et al., ICCV 2021, Algorithm 1, arXiv:2011.11857. Differs: the offset is added to the ratio, not its numerator.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    checks.positive(init_distance=init_distance)
    objective.require_threat(threat, (threats.L2, threats.L1), "alma")
    keys = objective.streams(key, x).model
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, init_distance=init_distance)
    zeros, ones = jnp.zeros_like(x), jnp.ones(x.shape[0], x.dtype)
    state = _State(
        delta=zeros,
        memory=jax.vmap(_OPTIMIZER.init)(zeros),
        rate=ones,
        multiplier=ones,
        weight=ones,
        checked=ones * jnp.inf,
        first=ones * jnp.inf,
        found=objective.unsuccessful(zeros, x),
    )
    state = loop_fn(step, state, num_steps)
    last = objective.evaluate(objective.step_problem(problem, keys, num_steps), state.delta)
    return objective.minimum_norm_result(problem, objective.keep_best(state.found, objective.as_minimum_norm(last, threat)))


def _step(i, state, *, problem, keys, num_steps, init_distance):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    candidate, uphill = objective.ascend(problem, state.delta)
    constraint = _OFFSET - candidate.loss
    found = objective.keep_best(state.found, objective.as_minimum_norm(candidate, threat))
    first = jnp.where(candidate.success, jnp.minimum(state.first, jnp.asarray(i, x.dtype)), state.first)

    # The weight rho grows where nothing was found and the constraint fell too little since the last check.
    checked = (i > 0) & (i % _CHECK_EVERY == 0)
    stalled = ~objective.has_fooled(found) & (constraint >= _PROGRESS * state.checked)
    weight = jnp.where(checked & stalled, _GROWTH * state.weight, state.weight)
    slope = _penalty_slope(constraint, weight, state.multiplier)
    multiplier = jnp.clip(_AVERAGING * state.multiplier + (1 - _AVERAGING) * slope, min=1e-6, max=1e12)

    # The gradient of the penalty is its slope times that of the constraint, which is minus the loss's.
    slope = _penalty_slope(constraint, weight, multiplier)
    shrink = jax.grad(lambda delta: threat.norm(delta).sum())(state.delta)
    grad = threat.from_unit(shrink - arrays.per_example(slope, x) * uphill)
    update, memory = jax.vmap(_OPTIMIZER.update)(grad, state.memory)
    update = threat.from_unit(update)
    low, high = threat.delta_bounds(x)
    rate = jax.lax.cond(i == 0, lambda: _first_rate(update, threat, low, high, init_distance), lambda: state.rate)
    fraction = jnp.where(jnp.isfinite(first), (jnp.asarray(i, x.dtype) - first) / jnp.maximum(num_steps - first, 1.0), 0.0)
    delta = state.delta - arrays.per_example(rate * _FINAL_RATE**fraction, x) * update
    return _State(
        delta=jnp.clip(delta, min=low, max=high),
        memory=memory,
        rate=rate,
        multiplier=multiplier,
        weight=weight,
        checked=jnp.where(checked | (i == 0), constraint, state.checked),
        first=first,
        found=found,
    )


def _first_rate(update, threat, low, high, distance):
    # The learning rate at which the first step, clipped to the box, is as long as asked for; what the box blocks makes it shorter.
    rate = arrays.ratio(distance, threat.norm(update), distance)
    for _ in range(_NUM_STRETCHES):
        size = threat.norm(jnp.clip(-arrays.per_example(rate, update) * update, min=low, max=high))
        rate = rate * jnp.clip(arrays.ratio(distance, size, 1.0), min=1.0, max=_STRETCH)
    return rate.astype(update.dtype)


def _penalty_slope(constraint, weight, multiplier):
    # d/dy of P2(y; rho, mu) = mu y + mu rho y^2 + rho^2 y^3 / 6 for y >= 0 and mu y / (1 - rho y) below.
    beyond = jnp.maximum(constraint, 0.0)
    short = jnp.minimum(constraint, 0.0)
    outside = multiplier + 2.0 * multiplier * weight * beyond + 0.5 * jnp.square(weight * beyond)
    return jnp.where(constraint >= 0, outside, multiplier / jnp.square(1.0 - weight * short))
