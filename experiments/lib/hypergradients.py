"""Every way to differentiate a bilevel problem against the closed form: relative error, and cost in inner gradients of the same run."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import bench, oracles
from robustjax import base, bilevel, loops
from robustjax.base import Bilevel
from robustjax.bilevel import problem as parts

_SECONDS = 0.05  # of repetitions in one timing
FEWEST = ("dense", "CG 5", "CG 10", "CG 20", "CG 50", "unrolled 50")
FEW = (
    "dense", "CG 5", "CG 20", "CG 50", "Neumann 20", "Neumann 500", "Adam 10", "Adam 2000", "unrolled 50", "unrolled 200", "unrolled 1000",
    "the last 1 of 200", "the last 20 of 200", "back-gradient 50", "back-gradient 200", "penalty at rho 1e2", "penalty at rho 1e4",
    "value function, weight 1e3, 1000 steps",
)  # fmt: skip


class Way(NamedTuple):
    """One row: a method at one setting, and what was measured elsewhere for it."""

    family: str
    label: str
    make: Callable  # oracle -> (phi -> gradient)
    reference: dict[str, float]  # relative error by problem


# --- the ways to differentiate ---------------------------------------------------------------------------------------------------


def _at_optimum(linear: Callable):
    """Implicit differentiation at the known optimum; linear: oracle -> linear_fn."""

    def make(o):
        method = base.bind(bilevel.implicit, linear_fn=linear(o))
        return lambda phi: method(o.problem, lambda phi, theta0, batch: o.theta, phi, o.theta, o.batch).grad

    return make


def solver(o: oracles.Oracle, num_steps: int, **options):
    """Gradient descent with steps of 1 / lambda_max."""
    return base.bind(bilevel.descend, inner_loss=o.problem.inner_loss, step_size=1.0 / o.largest, num_steps=num_steps, **options)


def through(method: Callable, num_steps: int, **options):
    """A method that differentiates gradient descent from zero with steps of 1 / lambda_max."""

    def make(o):
        solve = solver(o, num_steps, **options)
        return lambda phi: method(o.problem, solve, phi, jnp.zeros_like(o.theta), o.batch).grad

    return make


def _truncated(num_steps: int, num_last: int):
    def make(o):
        solve, tail = solver(o, num_steps - num_last), solver(o, num_last)
        return lambda phi: bilevel.truncated(o.problem, solve, phi, jnp.zeros_like(o.theta), o.batch, tail=tail).grad

    return make


def _lissa(num_steps: int, num_repeats: int, batch_size: int = 100):
    def make(o):
        scale = 4.0 * o.largest  # 100 rows of 50 features: above the largest eigenvalue of a sample, (1 + sqrt(1 / 2))^2 of the whole

        def gradient(phi):
            rows = jnp.concatenate([o.batch.x, phi])

            def sampled(key, p):
                some = jax.random.choice(key, len(rows), (batch_size,))
                part = o.batch._replace(x=rows[some], y=o.batch.y[some])
                slope = lambda theta: jax.grad(o.problem.inner_loss)(theta, phi[:0], part)  # noqa: E731
                return jax.jvp(slope, (o.theta,), (p,))[1]

            options = {"scale": scale, "num_steps": num_steps, "num_repeats": num_repeats}
            linear_fn = base.bind(bilevel.lissa, key=jax.random.key(0), sampled_fn=sampled, **options)
            return _at_optimum(lambda o: linear_fn)(o)(phi)

        return gradient

    return make


def _penalty(rho: float):
    """The penalty method's direction, outer + rho / 2 |d inner / d theta|^2 differentiated in phi, where it is stationary in theta."""

    def make(o):
        def penalised(theta, phi):
            slope = jax.grad(o.problem.inner_loss)(theta, phi, o.batch)
            return o.problem.outer_loss(theta, phi, o.batch) + 0.5 * rho * jnp.sum(slope**2)

        def gradient(phi):
            def newton(theta, _):
                return theta - jnp.linalg.solve(jax.hessian(penalised)(theta, phi), jax.grad(penalised)(theta, phi)), None

            theta = jax.lax.scan(newton, o.theta, length=15)[0]
            return jax.grad(penalised, argnums=1)(theta, phi)

        return gradient

    return make


