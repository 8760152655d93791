"""Fast minimum-norm attack: the radius follows the estimated distance to the boundary (Pintor et al., 2021)."""

import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, schedules
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn

_OVERSHOOT = 1e-3  # beyond the estimated boundary: exactly on it an example is not fooled, and would stay there


def fmn(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    step_size: Numeric = 1.0,
    gamma: Numeric = 0.05,
    rescaled: bool = False,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm attack in l0, l1, l2 or linf: projected ascent in a ball whose radius is estimated from loss and gradient.

    Until an example is fooled its radius is |delta| + |loss| / |gradient|_dual; afterwards the radius shrinks by the fraction gamma_i where
    the model is fooled, and grows by it where it is not.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `L0`, `L1`, `L2` or `Linf`; its eps decides success.
      num_steps: 100 to 1,000; one forward and one backward pass each.
      step_size: first length of the l2-normalised gradient step; falls to a hundredth along a cosine.
      gamma: first relative change of the radius; falls to a fiftieth.
      rescaled: put every iterate of `L1`, `L2` or `Linf` on the sphere of its radius, as the authors' code does in l2, instead of
        into the ball. Where gradients vanish around x, as on masked models, the sphere finds more; elsewhere the ball is as good.
      loss_fn: (logits, y) -> [B], zero on the boundary, such as `losses.margin`.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Pintor et al., NeurIPS 2021, Algorithm 1, arXiv:2102.12827. Differs: l1 projects on ball and box
      together; the estimate is overshot by a thousandth.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    checks.positive(step_size=step_size, gamma=gamma)
    objective.require_threat(threat, (threats.L0, threats.L1, threats.L2, threats.Linf), "fmn")
    keys = objective.streams(key, x).model
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, step_size=step_size, gamma=gamma, rescaled=rescaled)
    zeros = jnp.zeros_like(x)
    radius = jnp.full(x.shape[0], 1.0 if isinstance(threat, threats.L0) else jnp.inf, x.dtype)
    delta, _, found = loop_fn(step, (zeros, radius, objective.unsuccessful(zeros, x)), num_steps)
    last = objective.evaluate(objective.step_problem(problem, keys, num_steps), delta)
    return objective.minimum_norm_result(problem, objective.keep_best(found, objective.as_minimum_norm(last, threat)))


def _step(i, carry, *, problem, keys, num_steps, step_size, gamma, rescaled):
    delta, radius, found = carry
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    candidate, grad = objective.ascend(problem, delta)
    found = objective.keep_best(found, objective.as_minimum_norm(candidate, threat))
    change = schedules.cosine(i, num_steps, gamma, gamma / 50.0)
    radius = jnp.minimum(_next_radius(threat, candidate, grad, radius, found, change), threat.max_norm(x))
    # The delta-step: along the normalised gradient, then into the ball of the new radius.
    length = schedules.cosine(i, num_steps, step_size, step_size / 100.0)
    stepped = delta + length * threat.from_unit(arrays.normalize(threat.from_unit(grad), 2))
    ball = threat.with_radius(radius)
    if rescaled and not isinstance(threat, threats.L0):
        longer = arrays.ratio(radius, threat.norm(stepped), 1.0)
        stepped = stepped * arrays.per_example(jnp.where(jnp.isfinite(longer), jnp.maximum(longer, 1.0), 1.0), x)
    return ball.project(stepped, x), radius, found


def _next_radius(threat, candidate, grad, radius, found, change):
    # The epsilon-step of the paper's Algorithm 1: fooled, the radius shrinks, and is at most the best norm; not fooled, it grows, or
    # as long as nothing was found goes to where the loss, taken as linear, reaches zero.
    best = -found.loss  # the smallest norm so far, inf if none
    if isinstance(threat, threats.L0):  # whole coordinates: at least one fewer, at least one more
        fewer = jnp.minimum(jnp.minimum(radius - 1.0, jnp.floor(radius * (1.0 - change))), best)
        more = jnp.maximum(radius + 1.0, jnp.floor(radius * (1.0 + change)))
        return jnp.maximum(jnp.where(candidate.success, fewer, more), 0.0)
    distance = arrays.ratio(jnp.abs(candidate.loss), threat.dual_norm(grad), jnp.inf)  # no gradient, no boundary in sight
    estimate = (1.0 + _OVERSHOOT) * (threat.norm(candidate.delta) + distance)
    searching = jnp.where(jnp.isfinite(best), radius * (1.0 + change), estimate)
    return jnp.where(candidate.success, jnp.minimum(radius * (1.0 - change), best), searching)
