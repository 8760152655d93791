"""Carlini & Wagner's l0 attack: the l2 attack on ever fewer coordinates (2017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, base, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn

_MAX_WEIGHT = 1e4  # c beyond which a set of coordinates is given up


class _State(NamedTuple):
    free: Array  # [B, ...] unbounded variable
    memory: tuple  # Adam's
    allowed: Array  # [B, ...] bool, coordinates of this round
    proven: Array  # [B, ...] bool, the smallest set that fooled the model
    impact: Array  # [B, ...] |gradient * delta| of the last perturbation that fooled the model
    num_dropped: Array  # [B] coordinates dropped from the proven set
    weight: Array  # [B] c
    fooled: Array  # [B] bool, in this round
    found: objective.Found


def carlini_wagner_l0(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_rounds: int,
    num_steps: int,
    learning_rate: Numeric,
    init_weight: Numeric = 1e-2,
    drop: Numeric = 0.3,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l0 attack: after a round that fooled the model, the coordinates of least impact are frozen.

    The impact of a coordinate is |gradient of the loss * delta|. After a round that failed, c grows tenfold; where c has become too large,
    the frozen coordinates come back and half as many are frozen.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L0`; its eps decides success.
      num_rounds: about 30 to 60.
      num_steps: Adam steps in each round.
      learning_rate: of Adam; with .1 a coordinate crosses the box in some 30 steps.
      init_weight: the first c.
      drop: fraction of the remaining coordinates that are frozen after a success, at least one.
      loss_fn: (logits, y) -> [B], positive where fooled.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The sparsest perturbation that fooled the model; loss = -number of coordinates.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Carlini & Wagner, IEEE S&P 2017, section VI-B, arXiv:1608.04644. Differs: per example, with backtracking.
    """
    objective.check(model_fn, x, y, threat, num_rounds=num_rounds, num_steps=num_steps)
    objective.require_threat(threat, (threats.L0,), "carlini_wagner_l0")
    keys = objective.streams(key, x).model
    free = penalty.to_free(x, threat)
    low, high = threat.delta_bounds(x)
    allowed = high > low
    ones = jnp.ones(x.shape[0], x.dtype)
    state = _State(
        free=free,
        memory=penalty.adam_init(free),
        allowed=allowed,
        proven=allowed,
        impact=jnp.zeros_like(x),
        num_dropped=0.0 * ones,
        weight=ones * init_weight,
        fooled=ones < 0,
        found=objective.unsuccessful(jnp.zeros_like(x), x),
    )
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, learning_rate=learning_rate, drop=drop)
    return objective.minimum_norm_result(problem, loop_fn(step, state, num_rounds * num_steps).found)


def _step(i, state, *, problem, keys, num_steps, learning_rate, drop):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    new_round = jnp.broadcast_to((i > 0) & (i % num_steps == 0), x.shape[:1])
    state = arrays.where_example(new_round, _next_round(state, x, threat, drop), state)
    everywhere, pullback = jax.vjp(lambda free: penalty.to_delta(free, x, threat), state.free)
    delta = jnp.where(state.allowed, everywhere, 0.0)
    candidate, uphill = objective.ascend(problem, delta)
    pull = jnp.where(candidate.loss < 0, state.weight, 0.0)
    (grad,) = pullback(jnp.where(state.allowed, 2.0 * delta - arrays.per_example(pull, x) * uphill, 0.0))
    free, memory = penalty.adam_step(grad, state.memory, state.free, learning_rate)
    return state._replace(
        free=free,
        memory=memory,
        impact=jnp.where(arrays.per_example(candidate.success, x), jnp.abs(uphill * delta), state.impact),
        fooled=state.fooled | candidate.success,
        found=objective.keep_best(state.found, objective.as_minimum_norm(candidate, threat)),
    )


def _next_round(state, x, threat, drop):
    # The paper's section VI-B removes one coordinate after each success and stops at the first failure; here a failure takes back half.
    exhausted = ~state.fooled & (10.0 * state.weight > _MAX_WEIGHT)
    proven = jnp.where(arrays.per_example(state.fooled, x), state.allowed, state.proven)
    size = arrays.sum_examples(proven.astype(x.dtype))
    num_dropped = jnp.where(state.fooled, jnp.maximum(jnp.floor(drop * size), 1.0), state.num_dropped)
    num_dropped = jnp.where(exhausted, jnp.floor(0.5 * (num_dropped + 1.0)), num_dropped)
    num_dropped = jnp.where(state.found.loss > -jnp.inf, num_dropped, 0.0)
    scores = jnp.where(proven, state.impact, -1.0)
    free = penalty.to_free(x, threat)
    return state._replace(
        free=free,
        memory=penalty.adam_init(free),
        allowed=proven & arrays.top_k_mask(scores, size - num_dropped),
        proven=proven,
        num_dropped=num_dropped,
        weight=jnp.where(state.fooled | exhausted, state.weight / 10.0, 10.0 * state.weight),
        fooled=jnp.zeros_like(state.fooled),
    )
