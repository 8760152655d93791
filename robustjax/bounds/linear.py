"""Linear forms that go back through a network: <coef, value> + bias is a lower bound of what the walk started from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import graph, threats
from robustjax.base import Array
from robustjax.bounds import operations, patches, planes
from robustjax.bounds.network import Bounds, Network
from robustjax.bounds.patches import Patches


class Form(NamedTuple):
    """A row for each quantity that is bounded from below."""

    coef: Array | Patches  # [R, ...] in the shape of the variable where it has arrived, or windows of it
    bias: Array | None  # [R], or [R, *places] of windows; None for zero


def lower_bound(
    problem: Network,
    variable: graph.Variable,
    rows: Array | Patches,
    known: Mapping[graph.Variable, Any],
    relaxed: Mapping[graph.Variable, planes.Elementwise | planes.Mapped],
) -> Array:
    """Lower bounds [R] of <row, variable> over the inputs that the threat reaches.

    Args:
      problem: of one example.
      variable: an abstract one of its program.
      rows: [R, ...], coefficients in the shape of the variable, or windows of it.
      known: the values of all variables on the way that do not depend on the input; anything abstract for the others.
      relaxed: planes of all equations on the way that are not affine, by their first output.
    """

    (form,) = forms_at_inputs(problem.part(variable), rows, known, relaxed)
    lower = concretize(problem, form)
    return jnp.where(jnp.isnan(lower), -jnp.inf, lower)  # of planes that are infinite


def forms_at_inputs(program: graph.Program, rows: Array | Patches, known: Mapping, relaxed: Mapping | None = None) -> tuple:
    """The forms that arrive at each input of a program from rows of its output; None where nothing arrives.

    Args:
      program: with one output.
      rows, known, relaxed: as in `lower_bound`.
    """
    relaxed = relaxed or {}

    def rule(context, eqn, *arrived):
        if eqn.outputs[0] in relaxed:
            return _through_planes(eqn, known, relaxed[eqn.outputs[0]], arrived[0])
        return _through_affine(eqn, [known[each] for each in eqn.inputs], arrived)

    return graph.backward(program, {}, program.out_tree.unflatten([Form(rows, None)]), add=add, default=rule)


def least(coef: Array, bounds: Bounds) -> Array:
    """The least value [R] of <coef, value> for values between bounds: their middle less their radius in the length of the coefficients."""
    middle, radius = (a.reshape(-1) for a in (0.5 * bounds.lower + 0.5 * bounds.upper, 0.5 * bounds.upper - 0.5 * bounds.lower))
    rows = coef.reshape(coef.shape[0], -1)
    value = rows @ middle - jnp.abs(rows) @ radius
    return jnp.where(jnp.isnan(value), -jnp.inf, value)  # of bounds that are infinite


def concretize(problem: Network, form: Form) -> Array:
    """The least value of each form over the inputs that the threat reaches, <coef, x> + bias - support(-coef): [R], places flat."""
    x, threat, coef = problem.x, problem.threat, form.coef
    bias = 0.0 if form.bias is None else form.bias.reshape(-1)
    if isinstance(coef, Patches):
        # Each window is an example of its own, in a box that is what its values may be.
        low, high = threat.interval(x)
        places = (math.prod(coef.places), -1)
        around, low, high = (patches.windows(a, coef).reshape(places) for a in (x, low, high))
        rows = coef.values.reshape(-1, *around.shape)  # [R, places, values]
        if isinstance(threat, threats.Linf):
            return jnp.sum(jnp.maximum(rows, 0.0) * low[None] + jnp.minimum(rows, 0.0) * high[None], axis=2).reshape(-1) + bias
        rows, num_rows = rows.reshape(-1, around.shape[1]), rows.shape[0]
        each = lambda a: jnp.tile(a, (num_rows, 1))  # noqa: E731
        if jnp.ndim(threat.eps) > 1:  # per coordinate
            eps = jnp.broadcast_to(jnp.asarray(threat.eps, x.dtype), x.shape)
            threat = threat.replace(eps=each(patches.windows(eps, coef).reshape(places)))
        around, low, high = map(each, (around, low, high))
        return jnp.sum(rows * around, axis=1) - threat.in_box(low, high).support(-rows, around) + bias
    if isinstance(threat, threats.Linf):
        return least(coef, Bounds(*threat.interval(x))) + bias
    coef = coef.reshape(-1, *x.shape[1:])
    spread = threat.support(-coef, jnp.broadcast_to(x, coef.shape))
    return jnp.tensordot(coef, x[0], x.ndim - 1) - spread + bias


def add(one: Form, other: Form) -> Form:
    """The sum of two forms that arrive at the same variable."""
    if isinstance(one.coef, Patches) and isinstance(other.coef, Patches):
        both = patches.add(one.coef, other.coef)
        if both is not None:
            return Form(both, _sum(one.bias, other.bias))
    (a, a_bias), (b, b_bias) = _dense(one), _dense(other)
    return Form(a + b, _sum(a_bias, b_bias))


def identity(variable: graph.Variable) -> Array:
    """Rows [2n, ...] that give a variable's n values, and their negatives."""
    shape = variable.aval.shape
    rows = jnp.eye(variable.aval.size, dtype=variable.aval.dtype)
    return jnp.concatenate([rows, -rows]).reshape(-1, *shape)


def of_rows(lower: Array, shape: tuple[int, ...]) -> Bounds:
    """The bounds of a variable from the lower bounds of its values and of their negatives."""
    low, high = lower.reshape(2, *shape)
    return Bounds(low, -high)


