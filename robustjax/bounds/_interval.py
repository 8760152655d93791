"""Interval bound propagation: every value by itself between two numbers (Gowal et al., 2018)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from robustjax import graph
from robustjax.base import Array, ModelFn, NormThreat
from robustjax.bounds import fused, fusing, intervals, linear, network, operations
from robustjax.bounds.network import Bounds, Network

_MIXING = frozenset(["dot_general", "conv_general_dilated", "reduce_sum", "cumsum", "reduce_window_sum", "scatter-add"])


def interval(model_fn: ModelFn, x: Array, threat: NormThreat, *, chunk_size: int | None = None) -> Bounds:
    """Intervals from layer to layer: the cheapest bounds, two passes each, and the loosest.

    The linear operations after the last non-linear one count as one layer, as `margins` needs it: bounds of the difference of two
    logits are tighter than the difference of their bounds.

    Args:
      model_fn: x [B, ...] -> [B, ...], any Flax model or function in eval mode.
      x: inputs [B, ...].
      threat: a norm ball around x, or a `Latent` one; what is used of it is the interval of each coordinate.
      chunk_size: how many examples are bounded at a time; None for as many as fit: see `crown`.

    Returns:
      Bounds [B, ...] of the model's output.

    Guarantee:
      every x' in the threat has lower <= model_fn(x') <= upper, up to the rounding of floating-point arithmetic; a larger eps never
      gives tighter bounds.
    Source: Gowal et al., ICCV 2019, arXiv:1810.12715; Mirman et al., ICML 2018 (the box domain).
    """
    return network.per_example(lambda one: network.squeezed(of_output(one, of_all(one))), model_fn, x, threat, chunk_size)


def of_output(problem: Network, values: dict[graph.Variable, Any]) -> Bounds:
    """Interval bounds of a network's output [1, ...], from those of every variable (`of_all`)."""
    tail = _tail(problem, values)
    if sum(_is_mixing(eqn, values) for eqn in tail.equations) < 2:  # each output is a sum of intervals that move freely
        return values[problem.output]
    forms = linear.forms_at_inputs(tail, linear.identity(problem.output), values)
    arrived = [(form, values[variable]) for form, variable in zip(forms, tail.inputs, strict=True) if form is not None]
    lower = jnp.stack([linear.least(form.coef, bounds) + (0.0 if form.bias is None else form.bias) for form, bounds in arrived]).sum(axis=0)
    return linear.of_rows(lower, problem.output.aval.shape)


def of_all(problem: Network) -> dict[graph.Variable, Any]:
    """Interval bounds of every variable; arrays where they do not depend on the input."""
    return graph.values(problem.program, {}, Bounds(*problem.threat.interval(problem.x)), default=intervals.rule)


def of_relus(model_fn: ModelFn, x: Array, threat: NormThreat) -> list[Bounds]:
    """Interval bounds [B, ...] of the inputs, and of what each ReLU layer gets: a maximum with numbers, or a function with one kink."""

    def one(problem):
        values = of_all(problem)
        return [network.squeezed(values[variable]) for variable in (*problem.program.inputs, *_before_relus(problem, values))]

    return network.per_example(one, model_fn, x, threat)


def _before_relus(problem, values):
    found = []
    for eqn in problem.program.equations:
        moving = [variable for variable in eqn.inputs if isinstance(values[variable], Bounds)]
        is_kink = eqn.primitive.name == fusing.FUSED and fused.kink(eqn.params["function"]) is not None
        if len(moving) == 1 and (eqn.primitive.name == "max" or is_kink):
            found.append(moving[0])
    return found


def _tail(problem, values):
    """The affine equations at the end of a program, as a program of the variables that they start from."""
    program, needed, equations = problem.program, {problem.output}, []
    for eqn in reversed(program.equations):
        inputs = [values[variable] for variable in eqn.inputs]
        if needed.isdisjoint(eqn.outputs) or not operations.is_affine(eqn, operations.is_abstract(inputs)):
            continue
        equations.append(eqn)
        needed.update(variable for variable, value in zip(eqn.inputs, inputs, strict=True) if isinstance(value, Bounds))
    made = {output for eqn in equations for output in eqn.outputs}
    starts = tuple(variable for variable in needed if variable not in made)
    tree = jax.tree.structure(starts)
    return dataclasses.replace(program, equations=tuple(reversed(equations)), inputs=starts, in_tree=tree)


def _is_mixing(eqn, values):
    moving = [variable for variable in eqn.inputs if isinstance(values[variable], Bounds)]
    return eqn.primitive.name in _MIXING or (len(moving) > 1 and eqn.primitive.name in ("add", "sub", "add_any"))
