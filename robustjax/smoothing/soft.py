"""The smoothed classifier as a model: the log of its mean softmax, differentiable in x and in the parameters (Salman et al., 2019)."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base
from robustjax.base import Array, ModelFn
from robustjax.smoothing import counting, noise


@base.node
class Smoothed:
    """A model that draws its noise afresh in every step, and averages: see `soft`."""

    bound: base.Configured

    def __call__(self, x: Array) -> Array:
        raise ValueError("a smoothed model is random: call .draw(keys)(x), as every attack does each step.")

    def draw(self, keys: Array) -> ModelFn:
        """The average over the noise of these keys [B]; attacked as it is, it keeps that noise in all steps."""
        return base.bind(self.bound, keys=arrays.example_keys(keys, keys.shape[0]))


def soft(model_fn: ModelFn, *, sigma, num_samples: int, temperature=1.0, gradient_free: bool = False, noise_fn=noise.gaussian) -> Smoothed:
    """log of the mean over noise of softmax(logits(x + noise) / temperature), as logits.

    Its cross-entropy is -log of the mean probability, the objective of SmoothAdv, where the mean of the cross-entropies would be another.

    Args:
      model_fn: the base classifier, randomised or not.
      sigma: standard deviation of the noise, in the unit of x.
      num_samples: S noisy copies at once; memory and time are those of S * B examples.
      temperature: of the softmax.
      gradient_free: whether the gradient in x comes from the noise (Stein: the mean of h(x + noise) noise / sigma^2) instead of from
        the model, which then need not be differentiable. Gaussian noise only.
      noise_fn: see `noise`.

    Returns:
      A randomised model: attacks and losses draw from it; `.draw(keys)` is one realisation, a ModelFn with that noise kept.

    Raises:
      ValueError: sigma or num_samples not positive; the gradient-free form with other than Gaussian noise.

    Source: Salman et al., NeurIPS 2019, eq. 6, arXiv:1906.04584.
    """
    counting.check(sigma, num_samples)
    if gradient_free and noise_fn is not noise.gaussian:
        raise ValueError("the gradient-free form is Stein's, for Gaussian noise; pass noise_fn=noise.gaussian, or gradient_free=False.")
    return Smoothed(
        base.bind(
            _log_mean, model=base.Held(model_fn), sigma=sigma, num_samples=num_samples, temperature=temperature, gradient_free=gradient_free,
            noise_fn=noise_fn,
        )
    )  # fmt: skip


def log_mean_softmax(logits: Array) -> Array:
    """log of the mean over axis 1 of softmax: [B, S, C] -> [B, C], without an exponential that could vanish."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=1) - jnp.log(logits.shape[1])


def _log_mean(x, *, keys, model, sigma, num_samples, temperature, gradient_free, noise_fn):
    where = jax.lax.stop_gradient(x) if gradient_free else x
    samples, sample_keys = counting.noisy(keys, where, sigma, num_samples, noise_fn)
    log_probs = jax.nn.log_softmax(counting.logits_of(model.model_fn, samples, sample_keys) / temperature, axis=-1)
    if gradient_free:
        # h(x + noise) as a constant, times the density ratio of the noise as x moves: 1 here, with gradient noise / sigma^2.
        moved = (samples - where[:, None]) * (x - where)[:, None]
        ratio = moved.reshape(*moved.shape[:2], -1).sum(axis=-1) / jnp.reshape(jnp.square(sigma), (-1, 1))
        return jax.nn.logsumexp(jax.lax.stop_gradient(log_probs) + ratio[..., None], axis=1) - jnp.log(num_samples)
    return log_mean_softmax(log_probs)
