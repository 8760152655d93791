"""The threat that moves colours, each in the same way wherever it appears: a map of the colour cube (Huang et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, prng
from robustjax.base import Array, Delta, Key


@base.node
class Recolor:
    """{x + shift(x): each pixel's colour c moves by a trilinear interpolation of delta on a grid of the cube, |delta| <= eps, in [0, 1]}.

    delta is [B, G, G, G, 3] for images [B, H, W, 3].

    Attributes:
      eps: largest shift of a grid point in each channel; a scalar or [B].
      grid_points: G, points along each side of the grid; 10 is the paper's resolution.

    Source: Huang et al., NeurIPS 2020, section 3.3, arXiv:2004.00225; Laidlaw & Feizi, NeurIPS 2019, arXiv:1906.00001. Differs: the cube
      is RGB's, where the authors' code takes YUV and their paper LUV.
    """

    eps: Any
    grid_points: int = base.static_field()

    def __post_init__(self):
        checks.counts(least=2, grid_points=self.grid_points)

    def init(self, key: Key, x: Array) -> Delta:
        """Uniform in the ball."""
        keys = prng.example_keys(key, x.shape[0])
        return arrays.per_example(self.eps, self._zeros(x)) * prng.sample(_symmetric, keys, self._zeros(x))

    def project(self, delta: Delta, x: Array) -> Delta:
        """The nearest admissible shifts."""
        del x
        eps = arrays.per_example(self.eps, delta)
        return jnp.clip(delta, min=-eps, max=eps)

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """sign(grad)."""
        del x, delta
        return jnp.sign(grad)

    def apply(self, x: Array, delta: Delta) -> Array:
        """The recoloured images, clipped to [0, 1]."""
        return jnp.clip(x + jax.vmap(_interpolated)(x, delta), min=0.0, max=1.0)

    def norm(self, delta: Delta) -> Array:
        """max |delta| [B]."""
        return arrays.norm(delta, jnp.inf)

    def radius(self) -> Array:
        """eps."""
        return jnp.asarray(self.eps, float)

    def finite_radius(self, x: Array) -> Array:
        """eps of each image [B]; where it is infinite 1, the side of the cube."""
        radius = jnp.broadcast_to(self.radius(), x.shape[:1])
        return jnp.where(jnp.isfinite(radius), radius, 1.0)

    def roughness(self, delta: Delta) -> Array:
        """Mean squared difference of neighbouring grid points, in units of the cube [B]: what a smooth recolouring keeps small."""
        size = delta.shape[1]
        slopes = [jnp.square(size * jnp.diff(delta, axis=axis)).reshape(delta.shape[0], -1).mean(axis=1) for axis in (1, 2, 3)]
        return jnp.stack(slopes).mean(axis=0)

    def _zeros(self, x):
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"Recolor moves colours of images [B, H, W, 3], got {x.shape}; for grey images use Linf.")
        size = self.grid_points
        return jnp.zeros((x.shape[0], size, size, size, 3), x.dtype)


def _symmetric(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


def _interpolated(image, grid):
    # Trilinear: the eight corners of the cell that a colour lies in. Where and how much is differentiable in both.
    size = grid.shape[0]
    place = jnp.clip(image, min=0.0, max=1.0) * (size - 1)
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), min=0, max=size - 2)
    share = place - low
    total = jnp.zeros_like(image)
    for corner in range(8):
        offset = jnp.array([(corner >> axis) & 1 for axis in range(3)]).reshape(1, 1, 3)
        weight = jnp.where(offset == 1, share, 1.0 - share).prod(axis=-1, keepdims=True)
        index = low + offset
        total += weight * grid[index[..., 0], index[..., 1], index[..., 2]]
    return total
