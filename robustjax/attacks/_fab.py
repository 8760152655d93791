"""Fast adaptive boundary attack: steps between the linearised boundary and the original point (Croce & Hein, 2020)."""

import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import boundary, objective
from robustjax.base import Array, AttackResult, Delta, Key, LoopFn, ModelFn, NormThreat, Numeric, SuccessFn


def fab(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    num_candidates: int | None = None,
    boundary_fn: boundary.BoundaryFn = losses.differences,
    success_fn: SuccessFn = losses.misclassified,
    delta: Delta | None = 0.0,
    max_bias: Numeric = 0.1,
    overshoot: Numeric = 1.05,
    backward: Numeric = 0.9,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm attack by projections on the nearest linearised boundary, biased toward the original point.

    Each step projects both the iterate and x on the linearised boundary within the box, exactly in the threat's norm, and moves to
    a mixture of the two; where it has fooled the model it then steps back toward x.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `Linf`, `L2` or `L1`; its eps decides success (inf: every norm is a success).
      num_steps: 100 is the paper's; one step costs two forward passes and one backward pass per boundary.
      num_candidates: how many classes are considered, those of largest logits at x; None for all others. Time and memory are those of
        that many gradients: choose some 10 where there are many classes.
      boundary_fn: (logits, y) -> [B, K], positive where that boundary is crossed, -inf where there is none. `losses.differences`
        are those to all other classes; for FAB-T take `base.bind(losses.target_difference, target=...)`, or `attacks.over_targets`.
      success_fn: (logits, y) -> [B], what counts as fooled.
      delta: where to start: 0. for x, None for a random place (for restarts).
      max_bias: largest weight of the projection of x (alpha_max).
      overshoot: extrapolation beyond the boundary (eta).
      backward: the step back after success (beta).
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Croce & Hein, ICML 2020, Algorithm 1, arXiv:1907.02044. Differs: without the final search on the boundary, as in
      AutoAttack.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps, num_candidates=1 if num_candidates is None else num_candidates)
    checks.positive(overshoot=overshoot)
    objective.require_threat(threat, (threats.Linf, threats.L2, threats.L1), "fab", latent=False)
    keys = objective.streams(key, x)
    delta = objective.start(threat.with_radius(0.5 * jnp.minimum(threat.radius(), threat.max_norm(x))), keys.start, x, delta)
    problem = objective.Problem(model_fn, x, y, threat, losses.never, success_fn)
    zeros = jnp.zeros_like(x)
    clean = objective.logits_at(objective.step_problem(problem, keys.model, num_steps), zeros)
    step = base.bind(
        _step, problem=problem, keys=keys.model, boundary_fn=boundary_fn,
        candidates=boundary.likeliest(boundary_fn(clean, y), num_candidates),
        max_bias=max_bias, overshoot=overshoot, backward=backward,
    )  # fmt: skip
    first = objective.evaluate_logits(problem, zeros, clean)
    found = first._replace(loss=jnp.where(first.success, 0.0, -jnp.inf).astype(x.dtype))
    _, found = loop_fn(step, (delta, found), num_steps, _is_at_origin)
    return objective.minimum_norm_result(problem, found)


def _is_at_origin(carry):
    return carry[1].loss == 0.0  # misclassified as it is: nothing smaller can be found


def _step(i, carry, *, problem, keys, boundary_fn, candidates, max_bias, overshoot, backward):
    delta, found = carry
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    # The nearest linearised boundary, and the projections on it, within the box, of the iterate and of x.
    value, normal, _, known = boundary.linearize(problem, delta, boundary_fn=boundary_fn, candidates=candidates)
    from_iterate = threat.hyperplane(threat.apply(x, delta), normal, -value)
    from_origin = threat.hyperplane(x, normal, arrays.sum_examples(normal * delta) - value)
    near, far = threat.norm(from_iterate), threat.norm(from_origin)
    # The paper's biased gradient step: a mixture of both by how near they were, beyond the boundary by the factor eta.
    bias = arrays.per_example(jnp.minimum(arrays.ratio(near, near + far), max_bias), x)
    delta = (1.0 - bias) * (delta + overshoot * from_iterate) + bias * overshoot * from_origin
    low, high = threat.delta_bounds(x)
    delta = jnp.clip(delta, min=low, max=high)
    candidate = objective.evaluate(problem, delta)
    candidate = candidate._replace(known=candidate.known & known)
    # The backward step: where the model was fooled, a part of the way back toward x.
    back = jnp.where(arrays.per_example(candidate.success, x), backward * delta, delta)
    return back, objective.keep_best(found, objective.as_minimum_norm(candidate, threat))
