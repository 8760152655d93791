"""Poisoned training sets: which rows are poisoned, and the set with poisons in them; what would make an attack meaningless is named."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import checks, prng
from robustjax.base import Key, NormThreat


def choose(key: Key, y: np.ndarray, num_poisons: int, label: int | None = None) -> np.ndarray:
    """Rows to poison [M], at random, among those of a label if one is given.

    >>> sorted(poisoning.choose(jax.random.key(0), np.array([0, 1, 1, 0]), 2, label=1).tolist())
    [1, 2]

    Args:
      key: of the choice.
      y: labels of the training set [N].
      num_poisons: M.
      label: of the rows that may be chosen; None for all of them.

    Raises:
      TypeError: no key, a number of poisons that is no integer. ValueError: labels that are not [N], one that is not among them, more
        poisons than such rows, or none.
    """
    prng.example_keys(key, 1)  # one key, not several
    checks.counts(num_poisons=num_poisons)
    checks.vector(y, len(y))
    if label is not None and label not in np.asarray(y):
        raise ValueError(f"no example has the label {label}; expected one of {np.unique(y)[:10]}.")
    rows = np.flatnonzero(np.ones(len(y), bool) if label is None else np.asarray(y) == label)
    if num_poisons > len(rows):
        whose = "" if label is None else f" of label {label}"
        raise ValueError(f"cannot poison {num_poisons} of {len(rows)} examples{whose}; pass between 1 and {len(rows)}.")
    return rows[np.asarray(jax.random.permutation(key, len(rows)))[:num_poisons]]


def insert(
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    poisons: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    threat: NormThreat | None = None,
    box: tuple[float, float] = (0.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """The training set with poisons in some of its rows; numpy.

    >>> x, y = np.zeros((4, 1)), np.array([0, 1, 1, 0])
    >>> x_poisoned, _ = poisoning.insert(x, y, np.array([2]), np.array([[0.05]]), threat=threats.Linf(0.1))
    >>> x_poisoned[:, 0].tolist()
    [0.0, 0.0, 0.05, 0.0]

    Args:
      x: [N, ...]. y: [N].
      rows: [M], all different, from 0 to N - 1.
      poisons: [M, ...].
      labels: [M] of the poisons, among those of y; None keeps those of the rows (clean label).
      threat: a ball that the poisons must lie in, around the rows they replace; with one, labels may not change.
      box: of valid inputs, where no threat brings its own.

    Returns:
      (x, y) as copies.

    Raises:
      TypeError: no threat. ValueError: more poisons than rows, or than examples; rows that repeat or are not there; poisons that are real
        numbers among integers, not finite, or outside the box or the ball; labels of another number, unknown ones, or changed under a
        threat.
    """
    x, y, rows, poisons = np.array(x), np.array(y), np.asarray(rows), np.asarray(poisons)
    checks.vector(y, len(x))
    if rows.ndim != 1 or rows.size == 0:
        raise ValueError(f"expected rows [M] of at least one poison, got shape {rows.shape}; pass e.g. np.array([3, 17]).")
    if rows.dtype == bool:
        raise ValueError(f"expected whole rows from 0 to {len(x) - 1}, got a mask; pass np.flatnonzero(rows).")
    if not np.can_cast(poisons.dtype, x.dtype, "same_kind"):
        raise ValueError(f"poisons of {poisons.dtype} do not fit into x of {x.dtype}; scale x to the poisons' unit first, e.g. x / 255.")
    if len(rows) > len(x) or len(np.unique(rows)) != len(rows) or poisons.shape != (len(rows), *x.shape[1:]):
        raise ValueError(f"expected one poison {x.shape[1:]} for each of {len(rows)} different rows of {len(x)}, got {poisons.shape}.")
    if not np.issubdtype(rows.dtype, np.integer) or not np.isin(rows, np.arange(len(x))).all():
        raise ValueError(f"expected whole rows from 0 to {len(x) - 1}, got {rows.min()} to {rows.max()}; `choose` draws some.")
    if not np.isfinite(poisons).all():
        raise ValueError("poisons are not finite; look at the loss they were crafted with.")
    if labels is not None and (np.shape(labels) != rows.shape or not np.isin(labels, y).all()):
        raise ValueError(f"expected {len(rows)} labels among those of y, {np.unique(y)[:10]}, got {np.asarray(labels)}.")
    checks.box(box)
    if threat is not None:
        checks.threat(threat)
    if threat is None and not ((poisons >= box[0]) & (poisons <= box[1])).all():
        raise ValueError(f"poisons from {poisons.min():g} to {poisons.max():g} leave the box {box}; clip them, or pass the box of x.")
    if threat is not None:
        if not hasattr(threat, "within"):
            raise ValueError(f"{type(threat).__name__} is no ball around inputs that could be looked at; pass threat=None.")
        if labels is not None and (np.asarray(labels) != y[rows]).any():
            raise ValueError("labels change under a threat on inputs, which is clean-label; pass labels=None, or threat=None.")
        if hasattr(threat, "check"):
            threat.check(poisons)
        if not bool(jnp.all(threat.within(jnp.asarray(poisons - x[rows])))):
            raise ValueError(
                f"poisons leave {type(threat).__name__} of radius {threat.radius()} around the rows they replace; project them first."
            )
    x[rows] = poisons
    if labels is not None:
        y[rows] = labels
    return x, y
