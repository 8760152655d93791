"""Which variables of a program can change with others."""

from collections.abc import Iterable

from robustjax.graph import _program
from robustjax.graph._program import Program, Variable


def depends(program: Program, inputs: Iterable[Variable]) -> set[Variable]:
    """Every variable, those in bodies too, whose value may change with the inputs: no other one does.

    Args:
      program: of `graph.program`.
      inputs: variables of the program or of its bodies, such as `program.inputs`.
    """
    found = set(inputs)
    _spread(program, found)
    return found


def _spread(program, found):
    for eqn in program.equations:
        if not eqn.bodies:
            if not found.isdisjoint(eqn.inputs):
                found.update(eqn.outputs)
            continue
        links, choices = _links(eqn)
        bodies = [body for group in eqn.bodies.values() for body in group]
        before = -1
        while before != len(found):  # a carry that changes may change another one in the next step
            before = len(found)
            found.update(end for start, end in links if start in found)
            for body in bodies:
                _spread(body, found)
            if not found.isdisjoint(choices):
                found.update(eqn.outputs)


def _links(eqn):
    """(pairs of a variable and the one that takes its value, variables that choose among values of the outputs)."""
    bodies, inputs, outputs = eqn.bodies, eqn.inputs, eqn.outputs
    if eqn.primitive.name == "while":
        (cond,), (body,) = bodies["cond_jaxpr"], bodies["body_jaxpr"]
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carry, carried = inputs[num_cond + num_body :], body.inputs[num_body:]
        links = [*zip(inputs, cond.inputs[:num_cond], strict=False), *zip(inputs[num_cond:], body.inputs, strict=True)]
        for starts in (carry, body.outputs):
            links += [*zip(starts, cond.inputs[num_cond:], strict=True), *zip(starts, carried, strict=True)]
            links += zip(starts, outputs, strict=True)
        return links, cond.outputs
    if eqn.primitive.name == "cond":
        pairs = [(*zip(inputs[1:], body.inputs, strict=True), *zip(body.outputs, outputs, strict=True)) for body in bodies["branches"]]
        return [link for links in pairs for link in links], inputs[:1]
    inner = [body for group in bodies.values() for body in group]
    if eqn.primitive.name == "scan" or eqn.is_call:
        (body,) = inner
        links = [*zip(inputs, body.inputs, strict=True), *zip(body.outputs, outputs, strict=True)]
        if eqn.primitive.name == "scan":
            num_consts, num_carry = _program.scan_sizes(eqn.params)
            links += zip(body.outputs[:num_carry], body.inputs[num_consts : num_consts + num_carry], strict=True)
        return links, ()
    # How another primitive uses its bodies is not known: everything may change with everything.
    ends = [variable for body in inner for variable in body.inputs]
    return [(start, end) for start in inputs for end in ends], [*inputs, *(variable for body in inner for variable in body.outputs)]
