"""Free adversarial training: one backward pass for the parameters and for the perturbation (Shafahi et al., 2019).

The perturbation belongs to the place in the batch and is kept for the next minibatch, so it is trained like a parameter: `free` is the
loss, `free_optimizer` descends in the parameters and ascends in the perturbation, `replay` repeats each minibatch m times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, losses
from robustjax.base import ApplyFn, Array, Key, LossFn, Numeric, Threat
from robustjax.threats import Ball
from robustjax.training import _natural
from robustjax.training._natural import Risk


class FreeParams(NamedTuple):
    """What free training trains."""

    params: Any
    delta: Array  # [B, ...] one for each place in the batch, not clipped to the box


def free(
    params: FreeParams,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: Threat,
    loss_fn: LossFn = losses.cross_entropy,
) -> Risk:
    """Loss at x + delta clipped to the box, differentiable in the parameters and in delta at once.

    Args:
      params: parameters and perturbation; start with `FreeParams(params, jnp.zeros((B, ...)))`.
      model_state, key, x, y, apply_fn, loss_fn: state, key, batch, network and loss, as for `natural`.
      threat: the ball and its box.

    Returns:
      The loss and (model_state, {"loss", "accuracy"}) on the perturbed batch.

    Raises:
      ValueError: a batch of another length than delta.

    Guarantee:
      none: evaluate the trained model.
    Source: Shafahi et al., NeurIPS 2019, Algorithm 1, arXiv:1904.12843.
    """
    if x.shape != params.delta.shape:
        raise ValueError(
            f"free training keeps one perturbation per place in the batch: expected a batch of shape {params.delta.shape}, got {x.shape}; "
            f"pass batch_size={len(params.delta)}, or start with FreeParams(params, jnp.zeros({x.shape}))."
        )
    x_adv = threat.apply(x, threat.project(params.delta, x))
    return _natural.natural(params.params, model_state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)


def free_optimizer(optimizer: optax.GradientTransformation, threat: Ball, step_size: Numeric) -> optax.GradientTransformation:
    """Descends in the parameters by `optimizer` and ascends in delta, in the ball without its box.

    Args:
      optimizer: an optax transformation for the parameters.
      threat: a ball.
      step_size: length of the steps of the perturbation; the authors use eps.
    """
    ball: Any = threat.replace(box=(-jnp.inf, jnp.inf))

    def init(params):
        return optimizer.init(params.params)

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads.params, state, params.params)
        nowhere = jnp.zeros_like(params.delta)
        ascent = arrays.per_example(step_size, nowhere) * ball.steepest(grads.delta, nowhere, params.delta)
        moved = ball.project(params.delta + ascent, nowhere)
        return FreeParams(updates, moved - params.delta), state

    return optax.GradientTransformation(init, update)


def replay(step_fn: Callable[..., Any], num_replays: int) -> Callable:
    """A step that takes `num_replays` steps on the same minibatch and counts as one: the m of free-m, with m times fewer epochs.

    Args:
      step_fn: what `step` returned.
      num_replays: m.

    Raises:
      ValueError: fewer than one replay.
    """
    if num_replays < 1:
        raise ValueError(f"expected num_replays of at least 1, got {num_replays}; pass 1 to train on each minibatch once.")
    return base.bind(_replay, step_fn=step_fn, num_replays=num_replays)


def _replay(state, key, x, y, *, step_fn, num_replays):
    state_after, metrics = jax.lax.scan(lambda state, i: step_fn(state, jax.random.fold_in(key, i), x, y), state, jnp.arange(num_replays))
    return state_after._replace(num_steps=state.num_steps + 1), jax.tree.map(lambda m: m[-1], metrics)
