"""Margins of a class over all others, the certificates that they give, and the largest radius that is certified."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import base, checks, drivers, lowering
from robustjax.base import Array, Attack, Certificate, Key, ModelFn, NormThreat
from robustjax.bounds.network import Bounds

BoundFn = Callable[[ModelFn, Array, NormThreat], Bounds]


@base.node
class Margins:
    """The model z_y - z_k for every class k, 0 for k = y: [B, C].

    Attributes:
      model_fn: x [B, ...] -> logits z [B, C].
      y: classes [B].
    """

    model_fn: Any
    y: Any

    def __call__(self, x):
        """The margins at x."""
        logits = lowering.original(self.model_fn)(x)
        num_classes = logits.shape[1]
        chosen = jax.nn.one_hot(self.y, num_classes, dtype=logits.dtype)
        # One product, which merges into the last layer.
        specification = chosen[:, :, None] - jnp.eye(num_classes, dtype=logits.dtype)[None]
        return jnp.einsum("bk,bkc->bc", logits, specification, precision="highest")

    def take_rows(self, rows):
        """The margins of some of the examples."""
        return Margins(self.model_fn, jnp.asarray(self.y)[rows])


def margins(model_fn: ModelFn, x: Array, y: Array, threat: NormThreat, bound_fn: BoundFn) -> Bounds:
    """Bounds of z_y - z_k for every class k, with the difference merged into the last layer.

    They are tighter than `logit_margins`, the difference of bounds of two logits.

    Args:
      model_fn: x [B, ...] -> logits z [B, C].
      x: inputs [B, ...]. y: classes [B].
      threat: a norm ball around x.
      bound_fn: (model_fn, x, threat) -> Bounds, such as `crown` or `functools.partial(crown, chunk_size=8)`.

    Returns:
      Bounds [B, C]; at k = y both are 0.

    Guarantee:
      that of bound_fn.
    """
    checks.labels(y, x.shape[0])
    return bound_fn(Margins(model_fn, y), x, threat)


def logit_margins(logits: Bounds, y: Array) -> Bounds:
    """Bounds of z_y - z_k from bounds of the logits alone, lower_y - upper_k and upper_y - lower_k: looser than `margins`.

    Args:
      logits: bounds [B, C]. y: classes [B].
    """
    low, high = (jnp.take_along_axis(end, jnp.asarray(y)[:, None], axis=1) for end in logits)
    mine = _is_class(logits, y)
    return Bounds(jnp.where(mine, 0.0, low - logits.upper), jnp.where(mine, 0.0, high - logits.lower))


def worst(margin_bounds: Bounds, y: Array) -> Array:
    """The least margin over the other classes [B]: certified where it is above 0.

    Args:
      margin_bounds: of `margins`, [B, C]. y: classes [B].
    """
    return jnp.min(jnp.where(_is_class(margin_bounds, y), jnp.inf, margin_bounds.lower), axis=1)


def _is_class(bounds, y):
    return jnp.arange(bounds.lower.shape[1])[None, :] == jnp.asarray(y)[:, None]


def certify(
    model_fn: ModelFn,
    x: Array,
    y: Array | None = None,
    *,
    threat: NormThreat,
    bound_fn: BoundFn,
    attack: Attack | None = None,
    key: Key | None = None,
) -> Certificate:
    """Which predictions no perturbation in the threat changes.

    Args:
      model_fn: x [B, ...] -> logits [B, C].
      x: inputs [B, ...]. y: classes [B] to certify; None for the predicted ones.
      threat: a norm ball around x.
      bound_fn: (model_fn, x, threat) -> Bounds.
      attack: tried against what was certified, as a check of bounds and model; with a key.
      key: of the attack.

    Returns:
      A `Certificate` on the host: the class, the radius of the threat where it is certified, and whether it is.

    Raises:
      ValueError: logits or bounds are NaN, or a lower bound is above the upper one. RuntimeError: the attack breaks a certificate.

    Guarantee:
      a certified example has the same class at every point of the threat, up to the rounding of floating-point arithmetic.
    """
    checks.on_host(x)
    if (attack is None) != (key is None):
        raise ValueError("expected attack and key together, got one of them; pass key=jax.random.key(0), or neither.")
    logits = model_fn(x)
    if not np.isfinite(np.asarray(logits)).all():
        raise ValueError("the model's logits at x are not finite: look at its parameters and at x with jax.debug_nans.")
    y = jnp.argmax(logits, axis=1) if y is None else y
    checks.labels_in_range(y, logits.shape[1])
    found = _compiled(base.bind(margins, model_fn=model_fn, x=x, y=y, threat=threat, bound_fn=base.bind(bound_fn)))
    if not isinstance(found, Bounds):
        raise TypeError(f"expected Bounds of bound_fn, got {type(found).__name__}: estimates certify nothing; pass bounds.crown.")
    _check(found)
    certified = np.asarray(worst(found, y) > 0)
    if attack is not None and key is not None:
        _check_by_attack(attack(key, model_fn, x, y).success, certified)
    radius = np.broadcast_to(np.asarray(threat.radius()), certified.shape)
    return Certificate(np.asarray(y), np.where(certified, radius, 0.0), certified)


def radius(model_fn: ModelFn, x: Array, y: Array, *, threat: NormThreat, bound_fn: BoundFn, num_bisections: int = 12) -> Array:
    """The largest radius at which each example was certified, by bisection between 0 and the threat's own.

    Bounds of linear relaxations are not monotone in the radius: what is returned was certified itself, and larger radii may be as well.

    Args:
      model_fn: x [B, ...] -> logits [B, C].
      x: inputs [B, ...]. y: classes [B].
      threat: a norm ball; its radius is the largest tried.
      bound_fn: (model_fn, x, threat) -> Bounds.
      num_bisections: the result is within 2^-num_bisections of the largest radius.

    Returns:
      [B] in the unit of the threat's radius; 0 where nothing was certified.

    Guarantee:
      that of bound_fn, at the radius that is returned.
    """
    checks.counts(num_bisections=num_bisections)
    checks.positive(eps=threat.radius())
    largest = jnp.broadcast_to(threat.radius().astype(x.dtype), x.shape[:1])

    def is_certified(radius):
        return worst(margins(model_fn, x, y, threat.with_radius(radius), bound_fn), y) > 0

    def body(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        good = is_certified(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low, _ = jax.lax.fori_loop(0, num_bisections, body, (jnp.zeros_like(largest), largest))
    return jnp.where(is_certified(largest), largest, low)


_compiled = drivers.jit(lambda problem: problem())


def _check(found):
    lower, upper = (np.asarray(end) for end in found)
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise ValueError("the bounds hold NaN: look at the model's parameters and at x with jax.debug_nans.")
    slack = 1e-4 * np.maximum(1.0, np.abs(lower))  # of rounding, where a ball is almost a point
    if (lower > upper + slack).any():
        raise ValueError(f"a lower bound is above the upper one, by {np.max(lower - upper)}: the arithmetic failed; use float64.")


def _check_by_attack(success, certified):
    broken = np.flatnonzero(np.asarray(success) & certified)
    if broken.size:
        raise RuntimeError(
            f"an attack changes the class of {broken.size} certified examples, the first at row {broken[0]}: the bounds are wrong for this "
            "model, or rounding decides; compare in float64, and report it."
        )
