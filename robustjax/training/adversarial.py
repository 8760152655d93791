"""Adversarial training: empirical risk on the inputs that an attack makes of the batch (Madry et al., 2018)."""

from collections.abc import Callable

import jax

from robustjax import base, losses
from robustjax.base import Array, Attack, Key, LossFn, ModelFn
from robustjax.training.natural import natural


def adversarial(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
):
    """min over params of E max over the threat of loss: the maximum by `attack`, the gradient at its point (Danskin).

    Args:
      params, model_state, x, y, apply_fn, loss_fn: as for `natural`.
      key: of the attack.
      attack: (key, model_fn, x, y) -> AttackResult, hyper-parameters bound.
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.

    Returns:
      The loss at the attacked inputs and (model_state of that forward pass, {"loss", "accuracy"} under attack).

    Guarantee:
      none: robustness is what an evaluation shows.
    Source: Madry et al., ICLR 2018, eq. 2.1, arXiv:1706.06083.
    """
    model_fn = classifier(apply_fn, jax.lax.stop_gradient(params), model_state, craft_mode)
    x = jax.lax.stop_gradient(attack(key, model_fn, x, y).x)
    return natural(params, model_state, key, x, y, apply_fn=apply_fn, loss_fn=loss_fn)


def classifier(apply_fn: Callable, params, model_state, mode: str = "eval") -> ModelFn:
    """The model of given parameters as a callable pytree."""
    return base.bind(_logits, apply_fn=apply_fn, params=params, model_state=model_state, mode=mode)


def _logits(x, *, apply_fn, params, model_state, mode):
    return apply_fn(params, model_state, x, mode)[0]
