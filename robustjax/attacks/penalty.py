"""Minimum norm by a penalty: minimise |delta|^2 + c * violation over some variable, with c found by binary search.

`carlini_wagner` and `lbfgs` are this search with different variables and inner optimizers. All rounds together are one loop of
num_rounds * num_steps equal steps, so that a single step is compiled and any `loop_fn` can run it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Key, LoopFn, NormThreat, Numeric

_ADAM = optax.scale_by_adam(eps_root=1e-16)  # the root's derivative is infinite where a gradient was always 0


class Weight(NamedTuple):
    """A binary search for the smallest penalty weight that fools the model."""

    value: Array  # [B] c
    lower: Array  # [B] largest that failed
    upper: Array  # [B] smallest that fooled, inf if none
    fooled: Array  # [B] bool, in the current round


class _State(NamedTuple):
    variable: Array  # [B, ...]
    memory: Any  # of the inner optimizer
    weight: Weight
    found: objective.Found


def first_weight(init_weight: Numeric, like: Array) -> Weight:
    """The search before its first round."""
    zeros = jnp.zeros(like.shape[0], like.dtype)
    return Weight(zeros + init_weight, zeros, zeros + jnp.inf, zeros > 0)


def next_weight(weight: Weight) -> Weight:
    """After a round: halve the bracket once a weight is known that fools the model, else multiply by ten."""
    upper = jnp.where(weight.fooled, jnp.minimum(weight.upper, weight.value), weight.upper)
    lower = jnp.where(weight.fooled, weight.lower, jnp.maximum(weight.lower, weight.value))
    known = jnp.isfinite(upper)
    value = jnp.where(known, 0.5 * (lower + jnp.where(known, upper, 0.0)), 10.0 * weight.value)
    return Weight(value, lower, upper, jnp.zeros_like(weight.fooled))


def to_free(x: Array, threat: NormThreat) -> Array:
    """The unbounded variable that stands for x: atanh of the place in the box; where a bound is infinite or both are equal, x itself."""
    lower, width = _bounds(x, threat)
    place = arrays.ratio(x - lower, width, 0.5)
    inner = jnp.arctanh(0.999999 * (2.0 * place - 1.0))  # short of the bounds, where atanh is infinite
    return jnp.where(width > 0, inner, x)


def to_delta(free: Array, x: Array, threat: NormThreat) -> Array:
    """The perturbation that an unbounded variable stands for, inside the box and the mask."""
    lower, width = _bounds(x, threat)
    inside = lower + 0.5 * width * (jnp.tanh(free) + 1.0)
    low, high = threat.delta_bounds(x)
    return jnp.clip(jnp.where(width > 0, inside, free) - x, min=low, max=high)


def _bounds(x, threat):
    # The lower bound and the width of what tanh can cover; width 0 for a coordinate without two finite bounds, and in a user's threat
    # that has no box.
    box = getattr(threat, "box", (-jnp.inf, jnp.inf))
    lower, upper = (jnp.broadcast_to(bound, x.shape).astype(x.dtype) for bound in box)
    bounded = jnp.isfinite(lower) & jnp.isfinite(upper)
    lower = jnp.where(bounded, lower, 0.0)
    return lower, jnp.where(bounded, jnp.where(bounded, upper, 0.0) - lower, 0.0)


def adam_init(variable: Array) -> Any:
    """Adam's memory, one per example."""
    return jax.vmap(_ADAM.init)(variable)


def adam_step(grad: Array, memory: Any, variable: Array, learning_rate: Numeric) -> tuple[Array, Any]:
    """One step of Adam down the gradient; the learning rate a scalar or [B]."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes types, whatever the caller allows
        update, memory = jax.vmap(_ADAM.update)(grad, memory)
    return variable - arrays.per_example(learning_rate, variable) * update, memory


def search(
    key: Key,
    problem: objective.Problem,
    *,
    num_rounds: int,
    num_steps: int,
    init_weight: Numeric,
    violation_fn: Callable[[Array], Array],
    origin: Array,
    decode_fn: Callable[[Array, Array, Any], Array],
    init_fn: Callable[[Array], Any],
    update_fn: Callable[..., tuple[Array, Any]],
    loop_fn: LoopFn,
) -> AttackResult:
    """The smallest perturbation over all rounds.

    Args:
      key: one key, or one per example [B].
      problem: model, inputs, threat, loss and success.
      num_rounds: rounds of the search for c.
      num_steps: steps of the inner optimizer in each round.
      init_weight: the first c.
      violation_fn: loss [B] -> [B], what c weighs.
      origin: the variable at x, where every round starts.
      decode_fn: (variable, x, threat) -> delta.
      init_fn: variable -> memory, leaves leading with B.
      update_fn: (value [B], grad [B, ...], memory, variable) -> (variable, memory).
      loop_fn: see `loops`.
    """
    x = problem.x
    keys = objective.streams(key, x).model
    state = _State(origin, init_fn(origin), first_weight(init_weight, x), objective.unsuccessful(jnp.zeros_like(x), x))
    step = base.bind(
        _step, problem=problem, keys=keys, num_steps=num_steps, num_rounds=num_rounds, origin=origin,
        violation_fn=violation_fn, decode_fn=decode_fn, init_fn=init_fn, update_fn=update_fn,
    )  # fmt: skip
    state = loop_fn(step, state, num_rounds * num_steps)
    return objective.minimum_norm_result(problem, state.found)


def _step(i, state, *, problem, keys, num_steps, num_rounds, origin, violation_fn, decode_fn, init_fn, update_fn):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    new_round = jnp.broadcast_to((i > 0) & (i % num_steps == 0), x.shape[:1])
    last_round = new_round & (num_rounds >= 10) & (i // num_steps == num_rounds - 1)
    weight = arrays.where_example(new_round, next_weight(state.weight), state.weight)
    # The last of ten or more rounds takes the smallest weight that fooled the model, as in the authors' code.
    weight = weight._replace(value=jnp.where(last_round & jnp.isfinite(weight.upper), weight.upper, weight.value))
    variable, memory = arrays.where_example(new_round, (origin, init_fn(origin)), (state.variable, state.memory))

    def total(variable):
        delta = decode_fn(variable, x, threat)
        candidate = objective.evaluate(problem, delta)
        value = arrays.sum_examples(jnp.square(threat.to_unit(delta))) + weight.value * violation_fn(candidate.loss)
        return value.sum(), (value, candidate)

    grad, (value, candidate) = jax.grad(total, has_aux=True)(variable)
    candidate, grad = objective.marked(candidate, grad)
    weight = weight._replace(fooled=weight.fooled | candidate.success)
    variable, memory = update_fn(value, grad, memory, variable)
    return _State(variable, memory, weight, objective.keep_best(state.found, objective.as_minimum_norm(candidate, threat)))
