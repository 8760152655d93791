"""Small batch-first array formulas: norms that differentiate at zero, directions at any scale, selection of examples."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from robustjax import renamed
from robustjax.base import Array

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(
        __name__,
        example_keys="prng.example_keys",
        fold_in="prng.fold_in",
        split="prng.split",
        sample="prng.sample",
        flat="flatten_examples",
        total="sum_examples",
        select="where_example",
    )


def per_example(values, x: Array) -> Array:
    """Values that broadcast against x [B, ...]: scalars and full-rank arrays as they are, [B] with trailing ones.

    Raises:
      ValueError: an array that is neither a scalar, nor [B], nor of x's rank.
    """
    values = jnp.asarray(values)
    if values.ndim == 0 or values.ndim == x.ndim:
        return values
    if values.ndim == 1 and values.shape[0] in (1, x.shape[0]):
        return values.reshape(values.shape + (1,) * (x.ndim - 1))
    raise ValueError(
        f"expected a scalar, one value per example [{x.shape[0]}], or an array of rank {x.ndim} that broadcasts against x "
        f"{x.shape}; got shape {values.shape}."
    )


def flatten_examples(x: Array) -> Array:
    """[B, ...] -> [B, D]."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def sum_examples(x: Array) -> Array:
    """Sum over all but the first axis: [B, ...] -> [B]."""
    return flatten_examples(x).sum(axis=1)


def size(x: Array) -> int:
    """The number of features of each example of x [B, ...], B = 0 included."""
    return math.prod(x.shape[1:])


def absolute(x: Array) -> Array:
    """|x|, whose derivative at zero is zero; that of `jnp.abs` is one, which favours one side."""
    return x * jnp.sign(x)


def ratio(top, bottom, otherwise=0.0) -> Array:
    """top / bottom where bottom > 0, however small, and `otherwise` elsewhere, without a NaN in value or gradient."""
    positive = bottom > 0
    return jnp.where(positive, top / jnp.where(positive, bottom, 1.0), otherwise)


def norm(x: Array, order) -> Array:
    """Norm of each example, order 0, 1, 2 or inf: [B, ...] -> [B]. The gradient at zero is zero; no square under- or overflows."""
    x = flatten_examples(x)
    if order == 0:
        return (x != 0).sum(axis=1).astype(x.dtype)
    if order == 1:
        return absolute(x).sum(axis=1)
    if order == jnp.inf:
        return _largest(absolute(x))
    scale = scale_of(x)
    return scale * _root(jnp.square(x * (1.0 / scale)[:, None]).sum(axis=1))


def _root(squared):
    zero = squared == 0  # not > 0: NaN stays NaN
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


@jax.custom_jvp
def _largest(size):
    return size.max(axis=1, initial=0.0)


@_largest.defjvp
def _largest_jvp(primals, tangents):
    # A compiler may recompute size and round it differently: looking for the largest by equality could find none, and divide by 0.
    (size,), (tangent,) = primals, tangents
    top = size.max(axis=1, initial=0.0)
    chosen = size >= (1.0 - 1e-6) * top[:, None]
    return top, jnp.where(chosen, tangent, 0.0).sum(axis=1) / chosen.sum(axis=1)


def normalize(x: Array, order) -> Array:
    """x / |x| at any scale that the type holds, and zero where x is zero: [B, ...] -> [B, ...]."""
    rows = flatten_examples(x)
    unit = rows * (1.0 / scale_of(rows))[:, None]
    size = _root(jnp.square(unit).sum(axis=1)) if order == 2 else norm(unit, order)  # no square of a unit vector can vanish
    return (unit * ratio(1.0, size)[:, None]).reshape(x.shape)


def scale_of(x: Array) -> Array:
    """The largest |x| of each example of x [B, D] -> [B], 1 where there is none: to divide by, where a result does not depend on it.

    For that reason it is a constant for derivatives.
    """
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=1, initial=0.0))
    smallest = 1.2 * jnp.finfo(x.dtype).tiny  # what can be inverted
    return jnp.where((largest > 0) & jnp.isfinite(largest), jnp.maximum(largest, smallest), 1.0)


def top_k_mask(scores: Array, k) -> Array:
    """True at the k largest scores of each example, ties to the lower index; k may be traced, a scalar or [B].

    The k-th largest is built bit by bit on the ordered bits of the scores (radix selection): 32 counts, where XLA's sort on CPU
    costs some ten times as much.
    """
    num_bits, word = (64, jnp.uint64) if scores.dtype == jnp.float64 else (32, jnp.uint32)
    real = flatten_examples(scores).astype(jnp.float64 if num_bits == 64 else jnp.float32) + 0.0  # -0 is 0
    bits = jax.lax.bitcast_convert_type(real, word)
    top = word(1 << (num_bits - 1))
    ordered = jnp.where(bits >= top, ~bits, bits | top)
    k = jnp.broadcast_to(per_example(k, ordered), (ordered.shape[0], 1)).astype(real.dtype)

    def count(mask):
        return mask.sum(axis=1, keepdims=True).astype(real.dtype)

    def set_bit(i, carry):
        threshold, ordered = carry
        raised = threshold | (top >> i.astype(word))
        nothing = i.astype(word) >> (num_bits - 1)
        return jnp.where(count(ordered >= raised) >= k, raised, threshold), ordered ^ nothing

    # The bits pass through the loop, and XLA does not see that it leaves them alone: else it may compute the scores again where they are
    # compared after it, with another rounding, and the k-th is lost.
    threshold, ordered = jax.lax.fori_loop(0, num_bits, set_bit, (jnp.zeros(k.shape, word), ordered))
    tied = ordered == threshold
    chosen = (ordered > threshold) | (tied & (jnp.cumsum(tied, axis=1).astype(real.dtype) <= k - count(ordered > threshold)))
    return (chosen & (k > 0)).reshape(scores.shape)


def where_example(mask: Array, chosen, otherwise):
    """Per example: `chosen` where mask [B] holds, `otherwise` elsewhere; over pytrees whose leaves lead with B."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b), chosen, otherwise)
