"""Functions of one variable that a model spells in several equations (GELU, SiLU, leaky ReLU), found and put into one equation each.

Bounds that follow the equations one by one forget that x * sigmoid(x) has the same x twice. Here every equation that joins several
values of one variable, place by place, becomes one equation that holds the function of that variable.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.extend import core

from robustjax import graph

FUSED = "function_of_one_variable"  # the primitive of such an equation; its params hold the function, a program of scalars
_FUSED_P = core.Primitive(FUSED)
_FUSED_P.multiple_results = True
_PREDICATES = frozenset({"eq", "ne", "ge", "gt", "le", "lt", "and", "or", "not", "xor", "is_finite"})
_JOINS = frozenset({"mul", "div", "select_n", "max", "min", "clamp", "pow"})  # where bounds get loose if one variable arrives twice
_PLACE_BY_PLACE = frozenset({
    "add", "sub", "neg", "abs", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "sqrt", "rsqrt", "cbrt",
    "square", "integer_pow", "sin", "cos", "sign", "floor", "ceil", "round", "atan", "asinh", "convert_element_type", "copy",
    "stop_gradient", "add_any",
})  # fmt: skip


def fuse(program: graph.Program) -> graph.Program:
    """The same program with one equation for each function of one variable that joins several of its values."""
    numbers = _numbers(program)
    roots = _roots(program, numbers)
    made = {variable: eqn for eqn in program.equations for variable in eqn.outputs}
    equations = [_fused(program, eqn, roots, made, numbers) if _is_join(eqn, roots, numbers) else eqn for eqn in program.equations]
    needed, kept = set(program.outputs), []
    for eqn in reversed(equations):
        if not needed.isdisjoint(eqn.outputs):
            needed.update(eqn.inputs)
            kept.append(eqn)
    return dataclasses.replace(program, equations=tuple(reversed(kept)))


def _numbers(program) -> Mapping[graph.Variable, graph.Variable]:
    """Variables that hold one known number at every place, and the scalar that they are made of."""
    moving = graph.depends(program, program.inputs)
    made = [variable for eqn in program.equations for variable in eqn.outputs]
    numbers = {each: each for each in (*graph.constants(program), *made) if each.aval.shape == () and each not in moving}
    for eqn in program.equations:
        if eqn.primitive.name in ("broadcast_in_dim", "reshape", "copy") and eqn.inputs[0] in numbers:
            numbers.setdefault(eqn.outputs[0], numbers[eqn.inputs[0]])
    return numbers


def _roots(program, numbers) -> Mapping[graph.Variable, graph.Variable]:
    """For each variable that is a function of one other, place by place and with numbers, that one."""
    roots: dict[graph.Variable, graph.Variable] = {}
    moving = graph.depends(program, program.inputs)
    for eqn in program.equations:
        origins = {roots.get(variable, variable) for variable in _moving(eqn, numbers)}
        if eqn.primitive.name in _PLACE_BY_PLACE | _PREDICATES | _JOINS and len(origins) == 1:
            (root,) = origins
            if root in moving and root.aval.shape == eqn.outputs[0].aval.shape and jnp.issubdtype(root.aval.dtype, jnp.floating):
                roots[eqn.outputs[0]] = root
    return roots


def _moving(eqn, numbers):
    return [variable for variable in eqn.inputs if variable not in numbers]


def _is_join(eqn, roots, numbers):
    moving = _moving(eqn, numbers)
    is_square = eqn.primitive.name == "mul" and len({*moving}) == 1
    return eqn.primitive.name in _JOINS and len(moving) > 1 and not is_square and eqn.outputs[0] in roots


def _fused(program, eqn, roots, made, numbers):
    """One equation for all that lies between the root of an equation and its output."""
    root, inside, pending = roots[eqn.outputs[0]], {eqn}, [eqn]
    while pending:
        found = [made[variable] for variable in _moving(pending.pop(), numbers) if variable is not root]
        pending += [one for one in found if one not in inside]
        inside.update(found)
    ordered = [one for one in program.equations if one in inside]
    equations = tuple(dataclasses.replace(one, inputs=tuple(numbers.get(v, v) for v in one.inputs)) for one in ordered)
    scalars = tuple(dict.fromkeys(numbers[v] for one in ordered for v in one.inputs if v in numbers))
    inputs = (root, *scalars)
    in_tree, out_tree = jax.tree.structure(inputs), jax.tree.structure([0])
    function = dataclasses.replace(program, equations=equations, inputs=inputs, outputs=eqn.outputs, in_tree=in_tree, out_tree=out_tree)
    return dataclasses.replace(eqn, primitive=_FUSED_P, params={"function": function}, inputs=inputs)
