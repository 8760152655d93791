"""The linear program over the relaxation of a whole network, and the integer program that is exact for ReLUs, by SciPy's HiGHS."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

from robustjax import base, checks, drivers
from robustjax.base import Array, ModelFn, NormThreat
from robustjax.bounds import network, relaxed_network
from robustjax.bounds.network import Bounds


def linear_program(
    model_fn: ModelFn,
    x: Array,
    threat: NormThreat,
    *,
    integer: bool = False,
    time_limit: float = 60.0,
    max_variables: int = 5000,
) -> Bounds:
    """The extremes of every output over the relaxed network: one linear program each, or one with a choice at every unstable ReLU.

    Non-linear functions are relaxed by the planes of `crown`, ReLUs by their triangle, over the tighter ones of CROWN's bounds with two
    slopes and intervals. Runs on the host, one example after the other, for small networks; with `margins` it gives certificates.

    Args:
      model_fn: x [B, ...] -> [B, ...], any Flax model or function in eval mode.
      x: inputs [B, ...].
      threat: a norm ball around x, or a `Latent` one.
      integer: choose the piece of every unstable ReLU, maximum or minimum of two values, by an integer variable.
      time_limit: seconds for each program; what is proved by then is a bound.
      max_variables: of one program; there is one for each number of the input, and two for each unit with a non-linear function.

    Returns:
      Bounds [B, ...] of the model's output, on the host.

    Raises:
      ValueError: the network has too many variables. TypeError: a value is traced.

    Guarantee:
      every x' in the threat has lower <= model_fn(x') <= upper: of a linear program by its dual, up to the rounding of floating-point
      arithmetic, whatever the solver returns; with integer=True as HiGHS proves it, within its tolerance of 1e-6. With integer=True the
      bounds are exact for networks of ReLUs and the other functions named above if no program ran out of time. Exact in `Linf` and
      `L1`; another ball is replaced by the interval of each coordinate, which is larger.
    Source: Ehlers, ATVA 2017, arXiv:1705.01320 (Planet); Salman et al., NeurIPS 2019, arXiv:1902.08722; Tjeng et al., ICLR 2019,
      arXiv:1711.07356 (MILP). The bound from any dual point: Neumaier & Shcherbina, Mathematical Programming 2004. Differs: bounds of units
      are those of CROWN, not of programs of their own.
    """
    checks.on_host(x)
    checks.counts(max_variables=max_variables)
    network.check(model_fn, x, threat)
    if not time_limit > 0:
        raise ValueError(f"expected time_limit > 0 seconds for each program, got {time_limit}; pass e.g. 60.0.")
    found = []
    for i in range(x.shape[0]):
        model, point, inside = network.row_of(model_fn, x, threat, i)
        made = _compiled(base.bind(_relaxed, model_fn=model, x=point, threat=inside, max_variables=max_variables))
        found.append(_extremes(jax.tree.map(lambda a: np.asarray(a)[0], made), integer, time_limit))
    shape = jax.eval_shape(model_fn, x)
    return Bounds(*(jnp.asarray(np.stack(ends), shape.dtype).reshape(shape.shape) for ends in zip(*found, strict=True)))


_compiled = drivers.jit(lambda problem: problem())


def _relaxed(*, model_fn, x, threat, max_variables):
    return network.per_example(lambda problem: relaxed_network.relaxed(problem, max_variables), model_fn, x, threat)


def _extremes(relaxed: Any, integer: bool, time_limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of every output of an example, whose `relaxed_network.Relaxed` holds numpy arrays."""
    problem = _Problem(relaxed, integer, time_limit)
    ends = []
    for centre, generators in zip(relaxed.centre, relaxed.generators.T, strict=True):
        least, negative = (problem.least(sign * generators) if generators.any() else 0.0 for sign in (1.0, -1.0))
        ends.append((centre + least, centre - negative))
    lower, upper = np.asarray(ends, np.float64).reshape(-1, 2).T
    return lower, upper


