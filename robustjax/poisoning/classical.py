"""Poisoning of classical learners through their KKT conditions, in float64 on the host (Mei & Zhu, 2015).

A learner is two functions: `fit(x, y) -> theta`, and a pullback `(x, y, theta, v) -> Pullback` of a cotangent v of theta to the training
set, from F(theta, data) = 0: v^T d theta / d data = -v^T (dF / d theta)^-1 dF / d data. One linear system serves all points.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from robustjax import checks
from robustjax.bilevel import problem
from robustjax.poisoning import arguments


class Pullback(NamedTuple):
    """A cotangent of theta as a gradient in the training set."""

    x: np.ndarray  # [N, D]
    y: np.ndarray  # [N] with labels as real numbers; NaN where the learner takes signs alone
    # How near the solution is to where its formula changes (the active set of an SVM), in multipliers or margins; inf where it is smooth,
    # and the gradient equals finite differences to 1e-7. That of an SVM does so to 1e-3 within the slack, for libsvm's own tolerance.
    slack: float
    active: np.ndarray | None = None  # [N] the SVM's set that each point is in: 0 idle, 1 on the margin, 2 at the bound


class Poisoned(NamedTuple):
    """A poisoned training set and what it teaches."""

    x: np.ndarray  # [N, D]
    y: np.ndarray  # [N]
    theta: np.ndarray
    loss: np.ndarray  # [num_steps + 1] the attacker's, without the effort; exact, of the learner fitted again to every set
    effort: float  # |x - x0| or |y - y0|, l2 or l1
    active_set_changes: int  # steps at which an SVM's formula changed: gradients there are one-sided, and a smaller step is in order


def attack(
    x,
    y,
    *,
    fit_fn: Callable,
    pullback_fn: Callable,
    outer_fn: Callable,
    effort_order: int,
    weight: float,
    step_size: float,
    num_steps: int,
    moving: str = "x",
    rows=None,
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
    losses, active, changes = [], None, 0
    for _ in range(num_steps):
        theta = fit_fn(**data)
        value, v = outer_fn(theta)
        pulled = pullback_fn(**data, theta=theta, v=v)
        gradient = getattr(pulled, moving)
        if np.isnan(gradient).all():
            raise ValueError(f"this learner has no derivative in {moving}: its labels are signs; expected moving='x'.")
        losses.append(value)
        changes += active is not None and not np.array_equal(active, pulled.active)
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


def toward_parameters(target) -> Callable:
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


def toward_errors(x, y, *, loss: str) -> Callable:
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
        inputs = x if len(theta) == x.shape[1] else _with_one(x)
        value, slope = _LOSSES[loss](inputs @ theta, y)
        return -float(value.mean()), -slope @ inputs / len(y)

    return outer


def ridge(x, y, *, reg: float) -> np.ndarray:
    """(X'X + reg I)^-1 X'y; reg 0 is ordinary least squares.

    Raises:
      ValueError: x or y of another shape, NaN, reg below 0.
    """
    arguments.table(x, y)
    problem.not_negative(reg=reg)
    x = np.asarray(x, np.float64)
    return np.linalg.solve(x.T @ x + reg * np.eye(x.shape[1]), x.T @ np.asarray(y, np.float64))


def ridge_pullback(x, y, theta, v, *, reg: float) -> Pullback:
    """With a = (X'X + reg I)^-1 v and residuals r: r_c a - <a, x_c> theta in x_c, and <a, x_c> in y_c.

    Raises:
      ValueError: x, y, theta or v of another shape, NaN.
    """
    _check_pullback(x, y, theta, v, 0)
    a = np.linalg.solve(x.T @ x + reg * np.eye(x.shape[1]), v)
    along = x @ a
    residual = y - x @ theta
    return Pullback(residual[:, None] * a - along[:, None] * theta, along, np.inf)


def least_label_change(x, y, *, coefficient: int, value: float = 0.0, reg: float = 0.0, effort_order: int = 2) -> np.ndarray:
    """The smallest change of labels [N] that gives a coefficient of `ridge` a value: spread over all for l2, one label alone for l1.

    Raises:
      TypeError: another coefficient than an integer. ValueError: x or y of another shape, NaN, a coefficient that is not there, another
        order of effort.

    Source: Mei & Zhu, AAAI 2015, section on least squares.
    """
    arguments.table(x, y)
    checks.counts(least=0, coefficient=coefficient)
    problem.not_negative(reg=reg)
    if effort_order not in (1, 2) or coefficient >= np.shape(x)[1] or not np.isfinite(value):
        raise ValueError(
            f"expected effort_order 1 or 2, a coefficient below {np.shape(x)[1]} and a finite value, got {effort_order}, {coefficient} and "
            f"{value}."
        )
    x = np.asarray(x, np.float64)
    row = np.linalg.solve(x.T @ x + reg * np.eye(x.shape[1]), x.T)[coefficient]
    missing = value - row @ np.asarray(y, np.float64)
    if effort_order == 2:
        return row * missing / (row @ row)
    change = np.zeros(len(row))
    best = np.argmax(np.abs(row))
    change[best] = missing / row[best]
    return change


def logistic(x, y, *, reg: float) -> np.ndarray:
    """argmin of mean log(1 + exp(-y <theta, (x, 1)>)) + reg / 2 |theta|^2, y = -1 or 1; [D + 1], the bias last.

    Raises:
      ValueError: x or y of another shape, NaN, a label 0, reg that is not above 0, without which there may be no minimum.
    """
    arguments.table(x, y)
    checks.positive(reg=reg)
    x, y = _with_one(x), _signs(y)

    def value(theta):
        margin = y * (x @ theta)
        return np.logaddexp(0.0, -margin).mean() + 0.5 * reg * theta @ theta

    def slope(theta):
        return -(y * scipy.special.expit(-y * (x @ theta))) @ x / len(x) + reg * theta

    found = scipy.optimize.minimize(
        value, np.zeros(x.shape[1]), jac=slope, hess=lambda theta: _logistic_hessian(x, y, theta, reg), method="trust-exact",
        options={"gtol": 1e-12, "maxiter": 1000},
    )  # fmt: skip
    theta = found.x  # the last digits by Newton's steps
    for _ in range(2):
        theta = theta - np.linalg.solve(_logistic_hessian(x, y, theta, reg), slope(theta))
    return theta


def logistic_pullback(x, y, theta, v, *, reg: float) -> Pullback:
    """With a = H^-1 v and p = sigma(-y <theta, x>): (y p a - p (1 - p) <a, x> theta) / N in x, without the entry of the bias.

    Raises:
      ValueError: x, y, theta or v of another shape, NaN, a label 0.
    """
    _check_pullback(x, y, theta, v, 1)
    ones, y = _with_one(x), _signs(y)
    a = np.linalg.solve(_logistic_hessian(ones, y, theta, reg), v)
    score, along = ones @ theta, ones @ a
    p = scipy.special.expit(-y * score)
    curve = p * (1.0 - p)
    by_x = ((y * p)[:, None] * a - (curve * along)[:, None] * theta) / len(ones)
    return Pullback(by_x[:, :-1], (p - y * score * curve) * along / len(ones), np.inf)


def svm_pullback(x, y, theta, v, *, dual, c: float, tolerance: float = 1e-6) -> Pullback:
    """Of the soft-margin SVM min |w|^2 / 2 + c sum of hinges, from its margin vectors M = {0 < dual < c} and bounded ones.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      theta: [D + 1] w and b. v: its cotangent.
      dual: [N] multipliers alpha, such as those of scikit-learn's SVC.
      c: the bound of the multipliers.
      tolerance: relative to c, of being at a bound.

    Returns:
      The gradient, valid while the active set stays; slack is the least distance of a multiplier from a bound, or of another point from
        the margin.

    Raises:
      ValueError: labels other than -1 and 1, numbers of another shape; no margin vector, so that the bias is not determined, and a
        cotangent that asks for it.

    Source: Mei & Zhu, AAAI 2015; Biggio et al., ICML 2012, arXiv:1206.6389.
    """
    x, y, dual = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(dual, np.float64)
    check_labels(x, y)
    checks.positive(c=c)
    num_features = x.shape[1]
    _check_pullback(x, y, theta, v, 1)
    if dual.shape != y.shape:
        raise ValueError(f"expected dual [{len(y)}], one multiplier for each point, got {dual.shape}.")
    margin = np.flatnonzero((dual > tolerance * c) & (dual < (1.0 - tolerance) * c))
    if len(margin) == 0 and v[num_features] != 0:
        raise ValueError("the SVM has no vector on its margin, so its bias has no derivative; ask for the weights alone, or change c.")
    signed = y[margin, None] * x[margin]
    size = num_features + 1 + len(margin)
    jacobian = np.zeros((size, size))
    jacobian[:num_features, :num_features] = np.eye(num_features)
    jacobian[:num_features, num_features + 1 :] = -signed.T
    jacobian[num_features:-1, :num_features] = signed
    jacobian[num_features:-1, num_features] = y[margin]
    jacobian[-1, num_features + 1 :] = y[margin]
    u = np.linalg.lstsq(jacobian.T, np.concatenate([v, np.zeros(len(margin))]), rcond=None)[0]
    by_x = (dual * y)[:, None] * u[:num_features]
    by_x[margin] -= (u[num_features:-1] * y[margin])[:, None] * theta[:num_features]
    others = np.abs(y * (x @ theta[:num_features] + theta[-1]) - 1.0)
    others[margin] = np.inf
    slack = min(dual[margin].min(initial=np.inf), (c - dual[margin]).min(initial=np.inf), others.min())
    active = np.where(dual >= (1.0 - tolerance) * c, 2, 0)
    active[margin] = 1
    return Pullback(by_x, np.full(len(y), np.nan), float(slack), active)


# (score, y) -> the loss of each point and its derivative in the score.
_LOSSES: dict[str, Callable] = {
    "squared": lambda score, y: (0.5 * (score - y) ** 2, score - y),
    "logistic": lambda score, y: (np.logaddexp(0.0, -y * score), -y * scipy.special.expit(-y * score)),
    "hinge": lambda score, y: (np.maximum(1.0 - y * score, 0.0), np.where(y * score < 1.0, -y, 0.0)),
}


def check_labels(x, y) -> None:
    """Rows of finite numbers and one label for each, -1 or 1, and both of them.

    Raises:
      ValueError: otherwise.
    """
    arguments.table(x, y)
    if set(np.unique(y)) != {-1, 1}:
        raise ValueError(
            f"expected both labels -1 and 1 of {len(x)} points, got {np.unique(y)[:5]} of {len(y)}; for 0 and 1 pass 2 * y - 1."
        )


def _check_pullback(x, y, theta, v, num_biases):
    arguments.table(x, y)
    expected = (np.shape(x)[1] + num_biases,)
    if np.shape(theta) != expected or np.shape(v) != expected:
        last = ", the bias last" if num_biases else ""
        raise ValueError(f"expected theta and v {list(expected)}{last}, got shapes {np.shape(theta)} and {np.shape(v)}.")


def _signs(y):
    y = np.asarray(y, np.float64)  # as real numbers they need not be -1 or 1
    if (y == 0).any():
        raise ValueError(f"expected labels -1 or 1, got {np.unique(y)[:5]}; for 0 and 1 pass 2 * y - 1.")
    return y


def _with_one(x):
    return np.concatenate([np.asarray(x, np.float64), np.ones((len(x), 1))], axis=1)


def _logistic_hessian(x, y, theta, reg):
    p = scipy.special.expit(-y * (x @ theta))
    return (x * (p * (1.0 - p))[:, None]).T @ x / len(x) + reg * np.eye(x.shape[1])
