"""Bilevel optimisation: one face for every way to differentiate, `(problem, solve, phi, theta0, batch) -> HyperGradient`."""

from robustjax.bilevel._back_gradient import BackInfo, back_gradient
from robustjax.bilevel._implicit import ImplicitInfo, implicit, solution
from robustjax.bilevel._unrolled import SolveInfo, forward, truncated, unrolled
from robustjax.bilevel._value_function import ValueInfo, first_order, value_function
from robustjax.bilevel.descent import descend
from robustjax.bilevel.linear import conjugate_gradient, dense, extreme_eigenvalues, largest_eigenvalue, lissa, neumann, solve_by_adam
from robustjax.bilevel.outer import Outer, minimize
from robustjax.bilevel.penalty import PenaltyMethod, PenaltyState, penalty_check, penalty_init, penalty_step
from robustjax.bilevel.problem import check

__all__ = [
    "BackInfo",
    "ImplicitInfo",
    "Outer",
    "PenaltyMethod",
    "PenaltyState",
    "SolveInfo",
    "ValueInfo",
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
    "solve_by_adam",
    "truncated",
    "unrolled",
    "value_function",
]
