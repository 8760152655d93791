"""Losses and goals per example: `(logits [B, C], y) -> [B]`, larger = worse for the model.

A targeted attack uses `targeted(loss_fn)` with `classified_as`, and the target labels as y. Logits of half precision become float32.
A class whose logit is -inf is masked: it is never predicted and adds nothing. NaN is not a class: neither right nor a success.
"""

import jax
import jax.numpy as jnp

from robustjax import base, checks
from robustjax.base import Array, LossFn, Numeric


def cross_entropy(logits: Array, y: Array) -> Array:
    """-log softmax(logits)[y] for labels y [B].

    Example:
      >>> logits, y = jnp.array([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]), jnp.array([0, 1])
      >>> [round(float(loss), 3) for loss in losses.cross_entropy(logits, y)]
      [0.408, 2.408]
    """
    logits, y = _checked(logits, y)
    return -_at(jax.nn.log_softmax(logits), y)


def soft_cross_entropy(logits: Array, probs: Array) -> Array:
    """-sum_c probs_c log softmax(logits)_c for label distributions [B, C]."""
    logits = as_logits(logits)
    _check_distribution(logits, probs, "probs")
    possible = probs > 0
    log_softmax = jnp.where(possible, jax.nn.log_softmax(logits), 0.0)
    return -jnp.sum(jnp.where(possible, probs, 0.0) * log_softmax, axis=-1)


def smoothed_cross_entropy(logits: Array, y: Array, *, smoothing: Numeric) -> Array:
    """Cross-entropy to smoothed labels: weight 1 - smoothing on y [B], smoothing spread over all classes (Szegedy et al., 2016)."""
    logits, y = _checked(logits, y)
    log_softmax, unmasked = jax.nn.log_softmax(logits), logits > -jnp.inf
    spread = jnp.where(unmasked, log_softmax, 0.0).sum(axis=-1) / unmasked.sum(axis=-1).astype(logits.dtype)
    return -(1.0 - smoothing) * _at(log_softmax, y) - smoothing * spread


def kl(logits: Array, log_probs: Array) -> Array:
    """KL(p || softmax(logits)) from log p [B, C]: with log-probabilities on both sides it never divides or takes log 0."""
    logits = as_logits(logits)
    _check_distribution(logits, log_probs, "log_probs")
    log_probs = as_logits(log_probs)
    probs = jnp.exp(log_probs)
    possible = probs > 0
    difference = jnp.where(possible, log_probs, 0.0) - jnp.where(possible, jax.nn.log_softmax(logits), 0.0)
    return jnp.sum(probs * difference, axis=-1)


def margin(logits: Array, y: Array) -> Array:
    """max_{c != y} z_c - z_y: positive exactly where the model errs (Carlini & Wagner, 2017).

    Example:
      >>> logits, y = jnp.array([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]), jnp.array([0, 1])
      >>> losses.margin(logits, y).tolist()
      [-1.0, 2.0]
    """
    logits, y = _checked(logits, y)
    return jnp.max(jnp.where(_one_hot(logits, y), -jnp.inf, logits), axis=-1) - _at(logits, y)


def probability_margin(logits: Array, y: Array) -> Array:
    """max_{c != y} p_c - p_y of the probabilities p = softmax(z): the sign of `margin`, and its largest gradients near the boundary.

    Source: Xie et al., CVPR 2025, arXiv:2411.15210.
    """
    logits, y = _checked(logits, y)
    probs = jax.nn.softmax(logits)
    return jnp.max(jnp.where(_one_hot(logits, y), 0.0, probs), axis=-1) - _at(probs, y)


def runner_up(logits: Array, y: Array) -> Array:
    """max_{c != y} log softmax(z)_c, which is at most 0: minus the cross-entropy to the most likely wrong label."""
    logits, y = _checked(logits, y)
    return jnp.max(jnp.where(_one_hot(logits, y), -jnp.inf, jax.nn.log_softmax(logits)), axis=-1)


def dlr(logits: Array, y: Array) -> Array:
    """Difference-of-logits ratio, margin / (z_(1) - z_(3)): invariant to the scale of the logits. For tied or masked logits, the margin.

    Raises:
      ValueError: fewer than 3 classes.

    Source: Croce & Hein, ICML 2020, eq. 6, arXiv:2003.01690.
    """
    logits, y = _checked(logits, y)
    _require_classes(logits, 3, "dlr")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, y) / _spread(top[:, 0], top[:, 2])


def targeted_dlr(logits: Array, y: Array, *, target: Array) -> Array:
    """(z_target - z_y) / (z_(1) - (z_(3) + z_(4)) / 2): DLR toward one class, of an attack that is untargeted.

    Raises:
      ValueError: fewer than 4 classes.

    Source: Croce & Hein, ICML 2020, eq. 7, arXiv:2003.01690.
    """
    logits, y = _checked(logits, y)
    _require_classes(logits, 4, "targeted_dlr")
    top = jax.lax.top_k(logits, 4)[0]
    return targeted_margin(logits, y, target=target) / _spread(top[:, 0], 0.5 * (top[:, 2] + top[:, 3]))


