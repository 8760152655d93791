"""Learning which training examples to trust: weights that make the model good on a little clean data (Franceschi et al., 2017)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax.base import Array, Bilevel


def weighted(loss_fn: Callable, regularizer_fn: Callable | None = None) -> Bilevel:
    """min over phi of the mean loss on clean data of theta(phi) = argmin mean sigmoid(phi_i) loss_i + regularizer.

    The batch is (x, y, x_clean, y_clean), phi [N] one logit for each training example: `weights(phi)` are their weights. Solve it by any
    method of `bilevel`, `bilevel.minimize` or `bilevel.penalty_step`.

    Args:
      loss_fn: (theta, x [B, ...], y [B]) -> [B].
      regularizer_fn: theta -> scalar.

    Source: Franceschi et al., ICML 2017, section 5.1, arXiv:1703.01785.
    """

    def inner(theta, phi, batch):
        x, y, _, _ = batch
        extra = 0.0 if regularizer_fn is None else regularizer_fn(theta)
        return jnp.mean(weights(phi) * loss_fn(theta, x, y)) + extra

    def outer(theta, phi, batch):
        del phi
        return loss_fn(theta, batch[2], batch[3]).mean()

    return Bilevel(inner, outer)


def weights(phi: Array) -> Array:
    """The weights of examples in (0, 1): sigmoid(phi)."""
    return jax.nn.sigmoid(phi)
