"""The walks over a program: forward from its inputs, backward from its outputs, by a table of rules that names primitives."""

import dataclasses
import operator
from collections.abc import Callable, Mapping

import jax

from robustjax.graph import _program, _rules, _structure
from robustjax.graph._program import Program, Variable
from robustjax.graph._rules import Rule


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule can ask for beside its equation."""

    rules: Mapping[str, Rule]
    default: Rule
    values: Mapping[Variable, object]  # of a walk forward, known to the rules of a walk backward

    def run(self, program: Program, *values) -> list:
        """The outputs of a body under the same rules."""
        known = _evaluate(self, program, values)
        return [known[variable] for variable in program.outputs]


def forward(program: Program, rules: Mapping[str, Rule], *args, default: Rule = _rules.bind_concrete):
    """What the function gives for abstract values, if each equation computes as its rule says.

    Args:
      program: of `graph.program`.
      rules: by the name of a primitive, rule(context, eqn, *values) -> one value for each of eqn.outputs. scan, while, cond and checkpoint
        have rules that walk their bodies, unless the table has others.
      *args: like the function's, with an abstract value (an array, or any pytree: an interval, a zonotope) in the place of every array.
      default: the rule of every other primitive.

    Returns:
      Like the function's result, with abstract values in the place of arrays.

    Raises:
      ValueError: a primitive that has no rule meets an abstract value.
    """
    known = values(program, rules, *args, default=default)
    return jax.tree.unflatten(program.out_tree, [known[variable] for variable in program.outputs])


def values(program: Program, rules: Mapping[str, Rule], *args, default: Rule = _rules.bind_concrete) -> dict[Variable, object]:
    """The values that `forward` gives every variable on its way; those inside bodies are not kept.

    Args:
      program, rules, *args, default: as for `forward`.
    """
    return _evaluate(Context(rules, default, {}), program, program.in_tree.flatten_up_to(args))


def backward(
    program: Program,
    rules: Mapping[str, Rule],
    outputs,
    *,
    values: Mapping[Variable, object] | None = None,
    add: Callable = operator.add,
    default: Rule = _rules.no_rule,
) -> tuple:
    """What arrives at the inputs if each equation hands what arrived at its outputs on to its inputs, as its rule says.

    Args:
      program: of `graph.program`, with scans unrolled and checkpoints inlined: no rule for them is built in.
      rules: by the name of a primitive, rule(context, eqn, *arrived) -> for each of eqn.inputs what it is handed, or None for nothing.
      outputs: like the function's result, with what starts there in the place of arrays: linear coefficients, a cotangent; or None.
      values: of the walk forward with the same program (`values`), which the rules find in context.values.
      add: (value, value) -> value, where a variable is handed several.
      default: the rule of every other primitive.

    Returns:
      A tuple like the function's arguments; None where nothing arrived.

    Raises:
      ValueError: something arrives at a primitive that has no rule.
    """
    context = Context(rules, default, values or {})
    arrived: dict[Variable, object] = {}

    def hand(variables, given):
        for variable, value in zip(variables, given, strict=True):
            if value is not None:
                arrived[variable] = add(arrived[variable], value) if variable in arrived else value

    hand(program.outputs, program.out_tree.flatten_up_to(outputs))
    for eqn in reversed(program.equations):
        received = [arrived.get(variable) for variable in eqn.outputs]
        if any(value is not None for value in received):
            rule = rules.get(eqn.primitive.name, default)
            hand(eqn.inputs, rule(context, eqn, *received))
    return jax.tree.unflatten(program.in_tree, [arrived.get(variable) for variable in program.inputs])


def rewrite(function: Callable, rules: Mapping[str, Rule]) -> Callable:
    """The same function of pytrees, with the primitives named in `rules` replaced, ready to be differentiated.

    custom_jvp and custom_vjp stay whole, so that a straight-through gradient or the convention of relu at 0 survives; so do checkpoints.

    Args:
      function: of pytrees; arguments that are neither arrays nor numbers stay as they are.
      rules: as for `forward`; equations without a rule stay as they were.
    """

    def rewritten(*args, **kwargs):
        keep = _program.CUSTOM_DERIVATIVES | _program.CHECKPOINTS
        made = _program.program(lambda args, kwargs: function(*args, **kwargs), args, kwargs, keep=keep)
        return forward(made, rules, args, kwargs, default=_rules.bind)

    return rewritten


def _evaluate(context, program, inputs):
    known = dict(program.constants) | dict(zip(program.inputs, inputs, strict=True))
    for eqn in program.equations:
        name = eqn.primitive.name
        rule = context.rules.get(name) or _structure.RULES.get(name) or context.default
        known.update(zip(eqn.outputs, rule(context, eqn, *(known[variable] for variable in eqn.inputs)), strict=True))
    return known
