"""The noise of a smoothed classifier: `noise_fn(key, x, sigma) -> noisy x`, of one example; sigma is a standard deviation in the unit of x.

`splitting` adds no noise: its sigma fixes the length of its cells, in such a way that its radius is that of `uniform`.

The noise decides which norm is certified, and how far: see `radii`. It is drawn in float32 at least, whatever the type of x:
normals of bfloat16 are 128 different numbers, none beyond 2.6 sigma. The sum is rounded to the type of x, as a first layer would do.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import checks
from robustjax.base import Array, Key, Numeric

__all__ = ["gaussian", "laplace", "splitting", "uniform"]


def gaussian(key: Key, x: Array, sigma: Numeric) -> Array:
    """x + sigma * normal noise: for certificates in l2, and through l2 in every lp."""
    _check(sigma)
    return _plus(x, sigma, jax.random.normal(key, (x.size,), noise_dtype(x)))


def laplace(key: Key, x: Array, sigma: Numeric) -> Array:
    """x + Laplace noise of scale sigma / sqrt(2): for certificates in l1."""
    _check(sigma)
    return _plus(x, sigma / math.sqrt(2.0), jax.random.laplace(key, (x.size,), noise_dtype(x)))


def uniform(key: Key, x: Array, sigma: Numeric) -> Array:
    """x + uniform noise on [-sqrt(3) sigma, sqrt(3) sigma]: for certificates in l1 and linf."""
    _check(sigma)
    return _plus(x, math.sqrt(3.0) * sigma, jax.random.uniform(key, (x.size,), noise_dtype(x), -1.0, 1.0))


def splitting(key: Key, x: Array, sigma: Numeric) -> Array:
    """The middle of the cell that x in [0, 1] falls into, where cells of length 2 lambda start at a random place: for certificates in l1.

    lambda = sqrt(3) sigma, which need not be small: above 1/2 there are at most two cells. Every coordinate draws a place of its own.

    Source: Levine & Feizi, ICML 2021, section 4, arXiv:2103.10834.
    """
    _check(sigma)
    x, narrow = x.astype(noise_dtype(x)), x.dtype
    length = 2.0 * math.sqrt(3.0) * jnp.asarray(sigma, x.dtype)
    split = length * jax.random.uniform(key, (x.size,), x.dtype).reshape(x.shape)
    lower = split + length * (jnp.ceil((x - split) / length) - 1.0)  # lower < x <= lower + length
    return (0.5 * (jnp.clip(lower, min=0.0, max=1.0) + jnp.clip(lower + length, min=0.0, max=1.0))).astype(narrow)


def noise_dtype(x: Array) -> np.dtype:
    """The type in which noise is drawn, and probabilities are computed from logits: that of x, or float32 if that is wider.

    Raises:
      ValueError: x is not of a floating type.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected inputs of a floating type, got {x.dtype}; pass e.g. x / 255, and sigma in that unit.")
    return jax.dtypes.canonicalize_dtype(x.dtype if x.dtype.itemsize >= 4 else jnp.float32)


def _plus(x, scale, drawn):
    return (x.astype(drawn.dtype) + jnp.asarray(scale, drawn.dtype) * drawn.reshape(x.shape)).astype(x.dtype)


def _check(sigma):
    checks.positive(sigma=sigma)
    if np.ndim(sigma):
        raise ValueError(f"expected one sigma for one example, got shape {np.shape(sigma)}; use jax.vmap for several.")
