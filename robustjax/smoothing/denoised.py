"""Denoised smoothing: a classifier that was never trained on noise, behind a denoiser (Salman et al., 2020; Carlini et al., 2023)."""

from collections.abc import Callable

import jax.numpy as jnp

from robustjax import base
from robustjax.base import Array, ModelFn


def denoised(model_fn: ModelFn, denoiser: Callable) -> ModelFn:
    """x -> model_fn(denoiser(x)): the base classifier of denoised smoothing, a callable pytree.

    Args:
      model_fn: any classifier; it is not trained further.
      denoiser: noisy inputs [B, ...] -> inputs [B, ...], a callable pytree; trained by `training.denoise`, or a `diffusion_denoiser`.

    Source: Salman et al., NeurIPS 2020, arXiv:2003.01908.
    """
    return base.bind(_composed, model_fn=model_fn, denoiser=denoiser)


def diffusion_denoiser(noise_fn: Callable, alpha_bars: Array, *, sigma) -> Callable:
    """One step of a diffusion model as a denoiser of inputs in [0, 1] under Gaussian noise of standard deviation sigma.

    t is the first time with sqrt(1 - a_t) / sqrt(a_t) >= 2 sigma; the estimate is
    (x_t - sqrt(1 - a_t) noise_fn(x_t, t)) / sqrt(a_t), clipped, with x_t = sqrt(a_t) (2 x - 1).

    Args:
      noise_fn: (x_t [B, ...] in [-1, 1], t) -> the noise in it, of unit variance; a callable pytree.
      alpha_bars: [T] the schedule a_t, falling.
      sigma: of the noise in the unit of x.

    Returns:
      A denoiser; noise that no time of the schedule is as strong as gets the last one.

    Source: Carlini et al., ICLR 2023, Algorithm 1, arXiv:2206.10550. Differs: the noise is what smoothing drew, exactly sigma; theirs is
      drawn at time t, and at least sigma.
    """
    return base.bind(_diffusion, noise_fn=noise_fn, alpha_bars=alpha_bars, sigma=sigma)


def _composed(x, *, model_fn, denoiser):
    return model_fn(denoiser(x))


def _diffusion(x, *, noise_fn, alpha_bars, sigma):
    strong = jnp.sqrt((1.0 - alpha_bars) / alpha_bars) >= 2.0 * sigma
    time = jnp.where(strong.any(), jnp.argmax(strong), len(alpha_bars) - 1)
    alpha_bar = alpha_bars[time]
    x_t = jnp.sqrt(alpha_bar) * (2.0 * x - 1.0)
    estimate = (x_t - jnp.sqrt(1.0 - alpha_bar) * noise_fn(x_t, time)) / jnp.sqrt(alpha_bar)
    return 0.5 * (jnp.clip(estimate, min=-1.0, max=1.0) + 1.0)
