"""Classical learners, each as two functions: `fit(x, y) -> theta`, and the pullback of a cotangent of theta to the training set."""

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


FitFn = Callable[..., np.ndarray]  # (x, y) -> theta
PullbackFn = Callable[..., Pullback]  # (x, y, theta, v) -> Pullback of the cotangent v


def ridge(x: np.ndarray, y: np.ndarray, *, reg: float) -> np.ndarray:
    """(X'X + reg I)^-1 X'y; reg 0 is ordinary least squares.

    Args:
      x: [N, D]. y: [N], real numbers.
      reg: of |theta|^2 / 2 beside half the sum of squares.

    Raises:
      ValueError: x or y of another shape, NaN, reg below 0.
    """
    arguments.table(x, y)
    problem.not_negative(reg=reg)
    x = np.asarray(x, np.float64)
    return np.linalg.solve(x.T @ x + reg * np.eye(x.shape[1]), x.T @ np.asarray(y, np.float64))


def ridge_pullback(x: np.ndarray, y: np.ndarray, theta: np.ndarray, v: np.ndarray, *, reg: float) -> Pullback:
    """With a = (X'X + reg I)^-1 v and residuals r: r_c a - <a, x_c> theta in x_c, and <a, x_c> in y_c.

    Args:
      x: [N, D]. y: [N], real numbers.
      theta: [D] what `ridge` gives for them. v: [D] its cotangent.
      reg: of `ridge`.

    Raises:
      ValueError: x, y, theta or v of another shape, NaN.
    """
    _check_pullback(x, y, theta, v, 0)
    a = np.linalg.solve(x.T @ x + reg * np.eye(x.shape[1]), v)
    along = x @ a
    residual = y - x @ theta
    return Pullback(residual[:, None] * a - along[:, None] * theta, along, np.inf)


def least_label_change(
    x: np.ndarray, y: np.ndarray, *, coefficient: int, value: float = 0.0, reg: float = 0.0, effort_order: int = 2
) -> np.ndarray:
    """The smallest change of labels [N] that gives a coefficient of `ridge` a value: spread over all for l2, one label alone for l1.

    >>> x, y = np.ones((4, 1)), np.array([0.0, 1.0, 1.0, 2.0])  # least squares finds the mean, 1
    >>> change = poisoning.classical.least_label_change(x, y, coefficient=0, value=1.5)
    >>> change.tolist(), poisoning.classical.ridge(x, y + change, reg=0.0).tolist()
    ([0.5, 0.5, 0.5, 0.5], [1.5])

    Args:
      x: [N, D]. y: [N], real numbers.
      coefficient: which one, from 0.
      value: that it shall have.
      reg: of `ridge`.
      effort_order: 1 or 2, the norm of the change that is least.

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


def logistic(x: np.ndarray, y: np.ndarray, *, reg: float) -> np.ndarray:
    """argmin of mean log(1 + exp(-y <theta, (x, 1)>)) + reg / 2 |theta|^2, y = -1 or 1; [D + 1], the bias last.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      reg: of |theta|^2 / 2 beside the mean loss.

    Raises:
      ValueError: x or y of another shape, NaN, a label 0, reg that is not above 0, without which there may be no minimum.
    """
    arguments.table(x, y)
    checks.positive(reg=reg)
    x, y = append_one(x), _signs(y)

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


def logistic_pullback(x: np.ndarray, y: np.ndarray, theta: np.ndarray, v: np.ndarray, *, reg: float) -> Pullback:
    """With a = H^-1 v and p = sigma(-y <theta, x>): (y p a - p (1 - p) <a, x> theta) / N in x, without the entry of the bias.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      theta: [D + 1] what `logistic` gives for them. v: [D + 1] its cotangent.
      reg: of `logistic`.

    Raises:
      ValueError: x, y, theta or v of another shape, NaN, a label 0.
    """
    _check_pullback(x, y, theta, v, 1)
    ones, y = append_one(x), _signs(y)
    a = np.linalg.solve(_logistic_hessian(ones, y, theta, reg), v)
    score, along = ones @ theta, ones @ a
    p = scipy.special.expit(-y * score)
    curve = p * (1.0 - p)
    by_x = ((y * p)[:, None] * a - (curve * along)[:, None] * theta) / len(ones)
    return Pullback(by_x[:, :-1], (p - y * score * curve) * along / len(ones), np.inf)


def svm_pullback(
    x: np.ndarray, y: np.ndarray, theta: np.ndarray, v: np.ndarray, *, dual: np.ndarray, c: float, tolerance: float = 1e-6
) -> Pullback:
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
    arguments.binary_table(x, y)
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


def append_one(x: np.ndarray) -> np.ndarray:
    """Rows with a 1 behind them, in float64: the input of the bias."""
    return np.concatenate([np.asarray(x, np.float64), np.ones((len(x), 1))], axis=1)


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


def _logistic_hessian(x, y, theta, reg):
    p = scipy.special.expit(-y * (x @ theta))
    return (x * (p * (1.0 - p))[:, None]).T @ x / len(x) + reg * np.eye(x.shape[1])
