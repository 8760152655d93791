"""Bilevel optimisation: one face for every way to differentiate, `(problem, solve, phi, theta0, batch) -> HyperGradient`."""

from robustjax.bilevel.back_gradient import BackInfo, back_gradient
from robustjax.bilevel.descent import descend
from robustjax.bilevel.implicit import ImplicitInfo, implicit, solution
from robustjax.bilevel.linear import adam, conjugate_gradient, dense, extreme_eigenvalues, largest_eigenvalue, lissa, neumann
from robustjax.bilevel.outer import Outer, minimize
from robustjax.bilevel.penalty import PenaltyMethod, PenaltyState, penalty_check, penalty_init, penalty_step
from robustjax.bilevel.problem import check
from robustjax.bilevel.unrolled import SolveInfo, forward, truncated, unrolled
from robustjax.bilevel.value_function import ValueInfo, first_order, value_function

__all__ = [
    "BackInfo",
    "ImplicitInfo",
    "Outer",
    "PenaltyMethod",
    "PenaltyState",
    "SolveInfo",
    "ValueInfo",
    "adam",
    "back_gradient",
    "check",
    "conjugate_gradient",
    "dense",
    "descend",
    "extreme_eigenvalues",
    "first_order",
    "forward",
    "implicit",
    "largest_eigenvalue",
    "lissa",
    "minimize",
    "neumann",
    "penalty_check",
    "penalty_init",
    "penalty_step",
    "solution",
    "truncated",
    "unrolled",
    "value_function",
]
