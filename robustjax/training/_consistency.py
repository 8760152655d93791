"""Consistency regularisation: predictions under noise shall agree with each other (Jeong & Shin, 2020)."""

from typing import Any

import jax.numpy as jnp

from robustjax import losses, prng
from robustjax.base import ApplyFn, Array, Key, LossFn, Numeric
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _natural
from robustjax.training._natural import Risk


def consistency(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    sigma: Numeric,
    weight: Numeric,
    entropy_weight: Numeric = 0.5,
    num_noise: int = 2,
    loss_fn: LossFn = losses.cross_entropy,
) -> Risk:
    """Mean loss at x + noise + weight * mean KL(p_mean || p_copy) + entropy_weight * H(p_mean), p_mean averaged over the copies.

    Args:
      params, model_state, x, y, apply_fn, loss_fn: parameters, state, batch, network and loss, as for `natural`.
      key: of the noise.
      sigma: standard deviation of the noise, in the unit of x.
      weight: weight of the divergence; 10 or 20 on CIFAR-10, 5 or 10 on MNIST.
      entropy_weight: weight of the entropy of the mean.
      num_noise: noisy copies of each example.

    Returns:
      The loss and (model_state, {"loss", "accuracy"} under noise).

    Raises:
      ValueError, TypeError: as for `gaussian`.

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Jeong & Shin, NeurIPS 2020, eq. 8, arXiv:2006.04062.
    """
    keys = prng.example_keys(key, x.shape[0])
    logits, state = _gaussian.noisy_logits(apply_fn, params, model_state, keys, x, sigma, num_noise)
    log_mean = _soft.log_mean_softmax(logits)
    divergence = mean_divergence(logits, log_mean)
    entropy = -(jnp.exp(log_mean) * jnp.where(log_mean > -jnp.inf, log_mean, 0.0)).sum(axis=-1)
    loss = _gaussian.mean_loss(loss_fn, logits, y) + (weight * divergence + entropy_weight * entropy).mean()
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(log_mean, y)})


def mean_divergence(logits: Array, log_probs: Array) -> Array:
    """The mean over copies of KL(p || softmax(logits)): logits [B, S, C] and log p [B, C] -> [B]."""
    num_noise = logits.shape[1]
    copies = jnp.repeat(log_probs, num_noise, axis=0)
    return losses.kl(logits.reshape(-1, logits.shape[-1]), copies).reshape(-1, num_noise).mean(axis=1)
