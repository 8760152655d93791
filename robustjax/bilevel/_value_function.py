"""First-order ways: the value function as a penalty, and the gradient that ignores the response."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks
from robustjax.base import Array, Bilevel, HyperGradient, Numeric, SolveFn
from robustjax.bilevel import problem as parts
from robustjax.bilevel._unrolled import SolveInfo


class ValueInfo(NamedTuple):
    """How far to trust a gradient of the value function.

    Measured on ridge regression against the closed form: condition numbers 10, 100 and 1000 of the inner Hessian, weights .1 to 1e8, 3 to
    10,000 steps of descent, outer losses of both signs, float32 and float64, 1,920 gradients (`tests/bilevel/test_trust.py` holds some).
    """

    # (weight |d inner| at theta + weight |d (inner + outer / weight)| at theta' + |change of d outer between them|) / |d outer| at theta,
    # slopes in theta: what two unsolved problems, rounding and a small weight leave of the system H p = d outer. Below .01 the gradient was
    # right to .011, .044 and .072 (by condition number), below .1 to .10, .44 and .77, below 1 to .7, 4 and 7; above 1 it was wrong by half
    # of its length at least, mostly by orders of magnitude. NaN is as bad. What the losses have of phi directly is not seen in it.
    residual: Array
    stationarity: (
        Array  # the larger slope of the two problems in theta; small even where the gradient is wrong, since the weight multiplies it
    )


def value_function(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None, *, weight: Numeric) -> HyperGradient:
    """d outer / d phi + weight (d inner / d phi at theta' - at theta), theta' = argmin inner + outer / weight: no Hessian at all.

    Args:
      problem: inner and outer loss.
      solve: a bound solver with an `inner_loss`, such as `base.bind(bilevel.descend, ...)`; it runs twice, the second time from theta and
        on the sum.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.
      weight: of the inner loss; the bias falls like 1 / weight, rounding grows with it.

    Returns:
      Value, gradient, theta, and `ValueInfo`: problems that the weight asks to be solved better show in its residual.

    Raises:
      TypeError, ValueError: what `check` names; a solver without an inner_loss to exchange; a weight that is not above 0; or the result is
        differentiated again.

    Guarantee:
      exact as weight grows, with both problems solved.
    Source: Kwon et al., ICML 2023, arXiv:2301.10945; Ye et al. (BOME), NeurIPS 2022, arXiv:2209.08709.
    """
    if not isinstance(solve, base.Configured) or solve.get("inner_loss") is None:
        raise ValueError("value_function solves a second problem: expected solve=base.bind(bilevel.descend, inner_loss=..., ...).")
    parts.check(problem, phi, theta0, batch)
    checks.positive(weight=weight)

    def both(theta, phi, batch):
        value = problem.outer_loss(theta, phi, batch)
        return problem.inner_loss(theta, phi, batch) + value / jnp.asarray(weight).astype(value.dtype)

    theta = jax.lax.stop_gradient(parts.solved(solve, phi, theta0, batch))
    drawn = jax.lax.stop_gradient(base.bind(solve, inner_loss=both)(phi, theta, batch))
    of_phi = jax.grad(problem.inner_loss, argnums=1)
    direct = jax.grad(problem.outer_loss, argnums=1)(drawn, phi, batch)
    change = jax.tree.map(jnp.subtract, of_phi(drawn, phi, batch), of_phi(theta, phi, batch))
    grad = jax.tree.map(jnp.add, direct, parts.times(weight, change))
    first, second = (parts.norm(jax.grad(loss)(at, phi, batch)) for loss, at in ((problem.inner_loss, theta), (both, drawn)))
    value, v = jax.value_and_grad(problem.outer_loss)(theta, phi, batch)
    bias = parts.norm(jax.tree.map(jnp.subtract, jax.grad(problem.outer_loss)(drawn, phi, batch), v))
    missed = parts.times(weight, first + second) + bias
    info = ValueInfo(arrays.ratio(missed, parts.norm(v), missed), jnp.maximum(first, second))
    result = HyperGradient(value, grad, theta, info)
    return parts.refuse_second_derivative(result, "use bilevel.solution or bilevel.unrolled.")


def first_order(problem: Bilevel, solve: SolveFn, phi: Any, theta0: Any, batch: Any = None) -> HyperGradient:
    """d outer / d phi at theta held fixed: what alternating gradient descent follows.

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta; it is not differentiated.
      phi: what the gradient is for, a pytree of real numbers.
      theta0: where the inner solver starts, a pytree of real numbers.
      batch: what the losses take as their third argument.

    Returns:
      Value, gradient, theta, and how stationary theta is.

    Raises:
      TypeError, ValueError: what `check` names; phi acts through theta alone, so that the gradient would be zero; or the result is
        differentiated again.

    Guarantee:
      none: the response of theta is left out.
    """
    parts.check(problem, phi, theta0, batch, is_direct=True)
    theta = jax.lax.stop_gradient(parts.solved(solve, phi, theta0, batch))
    value, grad = jax.value_and_grad(problem.outer_loss, argnums=1)(theta, phi, batch)
    result = HyperGradient(value, grad, theta, SolveInfo(parts.norm(jax.grad(problem.inner_loss)(theta, phi, batch))))
    return parts.refuse_second_derivative(result, "use bilevel.unrolled or bilevel.solution.")
