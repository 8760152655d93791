"""MACER: the certified radius itself as a training loss, without attacks (Zhai et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import checks, losses, prng
from robustjax.base import ApplyFn, Array, Key, Numeric
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _natural
from robustjax.training._natural import Risk


def macer(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    sigma: Numeric,
    num_noise: int,
    weight: Numeric,
    beta: Numeric = 16.0,
    gamma: Numeric = 8.0,
) -> Risk:
    """-log of the mean probability of y + weight * a hinge on the soft certified radius, for examples that are predicted as y.

    Args:
      params, model_state, x, y, apply_fn: parameters, state, batch and network, as for `natural`.
      key: of the noise.
      sigma: standard deviation of the noise, in the unit of x.
      num_noise: k, noisy copies of each example; the paper uses 16.
      weight: weight of the radius (lambda); 12 on CIFAR-10 at sigma .25, 16 on MNIST.
      beta: inverse temperature of the softmax in the radius.
      gamma: margin of the hinge, in standard deviations.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "radius"}); the radius is the mean soft radius, with 0 for examples that do not count.

    Raises:
      ValueError, TypeError: as for `gaussian`.

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Zhai et al., ICLR 2020, Algorithm 1, arXiv:2001.02378.
    """
    checks.labels(y, x.shape[0])
    keys = prng.example_keys(key, x.shape[0])
    logits, state = _gaussian.noisy_logits(apply_fn, params, model_state, keys, x, sigma, num_noise)
    probs = jnp.exp(_soft.log_mean_softmax(jnp.asarray(beta) * logits))
    # Algorithm 1: the soft radius is sigma / 2 times the margin; the hinge pushes it up to sigma / 2 * gamma.
    margin, counted = radius_margin(probs, y)
    hinge = jnp.where(counted & (margin <= gamma), gamma - margin, 0.0)
    loss = losses.cross_entropy(_soft.log_mean_softmax(logits), y).mean() + weight * (0.5 * sigma * hinge).mean()
    radius = jnp.where(counted, 0.5 * sigma * margin, 0.0).mean()
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(probs, y), "radius": radius})


def radius_margin(probs: Array, y: Array) -> tuple[Array, Array]:
    """Phi^-1(p1) - Phi^-1(p2) of the two largest probabilities, and for which examples it counts, both [B].

    An example counts if y has the largest probability, and neither p1 rounds to 1 nor p2 to 0. For others the margin is a constant, with a
    gradient of zero instead of NaN.

    Args:
      probs: probabilities [B, C].
      y: labels [B].
    """
    (first, second), leader = jax.lax.top_k(probs, 2)[0].T, probs.argmax(axis=1)
    counted = (leader == y) & (first < 1.0) & (second >= jnp.finfo(probs.dtype).tiny)  # below, the slope of ndtri overflows
    upper, lower = jnp.where(counted, first, 0.5), jnp.where(counted, second, 0.5)
    return jax.scipy.special.ndtri(upper) - jax.scipy.special.ndtri(lower), counted
