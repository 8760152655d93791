"""What a relaxation of one variable is, and the three formulas that all of them share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.base import Array

Function = Callable[[Array], Array]  # element by element


class Planes(NamedTuple):
    """lower_slope x + lower_bias <= f(x) <= upper_slope x + upper_bias for every x of [lower, upper]."""

    lower_slope: Array  # all four of the shape of lower
    lower_bias: Array
    upper_slope: Array
    upper_bias: Array


class Unary(NamedTuple):
    """How a function of one variable is bounded; params are those of its equation in a jaxpr."""

    range_fn: Callable[[Any, Array, Array], tuple[Array, Array]]  # (params, lower, upper) -> (low, high), exact up to rounding
    planes_fn: Callable[[Any, Array, Array], Planes]  # (params, lower, upper) -> planes


def constant(low: Array, high: Array) -> Planes:
    """The lines of slope zero."""
    return Planes(jnp.zeros_like(low), low, jnp.zeros_like(high), high)


def value(function: Function, x: Array) -> Array:
    """f(x), with a derivative of zero where that of f is not finite, as that of a root at 0."""
    fixed = jax.lax.stop_gradient(x)
    result, derivative = jax.jvp(function, (fixed,), (jnp.ones_like(fixed),))
    usable = jnp.isfinite(result) & jnp.isfinite(derivative)
    return jnp.where(usable, function(jnp.where(usable, x, 1.0)), jax.lax.stop_gradient(result))


def secant(slope: Array, start: Array, start_value: Array, end: Array, end_value: Array) -> Array:
    """The slope from (start, start_value) to (end, end_value), which is given, with its derivatives.

    These divide by end - start once, where those of a quotient divide twice, which overflows for short intervals; where they would overflow
    all the same, they are zero.
    """
    slope, run = jax.lax.stop_gradient((slope, end - start))
    holds = run > (1 + jnp.abs(slope)) * (1e6 / jnp.finfo(run.dtype).max)  # the function may be 10^6 times as steep at an end
    rest = end_value - start_value - slope * (end - start)
    return slope + jnp.where(holds, rest - jax.lax.stop_gradient(rest), 0.0) / jnp.where(holds, run, 1.0)
