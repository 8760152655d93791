"""A training run: one step of any loss, and a pure scan of steps over shuffled batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import base
from robustjax.base import Array, Key


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Any
    model_state: Any  # what forward passes update, or None
    opt_state: Any
    num_steps: Array  # taken so far


def init(params, model_state, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params, model_state, optimizer.init(params), jnp.int32(0))


def step(loss: Callable, optimizer: optax.GradientTransformation) -> Callable:
    """A function `(state, key, x, y) -> (state, metrics)` that takes one optimizer step down the loss.

    Args:
      loss: (params, model_state, key, x, y) -> (loss, (model_state, metrics)), the rest bound with `base.bind`.
      optimizer: an optax transformation of the gradient to descend.
    """
    return base.bind(_step, loss=loss, optimizer=optimizer)


def fit(
    state: TrainState,
    key: Key,
    x: Array,
    y: Array,
    *,
    step_fn: Callable,
    num_epochs: int,
    batch_size: int,
    place_fn: Callable | None = None,
):
    """Epochs of shuffled batches in one scan.

    The permutation of an epoch and the key of a step depend on the key and the step's number alone, so that a run cut into
    several calls of whole epochs equals the uncut one.

    Args:
      state: where to start.
      key: of the whole run.
      x: [N, ...]. y: [N].
      step_fn: what `step` returned.
      num_epochs: passes over the data.
      batch_size: B; the last N mod B examples of each permutation are left out of its epoch.
      place_fn: what is done to each batch (x [B, ...], y [B]) first: `jax.lax.with_sharding_constraint` on several devices.

    Returns:
      The state after the last step, and the metrics stacked over steps.

    Raises:
      ValueError: x and y of different length, or fewer than B examples.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    num_examples = x.shape[0]
    if y.shape[0] != num_examples:
        raise ValueError(f"expected as many labels as inputs, got {num_examples} inputs and {y.shape[0]} labels.")
    num_batches = num_examples // batch_size
    if num_batches == 0:
        raise ValueError(f"batch_size={batch_size} is larger than the data set of {num_examples}; pass at most {num_examples}.")
    first_epoch = state.num_steps // num_batches

    def one_epoch(state, epoch):
        order = jax.random.permutation(jax.random.fold_in(key, first_epoch + epoch), num_examples)
        batches = order[: num_batches * batch_size].reshape(num_batches, batch_size)

        def one_batch(state, rows):
            key_step = jax.random.fold_in(jax.random.fold_in(key, 2**31), state.num_steps)
            batch = (x[rows], y[rows])
            return step_fn(state, key_step, *(batch if place_fn is None else place_fn(batch)))

        return jax.lax.scan(one_batch, state, batches)

    state, metrics = jax.lax.scan(one_epoch, state, jnp.arange(num_epochs))
    return state, jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), metrics)


def _step(state, key, x, y, *, loss, optimizer):
    grad, (model_state, metrics) = jax.grad(loss, has_aux=True)(state.params, state.model_state, key, x, y)
    updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), model_state, opt_state, state.num_steps + 1), metrics
