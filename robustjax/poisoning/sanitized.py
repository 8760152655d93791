"""Poisons that pass sanitizers: KKT, min-max and influence attacks on linear classifiers inside a feasible set (Koh et al., 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, checks, prng
from robustjax.base import Array, Delta, Key
from robustjax.bilevel import problem
from robustjax.poisoning import arguments, classical

_NUM_PROJECTIONS = 30  # alternations of Dykstra's algorithm; the sets are few and simple
_NUM_WORST_STEPS = 30  # of projected ascent to the worst point of a set
_MARGIN_TOLERANCE = 1e-3


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

    def holds(self, x: Array, tolerance=1e-3) -> Array:
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


def feasible(x, y, label, *, percentile: float = 90.0, box: tuple = (-np.inf, np.inf)) -> Feasible:
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
    classical.check_labels(x, y)
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


class Planted(NamedTuple):
    """Two points, each to be repeated, and what they would teach."""

    x: np.ndarray  # [2, D] of label 1 and of label -1
    shares: np.ndarray  # [2] copies of each over the number of clean points
    # KKT attack: |stationarity| of the decoy on clean data and poisons, 0 if it is learned exactly. Below 1e-6 an SVM that was trained on
    # them was within 5 % of the decoy's distance from the clean model (`tests/poisoning/test_sanitized.py`).
    residual: float


def kkt_attack(
    x,
    y,
    decoy,
    sets: tuple[Feasible, Feasible],
    *,
    share: float,
    weight_decay: float,
    grid_step: float = 0.005,
    num_steps: int = 2000,
) -> Planted:
    """Two feasible points, and how often to repeat each, under which a decoy solves the hinge-loss SVM on clean data and poisons.

    min |g + (1 + share) weight_decay w - a (x_1, 1) + b (x_2, 1)| over x_1, x_2 in their sets and within the margin, for a + b = share on
    a grid, g the mean hinge gradient of the decoy (w, bias) on clean data.

    Args:
      x: [N, D] clean data. y: [N], -1 or 1.
      decoy: [D + 1] what the attacker wants learned, the bias last; `decoys` proposes some.
      sets: where points of label 1 and of label -1 may lie.
      share: poisons over clean points; .03 in the paper.
      weight_decay: of the victim, weight_decay / 2 |w|^2 without the bias.
      grid_step: of a.
      num_steps: of projected gradient descent for each a.

    Returns:
      The best pair.

    Raises:
      TypeError: sets that are none, another number of steps than an integer. ValueError: labels other than -1 and 1, or only one of them;
        rows or a decoy of another shape, or NaN; a share that is not above 0 and at most 1; weight decay below 0; no step.

    Source: Koh, Steinhardt & Liang, Machine Learning 2022, section 4.2, arXiv:1811.00741.
    """
    _check_attack(x, y, sets, share, weight_decay)
    checks.counts(num_steps=num_steps)
    checks.positive(grid_step=grid_step)
    if np.shape(decoy) != (np.shape(x)[1] + 1,) or not np.isfinite(decoy).all():
        raise ValueError(
            f"expected a finite decoy [{np.shape(x)[1] + 1}], the bias last, got shape {np.shape(decoy)}; `decoys` proposes some."
        )
    x, y, decoy = (jnp.asarray(value, jnp.result_type(float)) for value in (x, y, decoy))
    w, bias = decoy[:-1], decoy[-1]
    inside = y * (x @ w + bias) < 1.0
    clean = -jnp.mean(jnp.where(inside, y, 0.0)[:, None] * jnp.append(x, jnp.ones((len(x), 1)), axis=1), axis=0)
    clean = clean + (1.0 + share) * weight_decay * jnp.append(w, 0.0)
    # The bias asks for a - b = clean[-1]: that value beside the grid.
    exact = jnp.clip(0.5 * (share + clean[-1]), min=0.0, max=share)
    shares = jnp.append(jnp.arange(0.0, share + 1e-9, grid_step), exact)

    def within_margin(point, label):  # so that its hinge is active
        excess = jnp.maximum(label * (point @ w + bias) - 1.0, 0.0)
        return point - label * (excess / (w @ w + 1e-12))[:, None] * w[None]

    def best(a):
        b = share - a
        pull = jnp.stack([-a, b])[:, None]

        def gap(points):
            return jnp.append(clean[:-1] + (pull * points).sum(axis=0), clean[-1] - a + b)

        def step(points, _):
            grad = jax.grad(lambda points: 0.5 * jnp.sum(jnp.square(gap(points))))(points)
            moved = points - grad / (a**2 + b**2 + 1e-12)
            for _ in range(3):  # alternate between the margin and the set, ending in the set
                active = [within_margin(moved[i : i + 1], label) for i, label in enumerate((1.0, -1.0))]
                moved = jnp.concatenate([one.nearest(point) for one, point in zip(sets, active, strict=True)])
            return moved, None

        start = jnp.stack([one.centre for one in sets]).astype(clean.dtype)
        points = jax.lax.scan(step, start, length=num_steps)[0]
        # A poison beyond the decoy's margin teaches it nothing: what is reported counts those on its inner side alone.
        teaches = jnp.array([1.0, -1.0]) * (points @ w + bias) <= 1.0 + _MARGIN_TOLERANCE
        taught = jnp.where(teaches[:, None], pull * jnp.append(points, jnp.ones((2, 1)), axis=1), 0.0).sum(axis=0)
        return points, jnp.linalg.norm(clean + taught)

    points, residuals = jax.jit(lambda shares: jax.lax.map(best, shares))(shares)
    chosen = int(jnp.argmin(residuals))
    a = float(shares[chosen])
    return Planted(np.asarray(points[chosen]), np.array([a, share - a]), float(residuals[chosen]))


def decoys(x, y, fit_fn: Callable, *, quantiles=(0.05, 0.1, 0.2, 0.3), repeats=(1, 2, 3, 5, 8)) -> list[np.ndarray]:
    """Models fitted to clean data and, repeated, its points of highest loss with their labels flipped: what a KKT attack may aim at.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      fit_fn: (x, y) -> [D + 1].
      quantiles: fractions of points that are flipped. repeats: how often they are added.

    Raises:
      TypeError: a fit_fn that cannot be called, repeats that are no integers. ValueError: labels other than -1 and 1, or only one of them;
        rows of another shape, or NaN; quantiles outside [0, 1]; a fit_fn that gives something else than [D + 1].

    Source: Koh, Steinhardt & Liang, Machine Learning 2022, section 4.2, arXiv:1811.00741.
    """
    classical.check_labels(x, y)
    problem.is_function(fit_fn, "fit_fn(x, y)")
    checks.counts(**{f"repeats[{i}]": repeat for i, repeat in enumerate(repeats)})
    arguments.fractions(quantiles=quantiles)
    x, y = np.asarray(x), np.asarray(y)
    clean = fit_fn(x, y)
    if np.shape(clean) != (x.shape[1] + 1,):
        raise ValueError(f"expected fit_fn to return [{x.shape[1] + 1}], the bias last, got shape {np.shape(clean)}.")
    margin = y * (x @ clean[:-1] + clean[-1])
    order = np.argsort(margin)  # the highest loss first
    found = []
    for quantile in quantiles:
        rows = order[: max(1, int(quantile * len(x)))]
        for repeat in repeats:
            found.append(fit_fn(np.concatenate([x, *[x[rows]] * repeat]), np.concatenate([y, *[-y[rows]] * repeat])))
    return found


def min_max_attack(
    x, y, sets: tuple[Feasible, Feasible], *, share: float, weight_decay: float, step_size: float, num_steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Poisons that are the worst feasible points for the SVM as it learns: online gradient descent on max over feasible points of the loss.

    The average of the losses met is, up to the regret of the learner and the accuracy of the worst points, an upper bound of the training
    loss under any feasible poisons.

    Args:
      x, y, sets, share, weight_decay: as for `kkt_attack`.
      step_size, num_steps: of the learner's subgradient descent, its step falling like 1 / sqrt.

    Returns:
      (poisons [share * N, D], one at least, their labels, the average loss); the last points met.

    Raises:
      ValueError: as `kkt_attack`; or fewer steps than poisons, each of which is met in a step.

    Source: Steinhardt, Koh & Liang, NeurIPS 2017, Algorithm 1, arXiv:1706.03691.
    """
    _check_attack(x, y, sets, share, weight_decay)
    checks.counts(num_steps=num_steps)
    checks.positive(step_size=step_size)
    num_poisons = max(1, int(share * len(x)))
    if num_steps < num_poisons:
        raise ValueError(f"num_steps={num_steps} meet too few points for {num_poisons} poisons; pass at least {num_poisons}.")
    x, y = jnp.asarray(x, jnp.result_type(float)), jnp.asarray(y, jnp.result_type(float))

    def worst(theta):  # of each label: the feasible point against its side
        w = theta[:-1]
        points = jnp.concatenate([one.extreme(-label * w) for one, label in zip(sets, (1.0, -1.0), strict=True)])
        labels = jnp.array([1.0, -1.0])
        loss = jnp.maximum(1.0 - labels * (points @ w + theta[-1]), 0.0)
        first = jnp.argmax(loss)
        return points[first], labels[first], loss[first]

    def objective(theta, point, label):
        hinge = jnp.maximum(1.0 - y * (x @ theta[:-1] + theta[-1]), 0.0).mean()
        poison = jnp.maximum(1.0 - label * (point @ theta[:-1] + theta[-1]), 0.0)
        return hinge + share * poison + 0.5 * weight_decay * theta[:-1] @ theta[:-1]

    def step(theta, i):
        point, label, _ = worst(theta)
        value, grad = jax.value_and_grad(objective)(theta, point, label)
        return theta - step_size / jnp.sqrt(i + 1.0) * grad, (point, label, value)

    run = jax.jit(lambda theta: jax.lax.scan(step, theta, jnp.arange(num_steps)))
    _, (points, labels, values) = run(jnp.zeros(x.shape[1] + 1, x.dtype))
    return np.asarray(points[-num_poisons:]), np.asarray(labels[-num_poisons:]), float(values.mean())


def _check_attack(x, y, sets, share, weight_decay):
    classical.check_labels(x, y)
    if not isinstance(sets, tuple | list) or len(sets) != 2 or not all(isinstance(one, Feasible) for one in sets):
        raise TypeError(f"expected two sets, of label 1 and of label -1, such as feasible(x, y, 1) and feasible(x, y, -1); got {sets!r}.")
    problem.not_negative(weight_decay=weight_decay)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"expected a share of poisons above 0 and at most 1, got {share}.")
