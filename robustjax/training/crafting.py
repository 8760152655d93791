"""The inner problem of adversarial training: the model with given parameters, and the inputs that an attack returns, as constants.

Attacks detach nothing, training does: no gradient flows through the attack into the parameters.
"""

from typing import Any

import jax

from robustjax import base, losses
from robustjax.attacks import goals
from robustjax.base import ApplyFn, Array, Attack, Key, ModelFn


def classifier(apply_fn: ApplyFn, params: Any, model_state: Any, mode: str = "eval") -> ModelFn:
    """The model x -> logits with given parameters, as a callable pytree."""
    return base.bind(_logits, apply_fn=apply_fn, params=params, model_state=model_state, mode=mode)


def attacked_inputs(attack: Attack, key: Key, apply_fn: ApplyFn, params: Any, model_state: Any, x: Array, y: Array, mode: str) -> Array:
    """The inputs that an attack makes from a batch, detached (Danskin: the gradient at the maximum is the gradient of the maximum)."""
    model_fn = classifier(apply_fn, jax.lax.stop_gradient(params), model_state, mode)
    return jax.lax.stop_gradient(attack(key, model_fn, x, y).x)


def attacked_inputs_by_kl(
    attack: Attack, key: Key, apply_fn: ApplyFn, params: Any, model_state: Any, x: Array, mode: str, *, clean: Array | None = None
) -> Array:
    """The inputs that an attack makes to move the prediction as far as possible from the clean one in KL divergence, detached.

    Args:
      attack: any attack on a loss; its loss becomes the divergence.
      key: of the attack.
      apply_fn, params, model_state: the network, with its parameters and state, as for `natural`.
      x: inputs [B, ...], or codes.
      mode: in which the network is attacked, "eval", "batch" or "train".
      clean: the clean inputs, if x are codes; None for x.
    """
    model_fn = classifier(apply_fn, jax.lax.stop_gradient(params), model_state, mode)
    log_probs = jax.nn.log_softmax(model_fn(x if clean is None else clean))
    return jax.lax.stop_gradient(goals.with_loss(attack, loss_fn=losses.kl)(key, model_fn, x, log_probs).x)


def _logits(x, *, apply_fn, params, model_state, mode):
    return apply_fn(params, model_state, x, mode)[0]
