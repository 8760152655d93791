"""Votes of a classifier under noise, counted on the device: the state of every certificate.

Sample n of an image is drawn from fold_in(key of the image, n), so that neither the chunk, the batch, the mesh nor an interruption
changes what is drawn: counts of consecutive samples add up to the counts of all, if the model's logits of an example do not depend on
the batch that it is in (the last digit of a convolution's logits may). This holds for keys of threefry, the default. Keys of "rbg" draw
other noise, which is no worse, if another number of them draws at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from robustjax import base, checks, drivers, losses, prng
from robustjax.base import Array, Key, ModelFn, NoiseFn, Numeric
from robustjax.smoothing import noise

SOFT_UNIT = 2**-14  # soft votes are multiples of it: 131,071 samples fit into 31 bits
NOT_FINITE = -(2**20)  # marks a row: it stays below 0 if a million votes are added, and 2,000 of them fit into int32
_FEW_CLASSES = 32  # up to which `leader` is unrolled


class SoftVotes(NamedTuple):
    """Sums over samples of class probabilities h and of their squares, as integers in multiples of SOFT_UNIT."""

    low: Array  # [B, C] sum of h, each rounded down
    high: Array  # [B, C] sum of h, each rounded up
    squares: Array  # [B, C] sum of h^2, each rounded up
    drawn: Array  # [B] samples whose logits were finite: what the sums are of


def count_predictions(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    *,
    sigma: Numeric,
    num_samples: int,
    chunk_size: int,
    first_sample: int | Array = 0,
    noise_fn: NoiseFn = noise.gaussian,
    rewritten: bool = True,
) -> Array:
    """How often each class is predicted at x + noise.

    NaN is not a class: if the logits of one sample are not finite (NaN, infinity, or -inf for every class), the prediction is unknown
    and the whole row is marked, see `not_finite`. A class that is masked by -inf is never predicted.

    Args:
      key: one key, or one per example [B].
      model_fn: x [B, ...] -> logits [B, C], C >= 2; a randomised one draws afresh for every sample.
      x: inputs [B, ...]. The noise is added to them as they are: normalisation belongs inside the model.
      sigma: standard deviation of the noise, in the unit of x; a scalar or [B].
      num_samples: samples of each example.
      chunk_size: samples of each example at a time; memory is that of B * chunk_size examples.
      first_sample: index of the first sample, a scalar or [B]. Counts of samples 0..m and m..n add up to those of 0..n.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `noise`.
      rewritten: whether the model runs with the convolutions of `lowering.rewrite`, which are fast in loops on CPU in every layout; on
        other platforms it does nothing. Logits agree to rounding.

    Returns:
      Votes [B, C] int32; each row sums to num_samples, or is negative everywhere. Ties of logits go to the lower class.

    Raises:
      ValueError: sigma or first_sample neither scalar nor [B], sigma, num_samples or chunk_size not positive, a chunk_size that does
        not divide num_samples, inputs of integers, logits that are not [B, C].
      TypeError: a number of samples that is traced or not an integer, or a model that returns a tuple.

    Source: Cohen et al., ICML 2019, SampleUnderNoise, arXiv:1902.02918. Differs: one key per image and sample.
    """

    def votes(logits):
        chosen = jax.nn.one_hot(leader(logits), logits.shape[-1], dtype=bool) & jnp.isfinite(logits)  # NaN and infinity lead
        return chosen.sum(axis=1, dtype=jnp.int32)

    counts = _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, rewritten, votes)
    return jnp.where(counts.sum(axis=1, keepdims=True) == num_samples, counts, NOT_FINITE)


def not_finite(votes: ArrayLike) -> np.ndarray:
    """Which rows [B] of votes [B, C] hold a sample whose logits were not finite: all their numbers are negative.

    Such a row stays negative if up to a million votes for each class are added, and so does the sum of up to 2,000 such rows. The
    statistics abstain there.
    """
    return np.all(np.asarray(votes) < 0, axis=1)


def count_soft(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    *,
    sigma: Numeric,
    num_samples: int,
    chunk_size: int,
    temperature: Numeric = 1.0,
    first_sample: int | Array = 0,
    noise_fn: NoiseFn = noise.gaussian,
    rewritten: bool = True,
) -> SoftVotes:
    """Sums of softmax(logits / temperature) at x + noise, in fixed point: they add up exactly, and the true sum lies between two of them.

    A sample whose logits are not finite adds nothing; `certify_soft` sees that it is missing and raises.

    Args:
      key, model_fn, x, first_sample, noise_fn: key or keys, model, inputs, first sample and noise, as for `count_predictions`.
      rewritten: whether convolutions are those of `lowering.rewrite`, as for `count_predictions`.
      sigma: standard deviation of the noise, in the unit of x; a scalar or [B].
      num_samples: samples of each example.
      chunk_size: samples of each example at a time; divides num_samples.
      temperature: of the softmax, 1 / beta of MACER; toward 0 the votes become hard.

    Raises:
      ValueError: as for `count_predictions`, and more samples than fit into 31 bits.

    Source: Zhai et al., ICLR 2020, appendix C, arXiv:2001.02378.
    """
    checks.counts(num_samples=num_samples)
    checks.positive(temperature=temperature)
    if num_samples > SOFT_UNIT * 2**31 - 1:
        raise ValueError(f"num_samples={num_samples} soft votes overflow 31 bits; add up calls of at most {int(SOFT_UNIT * 2**31) - 1}.")

    def votes(logits):
        # Comparisons, since XLA:CPU's maximum of eight numbers or more ignores NaN (jax 0.10.2).
        finite = (logits < jnp.inf).all(axis=-1) & (logits > -jnp.inf).any(axis=-1)
        logits = jnp.where(finite[..., None], logits, 0.0).astype(noise.noise_dtype(logits))  # in bfloat16 they would not sum to 1
        probs = jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)
        scaled = jnp.where(finite[..., None], probs, 0.0) / SOFT_UNIT
        # Rounded down and up: a lower bound needs a mean that is not too large, and squares that are not too small.
        rounded = jnp.floor(scaled), jnp.ceil(scaled), jnp.ceil(jnp.square(scaled) * SOFT_UNIT)
        return SoftVotes(*(part.astype(jnp.int32).sum(axis=1, dtype=jnp.int32) for part in (*rounded, finite)))

    return _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, rewritten, votes)


def noisy(
    keys: Array, x: Array, sigma: Numeric, num_samples: int, noise_fn: NoiseFn = noise.gaussian, first_sample: int | Array = 0
) -> tuple[Array, Array]:
    """Samples [B, S, ...] of x [B, ...] under noise, and the keys [B, S] from which they were drawn."""
    checks.inputs(x, is_half_allowed=True)
    checks.counts(num_samples=num_samples)
    check_sigma(sigma, x.shape[0])
    _check_first(first_sample, x.shape[0])
    sigma = jnp.broadcast_to(jnp.asarray(sigma, noise.noise_dtype(x)), x.shape[:1])
    first = jnp.broadcast_to(jnp.asarray(first_sample, jnp.int32), x.shape[:1])

    def samples(key, x, sigma, first):
        sample_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(num_samples, dtype=jnp.int32))
        return jax.vmap(noise_fn, (0, None, None))(sample_keys, x, sigma), sample_keys

    noisy_x, sample_keys = jax.vmap(samples)(keys, x, sigma, first)
    expected = (x.shape[0], num_samples, *x.shape[1:])
    if noisy_x.shape != expected or not jnp.issubdtype(noisy_x.dtype, jnp.floating):
        raise ValueError(
            f"noise_fn made {noisy_x.shape[2:]} of {noisy_x.dtype} from an example {x.shape[1:]} of {x.dtype}; it must keep shape and type."
        )
    return noisy_x, sample_keys


def logits_of(model_fn: ModelFn, samples: Array, keys: Array) -> Array:
    """Logits [B, S, C] of samples [B, S, ...]; a randomised model draws from keys [B, S]."""
    num_examples, num_samples = samples.shape[:2]
    model_fn = base.draw(model_fn, prng.fold_in(keys.reshape(-1), 1))
    return grouped(checks.called(model_fn, samples.reshape(-1, *samples.shape[2:])), num_examples, num_samples)


def grouped(logits: Array, num_examples: int, num_samples: int) -> Array:
    """Logits [B * S, C] of a model as [B, S, C].

    Raises:
      ValueError: they are of another shape, or of fewer than two classes. TypeError: they are not an array, but for instance a tuple.
    """
    losses.check_logits(logits)
    if len(logits) != num_examples * num_samples:
        raise ValueError(
            f"expected logits [{num_examples * num_samples}, C] of as many inputs, got {logits.shape}; return one row for each input."
        )
    return logits.reshape(num_examples, num_samples, logits.shape[1])


def leader(logits: Array) -> Array:
    """argmax over the last axis, ties to the lower class, the first NaN as the largest: [..., C] -> [...].

    Over few classes it is unrolled: XLA:CPU runs a network in a loop about 5 % slower if a reduction over classes follows it
    (jax 0.10.2). `top_k` would be as fast, but over a mesh it gathers the logits.
    """
    num_classes = logits.shape[-1]
    if num_classes > _FEW_CLASSES:
        return logits.argmax(axis=-1).astype(jnp.int32)
    best, found = logits[..., 0], jnp.zeros(logits.shape[:-1], jnp.int32)
    for label in range(1, num_classes):
        candidate = logits[..., label]
        better = ~(candidate <= best) & (best == best)  # the first NaN wins, as in argmax
        best, found = jnp.where(better, candidate, best), jnp.where(better, label, found)
    return found


def check_sigma(sigma: Numeric, num_examples: int) -> None:
    """Requires a standard deviation, or one per example [B], as far as the values are known at trace time.

    Raises:
      ValueError: it is not positive and finite, or of another shape.
    """
    checks.positive(sigma=sigma)
    if np.shape(sigma) not in ((), (num_examples,)):
        raise ValueError(f"expected sigma as a number, or one for each of the {num_examples} inputs, got shape {np.shape(sigma)}.")


def _check_first(first_sample, num_examples):
    is_integer = jnp.issubdtype(jnp.result_type(first_sample), jnp.integer)
    is_known = not isinstance(first_sample, jax.core.Tracer)
    if np.shape(first_sample) not in ((), (num_examples,)) or not is_integer or (is_known and np.any(np.asarray(first_sample) < 0)):
        raise ValueError(
            f"expected first_sample as an integer >= 0, or one for each of the {num_examples} inputs, got {first_sample}; pass how many "
            "samples were drawn before."
        )


def _sum(key, model_fn, x, sigma, num_samples, chunk_size, first_sample, noise_fn, rewritten, votes):
    checks.inputs(x, is_half_allowed=True)
    checks.model(model_fn, x)
    checks.functions(noise_fn=noise_fn)
    checks.counts(num_samples=num_samples, chunk_size=chunk_size)
    _check_first(first_sample, x.shape[0])
    if num_samples % chunk_size:
        fitting = max(num_samples // chunk_size, 1) * chunk_size
        raise ValueError(f"num_samples={num_samples} is not a multiple of chunk_size={chunk_size}; pass e.g. num_samples={fitting}.")
    keys = prng.example_keys(key, x.shape[0])
    model_fn = drivers.lowered(model_fn, rewritten)

    def chunk(index):
        samples, sample_keys = noisy(keys, x, sigma, chunk_size, noise_fn, first_sample + index * chunk_size)
        return votes(logits_of(model_fn, samples, sample_keys))

    indices = jnp.arange(num_samples // chunk_size, dtype=jnp.int32)
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk, indices[0]))
    add = lambda total, index: (jax.tree.map(jnp.add, total, chunk(index)), None)  # noqa: E731
    return jax.lax.scan(add, nothing, indices)[0]
