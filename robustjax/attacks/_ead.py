"""Elastic-net attack: C&W's objective with an l1 term, by iterative shrinkage (Chen et al., 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn


class _State(NamedTuple):
    unit: Array  # [B, ...] shrunk point, in units of eps where that is per coordinate
    ahead: Array  # [B, ...] momentum point, where the gradient is taken
    weight: penalty.Weight
    found: objective.Found


def ead(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_binary_search_steps: int,
    num_steps: int,
    learning_rate: Numeric = 1e-2,
    shrinkage: Numeric = 1e-2,
    init_weight: Numeric = 1e-3,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l1 attack: min c max(-loss, 0) + |delta|_2^2 + beta |delta|_1 by FISTA, c by binary search per example.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L1` (the paper's l1 decision rule) or an `L2`; its eps decides success, its norm which point is kept.
      num_binary_search_steps: rounds of the search for c; 9 is the paper's.
      num_steps: steps in each round; 1,000 is the paper's. Two forward passes and one backward pass each.
      learning_rate: length of the first step; falls as the square root of the remaining steps.
      shrinkage: beta, subtracted from every |delta_i| in each step.
      init_weight: the first c.
      loss_fn: (logits, y) -> [B], positive where fooled.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation, in the threat's norm, that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Chen et al., AAAI 2018, Algorithm 1, arXiv:1709.04114.
    """
    objective.check(model_fn, x, y, threat, num_binary_search_steps=num_binary_search_steps, num_steps=num_steps)
    checks.positive(learning_rate=learning_rate, init_weight=init_weight)
    objective.require_threat(threat, (threats.L1, threats.L2), "ead")
    keys = objective.streams(key, x).model
    zeros = jnp.zeros_like(x)
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, learning_rate=learning_rate, shrinkage=shrinkage)
    state = _State(zeros, zeros, penalty.first_weight(init_weight, x), objective.unsuccessful(zeros, x))
    return objective.minimum_norm_result(problem, loop_fn(step, state, num_binary_search_steps * num_steps).found)


def _step(i, state, *, problem, keys, num_steps, learning_rate, shrinkage):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    taken = i % num_steps
    new_round = jnp.broadcast_to((i > 0) & (taken == 0), x.shape[:1])
    zeros = jnp.zeros_like(x)
    weight, unit, ahead = arrays.where_example(
        new_round, (penalty.next_weight(state.weight), zeros, zeros), (state.weight, state.unit, state.ahead)
    )

    def total(ahead):
        loss = objective.evaluate(problem, threat.from_unit(ahead)).loss
        return jnp.sum(weight.value * jnp.maximum(-loss, 0.0) + arrays.sum_examples(jnp.square(ahead)))

    rate = learning_rate * jnp.sqrt(1.0 - taken / num_steps)
    grad, is_finite = objective.finite(jax.grad(total)(ahead))
    moved = ahead - rate * grad
    # FISTA: a gradient step from the momentum point, then every coordinate shrinks toward 0 by beta and is clipped to the box.
    low, high = (threat.to_unit(bound) for bound in threat.delta_bounds(x))
    shrunk = jnp.clip(jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - shrinkage, 0.0), min=low, max=high)
    candidate = objective.evaluate(problem, threat.from_unit(shrunk))
    candidate = candidate._replace(known=candidate.known & is_finite)
    weight = weight._replace(fooled=weight.fooled | candidate.success)
    found = objective.keep_best(state.found, objective.as_minimum_norm(candidate, threat))
    return _State(shrunk, shrunk + taken / (taken + 3) * (shrunk - unit), weight, found)
