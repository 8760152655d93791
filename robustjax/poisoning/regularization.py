"""Learned regularization against poisoning: the strength that is best against the worst poisons (Carnerero-Cano et al., 2020)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, checks
from robustjax.base import Array, Bilevel, Numeric, SolveFn
from robustjax.bilevel import problem as parts
from robustjax.bilevel.problem import MethodFn
from robustjax.poisoning import arguments


class Regularized(NamedTuple):
    """Where the game ended."""

    poisons: Array  # [M, ...]
    log_strength: Array  # Lambda: the regularizer is exp(Lambda) / 2 |theta|^2
    theta: Any
    values: Array  # [num_steps] validation loss before each step; of a game, so that it need not fall
    log_strengths: Array  # [num_steps]
    info: Any  # the method's, of every step: how far to trust its hypergradients


def learn_regularization(
    problem: Bilevel,
    method: MethodFn,
    solve: SolveFn,
    poisons: Array,
    log_strength: Numeric,
    theta0: Any,
    batch: Any = None,
    *,
    poison_step: Numeric,
    strength_step: Numeric,
    num_steps: int,
    box: tuple = (0.0, 1.0),
    bounds: tuple = (-8.0, 8.0),
) -> Regularized:
    """min over Lambda, max over poisons of the validation loss of theta = argmin training loss with poisons + exp(Lambda) / 2 |theta|^2.

    Both sides take projected steps along one hypergradient: poisons up, each along its own normalised direction, Lambda down.

    Args:
      problem: losses whose phi is (poisons, Lambda); `penalized` adds the regularizer to a training loss.
      method: (problem, solve, phi, theta0, batch) -> HyperGradient, its own arguments bound.
      solve: (phi, theta0, batch) -> theta, the victim's training, its own arguments bound.
      poisons: where they start [M, ...]; with M = 0 the strength alone is learned. log_strength: where Lambda starts.
      theta0: where the victim begins.
      batch: what the losses take as their third argument.
      poison_step: length of a step of each poison. strength_step: of Lambda, times its gradient.
      num_steps: of the game.
      box: of the poisons. bounds: of Lambda.

    Returns:
      The last iterates and their history; Lambda rises with the fraction of poisons.

    Raises:
      TypeError, ValueError: what the method names; poisons outside the box; steps below 0, or none; a strength outside its bounds.

    Guarantee:
      none: alternating steps of a game.
    Source: Carnerero-Cano et al., 2020, arXiv:2003.00040.
    """
    arguments.images(poisons, name="poisons", least=0)
    checks.box(box)
    checks.box(bounds, "bounds")
    arguments.inside(poisons, box, "poisons")
    arguments.inside(log_strength, bounds, "log_strength")
    checks.counts(num_steps=num_steps)
    parts.not_negative(poison_step=poison_step, strength_step=strength_step)
    parts.takes(method, "method(problem, solve, phi, theta0, batch)", problem, solve, (poisons, log_strength), theta0, batch)

    within, limits = (tuple(jnp.asarray(bound).astype(poisons.dtype) for bound in pair) for pair in (box, bounds))

    def step(carry, _):
        poisons, log_strength, theta = carry
        found = method(problem, solve, (poisons, log_strength), theta, batch)
        parts.is_hypergradient(found)
        by_poisons, by_strength = found.grad
        moved = poisons + parts.times(poison_step, arrays.normalize(by_poisons, 2))
        eased = log_strength - parts.times(strength_step, by_strength)
        moved, eased = jnp.clip(moved, *within), jnp.clip(eased, *limits)
        return (moved, eased, found.theta), (found.value, log_strength, found.info)

    start = poisons, jnp.asarray(log_strength, poisons.dtype), theta0
    (poisons, log_strength, theta), (values, history, info) = jax.lax.scan(step, start, length=num_steps)
    return Regularized(poisons, log_strength, theta, values, history, info)


def penalized(training_loss: Callable, validation_loss: Callable) -> Bilevel:
    """The problem of `learn_regularization` from (theta, poisons, batch) -> scalar and (theta, batch) -> scalar.

    Raises:
      TypeError: losses that cannot be called.
    """
    parts.is_function(training_loss, "training_loss(theta, poisons, batch)")
    parts.is_function(validation_loss, "validation_loss(theta, batch)")

    def inner(theta, phi, batch):
        poisons, log_strength = phi
        squared = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(theta))
        return training_loss(theta, poisons, batch) + 0.5 * jnp.exp(log_strength) * squared

    def outer(theta, phi, batch):
        del phi
        return validation_loss(theta, batch)

    return Bilevel(inner, outer)
