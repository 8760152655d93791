"""Rows of linear forms that reach a small window of an image each: what CROWN carries back through convolutions.

The row of one output of a convolution is zero outside a window of the input. Kept as windows, the rows of a whole feature map take
memory and time in proportion to their receptive fields, not to the image.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import graph
from robustjax.base import Array

_MAX_MATRIX = 2**22  # entries of the matrix that stands for a convolution on one window; larger ones stay convolutions


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes of a variable [1, ...] are places, of which sizes, and which one is channels; the one left is the batch."""

    spatial: tuple[int, ...]
    sizes: tuple[int, ...]
    channel: int

    @property
    def order(self) -> list[int]:
        """The axes of the variable in the order batch, places, channels."""
        ends = {*self.spatial, self.channel}
        (batch,) = set(range(len(self.spatial) + 2)) - ends
        return [batch, *self.spatial, self.channel]


@dataclasses.dataclass(frozen=True)
class Patches:
    """Coefficients in windows: those of place p are of the values at starts + p * strides + k; zero where that is beyond the border.

    Attributes:
      values: [R, *places, *window, C].
      layout: of the variable.
      strides, starts: for each spatial axis.
    """

    values: Array
    layout: Layout
    strides: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """How many places there are along each axis."""
        return self.values.shape[1 : 1 + len(self.strides)]

    @property
    def window(self) -> tuple[int, ...]:
        """The sizes of a window."""
        return self.values.shape[1 + len(self.strides) : -1]

    @property
    def indices(self) -> list[np.ndarray]:
        """Along each axis, what each place reads: [places, window]."""
        axes = zip(self.starts, self.strides, self.places, self.window, strict=True)
        return [start + stride * np.arange(num)[:, None] + np.arange(length) for start, stride, num, length in axes]

    def replace(self, values: Array) -> "Patches":
        """Other coefficients in the same windows."""
        return dataclasses.replace(self, values=values)


def identity(layout: Layout, num_channels: int, dtype: Any) -> Patches:
    """A row for each value of a feature map and one for its negative: [2C, *places, 1, ..., C]."""
    num_axes = len(layout.sizes)
    eye = jnp.eye(num_channels, dtype=dtype)
    rows = jnp.concatenate([eye, -eye]).reshape(2 * num_channels, *(1,) * (2 * num_axes), num_channels)
    values = jnp.broadcast_to(rows, (2 * num_channels, *layout.sizes, *(1,) * num_axes, num_channels))
    return Patches(values, layout, (1,) * num_axes, (0,) * num_axes)


def of_rows(lower: Array, layout: Layout) -> Array:
    """Numbers [2C, *places], one for each row of `identity`, as [2, 1, ...] in the layout of the variable."""
    last = jnp.moveaxis(lower.reshape(2, 1, -1, *layout.sizes), 2, -1)  # sign, batch, places, channels
    return jnp.transpose(last, (0, *(1 + np.argsort(layout.order)).tolist()))


def layout_of(program: graph.Program, variable: graph.Variable) -> Layout | None:
    """The layout of a variable that a convolution made, maybe followed by sums and products place by place; None for any other."""
    made = {output: eqn for eqn in program.equations for output in eqn.outputs}
    shape, moving = variable.aval.shape, graph.depends(program, program.inputs)
    while variable in made:
        eqn = made[variable]
        if eqn.primitive.name == "conv_general_dilated":
            spec = eqn.params["dimension_numbers"].out_spec
            return Layout(tuple(spec[2:]), tuple(shape[axis] for axis in spec[2:]), spec[1]) if shape[spec[0]] == 1 else None
        inputs = [each for each in eqn.inputs if each in moving]
        if eqn.primitive.name not in ("add", "sub", "mul", "div", "neg") or inputs[0].aval.shape != shape:
            return None
        variable = inputs[0]
    return None


def windows(a: Array, patches: Patches) -> Array:
    """The values of a variable [1, ...] that each place reads: [*places, *window, C], zero beyond the border."""
    num_axes = len(patches.strides)
    a = jnp.transpose(a, patches.layout.order)[0]
    for axis, (indices, size) in enumerate(zip(patches.indices, patches.layout.sizes, strict=True)):
        a = jnp.take(a, np.clip(indices, 0, size - 1).reshape(-1), axis=axis, mode="clip")
    pairs = [size for pair in zip(patches.places, patches.window, strict=True) for size in pair]
    order = (*range(0, 2 * num_axes, 2), *range(1, 2 * num_axes, 2), 2 * num_axes)
    return within(jnp.transpose(a.reshape(*pairs, a.shape[-1]), order), patches)


def within(values: Array, patches: Patches) -> Array:
    """Values [..., *places, *window, C] with zeros beyond the border."""
    mask = np.ones((), bool)
    num_axes = len(patches.strides)
    for axis, (indices, size) in enumerate(zip(patches.indices, patches.layout.sizes, strict=True)):
        shape = [1] * (2 * num_axes)
        shape[axis], shape[num_axes + axis] = indices.shape
        mask = mask & ((indices >= 0) & (indices < size)).reshape(shape)
    if mask.all():
        return values
    mask = np.broadcast_to(mask, (*patches.places, *patches.window))[..., None]
    return jnp.where(mask.reshape(*(1,) * (values.ndim - mask.ndim), *mask.shape), values, 0.0)


