"""Functions of pieces: the rectifier, a maximum or minimum with a constant, clipping, and steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax.base import Array
from robustjax.bounds.relaxations import planes
from robustjax.bounds.relaxations.planes import Function, Planes, Unary

_SLOPES = ("adaptive", "parallel", "zero", "one")


def relu(lower: Array, upper: Array, slope: str | Array = "adaptive") -> Planes:
    """The planes of max(x, 0): exact where its sign is known, else the chord above and a line through 0 below.

    Args:
      lower, upper: ends of the intervals, of one shape.
      slope: of the line below where lower < 0 < upper: "adaptive", 1 where that of the chord is above 1/2, else 0, which encloses the
        smaller area; "parallel", that of the chord; "zero", "one"; or values in [0, 1] that broadcast to the shape of lower.

    Returns:
      The planes; those of infinite ends are limits, so that only the upper line over the whole real line is infinite.

    Raises:
      ValueError: another name of a slope, or an array that does not broadcast.
    Guarantee:
      each plane holds on the whole interval up to rounding of its own slope and bias.
    Source: "adaptive" is CROWN (Zhang et al., NeurIPS 2018, arXiv:1811.00866) and DeepPoly (Singh et al., POPL 2019); "parallel" is
      Fast-Lin (Weng et al., ICML 2018, arXiv:1804.09699), the dual of Wong & Kolter (ICML 2018, arXiv:1711.00851), and DeepZ (Singh et al.,
      NeurIPS 2018).
    """
    unstable = (lower < 0) & (upper > 0)
    finite = jnp.isfinite(upper - lower)
    start, end = jnp.where(unstable & finite, lower, -1.0), jnp.where(unstable & finite, upper, 1.0)
    chord = planes.secant(0.5 * end / (0.5 * end - 0.5 * start), start, jnp.zeros_like(start), end, end)
    rise = jnp.maximum(-chord * start, end - chord * end)  # equal, but where the slope was rounded to zero
    limit = jnp.where(lower == -jnp.inf, jnp.where(upper == jnp.inf, jnp.inf, upper), -lower)
    active = (lower >= 0).astype(lower.dtype)
    above = jnp.where(unstable, jnp.where(finite, chord, lower > -jnp.inf), active)
    bias = jnp.where(unstable, jnp.where(finite, rise, limit), 0.0)
    below = jnp.where(unstable, _slope(slope, above), active)
    return Planes(below, jnp.zeros_like(lower), above, bias)


def _slope(slope, chord):
    if not isinstance(slope, str):
        slope = jnp.asarray(slope, chord.dtype)
        if jnp.broadcast_shapes(slope.shape, chord.shape) != chord.shape:
            raise ValueError(
                f"expected slopes that broadcast to the shape of lower {chord.shape}, got {slope.shape}; give one for each unit."
            )
        return jnp.broadcast_to(slope, chord.shape)
    if slope not in _SLOPES:
        raise ValueError(f"expected slope as one of {', '.join(_SLOPES)}, or an array of values in [0, 1]; got {slope!r}.")
    fixed = {"zero": jnp.zeros_like(chord), "one": jnp.ones_like(chord), "adaptive": (chord > 0.5).astype(chord.dtype)}
    return fixed.get(slope, chord)


def maximum_with(constant: float | Array, slope: str | Array = "adaptive") -> Unary:
    """max(x, constant) = constant + max(x - constant, 0).

    Args:
      constant: a number, or an array that broadcasts to the shape of x.
      slope: of the line below, as in `relu`.

    Returns:
      The relaxation; its params are not used.

    Guarantee:
      that of `relu`.
    """

    def planes_fn(params, lower, upper):
        level = jnp.broadcast_to(jnp.asarray(constant, lower.dtype), lower.shape)
        below, bias_below, above, bias_above = relu(lower - level, upper - level, slope)
        return Planes(below, bias_below + (1 - below) * level, above, bias_above + (1 - above) * level)

    return Unary(lambda params, lower, upper: (_clip(lower, constant, jnp.inf), _clip(upper, constant, jnp.inf)), planes_fn)


def minimum_with(constant: float | Array, slope: str | Array = "adaptive") -> Unary:
    """min(x, constant) = -max(-x, -constant); arguments and guarantee are those of `maximum_with`, and slope is that of the line above."""

    def planes_fn(params, lower, upper):
        below, bias_below, above, bias_above = maximum_with(-jnp.asarray(constant), slope).planes_fn(params, -upper, -lower)
        return Planes(above, -bias_above, below, -bias_below)

    return Unary(lambda params, lower, upper: (_clip(lower, -jnp.inf, constant), _clip(upper, -jnp.inf, constant)), planes_fn)


def clamp_to(low: float | Array, high: float | Array) -> Unary:
    """min(max(x, low), high): on each side the line through a corner or an end that encloses the smallest area.

    Args:
      low, high: numbers, or arrays that broadcast to the shape of x; low <= high, -inf and inf are allowed.

    Returns:
      The relaxation; its params are not used.

    Guarantee:
      each plane holds on the whole interval up to rounding of its own slope and bias; constants where an end is not finite.
    """

    def planes_fn(params, lower, upper):
        above, bias_above = _line_above(lower, upper, low, high)
        below, bias_below = _line_above(-upper, -lower, -jnp.asarray(high), -jnp.asarray(low))
        return Planes(below, -bias_below, above, bias_above)

    return Unary(lambda params, lower, upper: (_clip(lower, low, high), _clip(upper, low, high)), planes_fn)


def _clip(x, low, high):
    return jnp.clip(x, *(jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape) for bound in (low, high)))


def _line_above(lower, upper, low, high):
    high = jnp.broadcast_to(jnp.asarray(high, lower.dtype), lower.shape)
    bends = upper > high
    top = _clip(upper, low, high)
    is_flat = (bends & (0.5 * lower + 0.5 * upper >= high)) | (lower >= high) | ~jnp.isfinite(upper - lower)
    start, end = jnp.where(is_flat, 0.0, lower), jnp.where(is_flat, 0.0, jnp.where(bends, high, upper))
    first, last = _clip(start, low, high), _clip(end, low, high)
    run = jax.lax.stop_gradient(0.5 * end - 0.5 * start)
    slope = planes.secant((0.5 * last - 0.5 * first) / jnp.where(run > 0, run, 1.0), start, first, end, last)
    bias = jnp.maximum(first - slope * start, last - slope * end)
    return jnp.where(is_flat, 0.0, slope), jnp.where(is_flat, top, bias)


def step(function_of: Callable[..., Function]) -> Unary:
    """A monotone function of steps, given its params: constants, whose derivatives are zero."""

    def range_fn(params, lower, upper):
        function = function_of(params)
        return function(lower), function(upper)

    return Unary(range_fn, lambda params, lower, upper: planes.constant(*range_fn(params, lower, upper)))
