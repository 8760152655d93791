"""SmoothMix: less confidence between an input and its adversarial example for the smoothed classifier (Jeong et al., 2021)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import arrays, checks, losses, prng
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, Numeric
from robustjax.smoothing import _soft
from robustjax.training import _consistency, _gaussian, _natural, _smooth_adv
from robustjax.training._natural import Risk


def smooth_mix(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    sigma: Numeric,
    num_noise: int,
    weight: Numeric,
    max_mix: Numeric = 0.5,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
) -> Risk:
    """Mean loss at x + noise + weight * KL of the prediction at (1 - t) x + t x' + noise from (1 - t) p(x) + t / C, t ~ U(0, max_mix).

    p is the mean probability over the noise, and is differentiated; only examples for which it is largest at y are mixed. C is the number
    of classes that are not masked by -inf.

    Args:
      params, model_state, x, y, apply_fn, loss_fn: parameters, state, batch, network and loss, as for `natural`.
      key: of the attack, the noise and the mixtures.
      attack: on the smoothed model, without a ball: `pgd` with `threat=L2(inf)`, `delta=0.` and `keep_fn=keep_last`.
      sigma: standard deviation of the noise, in the unit of x.
      num_noise: noisy copies of each example.
      weight: weight of the divergence (eta).
      max_mix: the largest share t of the adversarial example.
      craft_mode: mode in which the model is attacked, "eval", "batch" or "train".

    Returns:
      The loss and (model_state, {"loss", "accuracy"} under noise); both forward passes update the statistics, the clean one first.

    Raises:
      ValueError, TypeError: as for `gaussian`.

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Jeong et al., NeurIPS 2021, eq. 9, arXiv:2111.09277. Differs: without the one-step example in place of x, and without the
      warm-up of the weight.
    """
    checks.inputs(x)
    checks.labels(y, x.shape[0])
    key_attack, key_noise, key_mix = jax.random.split(key, 3)
    keys = prng.example_keys(key_noise, x.shape[0])
    x_adv = _smooth_adv.craft_smoothed(attack, key_attack, keys, apply_fn, params, model_state, x, y, craft_mode, sigma, num_noise)
    share = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype, 0.0, max_mix))(prng.example_keys(key_mix, x.shape[0]))
    mixed = x + arrays.per_example(share, x) * (x_adv - x)
    logits, state = _gaussian.noisy_logits(apply_fn, params, model_state, keys, x, sigma, num_noise)
    clean = _soft.log_mean_softmax(logits)
    target = _mixed_with_uniform(clean, share)
    logits_mixed, state = _gaussian.noisy_logits(apply_fn, params, state, keys, mixed, sigma, num_noise)
    right = clean.argmax(axis=1) == y
    loss = (
        _gaussian.mean_loss(loss_fn, logits, y) + weight * jnp.where(right, _consistency.mean_divergence(logits_mixed, target), 0.0).mean()
    )
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits.mean(axis=1), y)})


def _mixed_with_uniform(log_probs, share):
    # log((1 - t) p + t / C), C the classes that are not masked.
    masked = log_probs == -jnp.inf
    uniform = jnp.log(share / (~masked).sum(axis=1).astype(share.dtype))
    mixed = jnp.logaddexp(jnp.log1p(-share)[:, None] + jnp.where(masked, 0.0, log_probs), uniform[:, None])
    return jnp.where(masked, -jnp.inf, mixed)
