"""Empirical risk on the inputs as they are: the undefended model."""

from collections.abc import Callable

import jax.numpy as jnp

from robustjax import losses
from robustjax.base import Array, Key, LossFn


def natural(params, model_state, key: Key, x: Array, y: Array, *, apply_fn: Callable, loss_fn: LossFn = losses.cross_entropy):
    """Mean loss of a batch.

    Args:
      params: what is trained.
      model_state: what the forward pass updates (statistics of BatchNorm), or None.
      key: unused.
      x: [B, ...]. y: [B].
      apply_fn: (params, model_state, x, mode) -> (logits, model_state), mode "eval", "batch" or "train".
      loss_fn: per example.

    Returns:
      The loss and (model_state of the training forward pass, {"loss", "accuracy"}).
    """
    del key
    logits, model_state = apply_fn(params, model_state, x, "train")
    loss = loss_fn(logits, y).mean()
    return loss, (model_state, {"loss": loss, "accuracy": accuracy(logits, y)})


def accuracy(logits: Array, y: Array) -> Array:
    """The fraction of a batch that is classified correctly."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == y)
