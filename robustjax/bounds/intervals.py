"""The rules of interval arithmetic: what each primitive makes of values that lie between two numbers each."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import graph, lowering
from robustjax.base import Array
from robustjax.bounds import fused, fusing, operations, relaxations
from robustjax.bounds.network import Bounds

_NONDECREASING = frozenset({
    "add", "add_any", "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev", "concatenate", "pad",
    "reduce_sum", "cumsum", "copy", "copy_p", "max", "min", "reduce_precision", "reduce_window_sum",
    "dynamic_slice", "dynamic_update_slice", "gather", "split", "stop_gradient", "scatter-add", "optimization_barrier",
    "sharding_constraint", "device_put", "tile", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin",
    "clamp", "sort",
})  # fmt: skip


def rule(context, eqn: graph.Equation, *values) -> list:
    """The rule of every primitive for `Bounds` in the place of arrays.

    Raises:
      ValueError: there is none for the primitive.
    """
    abstract = operations.is_abstract(values)
    name = eqn.primitive.name
    if not any(abstract):
        return graph.bind(context, eqn, *values)
    is_single = name != "sort" or len(values) == 1  # what is sorted along with the keys is not ordered
    if name in _NONDECREASING and is_single and not any(abstract[position] for position in operations.known(eqn)):
        return _of_ends(context, eqn, *values)
    if name == fusing.FUSED:
        return [Bounds(*fused.value_range(eqn.params["function"], values[1:], values[0].lower, values[0].upper, enclose))]
    own = _RULES.get(name)
    if own is not None:
        return [Bounds(*own(context, eqn, *values))]
    if name in relaxations.UNARY:
        return [Bounds(*relaxations.UNARY[name].range_fn(eqn.params, *values[0]))]
    return operations.no_rule(eqn)


def enclose(function: graph.Program, numbers: Sequence[Array], lower: Array, upper: Array) -> tuple[Array, Array]:
    """Bounds of a program of scalars, of one variable and of numbers, at every place of the variable's bounds."""

    def one(lower, upper):
        (found,) = graph.forward(function, {}, Bounds(lower, upper), *numbers, default=rule)
        return tuple(jnp.asarray(end, lower.dtype) for end in ends(found))

    low, high = (end.reshape(lower.shape) for end in jax.vmap(one)(lower.reshape(-1), upper.reshape(-1)))
    return jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high)


def ends(value) -> Bounds:
    """The bounds of a value; those of an array are the array."""
    return value if isinstance(value, Bounds) else Bounds(value, value)


def _of_ends(context, eqn, *values):
    lower, upper = (graph.bind(context, eqn, *each) for each in zip(*map(ends, values), strict=True))
    return [Bounds(*pair) for pair in zip(lower, upper, strict=True)]


def _negated(context, eqn, a):
    return -a.upper, -a.lower


def _difference(context, eqn, a, b):
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    return a_low - b_high, a_high - b_low


def _product(context, eqn, a, b):
    """Place by place, the extremes are at the ends; a square is not below zero."""
    if a is b:
        return relaxations.UNARY["square"].range_fn({}, *a)
    corners = [x * y for x in ends(a) for y in ends(b)]
    return _widest(corners)


def _quotient(context, eqn, a, b):
    if not jnp.issubdtype(eqn.outputs[0].aval.dtype, jnp.floating):  # integers are rounded
        return graph.no_rule(context, eqn, a, b)
    low, high = relaxations.reciprocal.range_fn({}, *b) if isinstance(b, Bounds) else (1.0 / b, 1.0 / b)
    return _widest([x * y for x in ends(a) for y in (low, high)])


def _widest(corners):
    # 0 * inf is no number: nothing is known there.
    corner = jnp.stack(jnp.broadcast_arrays(*corners))
    return jnp.where(jnp.isnan(corner), -jnp.inf, corner).min(axis=0), jnp.where(jnp.isnan(corner), jnp.inf, corner).max(axis=0)


