"""Two bilevel problems whose hypergradient is known: ridge and logistic regression with poisons (Mei & Zhu, AAAI 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from robustjax.base import Array, Bilevel

CONDITIONS = {"ridge": 54.0, "logistic": 15.0}  # of the inner Hessian at its optimum
SIZES = (1000, 50, 50)  # rows, poisons, features


class Batch(NamedTuple):
    """Data of both losses; the poisons' features [M, D] are phi."""

    x: Array  # [N, D]
    y: Array  # [N + M] numbers, or signs
    x_val: Array  # [N, D]
    y_val: Array  # [N]
    mu: Array  # weight decay


class Oracle(NamedTuple):
    """A problem with its exact hypergradient."""

    problem: Bilevel
    phi: Array  # [M, D]
    batch: Batch
    theta: Array  # [D] the inner optimum
    grad: Array  # [M, D] the hypergradient there, by the formula
    largest: float  # eigenvalue of the inner Hessian there
    condition: float


def _squared(margin_or_prediction, y):
    """Half the squared error of predictions."""
    return 0.5 * jnp.mean((margin_or_prediction - y) ** 2)


def _logistic(prediction, y):
    """The logistic loss for signs."""
    return jnp.mean(jax.nn.softplus(-y * prediction))


_LOSSES = {"ridge": _squared, "logistic": _logistic}


def bilevel_problem(name: str) -> Bilevel:
    """Regression on clean rows and poisons with weight decay; the adversary wants a large validation loss."""
    loss = _LOSSES[name]

    def inner_loss(theta, phi, batch):
        return loss(jnp.concatenate([batch.x, phi]) @ theta, batch.y) + 0.5 * batch.mu * jnp.sum(theta**2)

    def outer_loss(theta, phi, batch):
        del phi
        return -loss(batch.x_val @ theta, batch.y_val)

    return Bilevel(inner_loss, outer_loss)


def build(name: str, num_rows: int = SIZES[0], num_poisons: int = SIZES[1], num_features: int = SIZES[2]) -> Oracle:
    """A design whose inner Hessian has the wanted condition number, and the gradient by Mei & Zhu's formulas, in NumPy.

    Rows are an orthonormal basis times sqrt(n lambda), lambda geometric, in a random rotation. For ridge regression lambda runs from 1 to
    1 / 54, less the weight decay, so that the condition number is exact; for logistic regression the same rows have the weight decay that
    makes it 15 at the optimum.
    """
    rng = np.random.default_rng(0)
    n, condition = num_rows + num_poisons, CONDITIONS[name]
    values = np.geomspace(1.0, 1 / CONDITIONS["ridge"], num_features)
    rotation = np.linalg.qr(rng.normal(size=(num_features, num_features)))[0]
    mu = 1e-3 if name == "ridge" else 0.0
    rows = np.sqrt(n) * np.linalg.qr(rng.normal(size=(n, num_features)))[0] * np.sqrt(values - mu) @ rotation.T
    x_val = rng.normal(size=(num_rows, num_features)) * np.sqrt(values) @ rotation.T
    weights = rng.normal(size=num_features)
    y, y_val = (x @ weights + 0.5 * rng.normal(size=len(x)) for x in (rows, x_val))
    poison = rows[num_rows:]
    if name == "ridge":
        hessian = rows.T @ rows / n + mu * np.eye(num_features)
        theta = np.linalg.solve(hessian, rows.T @ y / n)
        q = np.linalg.solve(hessian, -x_val.T @ (x_val @ theta - y_val) / len(x_val))
        residual = y[num_rows:] - poison @ theta
        grad = (residual[:, None] * q - (poison @ q)[:, None] * theta) / n
    else:
        y, y_val = np.sign(y), np.sign(y_val)
        miss = lambda log_mu: np.linalg.cond(_logistic_optimum(rows, y, np.exp(log_mu))[1]) - condition  # noqa: E731
        mu = float(np.exp(scipy.optimize.brentq(miss, -12.0, 0.0, xtol=1e-12)))
        theta, hessian = _logistic_optimum(rows, y, mu)
        q = np.linalg.solve(hessian, x_val.T @ (y_val * scipy.special.expit(-y_val * (x_val @ theta))) / len(x_val))
        p = scipy.special.expit(-y[num_rows:] * (poison @ theta))
        grad = ((y[num_rows:] * p)[:, None] * q - (p * (1 - p) * (poison @ q))[:, None] * theta) / n
    eigenvalues = np.linalg.eigvalsh(hessian)
    batch = Batch(*map(jnp.asarray, (rows[:num_rows], y, x_val, y_val, mu)))
    found = (jnp.asarray(poison), batch, jnp.asarray(theta), jnp.asarray(grad))
    return Oracle(bilevel_problem(name), *found, float(eigenvalues[-1]), float(eigenvalues[-1] / eigenvalues[0]))


def _logistic_optimum(x, y, mu):
    theta = np.zeros(x.shape[1])
    for _ in range(50):  # of Newton's steps; it converges in ten
        p = scipy.special.expit(-y * (x @ theta))
        hessian = (x.T * (p * (1 - p))) @ x / len(x) + mu * np.eye(len(theta))
        theta = theta - np.linalg.solve(hessian, mu * theta - x.T @ (y * p) / len(x))
    return theta, hessian
