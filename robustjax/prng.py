"""Keys of every example: an example draws the same whatever its neighbours, the size of its batch or its device."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.base import Array, Key


def example_keys(key: Key, num_examples: int) -> Array:
    """One typed key per example [B].

    Args:
      key: one key (typed or raw), from which row b gets `fold_in(key, b)`, or already one per example, which is returned.
      num_examples: B.

    Returns:
      Typed keys [B].

    Raises:
      TypeError: no key, such as a number. ValueError: keys per example whose number is not B, or raw data of another shape.
    """
    if not isinstance(key, jax.Array | np.ndarray) or not (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or (key.dtype == jnp.uint32 and key.ndim > 0)
    ):
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else f"{key!r} of type {type(key).__name__}"
        raise TypeError(f"expected a key, got {got}; pass jax.random.key(0), or jax.random.split of one for one key per example.")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(key)
        except TypeError:
            raise ValueError(
                f"expected the raw data of a key, got shape {key.shape}; pass jax.random.key(0), or jax.random.PRNGKey(0) whole."
            ) from None
    if key.ndim == 0:
        return row_keys(key, jnp.arange(num_examples))
    if key.shape != (num_examples,):
        raise ValueError(f"expected one key or one per example [{num_examples}], got keys of shape {key.shape}.")
    return key


def row_keys(key: Key, rows: Array) -> Array:
    """The keys of some rows [B] of a data set, `fold_in(key, row)` each: they do not depend on the batch in which a row runs."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in(keys: Array, data) -> Array:
    """`jax.random.fold_in` of the same number into the key of every example."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def split(keys: Array, num: int) -> tuple[Array, ...]:
    """`num` independent keys per example from one per example, each [B]."""
    return tuple(fold_in(keys, index) for index in range(num))


def sample(sampler: Callable, keys: Array, like: Array) -> Array:
    """`sampler(key, shape, dtype)` for every example, in the shape of `like`; drawn flat, which compiles faster."""
    shape = (math.prod(like.shape[1:]),)
    return jax.vmap(lambda key: sampler(key, shape, jnp.result_type(like)))(keys).reshape(like.shape)
