"""What a rule is, the rules that need no table, and the error where a rule is missing."""

import os
import sys
import sysconfig
from collections.abc import Callable

import jax
import numpy as np

from robustjax.graph import _program

Rule = Callable[..., list]  # (context, equation, *values) -> the value of every output; of every input, in a walk backward

_LIBRARIES = ("jax", "flax", "robustjax")  # whose lines are not the user's


def bind(context, eqn: "_program.Equation", *values) -> list:
    """The rule that leaves an equation as it was."""
    with eqn.sources[0].ctx.manager:
        outputs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]


def bind_concrete(context, eqn: "_program.Equation", *values) -> list:
    """The rule that leaves an equation as it was where every input is an array or a number.

    Raises:
      ValueError: an input is an abstract value, so that a rule is missing.
    """
    return bind(context, eqn, *values) if all(map(is_concrete, values)) else no_rule(context, eqn, *values)


def no_rule(context, eqn: "_program.Equation", *values) -> list:
    """The rule that says which rule is missing.

    Raises:
      ValueError: always; with the primitive, its place in the model, and how to register a rule.
    """
    name = eqn.primitive.name
    called = f" (a call of {eqn.function}, kept whole)" if eqn.is_call else ""
    raise ValueError(
        f"no rule for the primitive {name!r}{called}, which comes from {place(eqn)}; add one to the table of rules: {{**rules, {name!r}: "
        "rule}, where rule(context, eqn, *values) returns one value for each of eqn.outputs (each of eqn.inputs, in a walk backward)"
        + ("; or unroll short scans with graph.program(..., max_unroll=...)." if name == "scan" else ".")
    )


def is_concrete(value) -> bool:
    """Whether a value is an array (a tracer counts) or a number, not an abstract value."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | int | float | complex)


def place(eqn: "_program.Equation") -> str:
    """The line of the user's code that an equation comes from, and the modules around it."""
    infos = [source.source_info for source in eqn.sources]
    tracebacks: list = [info.traceback for info in infos if info.traceback is not None]
    frames = [frame for traceback in tracebacks for frame in traceback.frames]
    lines = [f"{frame.file_name}:{frame.line_num} in {frame.function_name}" for frame in frames if _is_of_user(frame.file_name)]
    scope = "/".join(str(info.name_stack) for info in reversed(infos) if str(info.name_stack))
    return (lines[0] if lines else "no line of yours") + (f", inside {scope}" if scope else "")


def _is_of_user(file):
    is_of_python = file.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in file
    folders = [os.path.join(sys.modules[name].__path__[0], "") for name in _LIBRARIES if name in sys.modules]
    return not (is_of_python or file.startswith(tuple(folders)))
