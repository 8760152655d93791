"""Carlini & Wagner's linf attack: a penalty on what exceeds tau, and tau falls while the model is fooled (2017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn

_MAX_WEIGHT = 20.0  # c beyond which an example is given up (adv-lib, ART)
_UNBOUNDED = 1.0  # tau's start where the box has no end
_SHRINK = 0.9  # of tau after a success


class _State(NamedTuple):
    free: Array  # [B, ...] unbounded variable
    memory: tuple  # Adam's
    tau: Array  # [B] what may be used without cost
    weight: Array  # [B] c
    fooled: Array  # [B] bool, in this round
    size: Array  # [B] smallest norm of this round that fooled
    found: objective.Found


def carlini_wagner_linf(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_rounds: int,
    num_steps: int,
    learning_rate: Numeric,
    init_weight: Numeric = 1e-5,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm linf attack: min sum max(|delta_i| - tau, 0) + c max(-loss, 0) in rounds of Adam.

    After a round that fooled the model, tau falls to .9 of the norm reached; after any other round, c doubles.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: a `Linf`; its eps decides success.
      num_rounds: from its default start c takes up to 21 rounds to reach its largest value; tau takes 22 to fall to a tenth.
      num_steps: Adam steps in each round, which starts where the last one ended.
      learning_rate: of Adam.
      init_weight: the first c.
      loss_fn: (logits, y) -> [B], positive where fooled.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Carlini & Wagner, IEEE S&P 2017, section VI-C, arXiv:1608.04644.
    """
    objective.check(model_fn, x, y, threat, num_rounds=num_rounds, num_steps=num_steps)
    checks.positive(learning_rate=learning_rate, init_weight=init_weight)
    objective.require_threat(threat, (threats.Linf,), "carlini_wagner_linf")
    keys = objective.streams(key, x).model
    free = penalty.to_free(x, threat)
    ones = jnp.ones(x.shape[0], x.dtype)
    state = _State(
        free=free,
        memory=penalty.adam_init(free),
        tau=jnp.minimum(threat.max_norm(x), _UNBOUNDED),
        weight=ones * init_weight,
        fooled=ones < 0,
        size=jnp.inf * ones,
        found=objective.unsuccessful(jnp.zeros_like(x), x),
    )
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, learning_rate=learning_rate)
    return objective.minimum_norm_result(problem, loop_fn(step, state, num_rounds * num_steps).found)


def _step(i, state, *, problem, keys, num_steps, learning_rate):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    new_round = jnp.broadcast_to((i > 0) & (i % num_steps == 0), x.shape[:1])
    tau = jnp.where(new_round & state.fooled, _SHRINK * jnp.minimum(state.tau, state.size), state.tau)
    weight = jnp.where(new_round & ~state.fooled, jnp.minimum(2.0 * state.weight, _MAX_WEIGHT), state.weight)
    memory = arrays.where_example(new_round, penalty.adam_init(state.free), state.memory)
    fooled, size = state.fooled & ~new_round, jnp.where(new_round, jnp.inf, state.size)

    def total(free):
        delta = penalty.to_delta(free, x, threat)
        candidate = objective.evaluate(problem, delta)
        excess = jnp.maximum(arrays.absolute(threat.to_unit(delta)) - arrays.per_example(tau, x), 0.0)
        value = arrays.sum_examples(excess) + weight * jnp.maximum(-candidate.loss, 0.0)
        return value.sum(), candidate

    grad, candidate = jax.grad(total, has_aux=True)(state.free)
    candidate, grad = objective.marked(candidate, grad)
    norm = threat.norm(candidate.delta)
    free, memory = penalty.adam_step(grad, memory, state.free, learning_rate)
    return _State(
        free=free,
        memory=memory,
        tau=tau,
        weight=weight,
        fooled=fooled | candidate.success,
        size=jnp.where(candidate.success, jnp.minimum(size, norm), size),
        found=objective.keep_best(state.found, objective.as_minimum_norm(candidate, threat)),
    )
