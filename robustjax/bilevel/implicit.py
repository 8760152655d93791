"""Implicit differentiation: the response of an inner optimum from one linear system, whatever found the optimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.base import Array, Bilevel, HyperGradient
from robustjax.bilevel import problem as parts


class ImplicitInfo(NamedTuple):
    """How good a hypergradient by implicit differentiation is."""

    residual: Array  # |H p - v| / |v|, H without damping, which is an error too
    stationarity: Array  # |d inner_loss / d theta|, 0 at the optimum that the method assumes
    solution: Any  # p, to warm-start the next


def implicit(
    problem: Bilevel, solve: Callable, phi, theta0, batch=None, *, linear_fn: Callable, damping=0.0, linear_start: Any = None
) -> HyperGradient:
    """d outer / d phi - (d^2 inner / d phi d theta) p, (d^2 inner / d theta^2 + damping) p = d outer / d theta, at theta = solve(...).

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta, near a minimum of the inner loss; it is not differentiated.
      phi: what the gradient is for.
      theta0: where solve starts; the gradient in it is zero, as it is at an optimum.
      batch: what the losses take.
      linear_fn: (product, v, start) -> p, such as `base.bind(bilevel.conjugate_gradient, num_steps=50)`.
      damping: added to the Hessian, where it is not positive definite.
      linear_start: the first p, like theta; None for zero.

    Returns:
      Value, gradient, theta, and `ImplicitInfo`: an unsolved system, or one that damping changed, shows in its residual.

    Raises:
      ValueError: phi has no effect; or the result is differentiated again, which `solution` is for.

    Guarantee:
      exact at an inner optimum with a regular Hessian and residual 0.
    Source: Bengio, 2000; with conjugate gradients Pedregosa, ICML 2016, arXiv:1602.02355; with Adam on the residual and a warm start
      Mehra & Hamm's ApproxGrad, arXiv:1911.03432.
    """
    parts.check(problem, phi, theta0, batch)
    theta = jax.lax.stop_gradient(solve(phi, theta0, batch))
    value, (v, direct) = jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(theta, phi, batch)
    product = parts.hessian(problem.inner_loss, theta, phi, batch, damping)
    v = jax.tree.map(parts.wide, v)
    p = linear_fn(product, v, jax.tree.map(jnp.zeros_like, v) if linear_start is None else linear_start)
    grad = jax.tree.map(jnp.subtract, direct, parts.response(problem.inner_loss, theta, phi, batch, p))
    size = parts.norm(v)
    miss = jax.tree.map(lambda h, p, v: h - damping * p - v, product(p), p, v)
    residual = parts.norm(miss) / jnp.where(size == 0, 1.0, size)
    stationarity = parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch))
    result = HyperGradient(value, grad, theta, ImplicitInfo(residual, stationarity, p))
    return parts.once(result, "differentiate outer_loss(bilevel.solution(...)(phi, theta0, batch), ...), as often as you like.")


def solution(inner_loss: Callable, solve: Callable, *, linear_fn: Callable, damping=0.0) -> Callable:
    """`solve` as a function (phi, theta0, batch) -> theta that differentiates implicitly: in both modes, to any order, inside any program.

    Args:
      inner_loss: what solve minimises in theta.
      solve, linear_fn, damping: as for `implicit`. Without a report of the residual: check it once with `implicit`.

    Guarantee:
      as `implicit`. The derivative in theta0 is zero: what a few steps of adaptation owe to their start needs `unrolled`.
    """

    def solved(phi, theta0, batch=None):
        def stationary(theta):
            return jax.grad(inner_loss)(theta, phi, batch)

        def tangent_solve(linear, v):
            def product(p):
                return jax.tree.map(lambda h, p: h + damping * p, linear(p), p)

            def by_products(product, v):
                return linear_fn(product, v, jax.tree.map(jnp.zeros_like, v))

            return jax.lax.custom_linear_solve(product, v, by_products, symmetric=True)

        return jax.lax.custom_root(stationary, theta0, lambda _, start: solve(phi, start, batch), tangent_solve)

    return solved
