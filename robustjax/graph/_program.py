"""A function as one flat list of equations whose variables are its own: what every walk of this package goes over."""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterator, Mapping

import jax
import jax.numpy as jnp
from jax.extend import core

from robustjax import configured

CUSTOM_DERIVATIVES = frozenset({"custom_jvp_call", "custom_vjp_call"})
CHECKPOINTS = frozenset({"checkpoint", "remat2"})
_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"}) | CUSTOM_DERIVATIVES | CHECKPOINTS


class Variable:
    """One value of a program, which only its identity tells from others.

    Its `aval` holds shape and dtype; that of an argument which is no array is None, and no equation reads it.
    """

    __slots__ = ("aval",)

    def __init__(self, aval):
        self.aval = aval

    def __repr__(self):
        return f"Variable({self.aval})"


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """outputs = primitive(inputs): one step of a program."""

    primitive: core.Primitive
    params: Mapping
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    sources: tuple[core.JaxprEqn, ...]  # the equation that JAX traced, then the calls and loops around it, outward
    policy: "_Policy"

    @property
    def function(self) -> str:
        """The name of the function, if this is a call that was kept whole; else empty."""
        return _function_name(self.sources[0]) if self.is_call else ""

    @property
    def is_call(self) -> bool:
        """Whether this is the call of a function, which was kept whole."""
        return self.primitive.name in _CALLS

    @functools.cached_property
    def bodies(self) -> dict[str, tuple["Program", ...]]:
        """The programs inside the equation, by the name of their parameter."""
        found = {name: tuple(_inner(value)) for name, value in self.params.items()}
        return {name: tuple(_of(jaxpr, self.policy, self.sources) for jaxpr in jaxprs) for name, jaxprs in found.items() if jaxprs}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function of pytrees as equations in the order of their evaluation; those that no output needs are left out."""

    equations: tuple[Equation, ...]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    constants: Mapping[Variable, object]  # the values that the function closed over, and its literals
    in_tree: jax.tree_util.PyTreeDef  # of the tuple of arguments
    out_tree: jax.tree_util.PyTreeDef
    source: core.ClosedJaxpr  # what JAX traced


@dataclasses.dataclass(frozen=True)
class _Policy:
    keep: Container[str]
    max_unroll: int


def program(function: Callable, *args, keep: Container[str] = (), max_unroll: int = 0) -> Program:
    """The program of function(*args). Calls are inlined; scan, while and cond are equations with their bodies.

    A call is what `jax.jit`, `jax.custom_jvp`, `jax.custom_vjp` or `jax.checkpoint` makes of a function.

    Args:
      function: any function of pytrees.
      *args: pytrees of arrays, or of `jax.ShapeDtypeStruct`; leaves that are neither arrays nor numbers stay as they are.
      keep: the calls that stay whole, by the name of their primitive or of their function: `CUSTOM_DERIVATIVES`, `CHECKPOINTS`, {"gelu"}.
      max_unroll: a scan of at most so many steps becomes its steps.
    """
    leaves, in_tree = jax.tree.flatten(args)
    is_array = [isinstance(leaf, jax.ShapeDtypeStruct) or configured.is_number(leaf) for leaf in leaves]

    def of_arrays(*arrays):
        values = iter(arrays)
        args = jax.tree.unflatten(in_tree, [next(values) if known else leaf for known, leaf in zip(is_array, leaves, strict=True)])
        return function(*args)

    arrays = [leaf for known, leaf in zip(is_array, leaves, strict=True) if known]
    closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    made = _of(closed, _Policy(keep, max_unroll), ())
    variables = iter(made.inputs)
    inputs = tuple(next(variables) if known else Variable(None) for known in is_array)
    return dataclasses.replace(made, inputs=inputs, in_tree=in_tree, out_tree=jax.tree.structure(shape))


def walk(program: Program) -> Iterator[tuple[Equation, int | None]]:
    """Every equation, those in bodies too, with the number of times it runs: None inside a while loop.

    Of a cond every branch counts. Calls that were kept whole are not entered.
    """
    for eqn in program.equations:
        yield eqn, 1
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for body in () if eqn.is_call else _all_bodies(eqn):
            for inner, inner_times in walk(body):
                yield inner, (None if eqn.primitive.name == "while" or inner_times is None else times * inner_times)


def constants(program: Program) -> dict[Variable, object]:
    """The constants of a program and of the bodies in it."""
    found = dict(program.constants)
    for eqn in program.equations:
        for body in _all_bodies(eqn):
            found |= constants(body)
    return found


def scan_sizes(params: Mapping) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are its carry."""
    if "ft_in" in params:  # jax 0.12
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
        return num_consts, num_carry
    return params["num_consts"], params["num_carry"]


