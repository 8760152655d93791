"""The smoothed classifier as a model: the log of its mean softmax, differentiable in x and in the parameters (Salman et al., 2019)."""

import math

import jax
import jax.numpy as jnp

from robustjax import base, checks, prng
from robustjax.base import Array, ModelFn, NoiseFn, Numeric
from robustjax.smoothing import counting, noise


@base.node
class Smoothed:
    """A model that averages over noise, which it draws again in every step of an attack: see `soft`."""

    bound: base.Configured

    def __call__(self, x: Array) -> Array:
        raise ValueError("a smoothed model is random: call .draw(keys)(x), as every attack does each step.")

    def draw(self, keys: Array) -> ModelFn:
        """The average over the noise of these keys [B]: a model that keeps this noise, in all steps of an attack too."""
        return base.bind(self.bound, keys=keys)


def soft(
    model_fn: ModelFn,
    *,
    sigma: Numeric,
    num_samples: int,
    temperature: Numeric = 1.0,
    gradient_free: bool = False,
    noise_fn: NoiseFn = noise.gaussian,
) -> Smoothed:
    """log of the mean over noise of softmax(logits(x + noise) / temperature), as logits.

    Its cross-entropy is -log of the mean probability, the objective of SmoothAdv; the mean of the cross-entropies would be another one.

    Args:
      model_fn: the base classifier, randomised or not.
      sigma: standard deviation of the noise, in the unit of x.
      num_samples: S, noisy copies of each example; memory and time are those of S * B examples.
      temperature: of the softmax.
      gradient_free: whether the gradient in x comes from the noise (Stein: the mean of h(x + noise) noise / sigma^2) instead of from
        the model, which then need not be differentiable. Gaussian noise only.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `noise`.

    Returns:
      A randomised model, from which attacks and losses draw. `.draw(keys)` is one realisation, a ModelFn that keeps its noise.

    Raises:
      ValueError: sigma, num_samples or temperature not positive; the gradient-free form with noise that is not Gaussian.
      TypeError: a num_samples that is traced or not an integer; when called, inputs of half precision or a model that returns a tuple.

    Example:
      >>> smoothed = smoothing.soft(lambda x: x, sigma=0.25, num_samples=100)
      >>> logits = smoothed.draw(jax.random.split(jax.random.key(0), 1))(jnp.array([[0.9, 0.1]]))
      >>> logits.shape, bool(logits[0, 0] > logits[0, 1])
      ((1, 2), True)

    Source: Salman et al., NeurIPS 2019, eq. 6, arXiv:1906.04584.
    """
    checks.counts(num_samples=num_samples)
    checks.functions(noise_fn=noise_fn)
    checks.positive(sigma=sigma, temperature=temperature)
    if gradient_free and noise_fn is not noise.gaussian:
        raise ValueError("the gradient-free form is Stein's, for Gaussian noise; pass noise_fn=noise.gaussian, or gradient_free=False.")
    return Smoothed(
        base.bind(
            _log_mean, model=base.Held(model_fn), sigma=sigma, num_samples=num_samples, temperature=temperature,
            gradient_free=gradient_free, noise_fn=noise_fn,
        )
    )  # fmt: skip


def log_mean_softmax(logits: Array) -> Array:
    """log of the mean over axis 1 of softmax: [B, S, C] -> [B, C], computed from logarithms, so that no probability underflows.

    A class that is masked by -inf in all samples stays masked, and has no gradient.

    Raises:
      ValueError: logits of another rank.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected logits [B, S, C] of S samples of each example, got {logits.shape}.")
    return _log_mean_exp(jax.nn.log_softmax(logits, axis=-1))


def _log_mean(x, *, keys, model, sigma, num_samples, temperature, gradient_free, noise_fn):
    checks.inputs(x)
    checks.model(model.model_fn, x)
    keys = prng.example_keys(keys, x.shape[0])
    where = jax.lax.stop_gradient(x) if gradient_free else x
    samples, sample_keys = counting.noisy(keys, where, sigma, num_samples, noise_fn)
    logits = counting.logits_of(model.model_fn, samples, sample_keys)
    logits = logits.astype(noise.noise_dtype(logits))
    logits = logits / jnp.asarray(temperature, logits.dtype)
    if gradient_free:
        # Stein's estimate: h(x + noise) is a constant, times the ratio of the noise's densities as x moves, which is 1 with the gradient
        # noise / sigma^2. Its logarithm is added to log h: `ratio` is 0, with that gradient.
        moved = (samples - where[:, None]) * (x - where)[:, None]
        ratio = moved.sum(axis=tuple(range(2, moved.ndim))) / jnp.reshape(jnp.square(jnp.asarray(sigma, x.dtype)), (-1, 1))
        log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits), axis=-1)
        return _log_mean_exp(log_probs + ratio[..., None])
    return log_mean_softmax(logits)


def _log_mean_exp(values):
    masked = (values == -jnp.inf).all(axis=1, keepdims=True)  # there the gradient would be 0 / 0
    log_sum = jax.nn.logsumexp(jnp.where(masked, 0.0, values), axis=1)
    return jnp.where(masked[:, 0], -jnp.inf, log_sum - math.log(values.shape[1]))
