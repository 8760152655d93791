"""Training on noise for smoothing: Gaussian augmentation (Cohen et al., 2019), and stability (Li et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import checks, losses, prng
from robustjax.base import ApplyFn, Array, Key, LossFn, NoiseFn, Numeric
from robustjax.smoothing import counting, noise
from robustjax.training import _natural
from robustjax.training._natural import Risk


def gaussian(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    sigma: Numeric,
    num_noise: int = 1,
    loss_fn: LossFn = losses.cross_entropy,
    noise_fn: NoiseFn = noise.gaussian,
) -> Risk:
    """Mean loss at x + noise.

    Args:
      params, model_state, apply_fn, loss_fn: parameters, state, network and loss, as for `natural`.
      key: of the noise.
      x: inputs [B, ...] of float32 or float64; a model of half precision casts them itself. y: labels [B].
      sigma: standard deviation of the noise, in the unit of x.
      num_noise: noisy copies of each example.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `smoothing.noise`.

    Returns:
      The loss and (model_state of that forward pass, {"loss", "accuracy"} under noise).

    Raises:
      ValueError: sigma or num_noise not positive, labels that are not integers [B], logits of another shape.
      TypeError: inputs of half precision, a num_noise that is not an integer, logits that are not an array.

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Cohen et al., ICML 2019, section 3.3, arXiv:1902.02918.
    """
    keys = prng.example_keys(key, x.shape[0])
    logits, model_state = noisy_logits(apply_fn, params, model_state, keys, x, sigma, num_noise, noise_fn)
    loss = mean_loss(loss_fn, logits, y)
    return loss, (model_state, {"loss": loss, "accuracy": _natural.accuracy(logits.mean(axis=1), y)})


def stability(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    sigma: Numeric,
    weight: Numeric,
    num_noise: int = 1,
    loss_fn: LossFn = losses.cross_entropy,
) -> Risk:
    """loss(x) + weight * the mean cross-entropy of the prediction at x + noise to that at x.

    Args:
      params, model_state, key, x, y, apply_fn, loss_fn: parameters, state, key of the noise, batch, network and loss, as for `gaussian`.
      sigma: standard deviation of the noise, in the unit of x.
      weight: weight of the stability term.
      num_noise: noisy copies of each example.

    Returns:
      The loss and (model_state, {"loss", "accuracy"} under noise); both forward passes update the statistics, the clean one first.

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Zheng et al., CVPR 2016, arXiv:1604.04326; for smoothing Li et al., NeurIPS 2019, section 4.2, arXiv:1809.03113.
    """
    keys = prng.example_keys(key, x.shape[0])
    checks.labels(y, x.shape[0])
    clean, state = apply_fn(params, model_state, x, "train")
    clean = losses.as_logits(clean)
    logits, state = noisy_logits(apply_fn, params, state, keys, x, sigma, num_noise)
    probs = jnp.repeat(jax.nn.softmax(clean), num_noise, axis=0)
    change = losses.soft_cross_entropy(logits.reshape(-1, logits.shape[-1]), probs).mean()
    loss = loss_fn(clean, y).mean() + weight * change
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits.mean(axis=1), y)})


def noisy_logits(
    apply_fn: ApplyFn,
    params: Any,
    model_state: Any,
    keys: Array,
    x: Array,
    sigma: Numeric,
    num_noise: int,
    noise_fn: NoiseFn = noise.gaussian,
) -> tuple[Array, Any]:
    """Logits [B, S, C] of S noisy copies of each example in training mode, of float32 at least, and the updated model_state."""
    checks.inputs(x)
    checks.counts(num_noise=num_noise)
    samples, _ = counting.noisy(keys, x, sigma, num_noise, noise_fn)
    logits, model_state = apply_fn(params, model_state, samples.reshape(-1, *x.shape[1:]), "train")
    return counting.grouped(losses.as_logits(logits), *samples.shape[:2]), model_state


def mean_loss(loss_fn: LossFn, logits: Array, y: Array) -> Array:
    """The mean of a loss over the noisy copies [B, S, C] of a batch with labels y [B]."""
    num_noise = logits.shape[1]
    checks.labels(y, logits.shape[0])
    return loss_fn(logits.reshape(-1, logits.shape[-1]), jnp.repeat(y, num_noise, axis=0)).mean()
