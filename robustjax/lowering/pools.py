"""Max-pooling that remembers the first maximum of each window: its derivative is a selection by that mask."""

import functools

import jax
import jax.numpy as jnp

from robustjax import graph
from robustjax.lowering import convolutions


def rule(context, eqn, x):
    """A `graph.Rule` for max-pools of floats over the axes between the first and the last; others stay as they are."""
    p = eqn.params
    pooled = (p["window_dimensions"][0], p["window_dimensions"][-1]) == (1, 1) and x.ndim >= 3
    dilated = any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    if not pooled or dilated or not jnp.issubdtype(x.dtype, jnp.floating) or any(p["padding"][0] + p["padding"][-1]):
        return graph.bind(context, eqn, x)
    return [_max_pool(x, p["window_dimensions"][1:-1], p["window_strides"][1:-1], tuple(p["padding"][1:-1]))]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


@_max_pool.defjvp
def _max_pool_jvp(window, strides, padding, primals, tangents):
    (x,), (dx,) = primals, tangents
    y = _max_pool(x, window, strides, padding)
    size = y.shape[1:-1]

    def positions(x, fill):
        x = jax.lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
        return convolutions.shifts(x, window, strides, (1,) * len(window), size)

    taken = jnp.zeros(y.shape, bool)
    dy = jnp.zeros(y.shape, dx.dtype)
    for value, tangent in zip(positions(x, -jnp.inf), positions(dx, 0.0), strict=True):
        first = (value == y) & ~taken  # ties go to the first position, as XLA's select_and_scatter breaks them
        taken |= first
        dy += jnp.where(first, tangent, 0.0)
    return y, dy
