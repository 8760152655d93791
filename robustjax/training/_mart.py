"""MART: adversarial training that weighs examples by how badly they are classified (Wang et al., 2020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import losses
from robustjax.base import Array, Attack, Key
from robustjax.training import _natural, crafting, weights


def mart(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    beta,
    craft_mode: str = "eval",
    weights_fn: Callable = weights.unperturbed,
):
    """BCE(f(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)), with BCE = -log p_y - log(1 - max_{c != y} p_c).

    Args:
      params, model_state, key, x, y, apply_fn, craft_mode, weights_fn: as for `adversarial`.
      attack: on the cross-entropy.
      beta: 5 to 6.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "clean_accuracy"}); both forward passes leave their statistics, the clean one
      first.

    Guarantee:
      none: robustness is what an evaluation shows.
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
