"""MACER: the certified radius itself as a training loss, without attacks (Zhai et al., 2020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import checks, losses, prng
from robustjax.base import Array, Key
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _natural


def macer(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    sigma,
    num_noise: int,
    weight,
    beta=16.0,
    gamma=8.0,
):
    """-log of the mean probability of y + weight * a hinge on the soft certified radius, where y is predicted.

    Args:
      params, model_state, key, x, y, apply_fn: as for `natural`; the key draws the noise.
      sigma: standard deviation of the noise, in the unit of x.
      num_noise: k, copies of each example; 16 is the paper's.
      weight: of the radius (lambda); 12 on CIFAR-10 at sigma .25, 16 on MNIST.
      beta: inverse temperature of the softmax in the radius.
      gamma: margin of the hinge, in standard deviations.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "radius"}), the last the mean soft radius, 0 where it does not count.

    Raises:
      ValueError, TypeError: as `gaussian`.

    Source: Zhai et al., ICLR 2020, Algorithm 1, arXiv:2001.02378.
    """
    checks.labels(y, x.shape[0])
    keys = prng.example_keys(key, x.shape[0])
    logits, state = _gaussian.noisy_logits(apply_fn, params, model_state, keys, x, sigma, num_noise)
    probs = jnp.exp(_soft.log_mean_softmax(beta * logits))
    margin, counted = radius_margin(probs, y)
    hinge = jnp.where(counted & (margin <= gamma), gamma - margin, 0.0)
    loss = losses.cross_entropy(_soft.log_mean_softmax(logits), y).mean() + weight * (0.5 * sigma * hinge).mean()
    radius = jnp.where(counted, 0.5 * sigma * margin, 0.0).mean()
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(probs, y), "radius": radius})


def radius_margin(probs: Array, y: Array) -> tuple[Array, Array]:
    """Phi^-1(p1) - Phi^-1(p2) of the two largest probabilities [B, C], and where it counts: y leads, and neither is 0 or 1 to rounding.

    Elsewhere the margin is a constant, with a gradient of zero instead of NaN.
    """
    (first, second), leader = jax.lax.top_k(probs, 2)[0].T, probs.argmax(axis=1)
    counted = (leader == y) & (first < 1.0) & (second >= jnp.finfo(probs.dtype).tiny)  # below, the slope of ndtri overflows
    upper, lower = jnp.where(counted, first, 0.5), jnp.where(counted, second, 0.5)
    return jax.scipy.special.ndtri(upper) - jax.scipy.special.ndtri(lower), counted
