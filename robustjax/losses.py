"""Losses and goals per example: `(logits [B, C], y) -> [B]`, larger = worse for the model.

A targeted attack is `targeted(loss_fn)` with `classified_as`, and the target labels as y.
"""

import chex
import jax
import jax.numpy as jnp

from robustjax import base
from robustjax.base import Array, LossFn


def cross_entropy(logits: Array, y: Array) -> Array:
    """-log softmax(logits)[y] for labels y [B]."""
    _check(logits, y)
    return -_at(jax.nn.log_softmax(logits), y)


def soft_cross_entropy(logits: Array, probs: Array) -> Array:
    """-sum_c probs_c log softmax(logits)_c for label distributions [B, C]."""
    chex.assert_equal_shape([logits, probs])
    return -jnp.sum(jnp.where(probs > 0, probs * jax.nn.log_softmax(logits), 0.0), axis=-1)


def smoothed_cross_entropy(logits: Array, y: Array, *, smoothing) -> Array:
    """Cross-entropy to labels y [B] smoothed: (1 - smoothing) on y and smoothing spread over all classes (Szegedy et al., 2016)."""
    return (1.0 - smoothing) * cross_entropy(logits, y) - smoothing * jax.nn.log_softmax(logits).mean(axis=-1)


def kl(logits: Array, log_probs: Array) -> Array:
    """KL(p || softmax(logits)) from log p [B, C]; from log-probabilities on both sides, so it never divides or takes log 0."""
    chex.assert_equal_shape([logits, log_probs])
    probs = jnp.exp(log_probs)
    log_probs = jnp.where(probs > 0, log_probs, 0.0)
    return jnp.sum(jnp.where(probs > 0, probs * (log_probs - jax.nn.log_softmax(logits)), 0.0), axis=-1)


def margin(logits: Array, y: Array) -> Array:
    """max_{c != y} z_c - z_y: positive exactly where the model errs (Carlini & Wagner, 2017)."""
    _check(logits, y)
    return jnp.max(jnp.where(_one_hot(logits, y), -jnp.inf, logits), axis=-1) - _at(logits, y)


def runner_up(logits: Array, y: Array) -> Array:
    """max_{c != y} log softmax(z)_c, which is at most 0: minus the cross-entropy to the likeliest wrong label."""
    _check(logits, y)
    return jnp.max(jnp.where(_one_hot(logits, y), -jnp.inf, jax.nn.log_softmax(logits)), axis=-1)


def dlr(logits: Array, y: Array) -> Array:
    """Difference-of-logits ratio, margin / (z_(1) - z_(3)): invariant to the scale of the logits.

    Raises:
      ValueError: fewer than 3 classes.

    Source: Croce & Hein, ICML 2020, eq. 6, arXiv:2003.01690.
    """
    _check(logits, y)
    _require_classes(logits, 3, "dlr")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Array, y: Array, *, target: Array) -> Array:
    """(z_target - z_y) / (z_(1) - (z_(3) + z_(4)) / 2): DLR toward one class, still untargeted in its goal.

    Raises:
      ValueError: fewer than 4 classes.

    Source: Croce & Hein, ICML 2020, eq. 7, arXiv:2003.01690.
    """
    _check(logits, y)
    _require_classes(logits, 4, "targeted_dlr")
    top = jax.lax.top_k(logits, 4)[0]
    return (_at(logits, target) - _at(logits, y)) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def targeted_margin(logits: Array, y: Array, *, target: Array) -> Array:
    """z_target - z_y: positive only where the model prefers the target to the label."""
    _check(logits, y)
    return _at(logits, target) - _at(logits, y)


def differences(logits: Array, y: Array) -> Array:
    """z_c - z_y for every class c [B, C], -inf at y itself: the boundaries that a linearising attack may cross."""
    _check(logits, y)
    return jnp.where(_one_hot(logits, y), -jnp.inf, logits - _at(logits, y)[:, None])


def target_difference(logits: Array, y: Array, *, target: Array) -> Array:
    """z_target - z_y as the only boundary [B, 1]: one gradient instead of C."""
    return targeted_margin(logits, y, target=target)[:, None]


def goal_differences(logits: Array, target: Array) -> Array:
    """min over c of z_target - z_c as the only boundary [B, 1]: the target class must win."""
    return -margin(logits, target)[:, None]


def misclassified(logits: Array, y: Array) -> Array:
    """The prediction is not y."""
    return jnp.argmax(logits, axis=-1) != y


def classified_as(logits: Array, target: Array) -> Array:
    """The prediction is the target."""
    return jnp.argmax(logits, axis=-1) == target


def never(logits: Array, y: Array) -> Array:
    """No success at all, where only the loss counts (adversarial training against a distribution)."""
    del y
    return jnp.zeros(logits.shape[0], bool)


def targeted(loss_fn: LossFn) -> LossFn:
    """The loss toward a target label: -loss_fn(logits, target)."""
    return base.bind(_negated, loss_fn=loss_fn)


def _negated(logits, y, *, loss_fn):
    return -loss_fn(logits, y)


def _one_hot(logits, y):
    return jax.nn.one_hot(y, logits.shape[-1], dtype=bool)


def _at(logits, y):
    return jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]


def _check(logits, y):
    if logits.ndim != 2 or y.shape != logits.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"expected logits [B, C] and integer labels [B], got logits {logits.shape} and y {y.shape} of {y.dtype}; for label "
            "distributions [B, C] use losses.soft_cross_entropy or losses.kl."
        )


def _require_classes(logits, least, name):
    if logits.shape[-1] < least:
        raise ValueError(f"losses.{name} needs at least {least} classes, got {logits.shape[-1]}; use losses.margin, which needs 2.")
