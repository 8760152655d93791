"""Where a defender who removes outliers lets a training point lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, checks, prng
from robustjax.base import Array, Delta, Key, Numeric
from robustjax.bilevel import problem
from robustjax.poisoning import arguments

_NUM_PROJECTIONS = 30  # alternations of Dykstra's algorithm; the sets are few and simple
_NUM_WORST_STEPS = 30  # of projected ascent to the worst point of a set


@base.node
class Feasible:
    """Where a defender who removes outliers lets a point of one class lie: a sphere around its centre, a slab across it, and a box.

    As a threat around x it moves points within that set, wherever they started; `feasible` makes one from clean data.

    Attributes:
      centre: [D] of the class.
      radius: of the sphere.
      direction: [D] of unit length, between the centres of the classes.
      width: of the slab: |<x - centre, direction>| <= width.
      box: of valid inputs.
    """

    centre: Any
    radius: Any
    direction: Any
    width: Any
    box: Any = (-jnp.inf, jnp.inf)

    def nearest(self, x: Array) -> Array:
        """The nearest points [M, D] of the set, by Dykstra's alternating projections."""

        def sphere(x):
            gap = x - self.centre[None]
            size = arrays.norm(gap, 2)[:, None]
            return jnp.where(size > self.radius, self.centre[None] + gap * self.radius / jnp.where(size > 0, size, 1.0), x)

        def slab(x):
            along = (x - self.centre[None]) @ self.direction
            return x - (along - jnp.clip(along, min=-self.width, max=self.width))[:, None] * self.direction[None]

        def box(x):
            return jnp.clip(x, min=self.box[0], max=self.box[1])

        sets = (sphere, slab, box)

        def sweep(carry, _):
            x, corrections = carry
            new = []
            for project, correction in zip(sets, corrections, strict=True):
                moved = project(x + correction)
                new.append(x + correction - moved)
                x = moved
            return (x, tuple(new)), None

        (x, _), _ = jax.lax.scan(sweep, (x, (jnp.zeros_like(x),) * len(sets)), length=_NUM_PROJECTIONS)
        return x

    def extreme(self, direction: Array) -> Array:
        """The point [1, D] of the set that lies farthest along a direction, by projected steps of the sphere's radius."""
        stride = self.radius * arrays.normalize(direction[None], 2)
        step = lambda x, _: (self.nearest(x + stride), None)  # noqa: E731
        return jax.lax.scan(step, self.nearest(self.centre[None]).astype(stride.dtype), length=_NUM_WORST_STEPS)[0]

    def holds(self, x: Array, tolerance: Numeric = 1e-3) -> Array:
        """Whether points lie in the set [M], up to a relative tolerance."""
        gap = x - self.centre[None]
        near = arrays.norm(gap, 2) <= self.radius * (1 + tolerance)
        between = jnp.abs(gap @ self.direction) <= self.width * (1 + tolerance)
        inside = ((x >= self.box[0] - tolerance) & (x <= self.box[1] + tolerance)).all(axis=1)
        return near & between & inside

    def init(self, key: Key, x: Array) -> Delta:
        """To a random point of the set."""
        keys = prng.example_keys(key, x.shape[0])
        drawn = self.centre[None] + self.radius * arrays.normalize(prng.sample(jax.random.normal, keys, x), 2)
        return self.nearest(drawn) - x

    def project(self, delta: Delta, x: Array) -> Delta:
        """To the nearest point of the set."""
        return self.nearest(x + delta) - x

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """grad / |grad|."""
        del x, delta
        return arrays.normalize(grad, 2)

    def apply(self, x: Array, delta: Delta) -> Array:
        """x + delta."""
        return x + delta


def feasible(
    x: np.ndarray, y: np.ndarray, label: int, *, percentile: float = 90.0, box: tuple[float, float] = (-np.inf, np.inf)
) -> Feasible:
    """The set that keeps `percentile` percent of a class of clean data [N, D] in the sphere, and as many in the slab.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      label: the class, -1 or 1.
      percentile: of what is kept.
      box: of valid inputs.

    Raises:
      ValueError: labels other than -1 and 1, or only one of them; rows of another shape, or NaN; a percentile that is a share, or above
        100; classes with the same centre, which no slab tells apart.
    """
    arguments.binary_table(x, y)
    if label not in (-1, 1):
        raise ValueError(f"expected the label -1 or 1, got {label}.")
    checks.box(box)
    if not 1.0 < percentile <= 100.0:
        raise ValueError(f"percentile={percentile} is in percent: expected it above 1 and at most 100, such as 90.0 for a share of .9.")
    x, y = np.asarray(x), np.asarray(y)
    mine, other = x[y == label], x[y != label]
    centre = mine.mean(axis=0)
    direction = other.mean(axis=0) - centre
    if not direction.any():
        raise ValueError("both classes have the same centre: expected classes that a slab across them tells apart.")
    direction = direction / np.linalg.norm(direction)
    radius = np.percentile(np.linalg.norm(mine - centre, axis=1), percentile)
    width = np.percentile(np.abs((mine - centre) @ direction), percentile)
    centre, radius, direction, width = map(jnp.asarray, (centre, radius, direction, width))
    return Feasible(centre, radius, direction, width, box)


def check_sets(x: Array | np.ndarray, y: Array | np.ndarray, sets: Any, share: float, weight_decay: float) -> None:
    """What attacks inside feasible sets ask of their arguments.

    Raises:
      TypeError: sets that are none. ValueError: labels other than -1 and 1, a share outside (0, 1], weight decay below 0.
    """
    arguments.binary_table(x, y)
    if not isinstance(sets, tuple | list) or len(sets) != 2 or not all(isinstance(one, Feasible) for one in sets):
        raise TypeError(f"expected two sets, of label 1 and of label -1, such as feasible(x, y, 1) and feasible(x, y, -1); got {sets!r}.")
    problem.not_negative(weight_decay=weight_decay)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"expected a share of poisons above 0 and at most 1, got {share}.")
