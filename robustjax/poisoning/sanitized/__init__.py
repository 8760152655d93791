"""Poisons that pass sanitizers: KKT, min-max and influence attacks on linear classifiers inside a feasible set (Koh et al., 2022)."""

from robustjax.poisoning.sanitized._feasible import Feasible, feasible
from robustjax.poisoning.sanitized._kkt_attack import Planted, decoys, kkt_attack
from robustjax.poisoning.sanitized._min_max_attack import WorstPoints, min_max_attack

__all__ = ["Feasible", "Planted", "WorstPoints", "decoys", "feasible", "kkt_attack", "min_max_attack"]
