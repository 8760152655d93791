"""Implicit differentiation: the response of an inner optimum from one linear system, whatever found the optimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from robustjax.base import Array, Bilevel, HyperGradient, Numeric, SolveFn
from robustjax.bilevel import problem as parts
from robustjax.bilevel.problem import LinearFn


class ImplicitInfo(NamedTuple):
    """How good a hypergradient by implicit differentiation is.

    Measured on ridge regression against the closed form, by condition number of the inner Hessian (10, 100, 1000), float64; for `residual`
    with CG, Neumann's series, Adam and damping at the optimum, for `stationarity` with descent of 1 to 10,000 steps and exact systems.
    """

    # |H p - v| / |v|, H without damping, which is an error too. The relative error of the response is at most the condition number times
    # that; it was below .008, .0001 and .08 where the residual was below .01, and below .09, .35 and .53 where it was below .1.
    residual: Array
    # |d inner_loss / d theta|, 0 at the optimum that the method assumes; theta is at most this / smallest eigenvalue of H from it. Where
    # that bound was below .01 of |theta| the gradient was right to .0001; between .1 and 1 it was wrong by .1 to 1.1.
    stationarity: Array
    solution: Any  # p, to warm-start the next; as good as the residual


def implicit(
    problem: Bilevel,
    solve: SolveFn,
    phi: Any,
    theta0: Any,
    batch: Any = None,
    *,
    linear_fn: LinearFn,
    damping: Numeric = 0.0,
    linear_start: Any = None,
) -> HyperGradient:
    """d outer / d phi - (d^2 inner / d phi d theta) p, (d^2 inner / d theta^2 + damping) p = d outer / d theta, at theta = solve(...).

    >>> problem = base.Bilevel(lambda theta, phi, _: (theta - phi) ** 2, lambda theta, phi, _: theta**2)
    >>> solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.5, num_steps=1)
    >>> float(bilevel.implicit(problem, solve, jnp.float32(2.0), jnp.float32(0.0), linear_fn=bilevel.dense).grad)  # theta = phi
    4.0

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta, near a minimum of the inner loss; it is not differentiated.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where solve starts; the gradient in it is zero, as it is at an optimum.
      batch: what the losses take as their third argument.
      linear_fn: (product, v, start) -> p, such as `base.bind(bilevel.conjugate_gradient, num_steps=50)`.
      damping: added to the Hessian, where it is not positive definite.
      linear_start: the first p, like theta; None for zero.

    Returns:
      Value, gradient, theta, and `ImplicitInfo`: an unsolved system, or one that damping changed, shows in its residual.

    Raises:
      TypeError, ValueError: what `check` names; a solver or a linear_fn that are not bound, or give something else; damping below 0; or the
        result is differentiated again, which `solution` is for.

    Guarantee:
      exact at an inner optimum with a regular Hessian and residual 0.
    Source: Bengio, 2000; with conjugate gradients Pedregosa, ICML 2016, arXiv:1602.02355; with Adam on the residual and a warm start
      Mehra & Hamm's ApproxGrad, arXiv:1911.03432.
    """
    parts.check(problem, phi, theta0, batch)
    parts.not_negative(damping=damping)
    theta = jax.lax.stop_gradient(parts.solved(solve, phi, theta0, batch))
    value, (v, direct) = jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(theta, phi, batch)
    product = parts.hessian(problem.inner_loss, theta, phi, batch, damping)
    v = jax.tree.map(parts.at_least_float32, v)
    p = parts.linear_solution(linear_fn, product, v, linear_start)
    grad = jax.tree.map(jnp.subtract, direct, parts.response(problem.inner_loss, theta, phi, batch, p))
    residual = parts.mismatch(jax.tree.map(jnp.subtract, product(p), parts.times(damping, p)), v)
    stationarity = parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch))
    result = HyperGradient(value, grad, theta, ImplicitInfo(residual, stationarity, p))
    return parts.refuse_second_derivative(
        result, "differentiate outer_loss(bilevel.solution(...)(phi, theta0, batch), ...), as often as you like."
    )


def solution(inner_loss: Callable, solve: SolveFn, *, linear_fn: LinearFn, damping: Numeric = 0.0) -> SolveFn:
    """`solve` as a function (phi, theta0, batch) -> theta that differentiates implicitly: in both modes, to any order, inside any program.

    Args:
      inner_loss: (theta, phi, batch) -> scalar, what solve minimises in theta.
      solve: (phi, theta0, batch) -> theta, near a minimum of the inner loss; it is not differentiated.
      linear_fn: (product, v, start) -> p, such as `base.bind(bilevel.conjugate_gradient, num_steps=50)`. Nothing reports its residual
        here: look at it once with `implicit`.
      damping: added to the Hessian, where it is not positive definite.

    Raises:
      TypeError, ValueError: those of `implicit`, when the solution is asked for.

    Guarantee:
      exact at an inner optimum with a regular Hessian and residual 0. The derivative in theta0 is zero: what a few steps of adaptation
      owe to their start needs `unrolled`.
    """

    parts.not_negative(damping=damping)

    def solved(phi, theta0, batch=None):
        parts.variables(phi=phi, theta0=theta0)
        parts.takes(inner_loss, "inner_loss(theta, phi, batch)", theta0, phi, batch)
        parts.scalar("inner_loss", jax.eval_shape(inner_loss, theta0, phi, batch))

        def stationary(theta):
            return jax.grad(inner_loss)(theta, phi, batch)

        def tangent_solve(linear, v):
            # Flat: custom_linear_solve has no transpose where phi moves some leaves of theta only.
            flat, unravel = ravel_pytree(v)

            def product(flat):
                p = unravel(flat)
                return ravel_pytree(jax.tree.map(jnp.add, linear(p), parts.times(damping, p)))[0]

            def by_products(product, flat):
                return ravel_pytree(parts.linear_solution(linear_fn, lambda p: unravel(product(ravel_pytree(p)[0])), unravel(flat)))[0]

            return unravel(jax.lax.custom_linear_solve(product, flat, by_products, symmetric=True))

        return jax.lax.custom_root(stationary, theta0, lambda _, start: parts.solved(solve, phi, start, batch), tangent_solve)

    return solved