def _sum_of_products(context, eqn, a, b):
    """The centre goes through the products, the radius through those of absolute values."""
    product = lambda a, b: lowering.bind(context, eqn, a, b)[0]  # noqa: E731
    if isinstance(a, Bounds) and isinstance(b, Bounds):
        (a_mid, a_rad), (b_mid, b_rad) = _ball(a), _ball(b)
        middle = product(a_mid, b_mid)
        radius = product(jnp.abs(a_mid) + a_rad, b_rad) + product(a_rad, jnp.abs(b_mid))
    elif isinstance(a, Bounds):
        middle, radius = _ball(a)
        middle, radius = product(middle, b), product(radius, jnp.abs(b))
    else:
        middle, radius = _ball(b)
        middle, radius = product(a, middle), product(jnp.abs(a), radius)
    low, high = middle - radius, middle + radius
    return jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high)


def _ball(bounds):
    return 0.5 * bounds.lower + 0.5 * bounds.upper, 0.5 * bounds.upper - 0.5 * bounds.lower


def _chosen(context, eqn, predicate, *cases):
    """Between the cases that the predicate may choose."""
    low, high = (jnp.asarray(end) for end in ends(predicate))
    numbers = jnp.arange(len(cases), dtype=jnp.int32)
    possible = [(numbers[i] >= low) & (numbers[i] <= high) for i in range(len(cases))]
    lower = [jnp.where(can, ends(case).lower, jnp.inf) for can, case in zip(possible, cases, strict=True)]
    upper = [jnp.where(can, ends(case).upper, -jnp.inf) for can, case in zip(possible, cases, strict=True)]
    return jnp.stack(jnp.broadcast_arrays(*lower)).min(axis=0), jnp.stack(jnp.broadcast_arrays(*upper)).max(axis=0)


def _at_least(context, eqn, a, b):
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    compared = eqn.primitive.bind
    return compared(a_low, b_high), compared(a_high, b_low)


def _at_most(context, eqn, a, b):
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    compared = eqn.primitive.bind
    return compared(a_high, b_low), compared(a_low, b_high)


def _differs(context, eqn, a, b):
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    if a is b:  # only what is no number differs from itself
        never = jnp.zeros(jnp.shape(a_low), bool)
        return never, never
    one = (a_low == a_high) & (b_low == b_high)
    apart = (a_high < b_low) | (b_high < a_low)
    return apart, ~(one & (a_low == b_low))


def _equals(context, eqn, a, b):
    low, high = _differs(context, eqn, a, b)
    return ~high, ~low


def _not(context, eqn, a):
    return ~a.upper, ~a.lower


def _converted(context, eqn, a):
    """Nondecreasing, but for booleans, which ask whether a number is not zero, and narrower integers, which wrap around."""
    old, new = eqn.inputs[0].aval.dtype, eqn.params["new_dtype"]
    if jnp.issubdtype(new, jnp.bool_):
        return _differs(context, eqn, a, jnp.zeros((), old))
    if jnp.issubdtype(old, jnp.integer) and jnp.issubdtype(new, jnp.integer) and not np.can_cast(old, new):
        return graph.no_rule(context, eqn, a)
    return _of_ends(context, eqn, a)[0]


def _both_or_any(context, eqn, *values):
    """Of booleans; the bits of numbers are not ordered."""
    is_logical = jnp.issubdtype(eqn.outputs[0].aval.dtype, jnp.bool_)
    return _of_ends(context, eqn, *values)[0] if is_logical else graph.no_rule(context, eqn, *values)


def _finite(context, eqn, a):
    always = jnp.ones(jnp.shape(a.lower), bool)
    return always, always


def _power(context, eqn, a, exponent):
    if not isinstance(exponent, int | float | np.ndarray | np.generic) or np.ndim(exponent):
        return graph.no_rule(context, eqn, a, exponent)
    return relaxations.power(float(exponent)).range_fn({}, *a)


_RULES: dict[str, Callable] = {
    "neg": _negated,
    "sub": _difference,
    "mul": _product,
    "div": _quotient,
    "dot_general": _sum_of_products,
    "conv_general_dilated": _sum_of_products,
    "select_n": _chosen,
    "ge": _at_least,
    "gt": _at_least,
    "le": _at_most,
    "lt": _at_most,
    "ne": _differs,
    "eq": _equals,
    "not": _not,
    "and": _both_or_any,
    "or": _both_or_any,
    "reduce_and": _both_or_any,
    "reduce_or": _both_or_any,
    "convert_element_type": _converted,
    "is_finite": _finite,
    "pow": _power,
}
