"""Zonotopes: every value is an affine function of noises, carried forward through the network (Mirman et al.; Singh et al., 2018)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from robustjax import graph
from robustjax.base import Array, ModelFn, NormThreat
from robustjax.bounds import _interval, network, operations, planes, relaxations, symbols
from robustjax.bounds.network import Bounds, Network
from robustjax.bounds.symbols import Affine

_SLOPES = {"deepz": "parallel", "hybrid": "parallel", "box": "zero", "switch": "adaptive"}  # of the strip around an unstable ReLU
_KINDS = (*_SLOPES, "smooth")
_PRODUCTS = frozenset({"mul", "dot_general", "conv_general_dilated"})
_CURVES = frozenset({*relaxations.UNARY, "pow", "div"})


class _Strip(NamedTuple):
    """low <= output - sum of slopes[i] * input i <= high, place by place."""

    slopes: tuple[Array, ...]
    low: Array
    high: Array


def zonotope(model_fn: ModelFn, x: Array, threat: NormThreat, *, kind: str = "deepz", chunk_size: int | None = None) -> Bounds:
    """Affine functions of noises e in [-1, 1]: value = centre + sum e_i generators[i] +- radius, from the input forward.

    Affine layers lose nothing. A non-linear function lies in a strip around a line, whose width is a new noise of each unit or goes
    into the radius. Of an example, n numbers of the input and m units with a non-linear function give n + m generators with "deepz",
    and n with the other kinds: a layer of k values takes k times so many numbers. `crown` gives the bounds of "deepz" backward, for less
    memory in wide networks (slope="parallel").

    Args:
      model_fn: x [B, ...] -> [B, ...], any Flax model or function in eval mode.
      x: inputs [B, ...].
      threat: a norm ball around x, or a `Latent` one; what is used of it is the interval of each coordinate.
      kind: how the strip of an unstable ReLU with bounds l < 0 < u is chosen, and where its width goes. "deepz": the slope u / (u - l)
        of the chord, and a new noise; "hybrid": the same slope, and the radius, as with all that follow; "box": slope 0; "switch": slope
        1 where u > -l, else 0; "smooth": the mean of the strips of slope 1 and 0, weighted with u and -l.
      chunk_size: how many examples are bounded at a time; None for as many as fit: see `crown`.

    Returns:
      Bounds [B, ...] of the model's output.

    Raises:
      ValueError: another kind, or a primitive without a rule.

    Guarantee:
      every x' in the box of coordinates around the threat has lower <= model_fn(x') <= upper, up to the rounding of floating-point
      arithmetic. For a ball other than `Linf` that box is larger than the ball.
    Source: Mirman et al., ICML 2018 (DiffAI: creluNIPS, creluBoxy, creluSwitch, creluSmooth); Singh et al., NeurIPS 2018 (DeepZ). Differs:
      the weights of "smooth" are divided by u - l, without 1e-4 added to it; functions other than ReLU are those of `crown`.
    """
    if kind not in _KINDS:
        raise ValueError(f"expected kind as one of {', '.join(_KINDS)}; got {kind!r}.")
    return network.per_example(lambda one: network.squeezed(of_output(one, kind)), model_fn, x, threat, chunk_size)


def of_output(problem: Network, kind: str) -> Bounds:
    """A zonotope's bounds of a network's output [1, ...]."""
    lower, upper = problem.threat.interval(problem.x)
    nothing = jnp.zeros((0, *lower.shape), lower.dtype)
    start = symbols.fresh(Affine(0.5 * lower + 0.5 * upper, nothing), 0.5 * upper - 0.5 * lower, 0)
    has_curves = any(eqn.primitive.name in _CURVES for eqn in problem.program.equations)
    boxes = _interval.of_all(problem) if has_curves else {}
    num_noises = lower.size

    def with_error(value: Affine, error: Array) -> Affine:
        """The value up to +- error: new noises, or a larger radius."""
        nonlocal num_noises
        if kind != "deepz":
            return value._replace(radius=error if value.radius is None else value.radius + error)
        value = symbols.fresh(value, error, num_noises)
        num_noises += error.size
        return value

    def rule(context, eqn, *values):
        name, abstract = eqn.primitive.name, operations.is_abstract(values)
        if not any(abstract):
            return graph.bind(context, eqn, *values)
        if operations.is_affine(eqn, abstract):
            return symbols.through_affine(eqn, values)
        if name in _PRODUCTS and not (name == "mul" and eqn.inputs[0] is eqn.inputs[1]):
            return [with_error(*_product(lambda a, b: graph.bind(None, eqn, a, b)[0], *values))]
        inputs = [value for value in values if isinstance(value, Affine)]
        bounds = [_ends(value) for value in inputs]
        if name in _CURVES:  # a function that is not defined everywhere needs bounds inside its domain
            moving = [variable for variable, moves in zip(eqn.inputs, abstract, strict=True) if moves]
            bounds = [symbols.intersect(one, boxes[variable]) for one, variable in zip(bounds, moving, strict=True)]
        if name == "div":
            low_slope, low_bias, high_slope, high_bias = relaxations.reciprocal.planes_fn({}, *bounds[-1])
            strip = _around(planes.Elementwise((low_slope,), low_bias, (high_slope,), high_bias), bounds[-1:])
            inverse = with_error(*_through_strip(strip, inputs[-1:]))
            if graph.is_concrete(values[0]):
                return [_scaled(inverse, values[0])]
            return [with_error(*_product(jnp.multiply, values[0], inverse))]
        return [with_error(*_enclosed(eqn, values, inputs, bounds, kind))]

    found = graph.forward(problem.program, dict.fromkeys(("scan", "while", "cond"), rule), start, default=rule)
    return _ends(found)


def _ends(value: Affine) -> Bounds:
    """The least and the greatest values of a zonotope; of what is no number, nothing is known."""
    reach = _reach(value)
    low, high = value.centre - reach, value.centre + reach
    return Bounds(jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high))


def _reach(value):
    spread = jnp.abs(value.generators).sum(axis=0)
    return spread if value.radius is None else spread + value.radius


def _product(function: Callable, a: Affine, b: Affine) -> tuple[Affine, Array]:
    """A product that is linear in each of both: what is of first order in the noises, and a bound on the rest."""
    rows = symbols.aligned([a, b])
    generators = jax.vmap(lambda one, other: function(one, b.centre) + function(a.centre, other))(*rows)
    radius = None
    if a.radius is not None:
        radius = function(a.radius, jnp.abs(b.centre))
    if b.radius is not None:
        more = function(jnp.abs(a.centre), b.radius)
        radius = more if radius is None else radius + more
    return Affine(function(a.centre, b.centre), generators, radius), function(_reach(a), _reach(b))


def _scaled(value, factor):
    factor = jnp.broadcast_to(factor, value.centre.shape)
    radius = None if value.radius is None else value.radius * jnp.abs(factor)
    return Affine(value.centre * factor, value.generators * factor[None], radius)


def _enclosed(eqn, values, inputs: Sequence[Affine], bounds: Sequence[Bounds], kind) -> tuple[Affine, Array]:
    """What lies in the middle of the strip around an equation's output, and half the width of the strip."""
    slopes = [_SLOPES[kind]] if kind in _SLOPES else ["parallel", "zero", "one"]
    found, *others = (planes.of(eqn, values, bounds, slope) for slope in slopes)
    if isinstance(found, planes.Mapped):
        return _through_winner(eqn, found, inputs[0], bounds[0])
    if not others:
        return _through_strip(_around(found, bounds), inputs)
    flat, steep = (cast(planes.Elementwise, each) for each in others)
    share = steep.lower[0] - flat.lower[0]
    share = jnp.where(share == 0, 1.0, (found.lower[0] - flat.lower[0]) / jnp.where(share == 0, 1.0, share))
    mixed = jax.tree.map(lambda one, zero: share * one + (1.0 - share) * zero, _around(steep, bounds), _around(flat, bounds))
    return _through_strip(mixed, inputs)


