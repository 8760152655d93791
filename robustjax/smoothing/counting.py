"""Votes of a classifier under noise, counted on the device: the state of every certificate.

Sample n of an image is drawn from fold_in(key of the image, n), so that neither the chunk, the batch, the mesh nor an interruption
changes what is drawn: counts of consecutive samples add up to the counts of all, where the model's logits of an example do not depend on
the batch it is in (the last digit of a convolution's may). The noise is the same for keys of threefry, the default; those of
"rbg" draw other noise, no worse, when another number of them draws at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base
from robustjax.base import Array, Key, ModelFn
from robustjax.smoothing import noise

SOFT_UNIT = 2**-14  # of soft votes: 131,071 samples fit into 31 bits
_FEW_CLASSES = 32  # of a prediction that is unrolled


class SoftVotes(NamedTuple):
    """Sums over samples of class probabilities h and of their squares, as integers in multiples of SOFT_UNIT."""

    low: Array  # [B, C] sum of h, each rounded down
    high: Array  # [B, C] sum of h, each rounded up
    squares: Array  # [B, C] sum of h^2, each rounded up
    drawn: Array  # [B] samples whose logits were finite: what the sums are of


def count_predictions(
    key: Key, model_fn: ModelFn, x: Array, *, sigma, num_samples: int, chunk_size: int, first_sample=0, noise_fn=noise.gaussian
) -> Array:
    """How often each class is predicted at x + noise.

    Args:
      key: one key, or one per example [B].
      model_fn: x [B, ...] -> logits [B, C]; a randomised one draws afresh for every sample.
      x: inputs [B, ...]. The noise is added to them as they are: what normalises belongs into the model.
      sigma: standard deviation of the noise, in the unit of x; a scalar or [B].
      num_samples: samples of each example.
      chunk_size: samples of each example at a time; memory is that of B * chunk_size examples.
      first_sample: where to go on; a scalar or [B]. Counts of samples 0..m and m..n add up to those of 0..n.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `noise`.

    Returns:
      Votes [B, C] int32; each row sums to num_samples. Ties of logits go to the lower class.

    Raises:
      ValueError: sigma, num_samples or chunk_size not positive, a chunk that does not divide num_samples, logits that are not [B, C].

    Source: Cohen et al., ICML 2019, SampleUnderNoise, arXiv:1902.02918. Differs: one key per image and sample.
    """

    def votes(logits):
        return jax.nn.one_hot(leader(logits), logits.shape[-1], dtype=jnp.int32).sum(axis=1)

    return _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, votes)


def count_soft(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    *,
    sigma,
    num_samples: int,
    chunk_size: int,
    temperature=1.0,
    first_sample=0,
    noise_fn=noise.gaussian,
) -> SoftVotes:
    """Sums of softmax(logits / temperature) at x + noise, in fixed point: they add up exactly, and bracket the sum on both sides.

    A sample whose logits are not finite counts as nothing, so that `certify_soft` misses it and refuses.

    Args:
      key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn: as for `count_predictions`.
      temperature: 1 / beta of MACER; toward 0 the votes harden.

    Raises:
      ValueError: as `count_predictions`, and more samples than fit into 31 bits.

    Source: Zhai et al., ICLR 2020, appendix C, arXiv:2001.02378.
    """
    if num_samples > SOFT_UNIT * 2**31 - 1:
        raise ValueError(f"num_samples={num_samples} soft votes overflow 31 bits; add up calls of at most {int(SOFT_UNIT * 2**31) - 1}.")

    def votes(logits):
        finite = jnp.isfinite(logits).all(axis=-1, keepdims=True)
        logits = jnp.where(finite, logits, 0.0)
        scaled = (
            finite * jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1) / SOFT_UNIT
        )  # in bfloat16 they would not sum to 1
        rounded = jnp.floor(scaled), jnp.ceil(scaled), jnp.ceil(jnp.square(scaled) * SOFT_UNIT)
        return SoftVotes(*(part.astype(jnp.int32).sum(axis=1) for part in (*rounded, finite[..., 0])))

    return _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, votes)


def noisy(keys: Array, x: Array, sigma, num_samples: int, noise_fn=noise.gaussian, first_sample=0) -> tuple[Array, Array]:
    """Samples [B, S, ...] of x [B, ...] under noise, and the keys [B, S] from which they were drawn."""
    check(sigma, num_samples)
    sigma, first = (jnp.broadcast_to(value, x.shape[:1]) for value in (sigma, first_sample))

    def samples(key, x, sigma, first):
        sample_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(num_samples))
        return jax.vmap(noise_fn, (0, None, None))(sample_keys, x, sigma.astype(jnp.promote_types(x.dtype, jnp.float32))), sample_keys

    return jax.vmap(samples)(keys, x, sigma, first)


def logits_of(model_fn: ModelFn, samples: Array, keys: Array) -> Array:
    """Logits [B, S, C] of samples [B, S, ...]; a randomised model draws from keys [B, S]."""
    num_examples, num_samples = samples.shape[:2]
    model_fn = base.draw(model_fn, arrays.fold_in(keys.reshape(-1), 1))
    return grouped(model_fn(samples.reshape(-1, *samples.shape[2:])), num_examples, num_samples)


def grouped(logits: Array, num_examples: int, num_samples: int) -> Array:
    """Logits [B * S, C] of a model as [B, S, C].

    Raises:
      ValueError: they are of another shape.
    """
    if logits.ndim != 2 or len(logits) != num_examples * num_samples:
        raise ValueError(
            f"expected logits [{num_examples * num_samples}, C] of as many inputs, got {logits.shape}; flatten what the model gives."
        )
    return logits.reshape(num_examples, num_samples, -1)


def leader(logits: Array) -> Array:
    """argmax over the last axis, ties to the lower class: [..., C] -> [...].

    Over few classes it is unrolled. XLA:CPU runs a network in a loop some 5 % slower if a reduction over classes follows it
    (jax 0.10.2); `top_k` would do as well, but over a mesh it gathers the logits.
    """
    num_classes = logits.shape[-1]
    if num_classes > _FEW_CLASSES:
        return logits.argmax(axis=-1)
    best, found = logits[..., 0], jnp.zeros(logits.shape[:-1], jnp.int32)
    for label in range(1, num_classes):
        candidate = logits[..., label]
        better = ~(candidate <= best) & (best == best)  # the first NaN leads, as in argmax
        best, found = jnp.where(better, candidate, best), jnp.where(better, label, found)
    return found


def check(sigma, num_samples: int) -> None:
    """Both are positive, as far as their values are known at trace time.

    Raises:
      ValueError: one is not.
    """
    if num_samples < 1:
        raise ValueError(f"expected a positive number of samples, got {num_samples}.")
    if not isinstance(sigma, jax.core.Tracer) and not np.all(np.asarray(sigma) > 0):
        raise ValueError(f"sigma must be positive, got {sigma}; pass the standard deviation of the noise in the unit of x.")


def _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, votes):
    check(sigma, num_samples)
    if chunk_size < 1:
        raise ValueError(f"expected a positive chunk_size, got {chunk_size}.")
    if num_samples % chunk_size:
        fitting = max(num_samples // chunk_size, 1) * chunk_size
        raise ValueError(f"num_samples={num_samples} is not a multiple of chunk_size={chunk_size}; pass e.g. num_samples={fitting}.")
    keys = arrays.example_keys(key, x.shape[0])

    def chunk(index):
        samples, sample_keys = noisy(keys, x, sigma, chunk_size, noise_fn, first_sample + index * chunk_size)
        return votes(logits_of(model_fn, samples, sample_keys))

    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk, 0))
    add = lambda total, index: (jax.tree.map(jnp.add, total, chunk(index)), None)  # noqa: E731
    return jax.lax.scan(add, nothing, jnp.arange(num_samples // chunk_size))[0]
