"""The noise of a smoothed classifier: `noise_fn(key, x, sigma) -> noisy x`, of one example; sigma is a standard deviation in the unit of x.

Which norm is certified, and how far, is a matter of the noise: see `radii`.
"""

import math

import jax
import jax.numpy as jnp

from robustjax.base import Array, Key


def gaussian(key: Key, x: Array, sigma) -> Array:
    """x + sigma * normal: for l2, and through it for every lp."""
    return x + sigma * jax.random.normal(key, (x.size,), x.dtype).reshape(x.shape)


def laplace(key: Key, x: Array, sigma) -> Array:
    """x + Laplace noise of scale sigma / sqrt(2): for l1."""
    return x + sigma / math.sqrt(2.0) * jax.random.laplace(key, (x.size,), x.dtype).reshape(x.shape)


def uniform(key: Key, x: Array, sigma) -> Array:
    """x + uniform noise on [-sqrt(3) sigma, sqrt(3) sigma]: for l1 and linf."""
    return x + math.sqrt(3.0) * sigma * jax.random.uniform(key, (x.size,), x.dtype, -1.0, 1.0).reshape(x.shape)


def splitting(key: Key, x: Array, sigma) -> Array:
    """The middle of the cell that x in [0, 1] falls into, where cells of length 2 lambda start at a random place: for l1.

    lambda = sqrt(3) sigma, which need not be small: above 1/2 there are at most two cells. The coordinates' places are independent.

    Source: Levine & Feizi, ICML 2021, section 4, arXiv:2103.10834.
    """
    length = 2.0 * math.sqrt(3.0) * jnp.asarray(sigma, x.dtype)
    split = length * jax.random.uniform(key, (x.size,), x.dtype).reshape(x.shape)
    lower = split + length * (jnp.ceil((x - split) / length) - 1.0)  # lower < x <= lower + length
    return 0.5 * (jnp.clip(lower, min=0.0, max=1.0) + jnp.clip(lower + length, min=0.0, max=1.0))
