"""The outer loop: steps of an optimizer along hypergradients, the inner problem warm-started from one to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import checks
from robustjax.base import Array, Bilevel
from robustjax.bilevel import problem as parts


class Outer(NamedTuple):
    """Where an outer loop ended.

    Values fall with phi even where hypergradients are wrong: trust them as far as `info` of the steps does, see the method's own info.
    """

    phi: Any
    theta: Any
    values: Array  # [num_steps] of the outer loss, before each step
    info: Any  # of every hypergradient, leaves [num_steps, ...]


def minimize(
    problem: Bilevel,
    method: Callable,
    solve: Callable,
    phi,
    theta0,
    batch=None,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    project_fn: Callable = lambda phi: phi,
    batch_fn: Callable = lambda batch, step: batch,
) -> Outer:
    """min over phi of outer_loss(theta(phi), phi).

    Args:
      problem, solve, phi, theta0, batch: as for every method of this package.
      method: (problem, solve, phi, theta, batch) -> HyperGradient, its own arguments bound.
      optimizer: of phi, down the hypergradient.
      num_steps: outer steps.
      project_fn: phi -> the nearest phi that is allowed.
      batch_fn: (batch, outer step, int32) -> what the losses get as batch in that step: other rows, or a key folded with the step.

    Returns:
      The last phi, the theta of the last hypergradient, values and infos; residuals among the infos tell whether to believe them.

    Raises:
      TypeError, ValueError: what the method names; no optimizer; no steps; a method that is not bound or gives no `HyperGradient`; a
        project_fn that gives something else than a phi.
    """
    checks.counts(num_steps=num_steps)
    parts.optimizes("optimizer", optimizer)
    parts.variables(phi=phi, theta0=theta0)
    parts.takes(method, "method(problem, solve, phi, theta0, batch)", problem, solve, phi, theta0, batch)
    parts.takes(project_fn, "project_fn(phi)", phi)
    parts.takes(batch_fn, "batch_fn(batch, step)", batch, 0)
    parts.alike("what project_fn returns", jax.eval_shape(project_fn, phi), phi, "phi")

    def step(carry, i):
        phi, theta, opt_state = carry
        found = method(problem, solve, phi, theta, batch_fn(batch, i))
        parts.is_hypergradient(found)
        updates, opt_state = optimizer.update(found.grad, opt_state, phi)
        info = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else None, found.info)  # scalars: solutions are as large as theta
        return (project_fn(optax.apply_updates(phi, updates)), found.theta, opt_state), (found.value, info)

    (phi, theta, _), (values, info) = jax.lax.scan(step, (phi, theta0, optimizer.init(phi)), jnp.arange(num_steps))
    return Outer(phi, theta, values, info)
