"""Denoised smoothing: a denoiser before a classifier that was never trained on noise (Salman et al., 2020; Carlini et al., 2023)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import base, checks
from robustjax.base import Array, ModelFn, Numeric
from robustjax.smoothing import noise

Denoiser = Callable[[Array], Array]  # noisy inputs [B, ...] -> inputs [B, ...], a callable pytree


def denoised(model_fn: ModelFn, denoiser: Denoiser) -> ModelFn:
    """x -> model_fn(denoiser(x)): the base classifier of denoised smoothing, a callable pytree.

    Args:
      model_fn: any classifier; it is not trained further.
      denoiser: noisy inputs [B, ...] -> inputs [B, ...], a callable pytree: trained by `training.denoise`, or a `diffusion_denoiser`.

    Raises:
      TypeError: one of them cannot be called. ValueError: when called, if the denoiser changes the shape.

    Guarantee:
      a certificate by smoothing holds for the pair, whatever the denoiser does.
    Source: Salman et al., NeurIPS 2020, arXiv:2003.01908.
    """
    checks.functions(model_fn=model_fn, denoiser=denoiser)
    return base.bind(_composed, model_fn=model_fn, denoiser=denoiser)


def diffusion_denoiser(noise_fn: Callable[[Array, Array], Array], alpha_bars: Array, *, sigma: Numeric) -> Denoiser:
    """One step of a diffusion model as a denoiser of inputs in [0, 1] under Gaussian noise of standard deviation sigma.

    t is the first time with sqrt(1 - a_t) / sqrt(a_t) >= 2 sigma; the estimate is
    (x_t - sqrt(1 - a_t) noise_fn(x_t, t)) / sqrt(a_t), clipped, with x_t = sqrt(a_t) (2 x - 1).

    Args:
      noise_fn: (x_t [B, ...] in [-1, 1], t) -> the noise in it, of unit variance; a callable pytree.
      alpha_bars: [T] the schedule a_t, the decreasing product of the alphas.
      sigma: standard deviation of the noise, in the unit of x.

    Returns:
      A denoiser; noise that is stronger than at every time of the schedule is treated as that of the last time.

    Raises:
      TypeError: a noise_fn that cannot be called. ValueError: sigma not positive, alpha_bars that are not in (0, 1] or increase.

    Guarantee:
      none of its own: see `denoised`.
    Source: Carlini et al., ICLR 2023, Algorithm 1, arXiv:2206.10550. Differs: the noise is the one that smoothing drew, exactly sigma;
      theirs is drawn at time t, and at least sigma.
    """
    checks.functions(noise_fn=noise_fn)
    checks.positive(sigma=sigma)
    if not isinstance(alpha_bars, jax.core.Tracer):
        schedule = np.asarray(alpha_bars)
        is_schedule = schedule.ndim == 1 and schedule.size > 0 and np.all((schedule > 0) & (schedule <= 1) & np.isfinite(schedule))
        if not is_schedule or np.any(np.diff(schedule) > 0):
            raise ValueError(
                f"expected alpha_bars [T] that fall within (0, 1], got shape {schedule.shape} from {schedule.flat[:1]} to "
                f"{schedule.flat[-1:]}; of betas it is jnp.cumprod(1 - betas)."
            )
    return base.bind(_diffusion, noise_fn=noise_fn, alpha_bars=alpha_bars, sigma=sigma)


def check_restored(restored: Array, x: Array) -> None:
    """Requires that a denoiser returned inputs of the shape that it was given.

    Raises:
      ValueError: it did not.
    """
    shape = getattr(restored, "shape", type(restored).__name__)
    if shape != x.shape:
        raise ValueError(f"the denoiser makes {shape} of inputs {x.shape}; they must agree, let it return denoised inputs alone.")


def _composed(x, *, model_fn, denoiser):
    restored = denoiser(x)
    check_restored(restored, x)
    return model_fn(restored)


def _diffusion(x, *, noise_fn, alpha_bars, sigma):
    dtype = noise.noise_dtype(x)
    alpha_bars = jnp.asarray(alpha_bars, dtype)
    # Step 1 of Algorithm 1: the first time whose noise is as strong; 2 sigma, since the model's inputs lie in [-1, 1].
    strong = jnp.sqrt((1.0 - alpha_bars) / alpha_bars) >= 2.0 * jnp.asarray(sigma, dtype)
    time = jnp.where(strong.any(), jnp.argmax(strong), len(alpha_bars) - 1)
    alpha_bar = alpha_bars[time]
    x_t = jnp.sqrt(alpha_bar) * (2.0 * x.astype(dtype) - 1.0)
    # The estimate of x_0 in one step, back in [0, 1].
    estimate = (x_t - jnp.sqrt(1.0 - alpha_bar) * noise_fn(x_t, time).astype(dtype)) / jnp.sqrt(alpha_bar)
    return 0.5 * (jnp.clip(estimate, min=-1.0, max=1.0) + 1.0)
