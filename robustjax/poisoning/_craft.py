"""Crafting poisons: descent on the attacker's loss over perturbations in a threat, whatever gives its gradient."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks, loops, prng
from robustjax.attacks import objective
from robustjax.base import Array, Delta, Key, Threat
from robustjax.bilevel import problem
from robustjax.poisoning import arguments

_NUM_SPENT = 20  # rounds in which a random direction is lengthened and clipped

GradientFn = Callable[[Key, Array, Any], tuple[Array, Array, Any]]  # (key, poisons [M, ...], state) -> (loss, gradient [M, ...], state)


class PoisonResult(NamedTuple):
    """What every crafting method returns."""

    x: Array  # [M, ...] the poisons, inside the threat
    delta: Delta  # x = threat.apply(base, delta)
    # The attacker's loss at the last gradient, before the last step; what a victim does that is trained again is another number.
    loss: Array
    losses: Array  # [num_steps] of every gradient; NaN where a gradient was not finite, which moved nothing
    state: Any  # what the method carried on or has to say: `Response`, `HyperGradient`, `Surrogates`, `VictimState`, `Collision`, or None


def craft_poisons(
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

    >>> x, threat = jnp.full((3, 4), 0.5), threats.Linf(0.1)
    >>> gradient_fn = poisoning.differentiated(lambda key, poisons: jnp.sum((poisons - 1.0) ** 2))  # wants them at 1
    >>> found = poisoning.craft_poisons(
    ...     jax.random.key(0), x, threat=threat, gradient_fn=gradient_fn, optimizer=optax.sgd(0.1), num_steps=10)
    >>> bool(jnp.allclose(found.x, 0.6))
    True

    Args:
      key: of the start and of the gradients.
      x: base images [M, ...], inside the threat's box.
      threat: what may be done to each of them; a clean-label attack changes nothing else.
      gradient_fn: (key, poisons, state) -> (loss, gradient in the poisons, state); `differentiated` makes one of a loss, and every
        method of `bilevel` is one.
      optimizer: an optax transformation of the gradient to *descend*; `signed(...)` for the sign of it.
      num_steps: gradients.
      delta: where it starts: None at random in the threat, a number everywhere (0. for x itself), or a perturbation like the threat's.
      state: of the gradient function, at first: surrogates, warm starts; None where it carries nothing, or needs no start.

    Returns:
      The poisons after the last step.

    Raises:
      TypeError: no key, no threat, no optimizer, another number of steps than an integer, a gradient function that cannot be called.
      ValueError: images outside the box, or none; no steps; a gradient function that returns something else.

    Guarantee:
      feasibility only: the poisons lie in the threat, also where a gradient is not finite: it moves nothing there, and the loss of that
      step is NaN.
    """
    problem.one_key(key)
    arguments.images(x, threat)
    x = jnp.asarray(x)
    checks.counts(num_steps=num_steps)
    problem.takes(gradient_fn, "gradient_fn(key, poisons, state)", key, x, state)
    problem.optimizes("optimizer", optimizer)
    key_start, key_steps = jax.random.split(key)
    delta = objective.start(threat, prng.example_keys(key_start, x.shape[0]), x, delta)
    step = base.bind(_step, key=key_steps, x=x, threat=threat, gradient_fn=gradient_fn, optimizer=optimizer)
    losses = jnp.zeros(num_steps, x.dtype)
    if state is None:
        made = jax.eval_shape(functools.partial(_gradient, gradient_fn), key, threat.apply(x, delta), None)[2]
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
    delta, _, state, losses = loops.scan(step, (delta, optimizer.init(delta), state, losses), num_steps)
    return PoisonResult(threat.apply(x, delta), delta, losses[-1], losses, state)


def differentiated(loss_fn: Callable) -> GradientFn:
    """The gradient function of a loss (key, poisons [M, ...]) -> scalar; the state passes through.

    Raises:
      TypeError, ValueError: when it is called, of a loss of another kind.
    """
    problem.is_function(loss_fn, "loss_fn(key, poisons)")
    return base.bind(_differentiated, loss_fn=loss_fn)


def signed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer on the sign of the gradient."""
    problem.optimizes("optimizer", optimizer)
    return optax.chain(optax.stateless(lambda grad, _: jax.tree.map(jnp.sign, grad)), optimizer)


def random_control(key: Key, x: Array, threat: Any) -> Array:
    """A ball's whole budget in random directions, or random points of a set: what poisons must beat, since noise alone moves a model too.

    Args:
      key: one key, or one per image.
      x: base images [M, ...].
      threat: a ball of inputs or of something else, such as `Recolor`; or a set that is none, such as `Feasible`, of which random points
        are given.

    What the box takes from a direction is spent on the coordinates that it leaves free.

    Raises:
      TypeError: no key, no threat. ValueError: images outside the box, or none.
    """
    checks.threat(threat)
    arguments.images(x, threat if hasattr(threat, "norm") else None)
    x = jnp.asarray(x)
    keys = prng.example_keys(key, x.shape[0])
    if not hasattr(threat, "norm"):
        return threat.apply(x, threat.init(keys, x))
    noise = prng.sample(jax.random.normal, keys, jnp.zeros_like(jax.eval_shape(threat.init, keys, x)))
    unit = threat.steepest(noise, x, jnp.zeros_like(noise))

    def spend(_, delta):
        size = threat.norm(delta)
        factor = arrays.ratio(jnp.asarray(threat.radius()).astype(size.dtype), size)
        return threat.project(arrays.per_example(factor, noise) * delta, x)

    return threat.apply(x, jax.lax.fori_loop(0, _NUM_SPENT, spend, unit))


def _step(i, carry, *, key, x, threat, gradient_fn, optimizer):
    delta, opt_state, state, losses = carry
    poisons, pull = jax.vjp(lambda delta: threat.apply(x, delta), delta)
    loss, grad, new_state = _gradient(gradient_fn, jax.random.fold_in(key, i), poisons, state)
    problem.alike("the state that gradient_fn returns", new_state, state, "the state it was given")
    new_state = jax.tree.map(
        lambda new, old: new if new.dtype == jnp.result_type(old) else new.astype(jnp.result_type(old)), new_state, state
    )
    grad, known = objective.finite(pull(grad.astype(poisons.dtype))[0])
    updates, opt_state = optimizer.update(grad, opt_state, delta)
    loss = jnp.where(known.all(), loss, jnp.nan).astype(losses.dtype)
    return threat.project(optax.apply_updates(delta, updates), x), opt_state, new_state, losses.at[i].set(loss)


def _gradient(gradient_fn, key, poisons, state):
    made = gradient_fn(key, poisons, state)
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"expected gradient_fn to return (loss, gradient, state), got a {type(made).__name__}; see `differentiated`.")
    problem.scalar("gradient_fn", made[0])
    problem.alike("the gradient of gradient_fn", made[1], poisons, "the poisons")
    return made


def _differentiated(key, poisons, state, *, loss_fn):
    problem.takes(loss_fn, "loss_fn(key, poisons)", key, poisons)
    loss, pull = jax.vjp(lambda poisons: loss_fn(key, poisons), poisons)
    problem.scalar("loss_fn", loss)
    return loss, pull(jnp.ones_like(loss))[0], state
