"""The program of a function: one flat list of equations, which the lowering, the flags, the cost of an attack and bounds share."""

from robustjax.graph._depends import depends
from robustjax.graph._program import CHECKPOINTS, CUSTOM_DERIVATIVES, Equation, Program, Variable, constants, program, walk
from robustjax.graph._rules import Rule, bind, bind_concrete, is_concrete, no_rule, place
from robustjax.graph._walks import Context, backward, forward, rewrite, values

__all__ = [
    "CHECKPOINTS",
    "CUSTOM_DERIVATIVES",
    "Context",
    "Equation",
    "Program",
    "Rule",
    "Variable",
    "backward",
    "bind",
    "bind_concrete",
    "constants",
    "depends",
    "forward",
    "is_concrete",
    "no_rule",
    "place",
    "program",
    "rewrite",
    "values",
    "walk",
]
