"""The usual inner solver: a fixed number of gradient steps, `solve(phi, theta0, batch) -> theta` once its hyper-parameters are bound."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from robustjax import base, checks, loops
from robustjax.base import LoopFn, Numeric
from robustjax.bilevel import problem as parts


def descend(
    phi: Any,
    theta0: Any,
    batch: Any = None,
    *,
    inner_loss: Callable,
    num_steps: int,
    step_size: Numeric | None = None,
    optimizer: optax.GradientTransformation | None = None,
    loop_fn: LoopFn = loops.scan,
) -> Any:
    """theta after `num_steps` of descent on inner_loss(., phi, batch) from theta0.

    >>> float(bilevel.descend(2.0, jnp.zeros(()), inner_loss=lambda theta, phi, _: (theta - phi) ** 2, step_size=0.25, num_steps=2))
    1.5

    Args:
      phi: what the loss takes as its second argument.
      theta0: where descent starts, a pytree of real numbers.
      batch: what the loss takes as its third argument.
      inner_loss: (theta, phi, batch) -> scalar.
      num_steps: T.
      step_size: of plain gradient descent; may be traced.
      optimizer: an optax transformation in its place.
      loop_fn: `loops.scan`, or `loops.checkpointed` to be differentiated in less memory.

    Raises:
      TypeError: a number of steps that is no integer, an optimizer that is none. ValueError: no steps; neither a step size nor an
        optimizer, or both; a step size that is not above 0.
    """
    checks.counts(num_steps=num_steps)
    if (step_size is None) == (optimizer is None):
        raise ValueError("expected either step_size (plain gradient descent) or an optimizer, got both or neither.")
    if optimizer is None:
        checks.positive(step_size=step_size)
    else:
        parts.optimizes("optimizer", optimizer)
    state = () if optimizer is None else optimizer.init(theta0)
    step = base.bind(_step, phi=phi, batch=batch, inner_loss=inner_loss, step_size=step_size, optimizer=optimizer)
    return loop_fn(step, (theta0, state), num_steps)[0]


def _step(i, carry, *, phi, batch, inner_loss, step_size, optimizer):
    del i
    theta, state = carry
    grad = jax.grad(inner_loss)(theta, phi, batch)
    if optimizer is None:
        return jax.tree.map(lambda t, g: (t - step_size * g).astype(t.dtype), theta, grad), state
    updates, state = optimizer.update(grad, state, theta)
    return optax.apply_updates(theta, updates), state
