"""The KKT attack: two feasible points, repeated, under which a model that the attacker chose is what an SVM learns (Koh et al., 2022)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import checks
from robustjax.base import Array
from robustjax.bilevel import problem
from robustjax.poisoning import arguments
from robustjax.poisoning.classical.learners import FitFn
from robustjax.poisoning.sanitized import _feasible
from robustjax.poisoning.sanitized._feasible import Feasible

_MARGIN_TOLERANCE = 1e-3


class Planted(NamedTuple):
    """Two points, each to be repeated, and what they would teach."""

    x: np.ndarray  # [2, D] of label 1 and of label -1
    shares: np.ndarray  # [2] copies of each over the number of clean points
    # KKT attack: |stationarity| of the decoy on clean data and poisons, 0 if it is learned exactly. Below 1e-6 an SVM that was trained on
    # them was within 5 % of the decoy's distance from the clean model (`tests/poisoning/test_sanitized.py`).
    residual: float


def kkt_attack(
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    decoy: Array | np.ndarray,
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

    Guarantee:
      feasibility only: the points lie in the sets that the defender keeps.
    Source: Koh, Steinhardt & Liang, Machine Learning 2022, section 4.2, arXiv:1811.00741.
    """
    _feasible.check_sets(x, y, sets, share, weight_decay)
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


def decoys(
    x: np.ndarray,
    y: np.ndarray,
    fit_fn: FitFn,
    *,
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3),
    repeats: tuple[int, ...] = (1, 2, 3, 5, 8),
) -> list[np.ndarray]:
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
    arguments.binary_table(x, y)
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
