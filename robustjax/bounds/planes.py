"""Affine functions below and above each non-linear equation, over bounds of its inputs: what CROWN hands linear forms back through."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import graph
from robustjax.base import Array
from robustjax.bounds import fused, fusing, intervals, operations, relaxations
from robustjax.bounds.network import Bounds
from robustjax.bounds.relaxations import Planes

Slope = Any  # of the lower line of an unstable ReLU: "adaptive", "parallel", "zero", "one", or an array in [0, 1]


class Elementwise(NamedTuple):
    """sum of lower[i] * input i + lower_bias <= output <= sum of upper[i] * input i + upper_bias, place by place."""

    lower: tuple[Array, ...]  # a slope for each input that depends on the model's, in the shape of the output
    lower_bias: Array
    upper: tuple[Array, ...]
    upper_bias: Array


class Mapped(NamedTuple):
    """lower_fn(*inputs) <= output <= upper_fn(*inputs), both affine in the inputs that depend on the model's."""

    lower_fn: Callable[..., Array]
    upper_fn: Callable[..., Array]


def of(eqn: graph.Equation, values: Sequence, bounds: Sequence[Bounds], slope: Slope) -> Elementwise | Mapped:
    """Planes of an equation that is not affine.

    Args:
      eqn: the equation.
      values: of its inputs, with anything abstract where they depend on the model's input.
      bounds: of those that do, in order.
      slope: of unstable ReLUs.

    Raises:
      ValueError: there are none for the primitive.
    """
    name = eqn.primitive.name
    if name == fusing.FUSED:
        return _one(fused.planes(eqn.params["function"], values[1:], *bounds[0], intervals.enclose, slope))
    if name in ("max", "min"):
        return _larger(eqn, values, bounds, slope)
    if name in relaxations.UNARY:
        return _one(relaxations.UNARY[name].planes_fn(eqn.params, *bounds[0]))
    if name in _RULES:
        return _RULES[name](eqn, values, bounds)
    return operations.no_rule(eqn)


def bent_at_zero(eqn: graph.Equation, values: Sequence, bounds: Sequence[Bounds]) -> Bounds | None:
    """Bounds of what a ReLU in the equation compares with zero, so that `slope` matters; None where there is none.

    Args:
      eqn, values, bounds: as for `of`.
    """
    name = eqn.primitive.name
    if name in ("max", "min"):
        (x, y), sign = _compared(values, bounds), 1.0 if name == "max" else -1.0
        difference = Bounds(x.lower - y.upper, x.upper - y.lower)
        return difference if sign > 0 else _turned(difference, sign)
    place = fused.kink(eqn.params["function"]) if name == fusing.FUSED else None
    return None if place is None else Bounds(bounds[0].lower - place, bounds[0].upper - place)


def constant(eqn: graph.Equation, values: Sequence, bounds: Sequence[Bounds]) -> Elementwise:
    """The range of an equation's output as planes of slope zero: what interval bounds know of it."""
    given = iter(bounds)
    filled = [next(given) if abstract else value for value, abstract in zip(values, operations.is_abstract(values), strict=True)]
    (found,) = intervals.rule(None, eqn, *filled)
    return Elementwise((), found.lower, (), found.upper)


def _one(planes: Planes) -> Elementwise:
    return Elementwise((planes.lower_slope,), planes.lower_bias, (planes.upper_slope,), planes.upper_bias)


def _compared(values, bounds):
    """The two inputs of a maximum or minimum, one that depends on the model's input first."""
    known = [Bounds(value, value) for value in values if graph.is_concrete(value)]
    return (*bounds, *known)


def _larger(eqn, values, bounds, slope):
    """max(x, y) = y + max(x - y, 0), min(x, y) = -max(-x, -y)."""
    sign = 1.0 if eqn.primitive.name == "max" else -1.0
    x, y = (_turned(each, sign) for each in _compared(values, bounds))
    relu = relaxations.relu(x.lower - y.upper, x.upper - y.lower, slope)
    lower, upper = [relu.lower_slope], [relu.upper_slope]
    low_bias, high_bias = relu.lower_bias, relu.upper_bias
    if len(bounds) > 1:
        lower, upper = [*lower, 1.0 - lower[0]], [*upper, 1.0 - upper[0]]
    else:
        rest_low, rest_high = (jnp.where(each == 1.0, 0.0, (1.0 - each) * y.lower) for each in (lower[0], upper[0]))  # y may be -inf
        low_bias, high_bias = low_bias + rest_low, high_bias + rest_high
    if sign > 0:
        return Elementwise(tuple(lower), low_bias, tuple(upper), high_bias)
    return Elementwise(tuple(upper), -high_bias, tuple(lower), -low_bias)


def _turned(bounds, sign):
    return bounds if sign > 0 else Bounds(-bounds.upper, -bounds.lower)


def _product(eqn, values, bounds):
    """McCormick's planes of x * y; those of a square where both are one variable."""
    if eqn.inputs[0] is eqn.inputs[1]:
        found = relaxations.UNARY["square"].planes_fn({}, *bounds[0])
        half = 0.5 * found.lower_slope, 0.5 * found.upper_slope  # each of the two inputs is handed one half
        return Elementwise((half[0], half[0]), found.lower_bias, (half[1], half[1]), found.upper_bias)
    x, y = bounds
    return Elementwise((y.lower, x.lower), -x.lower * y.lower, (y.upper, x.lower), -x.lower * y.upper)


