"""Four quadratic bilevel problems, two with a singular inner Hessian: which method finds the optimum (Mehra & Hamm, 2021)?

`python -m experiments synthetic_bilevel --page docs/results/synthetic_bilevel.md`.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import experiment, files, gates, pages
from robustjax import base, bilevel
from robustjax.base import Array, Bilevel

NUM_INNER_STEPS = 10  # of v, and of Adam on ApproxGrad's linear system, in one update
BAR = 0.2  # mean distance to the optimum
_LIMIT = 5.0  # of every coordinate of u and v
_RATE = 1e-2  # of Adam, for u and v alike


class Problem(NamedTuple):
    """u and v in [-5, 5]^n, min over u of f(u, v(u)), v(u) in argmin g(u, .); what is measured is the distance to the optimum."""

    losses: Bilevel  # inner g and outer f, as (v, u, A)
    distance_fn: Callable  # (u, v, P) -> scalar, P the projection on the rows of A


def problems() -> dict[str, Problem]:
    """The problems by the authors' names, with s = A (1 - u - v) and d = A (u - v); A = 1 in the first two.

    SMD20: f = |u|^2 + |v|^2, g = |s|^2: u = v = 1/2. SMD21: f = |v|^2 - |d|^2, g = |d|^2: u = v = 0.
    SMD24: as SMD20 with a rank-deficient A: P u = P v = P 1/2; the rest of v is not determined by g, and not measured.
    SMD23: as SMD21 with a rank-deficient A: P u = 0 and v = 0: among all minima of g, v must be the one that f prefers.

    Written down from the optima that are published; the authors' A is not: here it has n / 2 rows of normal numbers with variance 1 / n.
    """

    def total(v, u, a):
        return jnp.sum((a @ (1.0 - u - v)) ** 2)

    def difference(v, u, a):
        return jnp.sum((a @ (u - v)) ** 2)

    halves = Bilevel(total, lambda v, u, a: jnp.sum(u**2) + jnp.sum(v**2))
    zeros = Bilevel(difference, lambda v, u, a: jnp.sum(v**2) - difference(v, u, a))

    def to_halves(u, v, p):
        return jnp.sqrt(jnp.sum((p @ (u - 0.5)) ** 2) + jnp.sum((p @ (v - 0.5)) ** 2))

    def to_zeros(u, v, p):
        return jnp.sqrt(jnp.sum((p @ u) ** 2) + jnp.sum(v**2))

    whole, part = Problem(halves, to_halves), Problem(zeros, to_zeros)
    return {"SMD20": whole, "SMD21": part, "SMD24": whole, "SMD23": part}


def matrix(name: str, key, size: int) -> Array:
    """A: the identity, or fewer rows than columns."""
    return jnp.eye(size) if name in ("SMD20", "SMD21") else jax.random.normal(key, (size // 2, size)) / jnp.sqrt(size)


def start(key, size: int) -> tuple[Array, Array]:
    """u and v, uniform in the box."""
    return tuple(jax.random.uniform(key, (2, size), minval=-_LIMIT, maxval=_LIMIT))


# --- methods: `(losses, a, num_updates) -> bilevel.Algorithm`, phi being u and theta v -----------------------------------------------


def penalty(losses: Bilevel, a: Array, num_updates: int) -> bilevel.Algorithm:
    """The penalty method; every constant changes by 1.1, as the authors have it here."""
    del a, num_updates
    return bilevel.penalty_method(
        losses,
        rho=10.0,  # at rho = 1 SMD23 is unbounded below
        weight=1.0,
        optimizer_phi=optax.adam(_RATE),
        optimizer_theta=optax.adam(_RATE),
        num_inner_steps=NUM_INNER_STEPS,
        weight_decay=1 / 1.1,
        tolerance_decay=1 / 1.1,
        rate_decay=1 / 1.1,
        project_fn=_box,
    )


def _by_gradient(descent_fn: Callable, losses: Bilevel, a: Array, num_updates: int) -> bilevel.Algorithm:
    """Alternation: steps of v down g, one step of Adam in u along a hypergradient; the rate of u falls like a cosine."""
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, num_updates))
    curvature = 1.05 * 2.0 * jnp.linalg.norm(a, ord=2) ** 2  # of g: 2 A'A
    solve = base.bind(bilevel.descend, inner_loss=losses.inner_loss, step_size=1.0 / curvature, num_steps=NUM_INNER_STEPS)
    return descent_fn(losses, solve=solve, optimizer=optimizer, project_fn=_box)


def _along(method: Callable):
    return functools.partial(_by_gradient, functools.partial(bilevel.hypergradient_descent, method=method))


_ADAM = base.bind(bilevel.solve_by_adam, learning_rate=1e-2, num_steps=NUM_INNER_STEPS)
_CG = base.bind(bilevel.conjugate_gradient, num_steps=NUM_INNER_STEPS)

METHODS: dict[str, Callable] = {
    "gradient descent": _along(bilevel.first_order),
    "RMD": _along(bilevel.unrolled),
    "ApproxGrad": functools.partial(_by_gradient, functools.partial(bilevel.approx_grad, linear_fn=_ADAM)),
    "implicit, CG": _along(base.bind(bilevel.implicit, linear_fn=_CG)),
    "penalty": penalty,
}


def distances(name: str, method: Callable, *, num_updates: int, num_trials: int, size: int, seed: int = 0) -> np.ndarray:
    """The distance to the optimum after every trial [num_trials]."""
    problem = problems()[name]

    def trial(key):
        key_start, key_matrix = jax.random.split(key)
        a = matrix(name, key_matrix, size)
        algorithm = method(problem.losses, a, num_updates)

        def step(state, _):
            state, _ = algorithm.step(state, a)
            return state._replace(theta=_box(state.theta)), None

        state, _ = jax.lax.scan(step, algorithm.init(*start(key_start, size)), length=num_updates)
        return problem.distance_fn(state.phi, state.theta, jnp.linalg.pinv(a) @ a)

    return np.asarray(jax.jit(jax.vmap(trial))(jax.random.split(jax.random.key(seed), num_trials)))


def _box(value):
    return jnp.clip(value, -_LIMIT, _LIMIT)


# --- the table -------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How long and how often; every cell is kept when it is done, so that a run goes on where it was stopped."""

    out: str = "runs/synthetic_bilevel"
    updates: int = 40_001
    trials: int = 5
    size: int = 20
    methods: tuple[Literal["gradient descent", "RMD", "ApproxGrad", "implicit, CG", "penalty"], ...] = tuple(METHODS)


