"""TRADES: accuracy on the inputs plus beta times the change of the prediction around them (Zhang et al., 2019)."""

from collections.abc import Callable

import jax

from robustjax import losses
from robustjax.base import Array, Attack, Key, LossFn
from robustjax.training import _natural, crafting, weights


def trades(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    beta,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    target_detached: bool = False,
    weights_fn: Callable = weights.unperturbed,
):
    """loss(f(x), y) + beta * max over the threat of KL(p(x) || p(x')).

    Args:
      params, model_state, key, x, y, apply_fn, loss_fn, craft_mode, weights_fn: as for `adversarial`.
      attack: any attack on a loss; its loss becomes the divergence from the clean prediction. That has no gradient at x: start it at
        random (`delta=None`), or with `delta=attacks.small_noise` as the authors do.
      beta: weight of the boundary error; 1 to 6.
      target_detached: whether the clean prediction inside the divergence is a constant for the outer gradient.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "clean_accuracy"}); both forward passes leave their statistics, the clean one
      first.

    Guarantee:
      none: robustness is what an evaluation shows.
    Source: Zhang et al., ICML 2019, eq. 5, arXiv:1901.08573. Differs: the divergence is computed from log-probabilities on both
      sides; the clean forward pass is made once in training mode, where the authors' code makes two.
    """
    x_adv = crafting.attacked_inputs_by_kl(attack, key, apply_fn, params, model_state, x, craft_mode)

    def risk(params):
        logits, state = apply_fn(params, model_state, x, "train")
        logits_adv, state = apply_fn(params, state, x_adv, "train")
        log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits) if target_detached else logits)
        divergence = losses.kl(logits_adv, log_probs)
        loss = loss_fn(logits, y).mean() + beta * divergence.mean()
        return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits_adv, y), "clean_accuracy": _natural.accuracy(logits, y)})

    return risk(weights_fn(risk, params))