def ways(few: Sequence[str] | None = None) -> list[Way]:
    """All rows, or those with these labels.

    The references are measurements of other implementations on other data with the same condition numbers.
    """

    def both(ridge, logistic):
        return {"ridge": ridge, "logistic": logistic}

    def cg(k):
        return _at_optimum(lambda o: base.bind(bilevel.conjugate_gradient, num_steps=k))

    def neumann(k):
        return _at_optimum(lambda o: base.bind(bilevel.neumann, step_size=1.0 / o.largest, num_steps=k))

    def adam(k):
        return _at_optimum(lambda o: base.bind(bilevel.solve_by_adam, learning_rate=1e-2, num_steps=k))

    def value(weight, num_steps):
        return through(base.bind(bilevel.value_function, weight=weight), num_steps)

    rows = [
        Way("dense", "dense", _at_optimum(lambda o: bilevel.dense), both(3e-15, 8e-16)),
        Way("CG", "CG 5", cg(5), both(0.33, 0.072)),
        Way("CG", "CG 10", cg(10), both(0.089, 4e-3)),
        Way("CG", "CG 20", cg(20), both(1.6e-3, 5e-6)),
        Way("CG", "CG 50", cg(50), both(4e-10, 2e-15)),
        Way("Neumann", "Neumann 20", neumann(20), both(0.37, 0.083)),
        Way("Neumann", "Neumann 100", neumann(100), both(0.061, 1.8e-4)),
        Way("Neumann", "Neumann 500", neumann(500), both(2.5e-5, 2e-15)),
        Way("Adam", "Adam 10", adam(10), both(0.84, 0.90)),
        Way("Adam", "Adam 200", adam(200), both(0.48, 0.105)),
        Way("Adam", "Adam 2000", adam(2000), both(0.026, 0.043)),
        Way("LiSSA", "LiSSA 200, 1 run of 100 rows", _lissa(200, 1), {}),
        Way("LiSSA", "LiSSA 1000, 10 runs of 100 rows", _lissa(1000, 10), {}),
        Way("unrolled", "unrolled 50", through(bilevel.unrolled, 50), both(0.16, 9e-3)),
        Way("unrolled", "unrolled 200", through(bilevel.unrolled, 200), both(5.6e-3, 1.8e-7)),
        Way("unrolled", "unrolled 1000", through(bilevel.unrolled, 1000), both(1.6e-9, 2e-15)),
        Way("", "unrolled 200, checkpointed", through(bilevel.unrolled, 200, loop_fn=loops.checkpointed), both(5.6e-3, 1.8e-7)),
        Way("truncated", "the last 1 of 200", _truncated(200, 1), both(0.83, 0.82)),
        Way("truncated", "the last 5 of 200", _truncated(200, 5), both(0.63, 0.45)),
        Way("truncated", "the last 20 of 200", _truncated(200, 20), both(0.38, 0.090)),
        Way("back-gradient", "back-gradient 50", through(bilevel.back_gradient, 50), both(0.158, 0.038)),
        Way("back-gradient", "back-gradient 100", through(bilevel.back_gradient, 100), both(4.5e10, 0.014)),
        Way("back-gradient", "back-gradient 200", through(bilevel.back_gradient, 200), both(5.6e38, 0.0056)),
        Way("", "back-gradient 200, stored", through(base.bind(bilevel.back_gradient, stored=True), 200), both(5.6e-3, 1.8e-7)),
        Way("", "penalty at rho 10", _penalty(10.0), both(47.0, 184.0)),
        Way("penalty", "penalty at rho 1e2", _penalty(1e2), both(0.27, 0.17)),
        Way("penalty", "penalty at rho 1e3", _penalty(1e3), both(0.019, 0.012)),
        Way("penalty", "penalty at rho 1e4", _penalty(1e4), both(0.0019, 0.0012)),
        Way("value function", "value function, weight 1e3, 1000 steps", value(1e3, 1000), {}),
        Way("value function", "value function, weight 1e5, 1000 steps", value(1e5, 1000), {}),
    ]
    return rows if few is None else [row for row in rows if row.label in few]