def run(settings: Settings) -> None:
    """The table of distances with its gates."""
    experiment.prepare()
    start, about = time.perf_counter(), {"num_updates": settings.updates, "num_trials": settings.trials, "size": settings.size}
    if settings.quick:
        about = {"num_updates": 20, "num_trials": 2, "size": 4}
    cells: dict[tuple[str, str], list[float]] = {}
    for method in settings.methods:
        for name in problems():
            path = pathlib.Path(settings.out) / f"{method} {name} {'-'.join(map(str, about.values()))}.npz"
            make = functools.partial(distances, name, METHODS[method], **about)
            cells[method, name] = files.kept(path, make, method=method, name=name, **about)
    table = [
        [method, *(f"{np.mean(part):.2g} ({min(part):.2g} to {max(part):.2g})" for part in (cells[method, name] for name in problems()))]
        for method in settings.methods
    ]
    blocks = [pages.table(["method", *problems()], table), pages.gates_of(check(cells))]
    page = pages.Page("Synthetic bilevel problems", _HEAD.format(**about))
    experiment.publish("synthetic_bilevel", settings, page, "", blocks, start)


def check(cells: dict[tuple[str, str], list[float]]) -> list[gates.Gate]:
    """Of mean distances, by (method, problem): the penalty method solves all four, and no other method solves SMD23."""
    means = {cell: float(np.mean(found)) for cell, found in cells.items()}
    mine = [means[method, name] for method, name in cells if method == "penalty"]
    others = [means[method, name] for method, name in cells if method != "penalty" and name == "SMD23"]
    made = [gates.Gate("the largest mean distance of the penalty method", max(mine), high=BAR)] if mine else []
    return [*made, *([gates.Gate("the smallest mean distance of another method on SMD23", min(others), low=BAR)] if others else [])]


_HEAD = """\
Distances to the optimum after {num_updates:,} updates, means (and range) of {num_trials} trials; u and v in [-5, 5]^{size}
from random starts, 10 steps of v in an update, float32. In SMD23 and SMD24 the inner Hessian has half its rank. SMD23 alone asks which of
the inner minima the outer loss prefers: what descends in v along the inner loss alone cannot see it, whatever its hypergradient.
The problems' formulas are in `experiments/reproductions/synthetic_bilevel.py`.
"""
