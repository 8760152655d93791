"""Convolutions as a primitive whose three contractions are each other's derivatives, in forms that XLA:CPU runs fast."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from robustjax import graph

_CHUNK_SIZE = 32  # examples per im2col block; larger blocks leave the cache (measured: 16 to 64 alike, 256 at half speed)
_FEW_INPUTS = 16  # channels up to which several places at once pay (measured in windows of 3 to 5: 1 channel 5x, 3 4x, 16 1.4x, 32 .9x)
_FEW_CHANNELS = 4  # of the input: there a convolution back to x wastes its lanes (measured: 1 channel 5x, 3 channels 2x, 16 .2x)


class _Geometry(NamedTuple):
    """What fixes a convolution of x [N, *in, I], w [*window, I / groups, O] and y [N, *out, O], channels last."""

    strides: tuple
    padding: tuple
    lhs_dilation: tuple
    rhs_dilation: tuple
    groups: int
    shapes: tuple  # of one x without its batch axis, of w, of one y
    precision: object
    dtype: object  # of the accumulator, or None


def rule(context, eqn, x, w):
    """A `graph.Rule` for convolutions: the same one as a contraction, with channels last."""
    p = eqn.params
    if p["batch_group_count"] != 1 or not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, w)) or x.shape[0] == 0:
        return graph.bind(context, eqn, x, w)
    spec = p["dimension_numbers"]
    spatial = spec.lhs_spec[2:]
    x = jnp.transpose(x, (spec.lhs_spec[0], *spatial, spec.lhs_spec[1]))
    w = jnp.transpose(w, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    y_shape = tuple(eqn.outputs[0].aval.shape[axis] for axis in (*spec.out_spec[2:], spec.out_spec[1]))
    geometry = _Geometry(
        strides=tuple(p["window_strides"]),
        padding=tuple(map(tuple, p["padding"])),
        lhs_dilation=tuple(p["lhs_dilation"]),
        rhs_dilation=tuple(p["rhs_dilation"]),
        groups=p["feature_group_count"],
        shapes=(x.shape[1:], w.shape, y_shape),
        precision=p["precision"],
        dtype=p["preferred_element_type"],
    )
    y = _contract("y", geometry, *_equally_varying(x, w)).astype(eqn.outputs[0].aval.dtype)
    order = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
    return [jnp.transpose(y, tuple(np.argsort(order).tolist()))]


def _equally_varying(*arrays):
    # Inside shard_map: as jax's own primitives, vary over the axes that any argument varies over, so that gradients are summed.
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    every = frozenset().union(*axes)
    return [jax.lax.pcast(a, tuple(every - own), to="varying") if every - own else a for a, own in zip(arrays, axes, strict=True)]


_ROLES = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}  # the output of each contraction: its two arguments

_convolution_p = core.Primitive("robustjax_convolution")


def _contract(out, geometry, a, b):
    return _convolution_p.bind(a, b, out=out, geometry=geometry)


def _evaluate(a, b, *, out, geometry):
    a, b = (value.astype(jnp.result_type(a, b)) for value in (a, b))  # a wider accumulator makes a wider cotangent
    return {"y": _forward, "x": _input_gradient, "w": _weight_gradient}[out](geometry, a, b)


def _forward(g, x, w):
    return _convolve(g, x, w, g.strides, g.padding, g.lhs_dilation)


def _convolve(g, x, w, strides, padding, dilation):
    inputs, outputs = w.shape[-2:]
    columns = 64 if inputs in (2, 3) else 32
    if g.groups == 1 and inputs <= _FEW_INPUTS and outputs < columns and set(dilation) | set(g.rhs_dilation) == {1}:
        return _convolve_wide(g, x, w, strides, padding, -(-columns // outputs))
    return _convolve_plain(g, x, w, strides, padding, dilation)


def _convolve_wide(g, x, w, strides, padding, num_places):
    # `num_places` neighbouring places of the last axis at once, by a window that covers all of theirs, as that many more output channels:
    # XLA:CPU multiplies by matrices of few columns at a fraction of its speed.
    (low, high), stride, size = padding[-1], strides[-1], x.shape[-2]
    num_out = (size + low + high - w.shape[-3]) // stride + 1
    num_groups = -(-num_out // num_places)
    last = w.ndim - 3
    shifted = [[(0, 0)] * last + [(i * stride, (num_places - 1 - i) * stride), (0, 0), (0, 0)] for i in range(num_places)]
    windows = jnp.stack([jnp.pad(w, config) for config in shifted], axis=-2)  # [*window, longer, I, places, O]
    windows = windows.reshape(*windows.shape[:-2], -1)
    needed = (num_groups - 1) * num_places * stride + windows.shape[-3]
    y = _convolve_plain(
        g, x, windows, (*strides[:-1], num_places * stride), (*padding[:-1], (low, needed - size - low)), (1,) * (w.ndim - 2)
    )
    return y.reshape(*y.shape[:-2], num_groups * num_places, -1)[..., :num_out, :]


def _convolve_plain(g, x, w, strides, padding, dilation):
    if any(side < 0 for sides in padding for side in sides):
        # Negative beside positive padding reads out of bounds in XLA:CPU (jaxlib 0.10): crop first.
        config = [(min(low, 0), min(high, 0), d - 1) for (low, high), d in zip(padding, dilation, strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        padding, dilation = [(max(low, 0), max(high, 0)) for low, high in padding], (1,) * len(padding)
    return jax.lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        dilation,
        g.rhs_dilation,
        _channels_last(w.ndim),
        g.groups,
        precision=g.precision,
        preferred_element_type=g.dtype,
    )


def _input_gradient(g, y, w):
    num_spatial = w.ndim - 2
    if g.groups == 1 and w.shape[-2] <= _FEW_CHANNELS:  # the gradient of every column, summed back into place
        columns = jnp.einsum("n...o,kio->n...ki", y, w.reshape(-1, *w.shape[-2:]), precision=g.precision and g.precision[0])
        x = _equally_varying(jnp.zeros((y.shape[0], *g.shapes[0]), columns.dtype), columns)[0]
        return jax.vjp(functools.partial(_columns, g), x)[1](columns)[0]
    if g.groups == 1 and max(g.strides) > 1 and set(g.lhs_dilation) | set(g.rhs_dilation) == {1}:
        return _input_gradient_by_phases(g, y, w)
    # Else the window turned around, with its channels exchanged, slides over y: strides and input dilation change places.
    inputs, outputs = g.shapes[1][-2], g.shapes[1][-1] // g.groups
    w = jnp.flip(w, tuple(range(num_spatial))).reshape(*w.shape[:-2], inputs, g.groups, outputs)
    w = jnp.moveaxis(w, (-3, -1), (-1, -3)).reshape(*g.shapes[1][:-2], outputs, inputs * g.groups)
    padding = []
    for axis in range(num_spatial):
        window = (g.shapes[1][axis] - 1) * g.rhs_dilation[axis] + 1
        size_in = (g.shapes[0][axis] - 1) * g.lhs_dilation[axis] + 1
        size_out = (g.shapes[2][axis] - 1) * g.strides[axis] + 1
        before = window - 1 - g.padding[axis][0]
        padding.append((before, size_in + window - 1 - size_out - before))
    return _convolve(g, y, w, g.lhs_dilation, padding, g.strides)


def _input_gradient_by_phases(g, y, w):
    # Inputs whose places are equal modulo the strides see the same weights. Each such phase is a convolution of y without strides, and all
    # of them are one, with a channel for each; sliding a turned window over y with zeros between would multiply by the zeros too.
    axes, strides, window = range(len(g.strides)), g.strides, w.shape[:-2]
    inputs, outputs = w.shape[-2:]
    steps = [-(-size // stride) for size, stride in zip(window, strides, strict=True)]
    fill = [(0, num * stride - size) for num, stride, size in zip(steps, strides, window, strict=True)]
    split = [size for pair in zip(steps, strides, strict=True) for size in pair]
    phases = jnp.pad(w, [*fill, (0, 0), (0, 0)]).reshape(*split, inputs, outputs)
    order = [*(2 * axis for axis in axes), len(split) + 1, *(2 * axis + 1 for axis in axes), len(split)]
    phases = jnp.flip(jnp.transpose(phases, order), tuple(axes)).reshape(*steps, outputs, -1)  # [*steps, O, phases * I]
    x = _convolve(g, y, phases, (1,) * len(steps), [(num - 1, num - 1) for num in steps], (1,) * len(steps))
    sizes = x.shape[1:-1]
    x = x.reshape(x.shape[0], *sizes, *strides, inputs)
    apart = [1 + axis + shift for axis in axes for shift in (0, len(strides))]
    x = jnp.transpose(x, (0, *apart, x.ndim - 1))
    x = x.reshape(x.shape[0], *(size * stride for size, stride in zip(sizes, strides, strict=True)), inputs)
    config = []
    for axis in axes:  # padding is cut off, and inputs that no window reached get zero
        low = g.padding[axis][0]
        config.append((-low, g.shapes[0][axis] + low - x.shape[1 + axis], 0))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _weight_gradient(g, x, y):
    # Columns of shifted inputs times the output gradient, a block of examples at a time.
    num_examples = x.shape[0]
    chunk_size = max(size for size in range(1, min(_CHUNK_SIZE, num_examples) + 1) if num_examples % size == 0)
    if chunk_size < 8:  # an awkward batch size: one block, rather than many tiny ones
        chunk_size = num_examples

    def block(x, y):
        positions = int(np.prod(y.shape[:-1]))
        columns = _columns(g, x).reshape(positions, -1, g.groups, g.shapes[1][-2])
        y = y.reshape(positions, g.groups, g.shapes[1][-1] // g.groups)
        w = jnp.einsum("pkgi,pgo->kigo", columns, y, precision=g.precision and g.precision[0])
        return w.reshape(g.shapes[1])

    if chunk_size == num_examples:
        return block(x, y)
    blocks = jax.tree.map(lambda a: a.reshape(-1, chunk_size, *a.shape[1:]), (x, y))
    dtype = jnp.result_type(x, y)
    start = _equally_varying(jnp.zeros(g.shapes[1], jnp.promote_types(dtype, jnp.float32)), x, y)[0]
    return jax.lax.scan(lambda total, xy: (total + block(*xy), None), start, blocks)[0].astype(dtype)


def _columns(g, x):
    config = [(low, high, dilation - 1) for (low, high), dilation in zip(g.padding, g.lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    return jnp.stack(shifts(x, g.shapes[1][:-2], g.strides, g.rhs_dilation, g.shapes[2][:-1]), axis=-2)


def shifts(x, window, strides, dilation, size):
    """The value at every position of a window, for all its `size` places at once: strided slices of x [N, *in, C]."""
    slices = []
    for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, size, strides, strict=True)]
        slices.append(jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1)))
    return slices


def _channels_last(ndim):
    spatial = "HWDEFG"[: ndim - 2]
    return ("N" + spatial + "C", spatial + "IO", "N" + spatial + "C")


def _jvp(primals, tangents, **params):
    (a, b), (da, db) = primals, tangents
    terms = []
    if type(da) is not ad.Zero:
        terms.append(_convolution_p.bind(da, b, **params))
    if type(db) is not ad.Zero:
        terms.append(_convolution_p.bind(a, db, **params))
    return _convolution_p.bind(a, b, **params), functools.reduce(jnp.add, terms)


def _transpose(cotangent, a, b, *, out, geometry):
    if type(cotangent) is ad.Zero:
        return None, None
    role_a, role_b = _ROLES[out]
    linear_in_a = ad.is_undefined_primal(a)
    wanted, values = (role_a, {out: cotangent, role_b: b}) if linear_in_a else (role_b, {out: cotangent, role_a: a})
    gradient = _contract(wanted, geometry, *(values[role] for role in _ROLES[wanted]))
    gradient = gradient.astype((a if linear_in_a else b).aval.dtype)
    return (gradient, None) if linear_in_a else (None, gradient)


def _batch(args, axes, *, out, geometry):
    (a, b), (axis_a, axis_b) = args, axes
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    if out != "w" and axis_b is None:  # a batch of batches is a longer batch
        a = jnp.moveaxis(a, axis_a, 0)
        y = _contract(out, geometry, a.reshape(-1, *a.shape[2:]), b)
        return y.reshape(size, -1, *y.shape[1:]), 0
    a = a if axis_a is None else jnp.moveaxis(a, axis_a, 0)
    b = b if axis_b is None else jnp.moveaxis(b, axis_b, 0)

    def one(i):
        pick = lambda x, axis: x if axis is None else x[i]  # noqa: E731
        return _contract(out, geometry, pick(a, axis_a), pick(b, axis_b))

    return jax.lax.map(one, jnp.arange(size)), 0


_convolution_p.def_impl(jax.jit(_evaluate, static_argnames=("out", "geometry")))
_convolution_p.def_abstract_eval(lambda a, b, **params: jax.make_jaxpr(functools.partial(_evaluate, **params))(a, b).out_avals[0])
ad.primitive_jvps[_convolution_p] = _jvp
ad.primitive_transposes[_convolution_p] = _transpose
batching.primitive_batchers[_convolution_p] = _batch
mlir.register_lowering(_convolution_p, mlir.lower_fun(_evaluate, multiple_results=False))
