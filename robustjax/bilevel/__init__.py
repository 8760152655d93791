"""Bilevel optimisation: every way to differentiate is a function `(problem, solve, phi, theta0, batch) -> HyperGradient`, every iterative
solver a pair of functions, `Algorithm(init, step)`.
"""

from typing import TYPE_CHECKING

from robustjax import renamed
from robustjax.bilevel._back_gradient import BackInfo, back_gradient
from robustjax.bilevel._implicit import ImplicitInfo, implicit, solution
from robustjax.bilevel._unrolled import SolveInfo, forward, truncated, unrolled
from robustjax.bilevel._value_function import ValueInfo, first_order, value_function
from robustjax.bilevel.algorithm import Algorithm, DescentState, StepInfo, approx_grad, hypergradient_descent, minimize
from robustjax.bilevel.descent import descend
from robustjax.bilevel.linear import conjugate_gradient, dense, extreme_eigenvalues, largest_eigenvalue, lissa, neumann, solve_by_adam
from robustjax.bilevel.penalty import PenaltyState, penalty_check, penalty_method
from robustjax.bilevel.problem import check

__all__ = [
    "Algorithm",
    "BackInfo",
    "DescentState",
    "ImplicitInfo",
    "PenaltyState",
    "SolveInfo",
    "StepInfo",
    "ValueInfo",
    "approx_grad",
    "back_gradient",
    "check",
    "conjugate_gradient",
    "dense",
    "descend",
    "extreme_eigenvalues",
    "first_order",
    "forward",
    "hypergradient_descent",
    "implicit",
    "largest_eigenvalue",
    "lissa",
    "minimize",
    "neumann",
    "penalty_check",
    "penalty_method",
    "solution",
    "solve_by_adam",
    "truncated",
    "unrolled",
    "value_function",
]

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(__name__, adam="solve_by_adam")