def _through_affine(eqn, values, arrived: Sequence[Form | None]):
    first = arrived[0]
    if first is not None and isinstance(first.coef, Patches):
        handed = _windows_through_affine(eqn, values, first.coef, first.bias)
        if handed is not None:
            return handed
    function, zeros = operations.affine(eqn, values), operations.zeros(eqn, values)
    rows = [None if form is None else _dense(form) for form in arrived]
    num_rows = next(coef.shape[0] for coef, _ in filter(None, rows))
    offsets: Sequence[Array | None] = operations.offset(eqn, values) or [None] * len(rows)
    coefs: list[Array] = []
    bias = None
    for row, variable, offset in zip(rows, eqn.outputs, offsets, strict=True):
        if row is None:
            coefs.append(jnp.zeros((num_rows, *variable.aval.shape), variable.aval.dtype))
            continue
        coef, own = row
        coefs.append(coef)
        bias = _sum(bias, own)
        if offset is not None:
            bias = _sum(bias, jnp.tensordot(coef, offset, offset.ndim))
    pull = jax.vjp(function, *zeros)[1]
    return _handed(values, jax.vmap(pull)(coefs), bias)


def _windows_through_affine(eqn, values, coef, bias):
    """The same for windows, where the equation keeps them windows; else None."""
    name, shape = eqn.primitive.name, eqn.outputs[0].aval.shape
    if name == "conv_general_dilated" and graph.is_concrete(values[1]):
        found = patches.through_convolution(coef, eqn, values[1])
        return None if found is None else _handed(values, [found], bias)
    if name == "transpose":
        return _handed(values, [patches.transposed(coef, eqn)], bias)
    if name in ("mul", "div"):
        (factor,) = [value for value in values if graph.is_concrete(value)]
        factor = factor if name == "mul" else 1.0 / factor
        return _handed(values, [patches.times(coef, factor if jnp.ndim(factor) == 0 else jnp.broadcast_to(factor, shape))], bias)
    if name not in ("add", "add_any", "sub", "neg", "copy", "convert_element_type", "stop_gradient"):
        return None
    offset = operations.offset(eqn, values)
    if offset is not None:
        bias = _sum(bias, patches.dot(coef, jnp.broadcast_to(offset[0], shape)))
    signs = {"sub": (1.0, -1.0), "neg": (-1.0,)}.get(name, (1.0,) * len(values))
    pairs = zip(signs, operations.is_abstract(values), strict=True)
    return _handed(values, [coef if sign > 0 else coef.replace(-coef.values) for sign, abstract in pairs if abstract], bias)


def _through_planes(eqn, known, relaxed, form):
    values = [known[variable] for variable in eqn.inputs]
    if isinstance(relaxed, planes.Mapped):
        return _through_maps(eqn, values, relaxed, Form(*_dense(form)))
    shape = eqn.outputs[0].aval.shape
    inputs = [variable for variable, abstract in zip(eqn.inputs, operations.is_abstract(values), strict=True) if abstract]
    if any(variable.aval.shape != shape for variable in inputs):
        form = Form(*_dense(form))
    if isinstance(form.coef, Patches):
        coef = form.coef
        view = lambda a: patches.windows(jnp.broadcast_to(a, shape), coef)[None]  # noqa: E731
        coefficients = coef.values
    else:
        view = lambda a: a if a.ndim > len(shape) else jnp.broadcast_to(a, shape)[None]  # noqa: E731  (a slope may have rows)
        coefficients = form.coef
    positive, negative = jnp.maximum(coefficients, 0.0), jnp.minimum(coefficients, 0.0)
    handed = [positive * view(low) + negative * view(high) for low, high in zip(relaxed.lower, relaxed.upper, strict=True)]
    offset = positive * view(relaxed.lower_bias) + negative * view(relaxed.upper_bias)
    if isinstance(form.coef, Patches):
        bias = _sum(form.bias, patches.total(form.coef.replace(offset)))
        return _handed(values, [form.coef.replace(each) for each in handed], bias)
    handed = [_summed_to(each, variable.aval.shape) for each, variable in zip(handed, inputs, strict=False)]
    return _handed(values, handed, _sum(form.bias, offset.reshape(offset.shape[0], -1).sum(axis=1)))


def _summed_to(coef, shape):
    """Coefficients of an input that was repeated along axes of size one."""
    repeated = [axis for axis, size in enumerate(coef.shape[1:], 1) if size != shape[axis - 1]]
    return coef.sum(axis=repeated, keepdims=True) if repeated else coef


def _through_maps(eqn, values, relaxed, form):
    positive, negative = jnp.maximum(form.coef, 0.0), jnp.minimum(form.coef, 0.0)
    zeros = operations.zeros(eqn, values)
    low, pull_low = jax.vjp(relaxed.lower_fn, *zeros)
    high, pull_high = jax.vjp(relaxed.upper_fn, *zeros)
    coefs = [one + other for one, other in zip(jax.vmap(pull_low)(positive), jax.vmap(pull_high)(negative), strict=True)]
    offset = jnp.tensordot(positive, low, low.ndim) + jnp.tensordot(negative, high, high.ndim)
    return _handed(values, coefs, _sum(form.bias, offset))


def _dense(form) -> tuple[Array, Array | None]:
    """Coefficients and bias of whole rows."""
    if not isinstance(form.coef, Patches):
        return form
    return patches.dense(form.coef), None if form.bias is None else form.bias.reshape(-1)


def _handed(values, coefs, bias):
    """The coefficients to the inputs that depend on the model's; the bias goes with the first."""
    given = iter(coefs)
    handed: list[Form | None] = []
    for abstract in operations.is_abstract(values):
        handed.append(Form(next(given), bias) if abstract else None)
        bias = None if abstract else bias
    return handed


def _sum(one, other):
    return other if one is None else one if other is None else one + other
