"""First-order ways: the value function as a penalty, and the gradient that ignores the response."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import base
from robustjax.base import Bilevel, HyperGradient
from robustjax.bilevel import problem as parts
from robustjax.bilevel.unrolled import SolveInfo


def value_function(problem: Bilevel, solve: Callable, phi, theta0, batch=None, *, weight) -> HyperGradient:
    """d outer / d phi + weight (d inner / d phi at theta' - at theta), theta' = argmin inner + outer / weight: no Hessian at all.

    Args:
      problem, phi, theta0, batch: as for `implicit`.
      solve: a bound solver with an `inner_loss`, such as `base.bind(bilevel.descend, ...)`; it runs twice, the second time from theta and
        on the sum.
      weight: of the inner loss; the bias falls like 1 / weight, rounding grows with it.

    Returns:
      Value, gradient, theta, and how stationary the worse of theta and theta' is. About weight * |d theta / d phi| times that is the error
        of the gradient, and at least as much as the last digit of theta makes: compare weight * stationarity with |gradient|.

    Raises:
      ValueError: a solver without an inner_loss to exchange; phi has no effect; or the result is differentiated again.

    Guarantee:
      exact as weight grows, with both problems solved.
    Source: Kwon et al., ICML 2023, arXiv:2301.10945; Ye et al. (BOME), NeurIPS 2022, arXiv:2209.08709.
    """
    if not isinstance(solve, base.Configured) or solve.get("inner_loss") is None:
        raise ValueError("value_function solves a second problem: expected solve=base.bind(bilevel.descend, inner_loss=..., ...).")
    parts.check(problem, phi, theta0, batch)

    def both(theta, phi, batch):
        return problem.inner_loss(theta, phi, batch) + problem.outer_loss(theta, phi, batch) / weight

    theta = jax.lax.stop_gradient(solve(phi, theta0, batch))
    drawn = jax.lax.stop_gradient(base.bind(solve, inner_loss=both)(phi, theta, batch))
    of_phi = jax.grad(problem.inner_loss, argnums=1)
    direct = jax.grad(problem.outer_loss, argnums=1)(drawn, phi, batch)
    change = jax.tree.map(jnp.subtract, of_phi(drawn, phi, batch), of_phi(theta, phi, batch))
    grad = jax.tree.map(lambda d, c: d + weight * c, direct, change)
    first, second = (parts.norm(jax.grad(loss)(at, phi, batch)) for loss, at in ((problem.inner_loss, theta), (both, drawn)))
    result = HyperGradient(problem.outer_loss(theta, phi, batch), grad, theta, SolveInfo(jnp.maximum(first, second)))
    return parts.once(result, "use bilevel.solution or bilevel.unrolled.")


def first_order(problem: Bilevel, solve: Callable, phi, theta0, batch=None) -> HyperGradient:
    """d outer / d phi at theta held fixed: what alternating gradient descent follows.

    Args:
      problem, solve, phi, theta0, batch: as for `implicit`.

    Returns:
      As `unrolled`.

    Raises:
      ValueError: phi acts through theta alone, so that the gradient would be zero; or the result is differentiated again.

    Guarantee:
      none: the response of theta is left out.
    """
    parts.check(problem, phi, theta0, batch, is_direct=True)
    theta = jax.lax.stop_gradient(solve(phi, theta0, batch))
    value, grad = jax.value_and_grad(problem.outer_loss, argnums=1)(theta, phi, batch)
    result = HyperGradient(value, grad, theta, SolveInfo(parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch))))
    return parts.once(result, "use bilevel.unrolled or bilevel.solution.")
