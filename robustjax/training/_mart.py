"""MART: adversarial training with weights of examples that grow with their misclassification (Wang et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import losses
from robustjax.base import ApplyFn, Array, Attack, Key, Numeric
from robustjax.training import _natural, crafting, weights
from robustjax.training._natural import Risk
from robustjax.training.weights import WeightsFn


def mart(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    beta: Numeric,
    craft_mode: str = "eval",
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """BCE(f(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)), with BCE = -log p_y - log(1 - max_{c != y} p_c).

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key of the attack, batch and network, as for `adversarial`.
      attack: on the cross-entropy.
      beta: weight of the divergence; 5 to 6.
      craft_mode, weights_fn: mode of the attacked network and place of the risk, as for `adversarial`.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "clean_accuracy"}); both forward passes update the statistics, the clean one
      first.

    Guarantee:
      none: evaluate the trained model.
    Source: Wang et al., ICLR 2020, eq. 11, openreview.net/forum?id=rklOg6EFwS.
    """
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        logits, state = apply_fn(params, model_state, x, "train")
        logits_adv, state = apply_fn(params, state, x_adv, "train")
        likeliest_wrong = jnp.exp(losses.runner_up(logits_adv, y))
        boosted = losses.cross_entropy(logits_adv, y) - jnp.log(1.0001 - likeliest_wrong)  # the authors' 1.0001: finite at p = 1
        wrongness = 1.0 - jnp.exp(-losses.cross_entropy(logits, y))
        divergence = losses.kl(logits_adv, jax.nn.log_softmax(logits))
        loss = boosted.mean() + beta * jnp.mean(divergence * wrongness)
        return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits_adv, y), "clean_accuracy": _natural.accuracy(logits, y)})

    return risk(weights_fn(risk, params))
