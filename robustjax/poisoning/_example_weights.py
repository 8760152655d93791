"""Learning which training examples to trust: weights that make the model good on a little clean data (Franceschi et al., 2017)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax.base import Array, Bilevel
from robustjax.bilevel import problem
from robustjax.poisoning import arguments


def weighted_examples(loss_fn: Callable, regularizer_fn: Callable[[Any], Array] | None = None) -> Bilevel:
    """min over phi of the mean loss on clean data of theta(phi) = argmin mean sigmoid(phi_i) loss_i + regularizer.

    The batch is (x, y, x_clean, y_clean), phi [N] one logit for each training example: `example_weights(phi)` are their weights. Solve
    it by any method of `bilevel` or any of its iterative solvers.

    Args:
      loss_fn: (theta, x [B, ...], y [B]) -> [B].
      regularizer_fn: theta -> scalar.

    Raises:
      TypeError: a loss that cannot be called. ValueError, when the problem is solved: a loss that is not one per example, another number
        of logits phi than of training examples, another batch.

    Guarantee:
      none: train on the weighted set, and judge on clean data.
    Source: Franceschi et al., ICML 2017, section 5.1, arXiv:1703.01785.
    """

    problem.is_function(loss_fn, "loss_fn(theta, x, y)")
    if regularizer_fn is not None:
        problem.is_function(regularizer_fn, "regularizer_fn(theta)")

    def inner(theta, phi, batch):
        if not isinstance(batch, tuple) or len(batch) != 4:
            raise ValueError(f"expected the batch (x, y, x_clean, y_clean), got a {type(batch).__name__}.")
        x, y, _, _ = batch
        if jnp.shape(phi) != x.shape[:1]:
            raise ValueError(f"expected one logit phi for each of {len(x)} training examples, got shape {jnp.shape(phi)}.")
        extra = 0.0 if regularizer_fn is None else regularizer_fn(theta)
        return jnp.mean(example_weights(phi) * arguments.per_example("loss_fn", loss_fn(theta, x, y), len(x))) + extra

    def outer(theta, phi, batch):
        del phi
        return arguments.per_example("loss_fn", loss_fn(theta, batch[2], batch[3]), len(batch[2])).mean()

    return Bilevel(inner, outer)


def example_weights(phi: Array) -> Array:
    """The weights of examples in (0, 1): sigmoid(phi)."""
    return jax.nn.sigmoid(phi)