class Measured(NamedTuple):
    """One row's result."""

    error: float  # |gradient - exact| / |exact|
    cost: float  # in inner gradients


def measure(o: oracles.Oracle, rows: list[Way], num_rounds: int = 3) -> tuple[dict[str, Measured], float]:
    """Error and cost of every row, and the cost of one Hessian product, all in one run, by CPU time."""
    inner = jax.grad(o.problem.inner_loss)
    product = parts.hessian(o.problem.inner_loss, o.theta, o.phi, o.batch)
    descended = lambda value, out: value - 1e-3 * out  # noqa: E731
    runs = {
        "gradient": _repeated(_chained(lambda theta: inner(theta, o.phi, o.batch), descended), o.theta),
        "product": _repeated(_chained(product, descended), o.theta),
    }
    errors = {}
    for row in rows:
        # Each repetition waits for the one before, and the compiler knows nothing of it.
        many = _chained(row.make(o), lambda value, out: value + 1e-30 * jnp.tanh(out))
        found = many(o.phi, 1)[1]
        errors[row.label] = float(jnp.linalg.norm(found - o.grad) / jnp.linalg.norm(o.grad))
        runs[row.label] = _repeated(many, o.phi)
    times = bench.measure(runs, num_rounds)
    unit = times["gradient"].cpu
    ratio = lambda name: float(np.median(times[name].cpu / unit))  # noqa: E731
    return {name: Measured(error, ratio(name)) for name, error in errors.items()}, ratio("product")


def _chained(function: Callable, next_fn: Callable) -> Callable:
    """(value, number) -> the value and the output after that many calls in one compiled loop, each of what the one before led to."""

    @jax.jit
    def many(value, num_repeats):
        def step(_, carry):
            out = function(carry[0])
            return next_fn(carry[0], out), out

        return jax.lax.fori_loop(0, num_repeats, step, (value, jnp.zeros_like(value)))

    return many


def _repeated(many: Callable, start) -> bench.Run:
    """A run of enough repetitions that dispatch does not count."""
    jax.block_until_ready(many(start, 1))  # compiled
    begin = time.process_time()
    jax.block_until_ready(many(start, 1))
    num_repeats = int(np.clip(_SECONDS / max(time.process_time() - begin, 1e-6), 1, 2000))
    return bench.Run(lambda: jax.block_until_ready(many(start, num_repeats)), num_repeats)


def forward_and_reverse(o: oracles.Oracle, num_steps: int = 200) -> tuple[float, float]:
    """d outer / d log(mu) through descent: the relative difference of both modes, and the error against the formula (ridge only)."""

    def with_mu(loss):
        return lambda theta, log_mu, batch: loss(theta, o.phi, batch._replace(mu=jnp.exp(log_mu)))

    problem = Bilevel(*map(with_mu, o.problem))
    log_mu = jnp.log(o.batch.mu)
    solve = base.bind(solver(o, num_steps), inner_loss=problem.inner_loss)
    ahead, back = (method(problem, solve, log_mu, jnp.zeros_like(o.theta), o.batch).grad for method in (bilevel.forward, bilevel.unrolled))
    hessian = jax.hessian(o.problem.inner_loss)(o.theta, o.phi, o.batch)
    exact = -jax.grad(o.problem.outer_loss)(o.theta, o.phi, o.batch) @ jnp.linalg.solve(hessian, o.batch.mu * o.theta)
    return float(jnp.abs(ahead - back) / jnp.abs(back)), float(jnp.abs(ahead - exact) / jnp.abs(exact))
