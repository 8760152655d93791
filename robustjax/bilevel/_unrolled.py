"""Differentiating the inner solver itself: in reverse, in reverse through its last steps only, or forward."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from robustjax.base import Array, Bilevel, HyperGradient, SolveFn
from robustjax.bilevel import problem as parts


class SolveInfo(NamedTuple):
    """How far from an inner optimum the solver stopped.

    No error of the gradient where the solver itself is differentiated: `unrolled` and `forward` agreed with the closed form to 1e-9 at an
    optimum, and with finite differences anywhere (`tests/bilevel/test_hypergradients.py`). It says how far that solver's gradient may be
    from the optimum's: 200 steps of descent at condition number 54 left .03, 50 left .5 (`docs/results/hypergradients.md`).
    `truncated` and `first_order` leave out more than it shows: at stationarity 1e-7 the last 1, 5 and 20 of 200 steps alone were wrong by
    .78, .6 and .31.
    """

    stationarity: Array  # |d inner_loss / d theta| at theta, which is at most this / smallest eigenvalue of the Hessian from the optimum


def unrolled(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None) -> HyperGradient:
    """The gradient of outer_loss(solve(phi, theta0, batch), phi, batch), by reverse mode through the solver.

    >>> problem = base.Bilevel(lambda theta, phi, _: (theta - phi) ** 2, lambda theta, phi, _: theta**2)
    >>> solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.25, num_steps=1)
    >>> float(bilevel.unrolled(problem, solve, jnp.float32(2.0), jnp.float32(0.0)).grad)  # one step leads from 0 to phi / 2
    1.0

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta, differentiable; `base.bind(bilevel.descend, ..., loop_fn=loops.checkpointed)` saves memory.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.

    Returns:
      Value, gradient, theta, and how stationary theta is.

    Raises:
      TypeError, ValueError: what `check` names; a solver that is not bound, or gives something else than a theta.

    Guarantee:
      exact for the solver as it is, converged or not.
    Source: Maclaurin et al., ICML 2015, arXiv:1502.03492; Franceschi et al., ICML 2017, arXiv:1703.01785.
    """
    parts.check(problem, phi, theta0, batch)

    def outer(phi):
        theta = parts.solved(solve, phi, theta0, batch)
        return problem.outer_loss(theta, phi, batch), theta

    (value, theta), grad = jax.value_and_grad(outer, has_aux=True)(phi)
    return HyperGradient(value, grad, theta, _info(problem, theta, phi, batch))


def truncated(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None, *, tail: SolveFn) -> HyperGradient:
    """`unrolled` through `tail` alone, which goes on where `solve` ended: the last steps of a long run.

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta; it is not differentiated.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.
      tail: another solver, for the last K steps; an optimizer's state starts afresh in it.

    Returns:
      Value, gradient, theta, and how stationary theta is.

    Raises:
      TypeError, ValueError: what `check` names; solvers that are not bound, or give something else than a theta; or the result is
        differentiated again.

    Guarantee:
      none: biased by what the earlier steps would have added, which shrinks like the tail's contraction.
    Source: Shaban et al., AISTATS 2019, arXiv:1810.10667.
    """
    parts.check(problem, phi, theta0, batch)
    result = unrolled(problem, tail, phi, jax.lax.stop_gradient(parts.solved(solve, phi, theta0, batch)), batch)
    return parts.refuse_second_derivative(result, "use bilevel.unrolled.")


def forward(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None) -> HyperGradient:
    """`unrolled` by forward mode: memory of one step, time of one solution for each number in phi; for a few hyper-parameters.

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta, differentiable in forward mode.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.

    Returns:
      Value, gradient, theta, and how stationary theta is; the gradient is that of `unrolled`.

    Raises:
      TypeError, ValueError: what `check` names; a solver that is not bound, or gives something else than a theta.

    Guarantee:
      exact for the solver as it is, converged or not.
    Source: Franceschi et al., ICML 2017, arXiv:1703.01785.
    """
    parts.check(problem, phi, theta0, batch)
    flat, unravel = ravel_pytree(phi)

    def outer(flat):
        theta = parts.solved(solve, unravel(flat), theta0, batch)
        return problem.outer_loss(theta, unravel(flat), batch), theta

    def along(direction):
        (value, theta), (slope, _) = jax.jvp(outer, (flat,), (direction,))
        return (value, theta), slope

    (value, theta), grad = jax.vmap(along, out_axes=(None, 0))(jnp.eye(flat.size, dtype=flat.dtype))
    return HyperGradient(value, unravel(grad), theta, _info(problem, theta, phi, batch))


def _info(problem, theta, phi, batch):
    return SolveInfo(parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch)))