def targeted_margin(logits: Array, y: Array, *, target: Array) -> Array:
    """z_target - z_y: positive only where the model prefers the target to the label."""
    logits, y = _checked(logits, y)
    return _at(logits, _labels(target, logits, "target")) - _at(logits, y)


def differences(logits: Array, y: Array) -> Array:
    """z_c - z_y for every class c [B, C], -inf at y itself: the boundaries that an attack by linearisation may cross."""
    logits, y = _checked(logits, y)
    return jnp.where(_one_hot(logits, y), -jnp.inf, logits - _at(logits, y)[:, None])


def target_difference(logits: Array, y: Array, *, target: Array) -> Array:
    """z_target - z_y as the only boundary [B, 1]: one gradient instead of C."""
    return targeted_margin(logits, y, target=target)[:, None]


def goal_differences(logits: Array, target: Array) -> Array:
    """min over c of z_target - z_c as the only boundary [B, 1]: the target class must win."""
    return -margin(logits, target)[:, None]


def misclassified(logits: Array, y: Array) -> Array:
    """The prediction is not y. Logits with a NaN predict nothing."""
    logits, y = _checked(logits, y)
    return (jnp.argmax(logits, axis=-1) != y) & ~jnp.isnan(logits).any(axis=-1)


def classified_as(logits: Array, target: Array) -> Array:
    """The prediction is the target. Logits with a NaN predict nothing."""
    logits, target = _checked(logits, target)
    return (jnp.argmax(logits, axis=-1) == target) & ~jnp.isnan(logits).any(axis=-1)


def never(logits: Array, y: Array) -> Array:
    """No success for any example: for attacks that only use the loss (adversarial training against a distribution)."""
    del y
    return jnp.zeros(logits.shape[0], bool)


def targeted(loss_fn: LossFn) -> LossFn:
    """The loss toward a target label: -loss_fn(logits, target).

    Example:
      >>> logits, target = jnp.array([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]), jnp.array([0, 1])
      >>> losses.targeted(losses.margin)(logits, target).tolist()  # larger = nearer to the target
      [1.0, -2.0]
    """
    return base.bind(_negated, loss_fn=loss_fn)


def as_logits(logits: Array) -> Array:
    """Logits [B, C] in float32 at least.

    Raises:
      TypeError, ValueError: as for `check_logits`.
    """
    check_logits(logits)
    return logits.astype(logits.dtype if logits.dtype.itemsize >= 4 else jnp.float32)


def check_logits(logits: Array) -> None:
    """Requires that a model returned logits [B, C] of at least two classes.

    Raises:
      TypeError: not an array, but for instance a tuple. ValueError: another rank, not floats, or a single output.
    """
    if not hasattr(logits, "ndim"):
        raise TypeError(
            f"expected logits [B, C], got a {type(logits).__name__}; wrap the model so that it returns its logits alone, e.g. "
            "lambda x: model(x)[0]."
        )
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"expected logits [B, C] of a floating type, got {logits.shape} of {logits.dtype}; reshape the model's output.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"expected logits of at least 2 classes, got {logits.shape}; of a single output z make two: "
            "jnp.concatenate([jnp.zeros_like(z), z], axis=1)."
        )


def _negated(logits, y, *, loss_fn):
    return -loss_fn(logits, y)


def _one_hot(logits, y):
    return jax.nn.one_hot(y, logits.shape[-1], dtype=bool)


def _at(logits, y):
    return jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]


def _spread(largest, smaller):
    # Tied or masked logits have no scale to divide by.
    spread = largest - smaller
    usable = (spread > 0) & jnp.isfinite(spread)
    return jnp.where(usable, jnp.where(usable, spread, 1.0), 1.0)


def _checked(logits, y):
    logits = as_logits(logits)
    return logits, _labels(y, logits, "y")


def _labels(y, logits, name):
    y = jnp.asarray(y)
    if y.ndim == 2 and y.shape == logits.shape:
        raise ValueError(
            f"expected integer labels {name} [{logits.shape[0]}], got shape {y.shape}; for label distributions [B, C] use "
            "losses.soft_cross_entropy or losses.kl, one-hot labels become integers by argmax(axis=1)."
        )
    checks.labels(y, logits.shape[0], name)
    return y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)  # small types could not count the classes


def _check_distribution(logits, values, name):
    if jnp.shape(values) != logits.shape:
        raise ValueError(f"expected {name} of the logits' shape {logits.shape}, got {jnp.shape(values)}; labels [B] go to cross_entropy.")


def _require_classes(logits, least, name):
    if logits.shape[-1] < least:
        raise ValueError(f"losses.{name} needs at least {least} classes, got {logits.shape[-1]}; use losses.margin, which needs 2.")
