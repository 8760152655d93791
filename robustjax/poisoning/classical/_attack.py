"""Descent over a training set that a classical learner is fitted to, and what its attacker may want."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from robustjax import checks
from robustjax.bilevel import problem
from robustjax.poisoning import arguments
from robustjax.poisoning.classical import learners
from robustjax.poisoning.classical.learners import FitFn, PullbackFn

OuterFn = Callable[[np.ndarray], tuple[float, np.ndarray]]  # theta -> (value, gradient in theta): what the attacker minimises


class Poisoned(NamedTuple):
    """A poisoned training set and what it teaches."""

    x: np.ndarray  # [N, D]
    y: np.ndarray  # [N]
    theta: np.ndarray
    loss: np.ndarray  # [num_steps + 1] the attacker's, without the effort; exact, of the learner fitted again to every set
    effort: float  # |x - x0| or |y - y0|, l2 or l1
    active_set_changes: int  # steps at which an SVM's formula changed: gradients there are one-sided, and a smaller step is in order


def attack(
    x: np.ndarray,
    y: np.ndarray,
    *,
    fit_fn: FitFn,
    pullback_fn: PullbackFn,
    outer_fn: OuterFn,
    effort_order: int,
    weight: float,
    step_size: float,
    num_steps: int,
    moving: str = "x",
    rows: Sequence[int] | np.ndarray | None = None,
    box: tuple[float, float] = (-np.inf, np.inf),
) -> Poisoned:
    """min over training inputs (or labels) of outer(theta(x, y)) + weight * effort; effort |x - x0|_2^2 (order 2) or |x - x0|_1 (order 1).

    Args:
      x: [N, D] training inputs. y: [N] labels.
      fit_fn: (x, y) -> theta. The learner may be anybody's; scikit-learn's, retrained at every step.
      pullback_fn: (x, y, theta, v) -> `Pullback`.
      outer_fn: theta -> (value, gradient in theta): `toward_parameters`, a distance to the theta that the attacker wants, or
        `toward_errors`, minus a validation loss.
      effort_order: 1 or 2. Order 1 is a proximal step, which leaves most coordinates where they were.
      weight: of the effort.
      step_size, num_steps: of projected gradient descent.
      moving: "x", or "y" where labels are real numbers; the other stays.
      rows: which points may move; None for all.
      box: of what moves.

    Returns:
      The poisoned set.

    Raises:
      TypeError: functions that cannot be called, another number of steps than an integer. ValueError: another order of effort, a weight
        below 0, a step that is not above 0, nothing that can move, NaN, labels of another shape, rows beyond the set, or what may move
        outside the box at the start.

    Guarantee:
      exact gradients where the active set stays; not optimality. What moves stays in the box.
    Source: Mei & Zhu, AAAI 2015, eq. 5 and 6.
    """
    arguments.table(x, y)
    checks.box(box)
    checks.counts(num_steps=num_steps)
    checks.positive(step_size=step_size)
    problem.is_function(fit_fn, "fit_fn(x, y)")
    problem.is_function(pullback_fn, "pullback_fn(x, y, theta, v)")
    problem.is_function(outer_fn, "outer_fn(theta)")
    data = {"x": np.asarray(x, np.float64), "y": np.asarray(y)}
    if effort_order not in (1, 2) or moving not in data:
        raise ValueError(f"effort_order must be 1 or 2 and moving 'x' or 'y', got {effort_order} and {moving!r}.")
    origin = data[moving].astype(np.float64)
    free = np.ones(len(origin), bool) if rows is None else np.isin(np.arange(len(origin)), np.asarray(rows))
    if rows is not None and (free.sum() != len(rows) or len(rows) == 0):
        raise ValueError(f"expected different rows from 0 to {len(origin) - 1}, one at least, got rows {rows}.")
    problem.not_negative(weight=weight)
    if not ((origin[free] >= box[0]) & (origin[free] <= box[1])).all():
        raise ValueError(f"what may move lies from {origin[free].min():g} to {origin[free].max():g}, outside the box {box}; pass its own.")
    free = free.reshape(-1, *[1] * (origin.ndim - 1))
    losses, changes = [], 0
    active: np.ndarray | None = None
    for _ in range(num_steps):
        theta = fit_fn(**data)
        value, v = outer_fn(theta)
        pulled = pullback_fn(**data, theta=theta, v=v)
        gradient = getattr(pulled, moving)
        if np.isnan(gradient).all():
            raise ValueError(f"this learner has no derivative in {moving}: its labels are signs; expected moving='x'.")
        losses.append(value)
        changes += active is not None and pulled.active is not None and not np.array_equal(active, pulled.active)
        active = pulled.active
        moved = data[moving] - step_size * gradient - origin
        if effort_order == 2:
            moved -= 2.0 * step_size * weight * (data[moving] - origin)
        else:
            moved = np.sign(moved) * np.maximum(np.abs(moved) - step_size * weight, 0.0)
        data[moving] = np.where(free, np.clip(origin + moved, *box), origin)
    theta = fit_fn(**data)
    losses.append(outer_fn(theta)[0])
    effort = float(np.linalg.norm((data[moving] - origin).ravel(), effort_order))
    return Poisoned(data["x"], data["y"], theta, np.array(losses), effort, int(changes))


def toward_parameters(target: np.ndarray) -> OuterFn:
    """The outer function of an attacker who wants a certain theta: |theta - target|^2.

    Raises:
      ValueError: a target that is not finite; when it is called, a theta of another shape.
    """
    target = np.asarray(target, np.float64)
    if not np.isfinite(target).all():
        raise ValueError(f"the target theta is not finite: {target}.")

    def outer(theta):
        if np.shape(theta) != target.shape:
            raise ValueError(f"expected theta like the target {target.shape}, got shape {np.shape(theta)}; a bias comes last.")
        return float(np.sum((theta - target) ** 2)), 2.0 * (theta - target)

    return outer


def toward_errors(x: np.ndarray, y: np.ndarray, *, loss: str) -> OuterFn:
    """The outer function of an attacker who wants large errors: minus the mean loss of theta on data [N, D] that the victim will meet.

    Args:
      x: [N, D]; theta is [D], or [D + 1] with the bias last. y: [N], -1 or 1 for the losses of classification.
      loss: "squared", "logistic" or "hinge" of the score <theta, x>. None is bounded: the effort's weight and the box must hold the attack.

    Raises:
      ValueError: another loss, labels of another length, or labels that are not -1 and 1 where they must be.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {sorted(_LOSSES)}, got {loss!r}.")
    arguments.table(x, y)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if loss != "squared" and not np.isin(y, (-1.0, 1.0)).all():
        raise ValueError(f"expected labels -1 or 1, got {np.unique(y)[:5]}; for 0 and 1 pass 2 * y - 1.")

    def outer(theta):
        if np.shape(theta) not in ((x.shape[1],), (x.shape[1] + 1,)):
            raise ValueError(f"expected theta [{x.shape[1]}], or one more with the bias last, got shape {np.shape(theta)}.")
        inputs = x if len(theta) == x.shape[1] else learners.append_one(x)
        value, slope = _LOSSES[loss](inputs @ theta, y)
        return -float(value.mean()), -slope @ inputs / len(y)

    return outer


# (score, y) -> the loss of each point and its derivative in the score.
_LOSSES: dict[str, Callable] = {
    "squared": lambda score, y: (0.5 * (score - y) ** 2, score - y),
    "logistic": lambda score, y: (np.logaddexp(0.0, -y * score), -y * scipy.special.expit(-y * score)),
    "hinge": lambda score, y: (np.maximum(1.0 - y * score, 0.0), np.where(y * score < 1.0, -y, 0.0)),
}
