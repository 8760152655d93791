"""Poisoning of classical learners through their KKT conditions, in float64 on the host (Mei & Zhu, 2015).

A learner is two functions: `fit(x, y) -> theta`, and a pullback `(x, y, theta, v) -> Pullback` of a cotangent v of theta to the training
set, from F(theta, data) = 0: v^T d theta / d data = -v^T (dF / d theta)^-1 dF / d data. One linear system serves all points.
"""

from robustjax.poisoning.classical._attack import Poisoned, attack, toward_errors, toward_parameters
from robustjax.poisoning.classical.learners import (
    Pullback,
    least_label_change,
    logistic,
    logistic_pullback,
    ridge,
    ridge_pullback,
    svm_pullback,
)

__all__ = [
    "Poisoned",
    "Pullback",
    "attack",
    "least_label_change",
    "logistic",
    "logistic_pullback",
    "ridge",
    "ridge_pullback",
    "svm_pullback",
    "toward_errors",
    "toward_parameters",
]