def _around(found: planes.Elementwise, bounds: Sequence[Bounds]) -> _Strip:
    """The strip with the slopes of the lower planes."""
    high = found.upper_bias
    for low_slope, high_slope, (lower, upper) in zip(found.lower, found.upper, bounds, strict=True):
        bend = high_slope - low_slope
        high = high + jnp.where(bend == 0, 0.0, jnp.maximum(bend * lower, bend * upper))  # bounds may be infinite
    return _Strip(found.lower, found.lower_bias, high)


def _through_strip(strip: _Strip, inputs: Sequence[Affine]) -> tuple[Affine, Array]:
    width = 0.5 * strip.high - 0.5 * strip.low
    known = jnp.isfinite(width)
    middle = jnp.where(known, 0.5 * strip.high + 0.5 * strip.low, 0.0)
    pairs = [*zip(strip.slopes, symbols.aligned(inputs), inputs, strict=True)]
    centre: Any = sum((slope * value.centre for slope, _, value in pairs), middle)
    generators: Any = sum(jnp.broadcast_to(slope, middle.shape)[None] * rows for slope, rows, _ in pairs)
    radii: Any = [jnp.abs(slope) * value.radius for slope, _, value in pairs if value.radius is not None]
    return Affine(centre, generators, sum(radii) if radii else None), jnp.where(known, width, jnp.inf)


def _through_winner(eqn, found: planes.Mapped, value: Affine, bounds: Bounds) -> tuple[Affine, Array]:
    """The largest of several values is the one with the largest lower bound, up to what another may have more."""
    is_max = "max" in eqn.primitive.name
    chosen = found.lower_fn if is_max else found.upper_fn  # a value each, without an offset
    end = bounds.lower if is_max else bounds.upper
    gap = found.upper_fn(end) - found.lower_fn(end)  # falls with the value that is chosen
    sign = 1.0 if is_max else -1.0
    radius = None if value.radius is None else chosen(value.radius)
    return Affine(chosen(value.centre) + sign * 0.5 * gap, jax.vmap(chosen)(value.generators), radius), 0.5 * gap
