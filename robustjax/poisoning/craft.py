"""Crafting poisons: descent on the attacker's loss over perturbations in a threat, whatever gives its gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, loops
from robustjax.attacks import objective
from robustjax.base import Array, Delta, Key, Threat

_NUM_SPENT = 20  # rounds in which a random direction is lengthened and clipped

GradientFn = Callable[[Key, Array, Any], tuple[Array, Array, Any]]  # (key, poisons [M, ...], state) -> (loss, gradient [M, ...], state)


class PoisonResult(NamedTuple):
    """What every crafting returns."""

    x: Array  # [M, ...] the poisons, inside the threat
    delta: Delta  # x = threat.apply(base, delta)
    loss: Array  # the attacker's loss of the last gradient
    losses: Array  # [num_steps] of every gradient
    state: Any  # what the gradient function carried on


def craft(
    key: Key,
    x: Array,
    *,
    threat: Threat,
    gradient_fn: GradientFn,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    delta: Delta | None = 0.0,
    state: Any = None,
) -> PoisonResult:
    """min over delta in the threat of the attacker's loss at x + delta, by projected steps of an optimizer.

    Args:
      key: of the start and of the gradients.
      x: base images [M, ...], inside the threat's box.
      threat: what may be done to each of them; a clean-label attack changes nothing else.
      gradient_fn: (key, poisons, state) -> (loss, gradient in the poisons, state); `differentiated` makes one of a loss, and every
        method of `bilevel` is one.
      optimizer: an optax transformation of the gradient to *descend*; `signed(...)` for the sign of it.
      num_steps: gradients.
      delta: start, as for `attacks.pgd`: None at random, 0. for x itself.
      state: of the gradient function: surrogates, warm starts; None where it carries nothing, or needs no start.

    Returns:
      The poisons after the last step.

    Guarantee:
      feasibility only: the poisons lie in the threat.
    """
    key_start, key_steps = jax.random.split(key)
    delta = objective.start(threat, arrays.example_keys(key_start, x.shape[0]), x, delta)
    step = base.bind(_step, key=key_steps, x=x, threat=threat, gradient_fn=gradient_fn, optimizer=optimizer)
    losses = jnp.zeros(num_steps, x.dtype)
    if state is None:
        made = jax.eval_shape(gradient_fn, key, threat.apply(x, delta), None)[2]
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
    delta, _, state, losses = loops.scan(step, (delta, optimizer.init(delta), state, losses), num_steps)
    return PoisonResult(threat.apply(x, delta), delta, losses[-1], losses, state)


def differentiated(loss_fn: Callable) -> GradientFn:
    """The gradient function of a loss (key, poisons [M, ...]) -> scalar; the state passes through."""
    return base.bind(_differentiated, loss_fn=loss_fn)


def signed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer on the sign of the gradient."""
    return optax.chain(optax.stateless(lambda grad, _: jax.tree.map(jnp.sign, grad)), optimizer)


def random_control(key: Key, x: Array, threat: Any) -> Array:
    """A ball's whole budget in random directions, or random points of a set: what poisons must beat, since noise alone moves a model too.

    Args:
      key: one key, or one per image.
      x: base images [M, ...].
      threat: a ball of inputs or of something else, such as `Recolor`; or a set that is none, such as `Feasible`, of which random points
        are given.

    What the box takes from a direction is spent on the coordinates that it leaves free.
    """
    keys = arrays.example_keys(key, x.shape[0])
    if not hasattr(threat, "norm"):
        return threat.apply(x, threat.init(keys, x))
    noise = arrays.sample(jax.random.normal, keys, jnp.zeros_like(jax.eval_shape(threat.init, keys, x)))
    unit = threat.steepest(noise, x, jnp.zeros_like(noise))

    def spend(_, delta):
        size = threat.norm(delta)
        factor = jnp.where(size > 0, threat.radius() / jnp.where(size > 0, size, 1.0), 0.0)
        return threat.project(arrays.per_example(factor, noise) * delta, x)

    return threat.apply(x, jax.lax.fori_loop(0, _NUM_SPENT, spend, unit))


def _step(i, carry, *, key, x, threat, gradient_fn, optimizer):
    delta, opt_state, state, losses = carry
    poisons, pull = jax.vjp(lambda delta: threat.apply(x, delta), delta)
    loss, grad, state = gradient_fn(jax.random.fold_in(key, i), poisons, state)
    updates, opt_state = optimizer.update(pull(grad)[0], opt_state, delta)
    return threat.project(optax.apply_updates(delta, updates), x), opt_state, state, losses.at[i].set(loss)


def _differentiated(key, poisons, state, *, loss_fn):
    loss, grad = jax.value_and_grad(lambda poisons: loss_fn(key, poisons))(poisons)
    return loss, grad, state