def _all_bodies(eqn):
    return [body for bodies in eqn.bodies.values() for body in bodies]


def _of(jaxpr: core.ClosedJaxpr, policy: _Policy, around: tuple[core.JaxprEqn, ...]) -> Program:
    inputs = tuple(Variable(var.aval) for var in jaxpr.jaxpr.invars)
    equations: list[Equation] = []
    constants: dict[Variable, object] = {}
    outputs = _inline(jaxpr, inputs, equations, constants, policy, around)
    needed, kept = set(outputs), []
    for eqn in reversed(equations):
        if eqn.sources[0].effects or not needed.isdisjoint(eqn.outputs):
            needed.update(eqn.inputs)
            kept.append(eqn)
    constants = {variable: value for variable, value in constants.items() if variable in needed}
    in_tree, out_tree = jax.tree.structure((0,) * len(inputs)), jax.tree.structure([0] * len(outputs))
    return Program(tuple(reversed(kept)), inputs, outputs, constants, in_tree, out_tree, jaxpr)


def _inline(jaxpr, inputs, equations, constants, policy, around):
    """Appends the equations of a jaxpr under new names, since a function that is called twice has one jaxpr; the new outputs."""
    variables = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))

    def constant(aval, value):
        variable = Variable(aval)
        constants[variable] = value
        return variable

    def read(atom):
        return constant(atom.aval, atom.val) if isinstance(atom, core.Literal) else variables[atom]

    for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
        variables[var] = constant(var.aval, value)
    for eqn in jaxpr.jaxpr.eqns:
        inputs = tuple(read(atom) for atom in eqn.invars)
        inner = _inlined(eqn, policy)
        if inner is None:
            outputs = tuple(Variable(var.aval) for var in eqn.outvars)
            equations.append(Equation(eqn.primitive, eqn.params, inputs, outputs, (eqn, *around), policy))
        else:
            outputs = _inline(inner, inputs, equations, constants, policy, (eqn, *around))
        variables.update(zip(eqn.outvars, outputs, strict=True))
    return tuple(read(atom) for atom in jaxpr.jaxpr.outvars)


def _inlined(eqn, policy):
    """The jaxpr that takes the place of an equation, or None where the equation stays."""
    name = eqn.primitive.name
    if name in _CALLS and name not in policy.keep and _function_name(eqn) not in policy.keep:
        return next(inner for value in eqn.params.values() for inner in _inner(value))
    if name == "scan" and 0 < eqn.params["length"] <= policy.max_unroll:
        return _unrolled(eqn)
    return None


def _unrolled(eqn):
    num_consts, num_carry = scan_sizes(eqn.params)
    step, length = core.jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params["length"]

    def steps(*args):
        consts, carry, xs = args[:num_consts], args[num_consts : num_consts + num_carry], args[num_consts + num_carry :]
        ys = [()] * length
        for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
            outputs = step(*consts, *carry, *(jax.lax.index_in_dim(x, i, keepdims=False) for x in xs))
            carry, ys[i] = outputs[:num_carry], outputs[num_carry:]
        return [*carry, *(jnp.concatenate([jnp.expand_dims(y, 0) for y in column]) for column in zip(*ys, strict=True))]

    return jax.make_jaxpr(steps)(*(atom.aval for atom in eqn.invars))


def _inner(value):
    if isinstance(value, core.ClosedJaxpr):
        yield value
    elif isinstance(value, core.Jaxpr):
        yield core.ClosedJaxpr(value, ())
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _inner(part)


def _function_name(eqn):
    inner = next(inner for value in eqn.params.values() for inner in _inner(value))
    return (eqn.params.get("name") or inner.jaxpr.debug_info.func_name or "").split(" ")[0]