def _sum_of_products(eqn, values, bounds):
    """McCormick's planes of every product, summed up."""
    x, y = bounds
    product = lambda a, b: graph.bind(None, eqn, a, b)[0]  # noqa: E731
    return Mapped(
        lambda a, b: product(a, y.lower) + product(x.lower, b) - product(x.lower, y.lower),
        lambda a, b: product(a, y.upper) + product(x.lower, b) - product(x.lower, y.upper),
    )


def _quotient(eqn, values, bounds):
    """x / y = x * (1 / y): McCormick's planes, in which 1 / y is replaced by its own plane on the side that its factor asks for."""
    *numerator, y = bounds
    inverse = relaxations.reciprocal.planes_fn({}, *y)
    low, high = relaxations.reciprocal.range_fn({}, *y)
    if not numerator:
        factor = values[0]
        low_slope, high_slope = _by_sign(factor >= 0, inverse.lower_slope, inverse.upper_slope)
        low_bias, high_bias = _by_sign(factor >= 0, inverse.lower_bias, inverse.upper_bias)
        return Elementwise((factor * low_slope,), factor * low_bias, (factor * high_slope,), factor * high_bias)
    (x,) = numerator
    up = x.lower >= 0  # the factor of 1 / y in both planes
    low_slope, high_slope = _by_sign(up, inverse.lower_slope, inverse.upper_slope)
    low_bias, high_bias = _by_sign(up, inverse.lower_bias, inverse.upper_bias)
    return Elementwise((low, x.lower * low_slope), x.lower * (low_bias - low), (high, x.lower * high_slope), x.lower * (high_bias - high))


def _by_sign(up, low, high):
    return jnp.where(up, low, high), jnp.where(up, high, low)


def _power(eqn, values, bounds):
    exponent = values[1]
    if not isinstance(exponent, int | float | np.ndarray | np.generic) or np.ndim(exponent):
        return graph.no_rule(None, eqn, *values)
    return _one(relaxations.power(float(exponent)).planes_fn({}, *bounds[0]))


def _clamped(eqn, values, bounds):
    """clamp(low, x, high) with numbers for ends."""
    if not (graph.is_concrete(values[0]) and graph.is_concrete(values[2])):
        return graph.no_rule(None, eqn, *values)
    return _one(relaxations.clamp_to(values[0], values[2]).planes_fn({}, *bounds[0]))


def _largest(eqn, values, bounds):
    """The largest along axes."""
    return _winner(bounds[0], eqn.primitive.name == "reduce_max", lambda a, fill: a, eqn.params["axes"])


def _largest_in_windows(eqn, values, bounds):
    """The largest in each window, whose places are first put on an axis of their own."""
    p, shape = eqn.params, eqn.outputs[0].aval.shape
    config = [(low, high, inner - 1) for (low, high), inner in zip(p["padding"], p["base_dilation"], strict=True)]

    def windows(a, fill):
        padded = jax.lax.pad(a, jnp.asarray(fill, a.dtype), config)
        starts = [
            [o * step for o, step in zip(offset, p["window_dilation"], strict=True)] for offset in np.ndindex(*p["window_dimensions"])
        ]
        span = [(size - 1) * stride + 1 for size, stride in zip(shape, p["window_strides"], strict=True)]
        limits = [[start + length for start, length in zip(corner, span, strict=True)] for corner in starts]
        pairs = zip(starts, limits, strict=True)
        return jnp.stack([jax.lax.slice(padded, start, limit, p["window_strides"]) for start, limit in pairs])

    return _winner(bounds[0], eqn.primitive.name == "reduce_window_max", windows, (0,))


def _winner(bounds, is_max, gather_fn, axes):
    """Below: the input with the largest lower bound. Above: the same one where no other can be larger, else the largest upper bound."""
    x = bounds if is_max else _turned(bounds, -1.0)
    lower, upper = gather_fn(x.lower, -jnp.inf), gather_fn(x.upper, -jnp.inf)
    axes = tuple(axis % lower.ndim for axis in axes)
    best = _first(lower == lower.max(axis=axes, keepdims=True), axes)
    rivals = jnp.max(jnp.where(best, -jnp.inf, upper), axis=axes)
    wins = jnp.max(jnp.where(best, lower, -jnp.inf), axis=axes) >= rivals
    ceiling = jnp.where(wins, 0.0, upper.max(axis=axes))

    def chosen(a):
        return jnp.sum(jnp.where(best, gather_fn(a, 0.0), 0.0), axis=axes)

    # -max(-x) needs the two functions in each other's place, of -x, and that is the same choice of x.
    above = lambda a: jnp.where(wins, chosen(a), ceiling if is_max else -ceiling)  # noqa: E731
    return Mapped(chosen, above) if is_max else Mapped(above, chosen)


def _first(mask, axes):
    """The first True along axes alone."""
    kept = [axis for axis in range(mask.ndim) if axis not in axes]
    order = [*kept, *axes]
    flat = jnp.transpose(mask, order).reshape(*(mask.shape[axis] for axis in kept), -1)
    first = (jnp.cumsum(flat, axis=-1) == 1) & flat
    shape = [mask.shape[axis] for axis in order]
    return jnp.transpose(first.reshape(shape), np.argsort(order).tolist())


_RULES = {
    "mul": _product,
    "dot_general": _sum_of_products,
    "conv_general_dilated": _sum_of_products,
    "div": _quotient,
    "pow": _power,
    "clamp": _clamped,
    "reduce_max": _largest,
    "reduce_min": _largest,
    "reduce_window_max": _largest_in_windows,
    "reduce_window_min": _largest_in_windows,
}
