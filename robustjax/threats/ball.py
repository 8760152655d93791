"""What all norm balls have: eps, the box of valid inputs, the mask of free coordinates, and the bisection that projections use."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base
from robustjax.base import Array, Delta, Numeric

RTOL = 1e-5  # the one tolerance of "norm <= eps": a float32 sum over a million coordinates is right to about 1e-6
_NUM_BISECTIONS = 32  # a bracket of 2^-32 of its start; the piece it lies on is then solved exactly


@base.node
class Ball:
    """{delta: |delta|_p <= eps, lower <= x + delta <= upper, delta = 0 outside the mask}: the part that `Linf`, `L2`, `L1` and `L0` share.

    Attributes:
      eps: radius in the unit of x; a scalar, one per example [B], or one per coordinate (rank of x, leading axis 1 or B), where the
        ball is {|delta / eps|_p <= 1} and a coordinate with eps 0 cannot move. May be traced or batched; infinite unless per coordinate.
      box: lower and upper bound of valid inputs, scalars or arrays that broadcast against x.
      mask: booleans that broadcast against x, True where the input may change; None for everywhere.

    The norm as computed in float32 exceeds eps by a factor of at most 1 + RTOL; a box other than [0, 1] may be exceeded by one
    rounding of x + delta.
    """

    eps: Any
    box: Any = (0.0, 1.0)
    mask: Any = None

    def __post_init__(self):
        _check_radius(self.eps)
        _check_box(self.box)
        _check_mask(self.mask)

    def replace(self, **changes) -> Self:
        """The same threat with some fields changed."""
        return dataclasses.replace(self, **changes)

    def apply(self, x: Array, delta: Delta) -> Array:
        """x + delta, with delta masked, so that gradients vanish outside the mask."""
        return x + self._masked(delta)

    def check(self, x: Array) -> None:
        """Raises an error where inputs, whose values must be known, lie outside the box.

        Raises:
          ValueError: some lie outside, or eps, box or mask do not broadcast against them.
        """
        self.check_shapes(x.shape)
        values = np.asarray(x)
        lower, upper = (np.asarray(bound) for bound in self.box)
        if (values < lower).any() or (values > upper).any():
            raise ValueError(
                f"inputs from {values.min()} to {values.max()} leave the box {self.box} of {type(self).__name__}; scale them, or pass "
                "box=(lower, upper) to the threat."
            )

    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Raises an error where eps, box or mask do not broadcast against inputs of this shape [B, ...].

        Raises:
          ValueError: one does not.
        """
        for name, field in (("eps", self.eps), *zip(("box", "box"), self.box, strict=True), ("mask", self.mask)):
            _check_shape(name, field, shape)

    def take_rows(self, rows: Array, num_examples: int, rank: int) -> Self:
        """The same threat for some of N examples: eps [N] or [N, ...], and box and mask [N, ...], are cut to their rows.

        Args:
          rows: indices [B]. num_examples: N. rank: of the inputs x [N, ...].
        """

        def taken(field, ranks):
            is_field = num_examples > 1 and jnp.ndim(field) in ranks and jnp.shape(field)[0] == num_examples
            return jnp.asarray(field)[rows] if is_field else field

        box = tuple(taken(bound, (rank,)) for bound in self.box)
        return self.replace(eps=taken(self.eps, (1, rank)), box=box, mask=None if self.mask is None else taken(self.mask, (rank,)))

    def within(self, delta: Delta) -> Array:
        """Whether the norm of each example is at most eps, up to RTOL [B]."""
        return self.norm(delta) <= self.radius() * (1 + RTOL)

    def radius(self) -> Array:
        """eps as a scalar or [B]; 1 if eps is per coordinate, where norms are of delta / eps."""
        return jnp.ones(()) if self._per_coordinate() else as_float(self.eps)

    def with_radius(self, radius: Numeric) -> Self:
        """The same ball of another radius, a scalar or [B], in the unit of `radius()`."""
        if not self._per_coordinate():
            return self.replace(eps=radius)
        return self.replace(eps=self.eps * jnp.reshape(radius, (-1,) + (1,) * (jnp.ndim(self.eps) - 1)))

    def norm(self, delta: Delta) -> Array:
        """The norm of each example [B]; of delta / eps if eps is per coordinate."""
        raise TypeError("threats.Ball has no norm; use Linf, L2, L1 or L0.")

    def max_norm(self, x: Array) -> Array:
        """The norm of the largest perturbation that the box allows [B]."""
        low, high = self.delta_bounds(x)
        return self.norm(jnp.maximum(-low, high))

    def support(self, normal: Array, x: Array) -> Array:
        """The maximum of <normal, delta> over ball and box [B]: exact up to rounding, with its derivative in normal and eps.

        Args:
          normal: [B, ...] or [1, ...]. x: inputs [B, ...].
        """
        raise TypeError("threats.Ball has no support function; use Linf, L2, L1 or L0.")

    def delta_bounds(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest delta of every coordinate: lower - x <= 0 <= upper - x, zero outside the mask."""
        lower, upper = (jnp.asarray(bound).astype(jnp.result_type(x)) for bound in self.box)
        return self._masked(jnp.minimum(lower - x, 0.0)), self._masked(jnp.maximum(upper - x, 0.0))

    def interval(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest value that each coordinate of x can take [B, ...]: what interval bounds start from."""
        low, high = self.delta_bounds(x)
        reach = self.from_unit(jnp.broadcast_to(arrays.per_example(self.radius().astype(jnp.result_type(x)), x), x.shape))
        return x + jnp.maximum(low, -reach), x + jnp.minimum(high, reach)

    def in_box(self, low: Array, high: Array) -> Self:
        """The ball of the same radius around other inputs that may take values from low to high alone [R, ...]."""
        return self.replace(box=(low, high), mask=None)

    def to_unit(self, delta: Delta) -> Delta:
        """delta / eps if eps is per coordinate, else delta: what norms measure and minimum-norm attacks make small."""
        if not self._per_coordinate():
            return delta
        # A coordinate with eps 0 that moved is infinitely far.
        eps = self._eps(delta)
        frozen = jax.lax.stop_gradient(jnp.where(delta != 0, jnp.inf, 0.0)).astype(jnp.result_type(delta))
        return jnp.where(eps > 0, delta / jnp.where(eps > 0, eps, 1.0), frozen)

    def from_unit(self, unit: Delta) -> Delta:
        """The inverse of `to_unit`: unit * eps if eps is per coordinate. Takes a gradient in delta to that in delta / eps, too."""
        return unit * self._eps(unit) if self._per_coordinate() else unit

    def _masked(self, delta):
        if self._per_coordinate():
            delta = jnp.where(self._eps(delta) > 0, delta, jnp.zeros((), jnp.result_type(delta)))
        return delta if self.mask is None else jnp.where(self.mask, delta, jnp.zeros((), jnp.result_type(delta)))

    def _clip(self, delta, x):
        low, high = self.delta_bounds(x)
        return jnp.clip(delta, min=low, max=high)

    def _eps(self, x):
        # eps in the type of x, so that no radius of another type widens a perturbation.
        return arrays.per_example(self.eps, x).astype(jnp.result_type(x))

    def finite_radius(self, x: Array) -> Array:
        """A length for steps and starts [B]: eps; where that is infinite the largest norm in the box; where that is infinite too, 1."""
        low, high = self.delta_bounds(x)
        farthest = jnp.maximum(-low, high)
        farthest = self.norm(jnp.where(jnp.isfinite(farthest), farthest, 1.0))
        radius = jnp.broadcast_to(self.radius().astype(jnp.result_type(x)), x.shape[:1])
        return jnp.where(jnp.isfinite(radius), radius, farthest)

    def _stretched(self, unit, x):
        return self.from_unit(unit) * arrays.per_example(self.finite_radius(x), x)

    def _per_coordinate(self):
        return jnp.ndim(self.eps) > 1


def as_float(values: Numeric) -> Array:
    """Numbers as an array of a floating type; a Python number takes the type of what it meets."""
    values = jnp.asarray(values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _is_known(value):
    if isinstance(value, jax.Array):  # neither traced nor spread over several processes
        return not isinstance(value, jax.core.Tracer) and value.is_fully_addressable
    return isinstance(value, int | float | np.ndarray | np.generic)


def _check_radius(eps):
    if eps is None or isinstance(eps, bool | str | complex | tuple | list):
        raise TypeError(f"expected eps as a number or an array, got {eps!r} of type {type(eps).__name__}.")
    if not _is_known(eps):
        return
    values = np.asarray(eps)
    if not np.all(values >= 0):
        raise ValueError(f"eps must be at least 0, got {eps}.")
    if values.ndim > 1 and not np.isfinite(values).all():
        raise ValueError("eps per coordinate must be finite; for no limit at all pass a scalar, eps=inf.")


def _check_box(box):
    if not isinstance(box, tuple) or len(box) != 2 or any(isinstance(bound, str | bool) for bound in box):
        raise ValueError(f"expected box=(lower, upper), numbers or arrays, got {box!r}.")
    lower, upper = box
    if not (_is_known(lower) and _is_known(upper)):
        return
    low, high = np.asarray(lower), np.asarray(upper)
    if low.ndim == high.ndim == 0 and not low < high:
        raise ValueError(f"the box needs lower < upper, got {box}.")
    if not (low <= high).all():  # equal bounds of a coordinate are a constant feature
        raise ValueError(f"the box needs lower <= upper in every coordinate; {int(np.sum(~(low <= high)))} entries violate it.")


def _check_mask(mask):
    if mask is not None and hasattr(mask, "dtype") and mask.dtype != bool:
        raise TypeError(f"expected mask as booleans, True where the input may change, got {mask.dtype}; pass mask > 0.")


def _check_shape(name, field, shape):
    if field is None:
        return
    got = jnp.shape(field)
    if name == "eps" and len(got) == 1 and got[0] in (1, shape[0]):
        return
    fits = len(got) <= len(shape) and all(g in (1, s) for g, s in zip(got[::-1], shape[::-1], strict=False))
    if not fits or (name == "eps" and 0 < len(got) < len(shape)):
        wanted = "a scalar, one per example [N], or one per coordinate [1, ...]" if name == "eps" else "what broadcasts against x"
        raise ValueError(f"expected {name} as {wanted}, with x of shape {shape}; got shape {got}.")


def bisect(is_below: Callable[[Array], Array], low: Array, high: Array, num_bisections: int = _NUM_BISECTIONS) -> tuple[Array, Array]:
    """The point of [low, high] ([B, 1]) where the monotone `is_below` turns false: geometric if low > 0, without gradient.

    The callers then solve for the exact point in closed form, which has the gradient.
    """
    low, high = jax.lax.stop_gradient((low, jnp.minimum(high, 1e30)))
    return jax.lax.fori_loop(0, num_bisections, lambda _, bracket: _halved(is_below, *bracket), (low, high))


def bracket(is_below: Callable[[Array], Array], low: Array, high: Array, width: Array) -> tuple[Array, Array]:
    """`bisect` until high - low is at most `width` [B, 1], or no number lies between; every example stops when its own bracket is small.

    No gradient must flow into what `is_below` closes over.
    """

    def is_open(low, high):
        middle = _middle(low, high)
        return (high - low > width) & (low < middle) & (middle < high)

    def body(bracket):
        halved = _halved(is_below, *bracket)
        return tuple(jnp.where(is_open(*bracket), new, old) for new, old in zip(halved, bracket, strict=True))

    low, high = jax.lax.stop_gradient((low, jnp.minimum(high, 1e30)))
    return jax.lax.while_loop(lambda bracket: is_open(*bracket).any(), body, (low, high))


def _halved(is_below, low, high):
    middle = _middle(low, high)
    below = is_below(middle)
    return jnp.where(below, middle, low), jnp.where(below, high, middle)


def _middle(low, high):
    wide = (low > 0) & (high > 2.0 * low)  # far apart: halve the exponents; near, where roots round beyond the bracket, the distance
    return jnp.where(wide, jnp.sqrt(low) * jnp.sqrt(high), 0.5 * low + 0.5 * high)


def orthant(x: Array, threat: Ball, normal: Array) -> tuple[Array, Array]:
    """The slope |normal| of every coordinate, and how far it may go along the sign of the normal, both [B, D] in the unit of the norm."""
    low, high = (arrays.flatten_examples(threat.to_unit(jnp.broadcast_to(bound, x.shape))) for bound in threat.delta_bounds(x))
    slope = arrays.flatten_examples(threat.from_unit(jnp.broadcast_to(normal, x.shape)))
    return arrays.absolute(slope), jnp.where(slope > 0, high, jnp.where(slope < 0, -low, 0.0))


def fold_to_orthant(x: Array, threat: Ball, normal: Array, offset: Array) -> tuple[Array, Array, Array, Array]:
    """A hyperplane problem <normal, delta> = offset with all signs turned positive, each example flat.

    Substituting delta = sign * t leaves <slope, t> = goal with slope, goal and t all >= 0, so that a projection has one variable to bisect.

    Returns:
      slope [B, D] = |normal| and goal [B, 1] = |offset|, both over the largest |normal|, room [B, D] = how far each coordinate may go
      toward the hyperplane, and sign [B, D], so that delta = sign * t with 0 <= t <= room and <slope, t> = goal.
    """
    low, high = (arrays.flatten_examples(jnp.broadcast_to(bound, x.shape)) for bound in threat.delta_bounds(x))
    sign = jnp.sign(arrays.flatten_examples(normal)) * jnp.sign(offset)[:, None]
    room = jnp.where(sign > 0, high, jnp.where(sign < 0, -low, 0.0))
    scale = arrays.scale_of(arrays.flatten_examples(normal))[:, None]
    return arrays.absolute(arrays.flatten_examples(normal) / scale), room, arrays.absolute(offset)[:, None] / scale, sign


def spent_in_order(scores: Array, slope: Array, room: Array, goal: Array, sign: Array) -> Array:
    """Coordinates go to their bound in the order of their scores, until <slope, t> = goal; the last one goes as far as it must.

    Args:
      scores: [B, D]; coordinates of larger scores come first.
      slope, room, goal, sign: what `fold_to_orthant` returns.

    Returns:
      delta [B, D].
    """
    # gain: what a coordinate adds to <slope, t> at its bound; before: what the coordinates ahead of it have added already.
    order = jnp.argsort(-scores, axis=1)
    slope, room, sign = (jnp.take_along_axis(a, order, axis=1) for a in (slope, room, sign))
    gain = jnp.where(slope > 0, slope * jnp.where(slope > 0, room, 0.0), 0.0)
    finite = jnp.where(jnp.isfinite(gain), gain, 0.0)
    before = jnp.cumsum(finite, axis=1) - finite
    endless = (~jnp.isfinite(gain)).astype(jnp.int32)
    blocked = jnp.cumsum(endless, axis=1) - endless > 0  # an unbounded coordinate took it all
    part = jnp.where(blocked, 0.0, jnp.clip(goal - before, min=0.0, max=gain))
    delta = sign * jnp.where(slope > 0, part / jnp.where(slope > 0, slope, 1.0), 0.0)
    return jnp.take_along_axis(delta, jnp.argsort(order, axis=1), axis=1)
