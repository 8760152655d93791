"""GradAlign: single-step adversarial training with input gradients that agree within the ball (Andriushchenko & Flammarion, 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import arrays, losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, ModelFn, Numeric, Threat
from robustjax.training import _natural, crafting, weights
from robustjax.training._natural import Risk
from robustjax.training.weights import WeightsFn


def grad_align(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    threat: Threat,
    align_weight: Numeric,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """loss(x_adv) + align_weight * (1 - mean cos(grad_x loss(x), grad_x loss(x + eta))), eta uniform in the threat.

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key, batch and network, as for `adversarial`.
      attack, loss_fn, weights_fn: attack, loss and place of the risk, as for `adversarial`.
      threat: the set that eta is drawn from.
      align_weight: lambda; .2 for CIFAR-10 at 8/255, 2 at 16/255.
      craft_mode: mode in which the model is attacked, and in which the gradients are aligned.

    Returns:
      The loss and (model_state, {"loss", "accuracy" under attack, "cosine"}). It costs two more input gradients, which are differentiated.

    Guarantee:
      none: evaluate the trained model.
    Source: Andriushchenko & Flammarion, NeurIPS 2020, eq. 5, arXiv:2007.02617. Differs: eta is clipped to the box.
    """
    key_attack, key_noise = jax.random.split(key)
    x_adv = crafting.attacked_inputs(attack, key_attack, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        loss, (state, metrics) = _natural.natural(params, model_state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)
        model_fn = crafting.classifier(apply_fn, params, model_state, craft_mode)
        cosine = alignment(key_noise, model_fn, x, y, threat=threat, loss_fn=loss_fn)
        loss = loss + align_weight * (1.0 - cosine)
        return loss, (state, metrics | {"loss": loss, "cosine": cosine})

    return risk(weights_fn(risk, params))


def alignment(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, loss_fn: LossFn = losses.cross_entropy) -> Array:
    """The mean cosine between input gradients at x and at a uniform point of the threat around it; 1 for a linear loss.

    Examples whose gradient is zero at one of the points are left out of the mean; if all are, the result is 1.
    """

    def gradient(delta):
        return jax.grad(lambda delta: loss_fn(model_fn(threat.apply(x, delta)), y).sum())(delta)

    here, there = gradient(jnp.zeros_like(x)), gradient(threat.init(key, x))
    sizes = arrays.norm(here, 2) * arrays.norm(there, 2)
    exists = sizes > 0
    cosine = jnp.where(exists, arrays.sum_examples(here * there) / jnp.where(exists, sizes, 1.0), 0.0)
    return jnp.where(exists.any(), cosine.sum() / jnp.maximum(exists.sum(), 1), 1.0)
