"""CROWN: linear bounds that go back through the network, layer by layer (Zhang et al., 2018), and what it makes of other bounds."""

from collections.abc import Callable
from typing import Any

import jax

from robustjax import graph
from robustjax.base import Array, ModelFn, NormThreat, Numeric
from robustjax.bounds import _interval, linear, network, operations, patches, planes, symbols
from robustjax.bounds.network import Bounds, Network

_WITH_DOMAIN = frozenset({"div", "log", "log1p", "sqrt", "rsqrt", "pow", "integer_pow"})  # where a looser bound may leave the domain
_ABSTRACT = object()  # a value that depends on the input of the model, of which nothing is said


def crown(model_fn: ModelFn, x: Array, threat: NormThreat, *, slope: planes.Slope = "adaptive", chunk_size: int | None = None) -> Bounds:
    """Linear bounds carried back from every layer to the input, with CROWN's own bounds of all layers before.

    Args:
      model_fn: x [B, ...] -> [B, ...], any Flax model or function in eval mode.
      x: inputs [B, ...].
      threat: a norm ball around x, or a `Latent` one.
      slope: of the lower line of an unstable ReLU: "adaptive" (CROWN), "parallel" (Fast-Lin, DeepZ, Wong & Kolter), "zero" or "one".
      chunk_size: how many examples are bounded at a time; None for as many as keep the largest array within 16 MB on CPU, 4 GB elsewhere.

    Returns:
      Bounds [B, ...] of the model's output.

    Guarantee:
      every x' in the threat has lower <= model_fn(x') <= upper, up to the rounding of floating-point arithmetic.
    Source: Zhang et al., NeurIPS 2018, arXiv:1811.00866; Xu et al., NeurIPS 2020, arXiv:2002.12920 for general graphs.
    """
    return network.per_example(lambda one: network.squeezed(of_output(one, slope)), model_fn, x, threat, chunk_size)


def crown_ibp(
    model_fn: ModelFn, x: Array, threat: NormThreat, *, beta: Numeric = 1.0, slope: planes.Slope = "adaptive", chunk_size: int | None = None
) -> Bounds:
    """beta * CROWN-IBP + (1 - beta) * IBP: intervals for the layers inside, one linear walk back from the output.

    A walk from every layer is what makes `crown` expensive; this has one. Training lets beta fall from 1 to 0 while eps grows.

    Args:
      model_fn, x, threat: model, inputs and norm ball, as for `crown`.
      beta: weight of the linear bounds, in [0, 1].
      slope, chunk_size: of the lower line of an unstable ReLU, and how many examples are bounded at a time, as for `crown`.

    Returns:
      Bounds [B, ...] of the model's output; those of `interval` at beta = 0.

    Guarantee:
      every x' in the threat has lower <= model_fn(x') <= upper for beta in [0, 1], up to the rounding of floating-point arithmetic.
      Neither part is tighter than the other at every output.
    Source: Zhang et al., ICLR 2020, arXiv:1906.06316.
    """

    def one(problem):
        boxes = _interval.of_all(problem)
        known, relaxed, _ = relax(problem, slope, lambda variable, known, relaxed: boxes[variable])
        both = bounds_of(problem, problem.output, known, relaxed), _interval.of_output(problem, boxes)
        return network.squeezed(jax.tree.map(lambda a, b: beta * a + (1.0 - beta) * b, *both))

    return network.per_example(one, model_fn, x, threat, chunk_size)


def of_output(problem: Network, slope: planes.Slope = "adaptive") -> Bounds:
    """CROWN's bounds of a network's output [1, ...]."""
    known, relaxed, _ = relax(problem, slope)
    return bounds_of(problem, problem.output, known, relaxed)


def bounds_of(problem: Network, variable: graph.Variable, known, relaxed) -> Bounds:
    """The bounds of every value of a variable, by a walk back to the input."""
    layout = patches.layout_of(problem.part(variable), variable)
    if layout is None:
        lower = linear.lower_bound(problem, variable, linear.identity(variable), known, relaxed)
        return linear.of_rows(lower, variable.aval.shape)
    rows = patches.identity(layout, variable.aval.shape[layout.channel], variable.aval.dtype)
    low, high = patches.of_rows(linear.lower_bound(problem, variable, rows, known, relaxed), layout)
    return Bounds(low, -high)


def relax(problem: Network, slope: planes.Slope, bound_fn: Callable | None = None) -> tuple[dict, dict, dict]:
    """The values that do not depend on the input, and planes of every equation that is not affine.

    Args:
      problem: of one example.
      slope: of unstable ReLUs.
      bound_fn: (variable, known, relaxed) -> Bounds of the inputs of such equations; None for CROWN's own.

    Returns:
      known and relaxed, see `linear.lower_bound`, and the bounds of the inputs of those equations.
    """
    known: dict[graph.Variable, Any] = {}
    relaxed: dict[graph.Variable, Any] = {}
    found: dict[graph.Variable, Bounds] = {}
    bound_fn = bound_fn or (lambda variable, known, relaxed: bounds_of(problem, variable, known, relaxed))
    has_domain = any(eqn.primitive.name in _WITH_DOMAIN for eqn in problem.program.equations)
    boxes = _interval.of_all(problem) if has_domain else {}

    def rule(context, eqn, *values):
        known.update(zip(eqn.inputs, values, strict=True))
        abstract = operations.is_abstract(values)
        if not any(abstract):
            return graph.bind(context, eqn, *values)
        outputs = [_ABSTRACT for _ in eqn.outputs]
        known.update(zip(eqn.outputs, outputs, strict=True))
        if not operations.is_affine(eqn, abstract):
            inputs = [variable for variable, moves in zip(eqn.inputs, abstract, strict=True) if moves]
            for variable in inputs:
                if variable not in found:
                    found[variable] = bound_fn(variable, known, relaxed)
            bounds = [found[variable] for variable in inputs]
            if eqn.primitive.name in _WITH_DOMAIN:
                bounds = [symbols.intersect(each, boxes[variable]) for each, variable in zip(bounds, inputs, strict=True)]
            relaxed[eqn.outputs[0]] = planes.of(eqn, values, bounds, slope)
        return outputs

    graph.forward(problem.program, dict.fromkeys(("scan", "while", "cond"), rule), _ABSTRACT, default=rule)
    return known, relaxed, found