class _Rows(NamedTuple):
    """Rows of sparse constraints: sum of values at columns of a row <= or = limit."""

    matrix: scipy.sparse.csr_array
    limit: np.ndarray


class _Constraints:
    """Collects rows."""

    def __init__(self):
        self.parts, self.limits, self.num_rows = [], [], 0

    def add(self, limit: np.ndarray, *terms: tuple[Any, Any]) -> None:
        """A row for each limit that is finite, with terms (columns [n], values [n])."""
        kept = np.flatnonzero(np.isfinite(limit))
        rows = self.num_rows + np.arange(kept.size)
        self.parts += [(rows, np.broadcast_to(columns, limit.shape)[kept], np.broadcast_to(v, limit.shape)[kept]) for columns, v in terms]
        self.limits.append(limit[kept])
        self.num_rows += kept.size

    def add_dense(self, limit: np.ndarray, columns: np.ndarray, own: np.ndarray, factor: float, generators: np.ndarray) -> None:
        """A row factor * (variable `own` - generators * variables at columns) <= limit for each limit that is finite."""
        kept = np.flatnonzero(np.isfinite(limit))
        symbol, unit = np.nonzero(generators[:, kept])
        self.parts.append((self.num_rows + unit, columns[symbol], -factor * generators[:, kept][symbol, unit]))
        self.add(limit, (own, np.full(limit.shape, factor)))

    def rows(self, num_variables: int) -> _Rows:
        """All of them."""
        if not self.num_rows:
            return _Rows(scipy.sparse.csr_array((0, num_variables)), np.zeros(0))
        row, column, value = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        matrix = scipy.sparse.coo_array((value.astype(np.float64), (row, column)), shape=(self.num_rows, num_variables))
        return _Rows(matrix.tocsr(), np.concatenate(self.limits).astype(np.float64))


