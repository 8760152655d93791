"""Planes of any function of bounded curvature, from a grid; sines, by their phase."""

import jax
import jax.numpy as jnp

from robustjax import checks
from robustjax.base import Array
from robustjax.bounds.relaxations import _curves, planes
from robustjax.bounds.relaxations.planes import Function, Planes, Unary

_NUM_POINTS = 65  # of a sine: over a period the planes are widened by (2 pi / 64)^2 / 8 = 0.0012


def smooth(function: Function, curvature: float | Array, lower: Array, upper: Array, num_points: int) -> Planes:
    """Two lines of the chord's slope around f, where |f''| <= curvature: f - slope x on a grid, widened by curvature h^2 / 8.

    Args:
      function: of one variable, element by element, twice differentiable.
      curvature: a bound on |f''| over the interval; a number or an array that broadcasts to the shape of lower.
      lower, upper: ends of the intervals, of one shape.
      num_points: of the grid, at least 2; so many evaluations of the function.

    Returns:
      The planes; infinite constants where an end, or the function on the grid, is not finite.

    Raises:
      ValueError: fewer points than two. TypeError: num_points is no integer.
    Guarantee:
      each plane holds on the whole interval, up to rounding of the function's values, if the curvature is a bound. First derivatives
      are exact, higher ones are not.
    Source: between two points of a grid, linear interpolation of f errs by at most curvature h^2 / 8 (de Boor, 1978, chapter III).
    """
    checks.counts(2, num_points=num_points)
    share = jnp.linspace(0.0, 1.0, num_points, dtype=lower.dtype).reshape((num_points,) + (1,) * lower.ndim)

    def grid(start, end):
        return (1 - share) * start[None] + share * end[None]  # ends are met exactly

    start, end = jax.lax.stop_gradient((lower, upper))
    width, values = end - start, function(grid(start, end))
    middle_slope = jax.jvp(function, (0.5 * start + 0.5 * end,), (jnp.ones_like(start),))[1]
    rise, unit = values[-1] - values[0], 4 * jnp.finfo(lower.dtype).eps
    is_short = jnp.abs(middle_slope * width - rise) <= unit * (jnp.abs(values[0]) + jnp.abs(values[-1]))
    slope = jnp.where(is_short, middle_slope, rise / jnp.where(width > 0, width, 1.0))
    usable = jnp.isfinite(width) & jnp.isfinite(values).all(axis=0) & jnp.isfinite(slope)
    usable &= jnp.isfinite(slope * start) & jnp.isfinite(slope * end)

    start, end = jnp.where(usable, lower, 1.0), jnp.where(usable, upper, 1.0)
    x = grid(start, end)
    values = planes.value(function, x)
    slope = planes.secant(jnp.where(usable, slope, 0.0), start, values[0], end, values[-1])
    rest = values - slope[None] * x
    # Points of the grid are rounded, and so are their distances.
    step = (end - start) / (num_points - 1) + unit * jnp.maximum(jnp.abs(start), jnp.abs(end)) * (end > start)
    widening = jnp.broadcast_to(jnp.asarray(curvature, lower.dtype), lower.shape) * jnp.square(step) / 8
    low, high = rest.min(axis=0) - widening, rest.max(axis=0) + widening
    slope = jnp.where(usable, slope, 0.0)
    return Planes(slope, jnp.where(usable, low, -jnp.inf), slope, jnp.where(usable, high, jnp.inf))


def sine(function: Function, derivative: Function) -> Unary:
    """A function with f'' = -f, such as sin and cos, f' being its derivative: exact range; the best lines over half a period or less.

    Over longer intervals the planes are those of `smooth`, or constants where these enclose a smaller area.
    """

    def range_fn(params, lower, upper):
        return _sine_range(function, derivative, lower, upper)

    def planes_fn(params, lower, upper):
        return _sine_planes(function, derivative, lower, upper)

    return Unary(range_fn, planes_fn)


def _phase(function, derivative, x):
    """Where f is the sine of the phase, in [-pi, pi], as exact as f and f' are, however large x is."""
    x = jax.lax.stop_gradient(x)
    return jnp.arctan2(function(x), derivative(x))


def _sine_range(function, derivative, lower, upper):
    finite = jnp.isfinite(upper - lower)
    start, end = jnp.where(finite, lower, 0.0), jnp.where(finite, upper, 0.0)
    phase, width = _phase(function, derivative, start), jax.lax.stop_gradient(end - start)
    first, last = function(start), function(end)

    def contains(extreme):
        return phase + width >= jnp.where(phase > extreme, extreme + 2 * jnp.pi, extreme)

    low = jnp.where(contains(-0.5 * jnp.pi) | ~finite, -1.0, jnp.minimum(first, last))
    high = jnp.where(contains(0.5 * jnp.pi) | ~finite, 1.0, jnp.maximum(first, last))
    return low, high


def _sine_planes(function, derivative, lower, upper):
    finite = jnp.isfinite(upper - lower)
    start, end = jnp.where(finite, lower, 0.0), jnp.where(finite, upper, 7.0)  # longer than a period
    width = end - start
    is_short = width <= jnp.pi
    wide = _wide_sine(function, derivative, lower, upper, start, end)

    # Shifted by the nearest multiple k of pi, the phase lies in [-pi, pi], where a sine turns at 0 alone; an odd k changes its sign.
    fixed, width = jax.lax.stop_gradient(start), jnp.where(is_short, width, 0.0)
    phase = _phase(function, derivative, start)
    multiple = jnp.round((phase + 0.5 * jax.lax.stop_gradient(width)) / jnp.pi)
    shifted = phase - multiple * jnp.pi + (start - fixed)
    narrow = _curves.bend(_curves.Curve(jnp.sin, jnp.cos), shifted, shifted + width)
    below, bias_below, above, bias_above = narrow
    is_odd = multiple % 2 == 1
    below, bias_below, above, bias_above = (
        jnp.where(is_odd, a, b) for a, b in ((-above, below), (-bias_above, bias_below), (-below, above), (-bias_below, bias_above))
    )
    back = shifted - start
    narrow = Planes(below, bias_below + below * back, above, bias_above + above * back)
    return jax.tree.map(lambda a, b: jnp.where(is_short, a, b), narrow, wide)


def _wide_sine(function, derivative, lower, upper, start, end):
    low, high = _sine_range(function, derivative, lower, upper)
    lines = smooth(function, 1.0, start, end, _NUM_POINTS)
    middle = 0.5 * start + 0.5 * end
    finite = jnp.isfinite(upper - lower)
    is_higher = finite & (lines.lower_slope * middle + lines.lower_bias > low)
    is_lower = finite & (lines.upper_slope * middle + lines.upper_bias < high)
    slope = lines.lower_slope
    return Planes(
        jnp.where(is_higher, slope, 0.0),
        jnp.where(is_higher, lines.lower_bias, low),
        jnp.where(is_lower, slope, 0.0),
        jnp.where(is_lower, lines.upper_bias, high),
    )
