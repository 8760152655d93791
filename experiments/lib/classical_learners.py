"""Two classical learners of two features, and what an attacker of their training points does to them (Mei & Zhu, 2015)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from sklearn import datasets, svm

from robustjax import poisoning
from robustjax.poisoning import classical
from robustjax.threats import L2

SVM_C, LOGISTIC_REG = 1.0, 0.01
_RUIN_STEP = 30.0


class Task(NamedTuple):
    """A learner of two features whose weight of one the attacker wants to be 0, the other one's to stay."""

    title: str
    features: tuple[str, str]
    ignored: int  # the feature that is to lose its weight
    x: np.ndarray  # [N, 2], standardised
    y: np.ndarray  # [N], -1 or 1
    fit_fn: Callable
    pullback_fn: Callable
    step_size: float
    weights: dict[int, tuple[float, ...]]  # of the effort, by its order; the middle one is pictured

    def outer_fn(self) -> Callable:
        """|w - target|^2 of the weights, whatever the bias."""
        target = self.fit_fn(self.x, self.y)[:2]
        target = np.where(np.arange(2) == self.ignored, 0.0, target)
        return lambda theta: (float(np.sum((theta[:2] - target) ** 2)), np.append(2.0 * (theta[:2] - target), 0.0))


def wine() -> Task:
    """Two sorts of wine, told apart by an SVM of scikit-learn, which is trained again after every step."""
    features = ("alcohol", "color_intensity")
    x, y = _binary(datasets.load_wine(), features)
    weights = {1: (0.5, 0.3, 0.1, 0.03, 0.01), 2: (1.0, 0.5, 0.2, 0.05, 0.01)}
    return Task("An SVM on wine", features, 0, x, y, svm_fit, svm_pullback, 0.04, weights)


def tumours() -> Task:
    """Tumours, told apart by logistic regression."""
    features = ("mean radius", "mean texture")
    x, y = _binary(datasets.load_breast_cancer(), features)
    fit_fn = functools.partial(classical.logistic, reg=LOGISTIC_REG)
    pullback_fn = functools.partial(classical.logistic_pullback, reg=LOGISTIC_REG)
    weights = {1: (0.02, 0.01, 0.004, 0.001, 0.0003), 2: (0.08, 0.04, 0.02, 0.005, 0.001)}
    return Task("Logistic regression on tumours", features, 1, x, y, fit_fn, pullback_fn, 5.0, weights)


def svm_fit(x, y) -> np.ndarray:
    """(w, b) of scikit-learn's SVC."""
    return _theta(_machine(x, y))


def svm_pullback(x, y, theta, v) -> classical.Pullback:
    """Its gradient, from its multipliers."""
    machine, dual = _machine(x, y), np.zeros(len(x))
    dual[machine.support_] = np.abs(machine.dual_coef_[0])
    return classical.svm_pullback(x, y, theta, v, dual=dual, c=SVM_C)


def attack(task: Task, order: int, weight: float, num_steps: int) -> classical.Poisoned:
    """The poisoned set for a price of effort."""
    return classical.attack(
        task.x, task.y, fit_fn=task.fit_fn, pullback_fn=task.pullback_fn, outer_fn=task.outer_fn(), effort_order=order, weight=weight,
        step_size=task.step_size, num_steps=num_steps,
    )  # fmt: skip


def random_distance(task: Task, order: int, effort: float, seed: int) -> float:
    """How near the model comes when every point moves at random, with the same effort in all."""
    noise = np.random.default_rng(seed).normal(size=task.x.shape)
    moved = task.x + noise * effort / np.linalg.norm(noise.ravel(), order)
    return float(np.sqrt(task.outer_fn()(task.fit_fn(moved, task.y))[0]))


def ruined(task: Task, share: float, num_steps: int, seed: int) -> tuple[float, float, float, float]:
    """Accuracy in % on points that nobody saw: clean, after a share of the training points moved at random, to corners, and as chosen."""
    train, mine, new = np.array_split(np.random.default_rng(seed).permutation(len(task.x)), 3)  # the second third is the attacker's
    x, y, rows, box = task.x[train], task.y[train], np.arange(int(share * len(train))), (task.x.min(), task.x.max())
    found = classical.attack(
        x,
        y,
        fit_fn=task.fit_fn,
        pullback_fn=task.pullback_fn,
        outer_fn=classical.toward_errors(task.x[mine], task.y[mine], loss="logistic"),
        effort_order=2,
        weight=0.0,
        step_size=_RUIN_STEP,
        num_steps=num_steps,
        rows=rows,
        box=box,
    )
    rng = np.random.default_rng(seed)
    noisy, cornered = x.copy(), x.copy()
    together = x[rows].reshape(1, -1)  # one budget for all
    noisy[rows] = poisoning.random_control(jax.random.key(seed), together, L2(found.effort, box=box)).reshape(len(rows), -1)
    cornered[rows] = rng.choice(box, size=(len(rows), x.shape[1]))

    def accuracy(theta):
        return 100 * float(np.mean(np.sign(task.x[new] @ theta[:-1] + theta[-1]) == task.y[new]))

    return accuracy(task.fit_fn(x, y)), accuracy(task.fit_fn(noisy, y)), accuracy(task.fit_fn(cornered, y)), accuracy(found.theta)


def _machine(x, y):
    return svm.SVC(kernel="linear", C=SVM_C, tol=1e-6).fit(x, y)


def _theta(machine):
    return np.append(machine.coef_[0], machine.intercept_[0])


def _binary(found, features):
    columns = [list(found.feature_names).index(feature) for feature in features]
    rows = found.target < 2
    return standardised(found.data[rows][:, columns]), np.where(found.target[rows] == 0, 1, -1)


def standardised(x: np.ndarray) -> np.ndarray:
    """Features of mean 0 and variance 1."""
    return (x - x.mean(axis=0)) / x.std(axis=0)
