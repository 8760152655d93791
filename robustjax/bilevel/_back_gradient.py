"""Back-gradient: reverse mode that walks gradient descent backwards instead of remembering it (Munoz-Gonzalez et al., 2017)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks
from robustjax.base import Array, Bilevel, HyperGradient, SolveFn
from robustjax.bilevel import descent
from robustjax.bilevel import problem as parts


class BackInfo(NamedTuple):
    """How far to trust a back-gradient.

    Measured on ridge regression against `unrolled` (condition numbers 10, 100 and 1000, steps of .01 to 1 of 1 / lambda_max, 1 to 300 of
    them, float64).
    """

    # |theta0 as reversed - theta0| / |theta_T - theta0|: 0 if the way back was the way out. The gradient was right to .01 below .03 and to
    # .03 below .1; wrong by up to 1.1 below 1, and by up to 1e58 above. 0 if stored, where the gradient is exact to 1e-12.
    residual: Array
    stationarity: Array  # |d inner_loss / d theta| at theta: as in `SolveInfo`


def back_gradient(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None, *, stored: bool = False) -> HyperGradient:
    """Reverse mode through plain gradient descent whose iterates come from theta_{t-1} ~ theta_t + step_size d inner(theta_t).

    The way back inverts each step only to first order, and what the steps contract it expands: with a step of 1 / lambda_max the
    reversal explodes on ridge regression within a hundred steps, and is biased on logistic regression. Small steps, or `stored`.

    Args:
      problem: inner and outer loss.
      solve: a bound `bilevel.descend` with a `step_size`, whose steps are reversed.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.
      stored: whether the iterates are remembered, at num_steps times the memory of theta; then the gradient is `unrolled`'s.

    Returns:
      Value, gradient, theta, and `BackInfo`: a reversal that went astray shows in its residual.

    Raises:
      TypeError, ValueError: what `check` names; another solver than such a `bilevel.descend`.

    Guarantee:
      exact if stored; else none.
    Source: Munoz-Gonzalez et al., AISec 2017, Algorithm 2, arXiv:1708.08689. Differs: all T steps are reversed, theirs T - 1; Hessian
      products are exact.
    """
    if not isinstance(solve, base.Configured) or solve.function is not descent.descend or solve.get("step_size") is None:
        raise ValueError("back_gradient reverses plain gradient descent: expected solve=base.bind(bilevel.descend, step_size=..., ...).")
    parts.check(problem, phi, theta0, batch)
    parts.takes(solve, "solve(phi, theta0, batch)", phi, theta0, batch)
    num_steps, step_size, inner_loss = (solve.get(name) for name in ("num_steps", "step_size", "inner_loss"))
    checks.counts(num_steps=num_steps)

    def out(theta, _):
        return descent.descend(phi, theta, batch, inner_loss=inner_loss, num_steps=1, step_size=step_size), theta if stored else None

    theta, path = jax.lax.scan(out, theta0, length=num_steps)
    value, (adjoint, grad) = jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(theta, phi, batch)

    def descended(tree, slope):
        return jax.tree.map(lambda a, b: (a - step_size * b).astype(a.dtype), tree, slope)

    def back(carry, before):
        theta, adjoint, grad = carry
        if not stored:
            slope = jax.grad(inner_loss)(theta, phi, batch)
            before = jax.tree.map(lambda t, g: (t + step_size * g).astype(t.dtype), theta, slope)
        _, pull = jax.vjp(lambda theta, phi: jax.grad(inner_loss)(theta, phi, batch), before, phi)
        by_theta, by_phi = pull(adjoint)
        adjoint, grad = descended(adjoint, by_theta), descended(grad, by_phi)
        return (before, adjoint, grad), None

    (start, _, grad), _ = jax.lax.scan(back, (theta, adjoint, grad), path, length=num_steps, reverse=True)
    missed, way = (parts.norm(jax.tree.map(jnp.subtract, end, theta0)) for end in (start, theta))
    residual = arrays.ratio(missed, way, missed)
    stationarity = parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch))
    return HyperGradient(value, grad, theta, BackInfo(residual, stationarity))
