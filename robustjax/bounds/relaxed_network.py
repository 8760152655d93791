"""The relaxation of a whole network as arrays: variables with bounds, and the linear constraints between them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import graph, threats
from robustjax.base import Array
from robustjax.bounds import _crown, _interval, operations, planes, symbols
from robustjax.bounds.network import Bounds, Network
from robustjax.bounds.symbols import Affine


class Tie(NamedTuple):
    """The variables at `columns` are centre + generators * (variables before them)."""

    columns: Array  # [n]
    centre: Array  # [n]
    generators: Array  # [V, n]


class Strips(NamedTuple):
    """Planes between the variables at `columns` and those at each of `inputs`, with the two slopes of a kink that are extreme."""

    columns: Array  # [n]
    inputs: tuple[Array, ...]  # [n] each
    flat: Any  # Elementwise of [n] each
    steep: Any


class Maps(NamedTuple):
    """lower * inputs + low <= the variables at `columns` <= upper * inputs + high."""

    columns: Array  # [n]
    inputs: Array  # [m]
    lower: Array  # [m, n]
    low: Array  # [n]
    upper: Array  # [m, n]
    high: Array  # [n]


class Relaxed(NamedTuple):
    """Of one example: the relaxed network as arrays."""

    lower: Array  # [V], of the variables: the input, then inputs and output of each equation that is not affine
    upper: Array  # [V]
    ties: tuple[Tie, ...]
    strips: tuple[Strips, ...]
    maps: tuple[Maps, ...]
    centre: Array  # [K], of the outputs
    generators: Array  # [V, K]
    ball: tuple[Array, Array, Array] | None  # middle [n], weights [n] and radius of an l1 ball


def relaxed(problem: Network, max_variables: int) -> Relaxed:
    """The relaxation of one example, with the tighter ones of CROWN's bounds with two slopes and intervals for every unit.

    Raises:
      ValueError: there are more variables than that, or a primitive has no planes.
    """
    known = [_crown.relax(problem, slope)[2] for slope in ("adaptive", "parallel")]
    boxes = _interval.of_all(problem)
    box = Bounds(*problem.threat.interval(problem.x))
    blocks: list[Bounds] = []
    places: dict[graph.Variable, Array] = {}
    ties: list[Tie] = []
    strips: list[Strips] = []
    maps: list[Maps] = []

    def variables(bounds: Bounds) -> Array:
        """The columns of new variables, in the shape of their bounds."""
        start = sum(block.lower.size for block in blocks)
        stop = start + bounds.lower.size
        if stop > max_variables:
            raise ValueError(
                f"the linear program of this network has more than max_variables={max_variables} variables ({stop} so far); use "
                f"alpha_crown, which needs no program, or a smaller model, or pass max_variables={2 * stop} and have patience."
            )
        blocks.append(bounds)
        return jnp.arange(start, stop).reshape(bounds.lower.shape)

    def value_of(columns: Array) -> Affine:
        zero = jnp.zeros(columns.shape, problem.x.dtype)
        return symbols.fresh(Affine(zero, zero[None][:0]), zero + 1.0, int(sum(block.lower.size for block in blocks[:-1])))

    def rule(context, eqn, *values):
        abstract = operations.is_abstract(values)
        if not any(abstract):
            return graph.bind(context, eqn, *values)
        if operations.is_affine(eqn, abstract):
            return symbols.through_affine(eqn, values)
        moving = [(variable, value) for variable, value in zip(eqn.inputs, values, strict=True) if isinstance(value, Affine)]
        bounds = [symbols.intersect(symbols.intersect(*(one[variable] for one in known)), boxes[variable]) for variable, _ in moving]
        for (variable, value), ends in zip(moving, bounds, strict=True):
            if variable not in places:
                places[variable] = variables(ends)
                generators = value.generators.reshape(value.generators.shape[0], -1)
                ties.append(Tie(places[variable].reshape(-1), value.centre.reshape(-1), generators))
        flat, steep = (planes.of(eqn, values, bounds, slope) for slope in ("zero", "one"))
        shape = eqn.outputs[0].aval.shape
        spread = planes.constant(eqn, values, bounds)
        columns = variables(Bounds(*(jnp.broadcast_to(end, shape) for end in (spread.lower_bias, spread.upper_bias))))
        inputs = [places[variable] for variable, _ in moving]
        if isinstance(flat, planes.Mapped):
            maps.append(_mapped(flat, columns, inputs, operations.zeros(eqn, values)))
        else:
            at = tuple(jnp.broadcast_to(each, shape).reshape(-1) for each in inputs)
            both = [jax.tree.map(lambda a: jnp.broadcast_to(a, shape).reshape(-1), each) for each in (flat, steep)]
            strips.append(Strips(columns.reshape(-1), at, *both))
        return [value_of(columns)]

    start = value_of(variables(box))
    out = graph.forward(problem.program, dict.fromkeys(("scan", "while", "cond"), rule), start, default=rule)
    lower, upper = (jnp.concatenate([getattr(block, end).reshape(-1) for block in blocks]) for end in ("lower", "upper"))
    generators = out.generators.reshape(out.generators.shape[0], -1)
    return Relaxed(lower, upper, tuple(ties), tuple(strips), tuple(maps), out.centre.reshape(-1), generators, _l1(problem))


def _mapped(found: planes.Mapped, columns, inputs, zeros) -> Maps:
    size = sum(zero.size for zero in zeros)
    rows, starts = jnp.eye(size, dtype=zeros[0].dtype), np.cumsum([0, *(zero.size for zero in zeros)])
    units = [rows[:, low : low + zero.size].reshape(size, *zero.shape) for low, zero in zip(starts, zeros, strict=False)]
    sides = []
    for function in (found.lower_fn, found.upper_fn):
        sides += [symbols.linear_image(function, zeros, units).reshape(size, -1), function(*zeros).reshape(-1)]
    return Maps(columns.reshape(-1), jnp.concatenate([each.reshape(-1) for each in inputs]), *sides)


def _l1(problem: Network):
    """The middle, the weights of |x - middle| and the radius of an l1 ball; None for others."""
    threat, x = problem.threat, problem.x
    if not isinstance(threat, threats.L1):
        return None
    weights = threat.to_unit(jnp.ones_like(x))
    return x.reshape(-1), jnp.where(jnp.isfinite(weights), weights, 0.0).reshape(-1), threat.radius().reshape(()).astype(x.dtype)
