"""DeepFool: straight to the nearest linearised boundary, again and again (Moosavi-Dezfooli et al., 2016)."""

import jax.numpy as jnp

from robustjax import arrays, base, loops, losses, threats
from robustjax.attacks import boundary, objective
from robustjax.base import Array, AttackResult, Key, LoopFn, ModelFn, NormThreat, Numeric, SuccessFn


def deepfool(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    num_candidates: int = 10,
    overshoot: Numeric = 0.02,
    boundary_fn: boundary.BoundaryFn = losses.differences,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm attack: delta <- delta + (distance + 1e-4) * steepest(gradient of the nearest boundary).

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `L2` or `Linf` (`L1` moves one coordinate at a time); its eps decides success.
      num_steps: 50 is usual; one step costs two forward passes and num_candidates backward passes.
      num_candidates: how many classes are considered, those of largest logits at x.
      overshoot: the point tested is x + (1 + overshoot) * delta.
      boundary_fn: (logits, y) -> [B, K], positive where that boundary is crossed, -inf where there is none;
        `losses.differences` are the boundaries to all other classes.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The first perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Moosavi-Dezfooli et al., CVPR 2016, Algorithm 2, arXiv:1511.04599. Differs: boundaries of the label, not of the
      prediction; the tested point is clipped to the box.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps, num_candidates=num_candidates)
    objective.require_threat(threat, (threats.L2, threats.Linf, threats.L1), "deepfool")
    keys = objective.streams(key, x).model
    problem = objective.Problem(model_fn, x, y, threat, losses.never, success_fn)
    zeros = jnp.zeros_like(x)
    last_problem = objective.step_problem(problem, keys, num_steps)
    clean = objective.logits_at(last_problem, zeros)
    step = base.bind(
        _step, problem=problem, keys=keys, candidates=boundary.likeliest(boundary_fn(clean, y), num_candidates),
        boundary_fn=boundary_fn, overshoot=overshoot,
    )  # fmt: skip
    found = objective.as_minimum_norm(objective.evaluate_logits(last_problem, zeros, clean), threat)
    _, found = loop_fn(step, (zeros, found), num_steps, _is_fooled)
    return objective.minimum_norm_result(problem, found)


def _is_fooled(carry):
    return objective.has_fooled(carry[1])


def _step(i, carry, *, problem, keys, candidates, boundary_fn, overshoot):
    walk, found = carry
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    low, high = threat.delta_bounds(x)

    def tested(walk):
        return jnp.clip((1.0 + overshoot) * walk, min=low, max=high)

    # The loop of the paper's Algorithm 2: the nearest boundary of the model linearised here, and a step of that length toward it.
    _, normal, distance, known = boundary.linearize(problem, tested(walk), boundary_fn=boundary_fn, candidates=candidates)
    moved = walk + arrays.per_example(distance + 1e-4, x) * threat.steepest(normal, x, walk)
    moved = jnp.clip(moved, min=low / (1.0 + overshoot), max=high / (1.0 + overshoot))  # as the point that is tested
    candidate = objective.as_minimum_norm(objective.evaluate(problem, tested(moved)), threat)
    candidate = candidate._replace(known=candidate.known & known)
    return arrays.where_example(_is_fooled(carry), carry, (moved, objective.keep_best(found, candidate)))