def times(patches: Patches, factor: Array) -> Patches:
    """The coefficients times a value of the variable each."""
    if factor.ndim == 0:
        return patches.replace(patches.values * factor)
    return patches.replace(patches.values * windows(factor, patches)[None])


def dot(patches: Patches, a: Array) -> Array:
    """The sum of the coefficients times the values of a variable [1, ...]: [R, *places]."""
    return total(times(patches, a))


def total(patches: Patches) -> Array:
    """The sum over each window and its channels: [R, *places]."""
    kept = 1 + len(patches.strides)
    return patches.values.sum(axis=tuple(range(kept, patches.values.ndim)))


def through_convolution(patches: Patches, eqn: graph.Equation, weight: Array) -> Patches | None:
    """The coefficients of a convolution's input [1, ...] from those of its output; None where windows do not fit it or save nothing."""
    p = eqn.params
    spec, in_shape = p["dimension_numbers"], eqn.inputs[0].aval.shape
    if p["batch_group_count"] != 1 or {*p["lhs_dilation"]} != {1} or patches.layout.order != list(_order(spec.out_spec)):
        return None
    weight = jnp.transpose(weight, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))  # [*window, I / groups, O]
    strides, dilation = p["window_strides"], p["rhs_dilation"]
    reach = [(size - 1) * inner for size, inner in zip(weight.shape, dilation, strict=False)]
    window = [(size - 1) * stride + 1 + more for size, stride, more in zip(patches.window, strides, reach, strict=True)]
    layout = Layout(tuple(spec.lhs_spec[2:]), tuple(in_shape[axis] for axis in spec.lhs_spec[2:]), spec.lhs_spec[1])
    if math.prod(window) >= math.prod(layout.sizes):
        return None
    num_channels, num_axes = in_shape[layout.channel], len(strides)
    letters = "HWDEFG"[:num_axes]

    def convolved(a):  # one window of the input [*window, I] -> one of the output
        options = {"rhs_dilation": dilation, "feature_group_count": p["feature_group_count"], "precision": p["precision"]}
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        return jax.lax.conv_general_dilated(a[None], weight, strides, [(0, 0)] * num_axes, dimension_numbers=numbers, **options)[0]

    start = jnp.zeros((*window, num_channels), weight.dtype)
    pull = jax.vjp(convolved, start)[1]
    leading, size = patches.values.shape[: 1 + num_axes], math.prod(patches.values.shape[1 + num_axes :])
    rows = patches.values.reshape(-1, *patches.values.shape[1 + num_axes :])
    if size * start.size <= _MAX_MATRIX:
        matrix = jax.vmap(pull)(jnp.eye(size, dtype=rows.dtype).reshape(size, *rows.shape[1:]))[0].reshape(size, -1)
        pulled = jnp.matmul(rows.reshape(-1, size), matrix, precision=p["precision"] and p["precision"][0])
    else:
        (pulled,) = jax.vmap(pull)(rows)
    starts = [start * stride - low for start, stride, (low, _) in zip(patches.starts, strides, p["padding"], strict=True)]
    moved = [one * stride for one, stride in zip(patches.strides, strides, strict=True)]
    found = Patches(pulled.reshape(*leading, *window, num_channels), layout, tuple(moved), tuple(starts))
    return found.replace(within(found.values, found))


def transposed(patches: Patches, eqn: graph.Equation) -> Patches:
    """The same windows of a variable whose axes were exchanged."""
    order, layout = eqn.params["permutation"], patches.layout
    return dataclasses.replace(patches, layout=Layout(tuple(order[axis] for axis in layout.spatial), layout.sizes, order[layout.channel]))


def add(one: Patches, other: Patches) -> Patches | None:
    """The sum, in windows that cover both; None where the windows move at different strides."""
    if one.strides != other.strides or one.layout != other.layout:
        return None
    starts = [min(pair) for pair in zip(one.starts, other.starts, strict=True)]
    ends = [max(a + n, b + m) for a, n, b, m in zip(one.starts, one.window, other.starts, other.window, strict=True)]

    def widened(patches):
        sides = [(a - low, high - a - n) for a, n, low, high in zip(patches.starts, patches.window, starts, ends, strict=True)]
        return jnp.pad(patches.values, [(0, 0)] * (1 + len(starts)) + sides + [(0, 0)])

    return dataclasses.replace(one, values=widened(one) + widened(other), starts=tuple(starts))


def dense(patches: Patches) -> Array:
    """The rows as whole arrays in the layout of the variable: [R * places, 1, ...]."""
    values, layout = patches.values, patches.layout
    num_axes = len(patches.strides)
    for axis, (indices, size) in enumerate(zip(patches.indices, layout.sizes, strict=True)):
        chosen = jnp.asarray(indices[:, :, None] == np.arange(size), values.dtype)  # [places, window, size]
        at = 1 + axis, 1 + num_axes + axis
        values = jnp.einsum("...pk,pkh->...ph", jnp.moveaxis(values, at, (-2, -1)), chosen, precision="highest")
        values = jnp.moveaxis(values, (-2, -1), at)
    values = values.reshape(-1, 1, *values.shape[1 + num_axes :])  # [R * places, batch, *sizes, C]
    return jnp.transpose(values, (0, *(1 + np.argsort(layout.order)).tolist()))


def _order(spec):
    return spec[0], *spec[2:], spec[1]
