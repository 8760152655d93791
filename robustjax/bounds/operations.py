"""Which equations of a model are affine in what depends on its input, and how one is applied: what every method here asks first."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robustjax import graph, lowering
from robustjax.base import Array

# Linear in all of their inputs together; indices and predicates must be known.
_JOINTLY = frozenset({
    "add", "add_any", "sub", "neg", "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev", "concatenate",
    "pad", "reduce_sum", "cumsum", "copy", "copy_p", "convert_element_type", "reduce_precision", "reduce_window_sum", "dynamic_slice",
    "dynamic_update_slice", "gather", "select_n", "split", "stop_gradient", "scatter-add", "div", "optimization_barrier",
    "sharding_constraint", "device_put", "tile",
})  # fmt: skip
_PRODUCTS = frozenset({"mul", "dot_general", "conv_general_dilated"})  # linear in each of two inputs
# What must be known for the equation to be affine: positions of such inputs.
_KNOWN = {"div": (1,), "select_n": (0,), "gather": (1,), "scatter-add": (1,)}
_INDICES_FROM = {"dynamic_slice": 1, "dynamic_update_slice": 2}
_WITH_OFFSET = frozenset({"add", "add_any", "sub", "concatenate", "pad", "select_n", "dynamic_update_slice", "scatter-add"})


def is_abstract(values: Sequence) -> list[bool]:
    """Which of the values that an equation gets depend on the input of the model."""
    return [not graph.is_concrete(value) for value in values]


def is_affine(eqn: graph.Equation, abstract: Sequence[bool]) -> bool:
    """Whether the outputs are an affine function of the inputs that are marked."""
    name, moving = eqn.primitive.name, [variable for variable, moves in zip(eqn.inputs, abstract, strict=True) if moves]
    if not all(jnp.issubdtype(variable.aval.dtype, jnp.floating) for variable in (*moving, *eqn.outputs)):
        return False  # integers and booleans have no derivative that could be transposed
    if name in _PRODUCTS:
        return sum(abstract) == 1
    return name in _JOINTLY and not any(abstract[position] for position in known(eqn))


def known(eqn: graph.Equation) -> Sequence[int]:
    """The positions of the inputs that fix which linear function it is: indices, a predicate, a divisor."""
    name = eqn.primitive.name
    return range(_INDICES_FROM[name], len(eqn.inputs)) if name in _INDICES_FROM else _KNOWN.get(name, ())


def affine(eqn: graph.Equation, values: Sequence) -> Callable[..., list[Array]]:
    """The equation as a function of those of its inputs that depend on the model's."""

    if eqn.primitive.name == "stop_gradient":  # here only values count, and its derivative is zero
        return lambda a: [a]

    def function(*dependent):
        given = iter(dependent)
        return lowering.bind(None, eqn, *(next(given) if abstract else value for value, abstract in zip(values, mask, strict=True)))

    mask = is_abstract(values)
    return function


def offset(eqn: graph.Equation, values: Sequence) -> list[Array] | None:
    """What an affine equation gives where all that depends on the input is zero; None where this is zero for every value of the rest."""
    is_filled = eqn.primitive.name == "gather" and eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    if not is_filled and (eqn.primitive.name not in _WITH_OFFSET or not any(_is_summand(eqn, values))):
        return None
    return affine(eqn, values)(*zeros(eqn, values))


def absolute(eqn: graph.Equation, values: Sequence) -> Callable[..., list[Array]]:
    """The linear part of an affine equation with the absolute values of its coefficients: what radii go through."""
    name = eqn.primitive.name
    if name == "neg":
        return lambda radius: [radius]
    if name == "sub":
        return lambda *radii: [jnp.broadcast_to(sum(radii[1:], radii[0]), eqn.outputs[0].aval.shape)]
    if name in _PRODUCTS or name == "div":
        return affine(eqn, [jnp.abs(value) if graph.is_concrete(value) else value for value in values])
    if name == "gather":
        eqn = dataclasses.replace(eqn, params={**eqn.params, "fill_value": 0})
    summands = _is_summand(eqn, values)
    return affine(eqn, [jnp.zeros_like(value) if summand else value for value, summand in zip(values, summands, strict=True)])


def no_rule(eqn: graph.Equation) -> Any:
    """Says which primitive has no bounds.

    Raises:
      ValueError: always; with the primitive, its place in the model, and how to register one.
    """
    name = eqn.primitive.name
    raise ValueError(
        f"no rule for the primitive {name!r}, which comes from {graph.place(eqn)}; if it is a function of one variable, register "
        f"bounds.relaxations.UNARY[{name!r}] = Unary(range_fn, planes_fn), else write the model with other operations."
    )


def zeros(eqn: graph.Equation, values: Sequence) -> list[Array]:
    """Zeros in the shapes of the inputs that depend on the model's."""
    pairs = zip(eqn.inputs, is_abstract(values), strict=True)
    return [jnp.zeros(variable.aval.shape, variable.aval.dtype) for variable, abstract in pairs if abstract]


def _is_summand(eqn, values):
    """Which inputs are numbers that are added to what depends on the input."""
    pairs = enumerate(is_abstract(values))
    return [eqn.primitive.name in _WITH_OFFSET and not abstract and position not in known(eqn) for position, abstract in pairs]
