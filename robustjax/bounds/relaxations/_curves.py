"""Planes of functions that bend one way, or one way before a point and the other way after it.

Over a part that bends one way, the chord of the ends bounds one side and a tangent the other; the tangent at the middle encloses the
smallest area. Across the point where the bend turns, the line from one end that touches the curve takes the place of the tangent, and the
chord where it touches beyond the other end. Each is the lowest at the middle of all lines above: no other encloses a smaller area.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.base import Array
from robustjax.bounds.relaxations import planes
from robustjax.bounds.relaxations.planes import Function, Planes, Unary

_HEADROOM = 1e4  # below the largest number, for derivatives


class Curve(NamedTuple):
    """A function that bends upward before `turn` and downward after it, or the other way where `is_reversed`; defined at 1."""

    function: Function
    derivative: Function  # a formula without cancellation, as the tails of a sigmoid need
    turn: float = 0.0  # 0: point-symmetric around it; inf: convex everywhere; -inf: concave everywhere
    is_reversed: bool = False
    has_vertex: bool = False  # not monotone where it is defined: extreme at 0
    contains: Callable[[Array, Array], Array] = lambda lower, upper: lower <= upper  # whether it is defined on the whole interval


def unary(curve_of: Callable[[Any], Curve]) -> Unary:
    """The relaxation of the curve that belongs to the params of an equation.

    Guarantee:
      each plane holds on the whole interval up to rounding of its own slope and bias; of all lines it encloses the smallest area. Where
      an end, or the function at an end, is not finite, planes are constants. First derivatives are exact, higher ones are not.
    Source: Zhang et al., NeurIPS 2018 (CROWN), section 3.2, arXiv:1811.00866. Differs: the touching line is kept where the tangent at
      the middle is worse or no bound; Singh et al. (POPL 2019, DeepPoly, section 4) take the smaller slope of both ends, which is looser.
    """
    return Unary(
        lambda params, lower, upper: _range(curve_of(params), lower, upper),
        lambda params, lower, upper: bend(curve_of(params), lower, upper),
    )


def bend(curve: Curve, lower: Array, upper: Array) -> Planes:
    """The planes of a curve."""
    low, high = _range(curve, lower, upper)
    if math.isinf(curve.turn):
        return Planes(*_line(curve, lower, upper, -1.0, low), *_line(curve, lower, upper, 1.0, high))
    # Both sides in one program, which is compiled in half the time.
    sides, bounds = jnp.array([-1.0, 1.0], lower.dtype), jnp.stack([low, high])
    slopes, biases = jax.vmap(lambda side, bound: _line(curve, lower, upper, side, bound))(sides, bounds)
    return Planes(slopes[0], biases[0], slopes[1], biases[1])


def _range(curve, lower, upper):
    contained = curve.contains(lower, upper)
    ends = [lower, upper, jnp.clip(0.0, lower, upper)] if curve.has_vertex else [lower, upper]
    values = planes.value(curve.function, jnp.where(contained, jnp.stack(ends), 1.0))
    largest = jnp.finfo(lower.dtype).max  # a value that overflows is no bound from below
    low, high = jnp.minimum(values.min(axis=0), largest), jnp.maximum(values.max(axis=0), -largest)
    return jnp.where(contained, low, -jnp.inf), jnp.where(contained, high, jnp.inf)


def _line(curve, lower, upper, side, bound):
    """Slope and bias of the line above (side 1) or below (side -1); the mirror image of every case is a line above with a turn down."""
    mirror = -side if curve.is_reversed else side

    def function(x):
        return side * curve.function(mirror * x)

    def derivative(x):
        return side * mirror * curve.derivative(mirror * x)

    start, end = jnp.where(mirror > 0, lower, -upper), jnp.where(mirror > 0, upper, -lower)
    fixed = jax.lax.stop_gradient((start, end))
    touch, is_chord, is_middle, slope = _touch(function, derivative, *fixed, mirror * curve.turn if math.isinf(curve.turn) else 0.0)
    points = jnp.stack([*fixed, touch])
    intercepts = function(points) - slope[None] * points
    usable = jnp.isfinite(_HEADROOM * intercepts).all(axis=0) & jnp.isfinite(fixed[1] - fixed[0])
    usable &= curve.contains(lower, upper)

    # What is not used is computed at a point where it and its derivatives are finite.
    start, end, touch = (jnp.where(usable, x, 1.0 * mirror) for x in (start, end, touch))
    middle, slope = 0.5 * start + 0.5 * end, jnp.where(usable, slope, 0.0)
    touch = jnp.where(is_middle, middle, jnp.where(is_chord, end, touch))
    points = jnp.stack([start, end, touch])
    values = planes.value(function, points)
    slope = jnp.where(is_middle, planes.value(derivative, middle), planes.secant(slope, start, values[0], touch, values[2]))
    bias = (values - slope[None] * points).max(axis=0)
    return jnp.where(usable, side * mirror * slope, 0.0), jnp.where(usable, side * bias, bound)


def _touch(function, derivative, start, end, turn):
    """Where the line above touches a curve that bends downward after `turn`, whether it is the chord, or has the slope at the middle."""
    middle, first, last = 0.5 * start + 0.5 * end, function(start), function(end)
    rise, run, slope_at_middle = last - first, end - start, derivative(middle)
    if turn == math.inf:
        touch, is_chord = end, jnp.ones_like(end, bool)
    elif turn == -math.inf:
        touch, is_chord = middle, jnp.zeros_like(end, bool)
    else:
        touch = _touch_from(start, end, function, derivative)
        is_curved = start >= 0
        reaches = (end > 0) & _is_below(start, first, function, derivative, end)
        touch, is_chord = jnp.where(is_curved, middle, jnp.maximum(touch, middle)), ~is_curved & ~reaches
    # Where rounding of the values hides the difference of chord and tangent, the tangent's slope has less error.
    unit = 4 * jnp.finfo(end.dtype).eps
    is_short = jnp.abs(slope_at_middle * run - rise) <= unit * (jnp.abs(first) + jnp.abs(last))
    is_middle = jnp.where(is_chord, is_short, touch == middle)
    chord = rise / jnp.where(run > 0, run, 1.0)
    slope = jnp.where(is_middle, slope_at_middle, jnp.where(is_chord, chord, derivative(touch)))
    return touch, is_chord, is_middle, slope


def _is_below(start, first, function, derivative, x):
    """Whether the tangent at x is above the curve at the start; the larger x, the higher it is there."""
    return function(x) + derivative(x) * (start - x) >= first


def _touch_from(start, end, function, derivative):
    """The least x > 0 whose tangent is above the curve at the start, by bisection that keeps an x where it is."""
    first = function(start)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * low + 0.5 * high
        holds = _is_below(start, first, function, derivative, middle)
        return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

    bracket = jnp.zeros_like(start), jnp.minimum(end, -start)  # by symmetry the tangent at -start is above
    return jax.lax.fori_loop(0, jnp.finfo(start.dtype).nmant + 2, halve, bracket)[1]
