"""Ranges and planes of a function of one variable that is given as a program: exact with one kink, in pieces otherwise."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import graph
from robustjax.base import Array
from robustjax.bounds import relaxations
from robustjax.bounds.relaxations import Planes

_NUM_PIECES = 32  # of an interval; the slack falls with their square
_LINEAR = frozenset({
    "add", "sub", "neg", "mul", "div", "max", "min", "select_n", "ge", "gt", "le", "lt", "convert_element_type", "copy", "stop_gradient",
    "add_any",
})  # fmt: skip


def kink(function: graph.Program) -> float | None:
    """The one place where a function, linear on both sides, bends; None where it is not known to be such a function."""
    root = function.inputs[0]
    moving, kinks = {root}, set()
    predicates: set[graph.Variable] = set()
    for eqn in function.equations:
        name, mine = eqn.primitive.name, [variable for variable in eqn.inputs if variable in moving]
        if name not in _LINEAR or (name == "mul" and len(mine) > 1) or (name == "div" and eqn.inputs[1] in moving):
            return None
        if name in ("max", "min", "ge", "gt", "le", "lt"):
            other = eqn.inputs[1] if eqn.inputs[0] is root else eqn.inputs[0]
            place = function.constants.get(other)
            if mine != [root] or not isinstance(place, np.ndarray | np.generic | int | float):
                return None
            kinks.add(float(place))
        if name in ("ge", "gt", "le", "lt"):
            predicates.update(eqn.outputs)
        elif name == "select_n" and (eqn.inputs[0] not in predicates or any(variable in predicates for variable in eqn.inputs[1:])):
            return None
        else:
            moving.update(eqn.outputs)
    return kinks.pop() if len(kinks) == 1 else None


EncloseFn = Callable[..., tuple[Array, Array]]  # (program of scalars, numbers, lower, upper) -> its interval enclosure at every place


def planes(
    function: graph.Program, numbers: Sequence[Array], lower: Array, upper: Array, enclose_fn: EncloseFn, slope="adaptive"
) -> Planes:
    """Two planes that enclose the function over [lower, upper], of any shape.

    Args:
      function: a program of scalars, of one variable and of numbers. numbers: their values.
      lower, upper: of the variable. enclose_fn: interval arithmetic.
      slope: of the lower line where there is one kink: see `relaxations.relu`.
    """
    place = kink(function)
    if place is None:
        return _in_pieces(function, numbers, lower, upper, enclose_fn)
    value = functools.partial(_call, function, numbers)
    at, left, right = (value(jnp.asarray(place + step, lower.dtype)) for step in (0.0, -1.0, 1.0))
    # f(x) = f(c) + left (x - c) + (right - left) max(x - c, 0); both slopes are differences over a length of 1
    left, right = at - left, right - at
    return hinge(place, at, left, right, lower, upper, slope)


def hinge(place, at, left, right, lower: Array, upper: Array, slope="adaptive") -> Planes:
    """Planes of at + left (x - place) + (right - left) max(x - place, 0)."""
    relu = relaxations.relu(lower - place, upper - place, slope)
    bend = right - left
    up = bend >= 0
    low_slope, high_slope = jnp.where(up, relu.lower_slope, relu.upper_slope), jnp.where(up, relu.upper_slope, relu.lower_slope)
    low_bias, high_bias = jnp.where(up, relu.lower_bias, relu.upper_bias), jnp.where(up, relu.upper_bias, relu.lower_bias)
    low_slope, high_slope = left + bend * low_slope, left + bend * high_slope
    return Planes(low_slope, at + bend * low_bias - low_slope * place, high_slope, at + bend * high_bias - high_slope * place)


def value_range(
    function: graph.Program, numbers: Sequence[Array], lower: Array, upper: Array, enclose_fn: EncloseFn
) -> tuple[Array, Array]:
    """The least and the greatest value over [lower, upper]: exact where there is one kink, else from pieces."""
    place = kink(function)
    if place is not None:
        value = functools.partial(_call, function, numbers)
        inside = jnp.clip(jnp.asarray(place, lower.dtype), lower, upper)
        values = jnp.stack([value(point) for point in (lower, inside, upper)])
        return values.min(axis=0), values.max(axis=0)
    found = _in_pieces(function, numbers, lower, upper, enclose_fn, is_flat=True)
    return found.lower_bias, found.upper_bias


def _in_pieces(function, numbers, lower, upper, enclose_fn, is_flat=False):
    """The chord's slope, and the extremes of f(x) - slope x over pieces of the interval: of both enclosures the tighter one.

    On a piece around c, f lies in its interval enclosure, and in f(c) + f'(piece) (x - c) by the mean value theorem.
    """
    width = upper - lower
    known = jnp.isfinite(lower) & jnp.isfinite(upper)
    start, width = jnp.where(known, lower, 0.0), jnp.where(known, width, 0.0)
    value = functools.partial(_call, function, numbers)
    chord = (value(start + width) - value(start)) / jnp.where(width > 0, width, 1.0)
    slope = jnp.where((width > 0) & (not is_flat) & jnp.isfinite(chord), chord, 0.0)
    ends = jnp.linspace(0.0, 1.0, _NUM_PIECES + 1, dtype=lower.dtype).reshape(-1, *(1,) * lower.ndim)
    points = start[None] + ends * width[None]
    points = points.at[-1].set(start + width)
    slopes = slope[None]
    middle = 0.5 * (points[:-1] + points[1:])
    low, high = points[:-1], points[1:]
    f_low, f_high = enclose_fn(function, numbers, low, high)
    d_low, d_high = enclose_fn(_derivative(function, lower.dtype), numbers, low, high)
    reach = jnp.maximum(high - middle, middle - low)
    at = value(middle)
    steep = jnp.maximum(jnp.abs(d_low - slopes), jnp.abs(d_high - slopes)) * reach
    tilt = jnp.abs(slopes) * reach
    high_bias = jnp.minimum(at - slopes * middle + steep, f_high - slopes * middle + tilt)
    low_bias = jnp.maximum(at - slopes * middle - steep, f_low - slopes * middle - tilt)
    all_low, all_high = enclose_fn(function, numbers, lower, upper)  # of intervals without an end nothing more is known
    low_bias = jnp.where(known, jnp.min(jnp.where(jnp.isnan(low_bias), -jnp.inf, low_bias), axis=0), all_low)
    high_bias = jnp.where(known, jnp.max(jnp.where(jnp.isnan(high_bias), jnp.inf, high_bias), axis=0), all_high)
    return Planes(slope, low_bias, slope, high_bias)


def _call(function, numbers, x):
    """The function at every place of x."""
    one = lambda x: graph.forward(function, {}, x, *numbers)[0]  # noqa: E731
    return jax.vmap(one)(x.reshape(-1)).reshape(x.shape)


def _derivative(function, dtype):
    scalars = [jax.ShapeDtypeStruct((), dtype), *(jax.ShapeDtypeStruct((), variable.aval.dtype) for variable in function.inputs[1:])]

    def derivative(x, *numbers):
        return [jax.jvp(lambda x: graph.forward(function, {}, x, *numbers)[0], (x,), (jnp.ones_like(x),))[1]]

    return graph.program(derivative, *scalars)
