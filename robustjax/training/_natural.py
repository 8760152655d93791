"""Empirical risk on the inputs as they are: the undefended model."""

from typing import Any

import jax.numpy as jnp

from robustjax import losses
from robustjax.base import ApplyFn, Array, Key, LossFn

Risk = tuple[Array, tuple[Any, dict[str, Array]]]  # (loss, (model_state, metrics)): what a training loss returns


def natural(
    params: Any, model_state: Any, key: Key, x: Array, y: Array, *, apply_fn: ApplyFn, loss_fn: LossFn = losses.cross_entropy
) -> Risk:
    """Mean loss of a batch.

    Args:
      params: a pytree of parameters, which are trained.
      model_state: what the forward pass updates (statistics of BatchNorm), or None.
      key: unused.
      x: inputs [B, ...]. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (logits [B, C], model_state), mode "eval", "batch" or "train".
      loss_fn: (logits [B, C], y [B]) -> loss of each example [B].

    Returns:
      The loss and (model_state of the training forward pass, {"loss", "accuracy"}).

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> loss, (state, metrics) = natural(jnp.eye(2), None, jax.random.key(0), jnp.eye(2), jnp.array([0, 1]), apply_fn=apply_fn)
      >>> float(metrics["accuracy"])
      1.0
    """
    del key
    logits, model_state = apply_fn(params, model_state, x, "train")
    loss = loss_fn(logits, y).mean()
    return loss, (model_state, {"loss": loss, "accuracy": accuracy(logits, y)})


def accuracy(logits: Array, y: Array) -> Array:
    """The fraction of a batch that is classified correctly."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == y)
