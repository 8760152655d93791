"""The inner half of adversarial training: the model of given parameters, and what an attack makes of a batch, detached."""

from collections.abc import Callable

import jax

from robustjax import base, losses
from robustjax.attacks import goals
from robustjax.base import Array, Attack, Key, ModelFn


def classifier(apply_fn: Callable, params, model_state, mode: str = "eval") -> ModelFn:
    """The model of given parameters as a callable pytree."""
    return base.bind(_logits, apply_fn=apply_fn, params=params, model_state=model_state, mode=mode)


def attacked_inputs(attack: Attack, key: Key, apply_fn: Callable, params, model_state, x: Array, y: Array, mode: str) -> Array:
    """The inputs that an attack makes of a batch, detached (Danskin: the gradient at the maximum is the gradient of the maximum)."""
    model_fn = classifier(apply_fn, jax.lax.stop_gradient(params), model_state, mode)
    return jax.lax.stop_gradient(attack(key, model_fn, x, y).x)


def attacked_inputs_by_kl(
    attack: Attack, key: Key, apply_fn: Callable, params, model_state, x: Array, mode: str, *, clean: Array | None = None
) -> Array:
    """The inputs whose prediction an attack moves farthest from the clean one in KL divergence, detached.

    Args:
      clean: the clean inputs where x are codes; None for x.
    """
    model_fn = classifier(apply_fn, jax.lax.stop_gradient(params), model_state, mode)
    log_probs = jax.nn.log_softmax(model_fn(x if clean is None else clean))
    return jax.lax.stop_gradient(goals.with_loss(attack, loss_fn=losses.kl)(key, model_fn, x, log_probs).x)


def _logits(x, *, apply_fn, params, model_state, mode):
    return apply_fn(params, model_state, x, mode)[0]