class _Problem:
    """The constraints of an example, of which each output has two objectives."""

    def __init__(self, relaxed: Any, integer: bool, time_limit: float):
        self.lower, self.upper = relaxed.lower.astype(np.float64), relaxed.upper.astype(np.float64)
        self.integrality = np.zeros(self.lower.size)
        self.time_limit = time_limit
        at_most, equal = _Constraints(), _Constraints()
        for tie in relaxed.ties:
            equal.add_dense(tie.centre, np.arange(tie.generators.shape[0]), tie.columns, 1.0, tie.generators)
        for each in relaxed.maps:
            at_most.add_dense(-each.low, each.inputs, each.columns, -1.0, each.lower)
            at_most.add_dense(each.high, each.inputs, each.columns, 1.0, each.upper)
        for strips in relaxed.strips:
            for found in (strips.flat, strips.steep):
                at_most.add(-found.lower_bias, (strips.columns, -1.0), *zip(strips.inputs, found.lower, strict=True))
                upper = [(columns, -slope) for columns, slope in zip(strips.inputs, found.upper, strict=True)]
                at_most.add(found.upper_bias, (strips.columns, 1.0), *upper)
            if integer:
                self._choose(at_most, strips, -1.0)
                self._choose(at_most, strips, 1.0)
        if relaxed.ball is not None:
            self._in_ball(at_most, *relaxed.ball)
        self.at_most, self.equal = at_most.rows(self.lower.size), equal.rows(self.lower.size)

    def _variables(self, lower: np.ndarray, upper: np.ndarray, integrality: int) -> np.ndarray:
        start = self.lower.size
        self.lower, self.upper = np.concatenate([self.lower, lower]), np.concatenate([self.upper, upper])
        self.integrality = np.concatenate([self.integrality, np.full(lower.size, integrality)])
        return np.arange(start, self.lower.size)

    def _choose(self, at_most: _Constraints, strips: Any, sign: float) -> None:
        """Where two planes on one side differ, the output lies on one of both.

        Args:
          sign: -1 for planes below, which the output must not be above; 1 for planes above.
        """
        sides = [(each.lower, each.lower_bias) if sign < 0 else (each.upper, each.upper_bias) for each in (strips.flat, strips.steep)]
        (flat, flat_bias), (steep, steep_bias) = sides
        differs = (flat_bias != steep_bias) | np.any([a != b for a, b in zip(flat, steep, strict=True)], axis=0)
        at = np.flatnonzero(differs)
        chosen = self._variables(np.zeros(at.size), np.ones(at.size), 1)
        columns, inputs = strips.columns[at], [each[at] for each in strips.inputs]
        for one, one_bias, other, other_bias, is_one in (
            (flat, flat_bias, steep, steep_bias, 0.0),
            (steep, steep_bias, flat, flat_bias, 1.0),
        ):
            # -sign (output - one) <= room * (choice that is not one), where room is the most that the other plane is beyond this one
            room = -sign * (other_bias - one_bias)[at]
            for slope, rival, column in zip(one, other, inputs, strict=True):
                bend = -sign * (rival - slope)[at]
                room = room + np.maximum(bend * self.lower[column], bend * self.upper[column])
            room = np.maximum(room, 0.0)
            terms = [(column, sign * slope[at]) for column, slope in zip(inputs, one, strict=True)]
            factor = -room if is_one == 0.0 else room
            at_most.add(-sign * one_bias[at] + is_one * room, (columns, -sign * np.ones(at.size)), (chosen, factor), *terms)

    def _in_ball(self, at_most: _Constraints, middle: np.ndarray, weights: np.ndarray, radius: np.ndarray) -> None:
        """sum of weights * |x - middle| <= radius."""
        columns = np.arange(middle.size)
        reach = np.maximum(self.upper[columns] - middle, middle - self.lower[columns])
        lengths = self._variables(np.zeros(middle.size), np.maximum(reach, 0.0), 0)
        at_most.add(middle, (columns, 1.0), (lengths, -1.0))
        at_most.add(-middle, (columns, -1.0), (lengths, -1.0))
        at_most.parts.append((np.full(middle.size, at_most.num_rows), lengths, weights))
        at_most.add(np.asarray(radius).reshape(1))

    def least(self, generators: np.ndarray) -> float:
        """A lower bound of <generators, variables>, which is the minimum where the solver finds it."""
        objective = np.zeros(self.lower.size)
        objective[: generators.size] = generators
        if self.integrality.any():
            constraints = [
                scipy.optimize.LinearConstraint(self.at_most.matrix, -np.inf, self.at_most.limit),
                scipy.optimize.LinearConstraint(self.equal.matrix, self.equal.limit, self.equal.limit),
            ]
            box = scipy.optimize.Bounds(self.lower, self.upper)
            options = {"time_limit": self.time_limit, "mip_rel_gap": 0.0}
            found = scipy.optimize.milp(objective, integrality=self.integrality, bounds=box, constraints=constraints, options=options)
            proved = found.mip_dual_bound
            return self._dual(objective, None) if proved is None or not np.isfinite(proved) else float(proved)
        found = scipy.optimize.linprog(
            objective,
            *(self.at_most.matrix, self.at_most.limit, self.equal.matrix, self.equal.limit),
            bounds=np.stack([self.lower, self.upper], axis=1),
            method="highs",
            options={"time_limit": self.time_limit},
        )
        return self._dual(objective, found if found.status == 0 else None)

    def _dual(self, objective: np.ndarray, found: Any) -> float:
        """The bound of a dual point, which holds for any: what is left of the objective takes its least value in the box of variables."""
        rest, bound = objective, 0.0
        if found is not None:
            below, equal = np.minimum(found.ineqlin.marginals, 0.0), found.eqlin.marginals
            rest = objective - self.at_most.matrix.T @ below - self.equal.matrix.T @ equal
            bound = float(below @ self.at_most.limit + equal @ self.equal.limit)
        ends = np.where(rest > 0, self.lower, self.upper)
        return bound + float(np.sum(np.where(rest == 0, 0.0, rest * np.where(rest == 0, 0.0, ends))))
