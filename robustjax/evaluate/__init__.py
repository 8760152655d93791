"""Robust accuracy: attacks in turn on the examples that still stand, compacted between attacks on the host.

`evaluate` is a generator of states, each of them complete: whoever drives it may show, save and resume it. A result does not depend
on the batch size, on compaction or on the number of devices, because every key is made from the example's place in the data set, and
what an attack has for every example (eps, masks, step sizes, targets) follows its example.
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
