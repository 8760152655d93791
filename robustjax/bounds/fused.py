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
_COMPARISONS = frozenset({"ge", "gt", "le", "lt", "eq", "ne"})
_STEPS = frozenset({"sign", "floor", "ceil", "round", "is_finite"})  # constant in pieces, as comparisons and integers are
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
    return kinks.pop() if len(kinks) == 1 and np.isfinite([*kinks]).all() else None


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
    # On both sides f is linear. Slopes are differences over a length that the place does not swallow; the sides may not meet at the place.
    point, length = jnp.asarray(place, lower.dtype), max(1.0, abs(place))
    before, at, after = _limits(function, numbers, point)
    left, right = (before - _call(function, numbers, point - length)) / length, (_call(function, numbers, point + length) - after) / length
    found = hinge(place, before, left, right, lower, upper, slope)
    low, high = jnp.minimum(jnp.minimum(at, after) - before, 0.0), jnp.maximum(jnp.maximum(at, after) - before, 0.0)
    is_after, is_before = lower > place, upper < place
    low, high = (jnp.where(is_after, after - before, jnp.where(is_before, 0.0, jump)) for jump in (low, high))
    return found._replace(lower_bias=found.lower_bias + low, upper_bias=found.upper_bias + high)


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
        ends = [value(lower), value(upper)]
        contains = (lower <= place) & (place <= upper)
        inside = [jnp.where(contains, each, ends[0]) for each in _limits(function, numbers, jnp.asarray(place, lower.dtype))]
        values = jnp.stack([*ends, *inside])  # of an end that is infinite 0 * inf may come
        low, high = (jnp.where(jnp.isnan(values), unknown, values) for unknown in (-jnp.inf, jnp.inf))
        return low.min(axis=0), high.max(axis=0)
    found = _in_pieces(function, numbers, lower, upper, enclose_fn, is_flat=True)
    return found.lower_bias, found.upper_bias


def _in_pieces(function, numbers, lower, upper, enclose_fn, is_flat=False):
    """The chord's slope, and the extremes of f(x) - slope x over pieces of the interval: of both enclosures the tighter one.

    On a piece around c, f lies in its interval enclosure, and in f(c) + f'(piece) (x - c) by the mean value theorem, up to its jumps:
    their height is known where the variable is compared with a number; on pieces with another jump the enclosure alone counts.
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
    jumps = _jumps(function, numbers, lower, upper, low, high, enclose_fn)
    steep = jnp.maximum(jnp.abs(d_low - slopes), jnp.abs(d_high - slopes)) * reach + jumps
    tilt = jnp.abs(slopes) * reach
    high_bias = jnp.minimum(at - slopes * middle + steep, f_high - slopes * middle + tilt)
    low_bias = jnp.maximum(at - slopes * middle - steep, f_low - slopes * middle - tilt)
    all_low, all_high = enclose_fn(function, numbers, lower, upper)  # of intervals without an end nothing more is known
    low_bias = jnp.where(known, jnp.min(jnp.where(jnp.isnan(low_bias), -jnp.inf, low_bias), axis=0), all_low)
    high_bias = jnp.where(known, jnp.max(jnp.where(jnp.isnan(high_bias), jnp.inf, high_bias), axis=0), all_high)
    return Planes(slope, low_bias, slope, high_bias)


def _jumps(function, numbers, lower, upper, low, high, enclose_fn):
    """How far the function may jump on each piece [low, high] of [lower, upper]; infinity where that is not known."""
    root, moving = function.inputs[0], graph.depends(function, function.inputs[:1])
    value_of = dict(zip(function.inputs[1:], numbers, strict=True))
    thresholds: set[graph.Variable] = set()
    steps: list[graph.Variable] = []
    for eqn in function.equations:
        if _is_threshold(eqn, root, value_of):
            thresholds.update(variable for variable in eqn.inputs if variable is not root)
        elif _is_step(eqn) and not moving.isdisjoint(eqn.outputs):
            steps.append(eqn.outputs[0])
    total = jnp.zeros_like(low)
    for threshold in thresholds:
        place = jnp.clip(jnp.asarray(value_of[threshold], lower.dtype), lower, upper)
        values = jnp.stack(_limits(function, numbers, place))
        height = values.max(axis=0) - values.min(axis=0)
        total += jnp.where((low <= place[None]) & (place[None] <= high), height[None], 0.0)
    if not steps:
        return total
    spread = enclose_fn(_spread(function, steps, lower.dtype), numbers, low, high)
    return jnp.where(spread[0] < spread[1], jnp.inf, total)


def _is_threshold(eqn, root, numbers):
    """Whether the variable itself is compared with a number."""
    one, *rest = [variable for variable in eqn.inputs if variable is not root] or [None]
    return eqn.primitive.name in _COMPARISONS and one in numbers and not rest


def _is_step(eqn):
    name, types = eqn.primitive.name, (eqn.inputs[0].aval.dtype, eqn.outputs[0].aval.dtype)
    is_float, stays_float = (jnp.issubdtype(each, jnp.floating) for each in types)
    return name in _STEPS | _COMPARISONS or (name == "convert_element_type" and is_float and not stays_float)


def _spread(function, steps, dtype):
    """A program that is zero, and of which the interval enclosure is zero alone where each step is one number."""

    def spread(x, *numbers):
        known = graph.values(function, {}, x, *numbers)
        values = [jnp.asarray(known[step], dtype) for step in steps]
        return [sum((value - value for value in values), jnp.zeros((), dtype))]

    return graph.program(spread, *_scalars(function, dtype))


def _limits(function, numbers, x):
    """What the function tends to from below x, its value, and what it tends to from above, as far as x itself is compared with numbers."""
    return tuple(_call(function, numbers, x, side) for side in (-1.0, 0.0, 1.0))


def _call(function, numbers, x, side=0.0):
    """The function at every place of x; what is compared with a number equal to it counts as lying on a side of it."""
    root, known = function.inputs[0], frozenset(function.inputs[1:])

    def compared(context, eqn, *values):
        if side and _is_threshold(eqn, root, known):
            is_equal = values[0] == values[1]
            moved = (jnp.asarray(side if variable is root else 0.0, values[0].dtype) for variable in eqn.inputs)
            values = tuple(jnp.where(is_equal, beside, value) for beside, value in zip(moved, values, strict=True))
        return graph.bind(context, eqn, *values)

    one = lambda x: graph.forward(function, dict.fromkeys(_COMPARISONS, compared), x, *numbers)[0]  # noqa: E731
    return jax.vmap(one)(x.reshape(-1)).reshape(x.shape)


def _derivative(function, dtype):
    rules = {"stop_gradient": lambda context, eqn, value: [value]}  # the function's own derivative, not the model's

    def derivative(x, *numbers):
        return [jax.jvp(lambda x: graph.forward(function, rules, x, *numbers)[0], (x,), (jnp.ones_like(x),))[1]]

    return graph.program(derivative, *_scalars(function, dtype))


def _scalars(function, dtype):
    return [jax.ShapeDtypeStruct((), dtype), *(jax.ShapeDtypeStruct((), variable.aval.dtype) for variable in function.inputs[1:])]
