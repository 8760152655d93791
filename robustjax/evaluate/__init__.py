"""Robust accuracy: attacks, one after the other, on the examples that are still classified correctly, gathered into batches on the host.

`evaluate` is a generator of states, each of them complete: the caller may show, save and resume it. A result does not depend on the
batch size, on the examples that are left, or on the number of devices, because every key is made from the example's place in the data
set, and fields that an attack has for every example (eps, masks, step sizes, targets) follow their examples.
"""

from robustjax.evaluate.programs import Passes, cost, identity
from robustjax.evaluate.reports import (
    NORMS,
    NOT_RUN,
    Errors,
    EvaluationState,
    accuracies,
    accuracy_curve,
    confidence_interval,
    decompose,
    pareto_front,
)
from robustjax.evaluate.running import evaluate

__all__ = [
    "NORMS",
    "NOT_RUN",
    "Errors",
    "EvaluationState",
    "Passes",
    "accuracies",
    "accuracy_curve",
    "confidence_interval",
    "cost",
    "decompose",
    "evaluate",
    "identity",
    "pareto_front",
]
