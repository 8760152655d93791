"""What the norm balls share: eps, the box of valid inputs, the mask of free coordinates, and the bisection behind projections."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base
from robustjax.base import Array, Delta

RTOL = 1e-5  # the one tolerance of "norm <= eps": a float32 sum over a million coordinates is right to about 1e-6
_NUM_BISECTIONS = 32  # a bracket of 2^-32 of its start; the piece it lies on is then solved exactly


@base.node
class Ball:
    """{delta: |delta|_p <= eps, lower <= x + delta <= upper, delta = 0 outside the mask}.

    Attributes:
      eps: radius in the unit of x; a scalar, one per example [B], or one per coordinate (rank of x, leading axis 1), where the
        ball is {|delta / eps|_p <= 1}. May be traced, batched or infinite.
      box: lower and upper bound of valid inputs, scalars or arrays that broadcast against x.
      mask: booleans that broadcast against x, True where the input may change; None for everywhere.

    The norm as computed in float32 exceeds eps by a factor of at most 1 + RTOL; a box other than [0, 1] may be exceeded by one
    rounding of x + delta.
    """

    eps: Any
    box: Any = (0.0, 1.0)
    mask: Any = None

    def __post_init__(self):
        if isinstance(self.eps, int | float | np.ndarray | np.generic) and not np.all(np.asarray(self.eps) >= 0):
            raise ValueError(f"eps must be at least 0, got {self.eps}.")
        lower, upper = self.box
        if isinstance(lower, int | float) and isinstance(upper, int | float) and lower >= upper:
            raise ValueError(f"the box needs lower < upper, got {self.box}.")

    def replace(self, **changes) -> "Ball":
        """The same threat with some fields changed."""
        return dataclasses.replace(self, **changes)

    def apply(self, x: Array, delta: Delta) -> Array:
        """x + delta, with delta masked, so that gradients vanish outside the mask."""
        return x + self._masked(delta)

    def check(self, x: Array) -> None:
        """Nothing, or an error about inputs (whose values must be known) that the box does not contain.

        Raises:
          ValueError: some lie outside.
        """
        values = np.asarray(x)
        lower, upper = (np.asarray(bound) for bound in self.box)
        if (values < lower).any() or (values > upper).any():
            raise ValueError(
                f"inputs from {values.min()} to {values.max()} leave the box {self.box} of {type(self).__name__}; scale them, or pass "
                "box=(lower, upper) to the threat."
            )

    def within(self, delta: Delta) -> Array:
        """Whether the norm of each example is at most eps, up to RTOL [B]."""
        return self.norm(delta) <= self.radius() * (1 + RTOL)

    def radius(self) -> Array:
        """eps as a scalar or [B]; 1 if eps is per coordinate, where norms are of delta / eps."""
        return jnp.ones(()) if self._per_coordinate() else jnp.asarray(self.eps, float)

    def resized(self, radius: Array) -> "Ball":
        """The same ball of another radius [B], in the unit of `radius()`."""
        if not self._per_coordinate():
            return self.replace(eps=radius)
        return self.replace(eps=self.eps * jnp.reshape(radius, (-1,) + (1,) * (jnp.ndim(self.eps) - 1)))

    def norm(self, delta: Delta) -> Array:
        """The norm of each example [B]; of delta / eps if eps is per coordinate."""
        raise TypeError("threats.Ball has no norm; use Linf, L2, L1 or L0.")

    def largest_norm(self, x: Array) -> Array:
        """The norm of the largest perturbation that the box allows [B]."""
        low, high = self.room(x)
        return self.norm(jnp.maximum(-low, high))

    def room(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest delta of every coordinate: lower - x <= 0 <= upper - x, zero outside the mask."""
        lower, upper = self.box
        return self._masked(jnp.minimum(lower - x, 0.0)), self._masked(jnp.maximum(upper - x, 0.0))

    def _masked(self, delta):
        return delta if self.mask is None else jnp.where(self.mask, delta, jnp.zeros((), delta.dtype))

    def _clip(self, delta, x):
        low, high = self.room(x)
        return jnp.clip(delta, min=low, max=high)

    def _stretched(self, unit, x):
        # unit * eps, where an infinite eps leaves the zeros of unit alone.
        return unit * jnp.where(unit == 0, 0.0, arrays.per_example(self.eps, x))

    def _per_coordinate(self):
        return jnp.ndim(self.eps) > 1

    def _unit(self, delta):
        # delta / eps where eps is per coordinate; a coordinate with eps 0 cannot move.
        if not self._per_coordinate():
            return delta
        return jnp.where(self.eps > 0, delta / jnp.where(self.eps > 0, self.eps, 1.0), 0.0)

    def _scaled(self, unit):
        return unit * self.eps if self._per_coordinate() else unit


def bisect(is_below, low, high):
    """The point of [low, high] ([B, 1]) where the monotone `is_below` turns false: geometric if low > 0, without gradient.

    The callers solve the piece around it in closed form, which carries the gradient.
    """
    low, high = jax.lax.stop_gradient((low, jnp.minimum(high, 1e30)))

    def halve(_, bracket):
        low, high = bracket
        middle = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), 0.5 * (low + high))
        below = is_below(middle)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, (low, high))


def toward(x: Array, threat: Ball, normal: Array, offset: Array) -> tuple[Array, Array, Array, Array]:
    """A hyperplane problem <normal, delta> = offset folded into the positive orthant, each example flat.

    Returns:
      slope [B, D] = |normal|, room [B, D] = how far each coordinate may go toward the hyperplane, goal [B, 1] = |offset|, and
      sign [B, D], so that delta = sign * t with 0 <= t <= room and <slope, t> = goal.
    """
    low, high = (arrays.flat(jnp.broadcast_to(bound, x.shape)) for bound in threat.room(x))
    sign = jnp.sign(arrays.flat(normal)) * jnp.sign(offset)[:, None]
    room = jnp.where(sign > 0, high, jnp.where(sign < 0, -low, 0.0))
    return jnp.abs(arrays.flat(normal)), room, jnp.abs(offset)[:, None], sign
