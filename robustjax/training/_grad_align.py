"""GradAlign: single-step adversarial training with input gradients that agree across the ball (Andriushchenko & Flammarion, 2020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import arrays, losses
from robustjax.base import Array, Attack, Key, LossFn, ModelFn
from robustjax.training import _natural, crafting, weights


def grad_align(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    threat,
    align_weight,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: Callable = weights.unperturbed,
):
    """loss(x_adv) + align_weight * (1 - mean cos(grad_x loss(x), grad_x loss(x + eta))), eta uniform in the threat.

    Args:
      params, model_state, key, x, y, apply_fn, attack, loss_fn, weights_fn: as for `adversarial`.
      threat: from which eta is drawn.
      align_weight: lambda; .2 for CIFAR-10 at 8/255, 2 at 16/255.
      craft_mode: as for `adversarial`; the aligned gradients are those of this mode too.

    Returns:
      As `adversarial`, with "cosine" among the metrics. Costs two more input gradients, differentiated.

    Guarantee:
      none: robustness is what an evaluation shows.
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


def alignment(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat, loss_fn: LossFn = losses.cross_entropy) -> Array:
    """The mean cosine between input gradients at x and at a uniform point of the threat around it; 1 for a linear loss.

    Examples that have no gradient at either point count nothing, and without any other the result is 1.
    """

    def gradient(delta):
        return jax.grad(lambda delta: loss_fn(model_fn(threat.apply(x, delta)), y).sum())(delta)

    here, there = gradient(jnp.zeros_like(x)), gradient(threat.init(key, x))
    sizes = arrays.norm(here, 2) * arrays.norm(there, 2)
    exists = sizes > 0
    cosine = jnp.where(exists, arrays.sum_examples(here * there) / jnp.where(exists, sizes, 1.0), 0.0)
    return jnp.where(exists.any(), cosine.sum() / jnp.maximum(exists.sum(), 1), 1.0)
