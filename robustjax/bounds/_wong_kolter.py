"""Wong & Kolter's bounds with random projections: the layers inside are estimated, which costs a few passes (Wong et al., 2018)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import checks, graph
from robustjax.base import Array, Key, ModelFn, NormThreat
from robustjax.bounds import _crown, network, operations, planes, symbols
from robustjax.bounds.network import Bounds, Network
from robustjax.bounds.symbols import Affine


class Estimate(NamedTuple):
    """What outputs probably lie between: `Bounds` without their guarantee, which `certify` refuses."""

    lower: Array  # [B, ...]
    upper: Array  # [B, ...]


def wong_kolter_estimate(
    model_fn: ModelFn, x: Array, threat: NormThreat, *, num_projections: int, key: Key, chunk_size: int | None = None
) -> Estimate:
    """An estimate of `crown` with slope="parallel", the dual of Wong & Kolter, whose cost does not grow with the width of layers.

    The bounds of a layer need sums |c_1| + ... + |c_n|, with a row of numbers c for each of its units. For Cauchy noises r_i the number
    r_1 c_1 + ... + r_n c_n is Cauchy, and the median of its absolute value over several draws estimates the sum; it takes a pass forward
    for each draw, and none for each unit. With the layers estimated so, the walk from the output back is exact.

    Args:
      model_fn: x [B, ...] -> [B, ...] in eval mode, whose non-linear parts are functions of one variable, such as ReLU.
      x: inputs [B, ...].
      threat: a norm ball around x; for the layers inside, the interval of each coordinate.
      num_projections: k, draws for the input and for each layer; the standard deviation of a sum is about pi / (2 sqrt(k)) of it. The
        authors' script for MNIST has 50.
      key: one key; every example has the same draws.
      chunk_size: how many examples are bounded at a time; None for as many as fit: see `crown`.

    Returns:
      An `Estimate` [B, ...], for `training.certified`; certify the trained model by `crown`.

    Raises:
      ValueError: num_projections is no positive number, or the model has a max-pool or a product of two values.

    Guarantee:
      none: an estimate, and no certificate.
    Source: Wong et al., NeurIPS 2018, arXiv:1805.12514. Differs: the rows go forward through the layers for every ball.
    """
    checks.counts(num_projections=num_projections)

    def one(problem):
        inside = _inside(problem, num_projections, key)
        known, relaxed, _ = _crown.relax(problem, "parallel", lambda variable, known, relaxed: inside[variable])
        return network.squeezed(_crown.bounds_of(problem, problem.output, known, relaxed))

    return Estimate(*network.per_example(one, model_fn, x, threat, chunk_size))


def _inside(problem: Network, num_projections: int, key: Key) -> dict[graph.Variable, Bounds]:
    """Estimated bounds of what every non-linear equation gets."""
    lower, upper = problem.threat.interval(problem.x)
    num_sources, found = 0, {}

    def projected(size):
        """Sums of Cauchy noises times independent errors of these sizes: a source of k rows."""
        nonlocal num_sources
        noise = jax.random.cauchy(jax.random.fold_in(key, num_sources), (num_projections, *size.shape), size.dtype)
        num_sources += 1
        return noise * size[None]

    def rule(context, eqn, *values):
        abstract = operations.is_abstract(values)
        if not any(abstract):
            return graph.bind(context, eqn, *values)
        if operations.is_affine(eqn, abstract):
            return symbols.through_affine(eqn, values)
        inputs = [(variable, value) for variable, value in zip(eqn.inputs, values, strict=True) if isinstance(value, Affine)]
        (variable, value), *others = inputs
        found[variable] = bounds = _ends(value, num_projections)
        between = None if others else planes.of(eqn, values, [bounds], "parallel")
        if not isinstance(between, planes.Elementwise) or value.centre.shape != eqn.outputs[0].aval.shape:
            raise ValueError(f"expected functions of one variable, got {eqn.primitive.name!r}; bound this model by bounds.crown.")
        slope, bend = between.lower[0], between.upper[0] - between.lower[0]
        high = between.upper_bias + jnp.maximum(bend * bounds.lower, bend * bounds.upper)
        centre = slope * value.centre + 0.5 * high + 0.5 * between.lower_bias
        rows = [slope[None] * value.generators, projected(0.5 * high - 0.5 * between.lower_bias)]
        return [Affine(centre, jnp.concatenate(rows))]

    start = Affine(0.5 * lower + 0.5 * upper, projected(0.5 * upper - 0.5 * lower))
    graph.forward(problem.program, dict.fromkeys(("scan", "while", "cond"), rule), start, default=rule)
    return found


def _ends(value: Affine, num_projections: int) -> Bounds:
    rows = jnp.abs(value.generators).reshape(-1, num_projections, *value.centre.shape)
    reach: Any = jnp.median(rows, axis=1).sum(axis=0)
    return Bounds(value.centre - reach, value.centre + reach)
