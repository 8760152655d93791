"""Auto-PGD in the l1 ball: sparse steps whose sparsity follows the best point (Croce & Hein, 2021)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, loops, losses, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Delta, Key, LoopFn, LossFn, ModelFn, NormThreat, SuccessFn

_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius in eps, share of the steps
_FIRST_FRACTION = 0.2  # of the coordinates, moved by the first steps
_SHRINK = 1.5  # divides the step size and the number of non-zero coordinates at a check
_LEAST = 0.1  # of the largest step size


class _State(NamedTuple):
    delta: Array  # [B, ...]
    best: Array  # [B, ...] of the largest loss in this stage
    best_grad: Array  # [B, ...]
    best_loss: Array  # [B]
    step_size: Array  # [B] in eps of the stage
    fraction: Array  # [B] of the coordinates that a step moves
    num_changed: Array  # [B] non-zero coordinates of the best point at the last check
    found: objective.Found


def apgd_l1(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    delta: Delta | None = None,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Auto-PGD for `L1`: three stages in balls of 3, 2 and 1 eps, each from the best point of the one before.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L1`.
      num_steps: number of steps over all stages; 3 more gradients are taken.
      loss_fn, success_fn: (logits, y) -> [B], what is ascended, and what counts as fooled.
      delta: where to start: None for a random place, 0. for x itself, or a perturbation.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The best iterate of the last stage by (success, loss).

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Croce & Hein, ICML 2021, Algorithm 1, arXiv:2103.01208. Differs: the start is `threat.init`, and the number of coordinates
      that a step moves is rounded down, not up, so that the last two can become one.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    objective.require_threat(threat, (threats.L1,), "apgd_l1")
    keys = objective.streams(key, x)
    delta = objective.start(threat, keys.start, x, delta)
    zero = jnp.zeros(x.shape[0], x.dtype)
    state = _State(
        delta=delta,
        best=delta,
        best_grad=jnp.zeros_like(delta),
        best_loss=zero - jnp.inf,
        step_size=zero + 1.0,
        fraction=zero + _FIRST_FRACTION,
        num_changed=zero + arrays.size(x),
        found=objective.unsuccessful(delta, x),
    )
    plan = {name: jnp.asarray(values) for name, values in _plan(num_steps).items()}
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys.model, plan=plan)
    state = loop_fn(step, state, len(plan["factor"]), objective.has_succeeded)
    return objective.result(problem, state.found)


def _plan(num_steps):
    # One entry per gradient: every stage evaluates its start, then after each of its steps.
    lengths = [int(share * num_steps) for _, share in _STAGES]
    lengths[-1] = num_steps - sum(lengths[:-1])
    plan: dict[str, list] = {"factor": [], "first": [], "checked": []}
    for (factor, _), length in zip(_STAGES, lengths, strict=True):
        every = max(int(0.04 * length), 1)
        plan["factor"] += [factor] * (length + 1)
        plan["first"] += [True] + [False] * length
        plan["checked"] += [False] + [taken % every == 0 for taken in range(1, length + 1)]
    return {name: np.asarray(values, np.float32 if name == "factor" else bool) for name, values in plan.items()}


def _step(i, state, *, problem, keys, plan):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    factor, first, checked = (plan[name][i] for name in ("factor", "first", "checked"))
    ball = threat.with_radius(factor * threat.finite_radius(x))
    later = first & (i > 0)
    num_coordinates = arrays.size(x)

    # A later stage starts at the best point of the one before, in its own smaller ball.
    delta = jnp.where(first, ball.project(jnp.where(later, state.best, state.delta), x), state.delta)
    sparsity = arrays.norm(delta, 0)
    fraction = jnp.where(later, sparsity / num_coordinates / _SHRINK, state.fraction)
    num_changed = jnp.where(later, sparsity, state.num_changed)
    step_size = jnp.where(first, 1.0, state.step_size)
    best_loss = jnp.where(first, -jnp.inf, state.best_loss)

    candidate, grad = objective.ascend(problem, delta)
    better = candidate.loss > best_loss
    best, best_grad = arrays.where_example(better, (delta, grad), (state.best, state.best_grad))
    best_loss = jnp.where(better, candidate.loss, best_loss)
    admissible = candidate._replace(success=candidate.success & (factor == 1.0), loss=jnp.where(factor == 1.0, candidate.loss, -jnp.inf))

    # Where the best point became sparser the step is renewed from it, elsewhere shortened.
    sparsity = arrays.norm(best, 0)
    renewed = checked & (sparsity < 0.95 * num_changed)
    shortened = jnp.maximum(step_size / _SHRINK, _LEAST)
    step_size = jnp.where(checked, jnp.where(renewed, 1.0, shortened), step_size)
    fraction = jnp.where(checked, sparsity / num_coordinates / _SHRINK, fraction)
    num_changed = jnp.where(checked, sparsity, num_changed)
    delta, grad = arrays.where_example(renewed, (best, best_grad), (delta, grad))

    # In units of eps, where that is per coordinate: there all coordinates cost the same.
    grad = threat.from_unit(grad)
    # Rounded down: two coordinates that always move together keep their ratio, and the worse one never leaves.
    num_moved = jnp.maximum(jnp.floor(fraction * num_coordinates + 1e-3), 1)
    top = arrays.top_k_mask(jnp.abs(grad), num_moved)
    direction = threat.from_unit(arrays.normalize(jnp.where(top, jnp.sign(grad), 0.0), 1))
    length = arrays.per_example(step_size * ball.radius(), x)
    return _State(
        delta=ball.project(delta + length * direction, x),
        best=best,
        best_grad=best_grad,
        best_loss=best_loss,
        step_size=step_size,
        fraction=fraction,
        num_changed=num_changed,
        found=objective.keep_best(state.found, admissible),
    )
