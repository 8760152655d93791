"""SmoothAdv: adversarial training of the smoothed classifier (Salman et al., 2019)."""

from typing import Any

import jax

from robustjax import base, losses, prng
from robustjax.attacks import combinators
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, Numeric
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _natural, crafting
from robustjax.training._natural import Risk


def smooth_adv(
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
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    gradient_free: bool = False,
) -> Risk:
    """Mean loss at x' + noise, where x' maximises -log of the mean probability of y over the same noise.

    Args:
      params, model_state, x, y, apply_fn, loss_fn: parameters, state, batch, network and loss, as for `natural`.
      key: of the attack and the noise.
      attack: on the smoothed model, in l2: `pgd` from `delta=0.` with steps of 2 eps / num_steps, or `ddn`, whose perturbation is
        shortened to eps. `training.eps_ramp` lets eps grow.
      sigma: standard deviation of the noise, in the unit of x.
      num_noise: m, noisy copies of each example; the noise is drawn once, for all steps of the attack and for the loss.
      craft_mode: mode in which the model is attacked, "eval", "batch" or "train".
      gradient_free: whether the attack takes its gradient from the noise, see `smoothing.soft`.

    Returns:
      The loss and (model_state of the last forward pass, {"loss", "accuracy"} under attack and noise).

    Guarantee:
      none: certify the trained model by `smoothing.certify`.
    Source: Salman et al., NeurIPS 2019, Algorithm 1, arXiv:1906.04584. Differs: projects on the ball, then on the box;
      all copies are one batch and one step.
    """
    key_attack, key_noise = jax.random.split(key)
    keys = prng.example_keys(key_noise, x.shape[0])
    x_adv = craft_smoothed(attack, key_attack, keys, apply_fn, params, model_state, x, y, craft_mode, sigma, num_noise, gradient_free)
    logits, state = _gaussian.noisy_logits(apply_fn, params, model_state, keys, x_adv, sigma, num_noise)
    loss = _gaussian.mean_loss(loss_fn, logits, y)
    return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits.mean(axis=1), y)})


def craft_smoothed(
    attack: Attack,
    key: Key,
    keys: Array,
    apply_fn: ApplyFn,
    params: Any,
    model_state: Any,
    x: Array,
    y: Array,
    mode: str,
    sigma: Numeric,
    num_noise: int,
    gradient_free: bool = False,
) -> Array:
    """The inputs that an attack makes against the model smoothed by the noise of `keys` [B].

    If the attack has a threat, they are projected into it; in a combination, those of each attack into its own threat. Their perturbation
    is a constant for gradients in the parameters (Danskin) and in x; x itself is not, since poisoning differentiates in it.
    """
    model_fn = crafting.classifier(apply_fn, jax.lax.stop_gradient(params), model_state, mode)
    smoothed = _soft.soft(model_fn, sigma=sigma, num_samples=num_noise, gradient_free=gradient_free).draw(keys)
    constant = jax.lax.stop_gradient(x)
    x_adv = combinators.each(attack, _kept_within)(key, smoothed, constant, y).x
    return jax.lax.stop_gradient(x_adv) + (x - constant)


def _kept_within(attack):
    threat = attack.get("threat") if isinstance(attack, base.Configured) else None
    return attack if threat is None else base.bind(_projected, attack=attack, threat=threat)


def _projected(key, model_fn, x, y, *, attack, threat):
    found = attack(key, model_fn, x, y)
    delta = threat.project(found.delta, x)
    return found._replace(x=threat.apply(x, delta), delta=delta)
