"""Every way to differentiate a bilevel problem against the closed form, in one table: relative error, and cost in inner gradients.

`python -m experiments hypergradient_gates --page docs/results/hypergradients.md`, with `--jaxopt` also against jaxopt's unrolled gradient
descent (`pip install jaxopt`).
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import bench, experiment, gates, hypergradients, oracles, pages, peers
from robustjax import bilevel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How often, and beside what."""

    rounds: int = 5
    jaxopt: bool = False
    """Compare with jaxopt."""


def run(settings: Settings) -> None:
    """The table with its gates."""
    peers.require(*(["jaxopt"] if settings.jaxopt else []))
    experiment.prepare()
    start, rows = time.perf_counter(), hypergradients.ways(hypergradients.FEWEST if settings.quick else None)
    sizes = (100, 10, 10) if settings.quick else oracles.SIZES
    with jax.enable_x64(True):
        problems = {name: oracles.build(name, *sizes) for name in oracles.CONDITIONS}
        found = {name: hypergradients.measure(o, rows, settings.rounds) for name, o in problems.items()}
        modes = {name: hypergradients.forward_and_reverse(o) for name, o in problems.items()}
        versus = {name: _against_python(o, settings.rounds, settings.jaxopt) for name, o in problems.items()}
    lines, ratios = [], []
    for row in rows:
        cells = []
        for name in problems:
            made, there = found[name][0][row.label], row.reference.get(name)
            cells += [f"{made.error:.2g} / {made.cost:.0f}", "" if there is None else f"{there:.2g}"]
            if there is not None:
                ratios.append((made.error / max(there, 1e-14), f"{row.label} on {name}"))
        lines.append([row.label, *cells])
    forward = {"forward, log mu, 200 steps: against the formula": (1, ""), "the same: against reverse mode": (0, "1e-15")}
    for label, (place, reference) in forward.items():
        lines.append([label, *(cell for name in problems for cell in (f"{modes[name][place]:.2g}", reference))])
    cg = {name: found[name][0]["CG 50"].error for name in problems}
    checked = [gates.Gate(f"CG 50 on {name}, relative error", cg[name], high=1e-8) for name in problems]
    checked += [gates.Gate(f"a Hessian product on {name}, in inner gradients", found[name][1], high=1.3) for name in problems]
    checked += [gates.Gate(f"{versus[name][0]} 200 on {name}, time over unrolled 200", versus[name][1], low=10.0) for name in problems]
    worse = sorted(((ratio, what) for ratio, what in ratios if ratio > 2), reverse=True)
    header = ["method", *(column for name in problems for column in (name, "elsewhere"))]
    told = ", ".join(f"{what} ({ratio:.1f}x)" for ratio, what in worse) or "none"
    blocks = [pages.table(header, lines), pages.gates_of(checked), pages.text(_NOTES.format(worse=told))]
    conditions = ", ".join(f"{name} {o.condition:.2f}" for name, o in problems.items())
    page = pages.Page("Hypergradients against the closed form", _HEAD.format(rounds=settings.rounds, conditions=conditions))
    packages = ["jaxopt"] if settings.jaxopt else []
    experiment.publish("hypergradient_gates", settings, page, "", blocks, start, packages=packages)


def _against_python(o, num_rounds, with_jaxopt):
    """(what, its CPU time over that of unrolled 200): jaxopt's unrolled descent, or else a Python loop of the same steps."""
    ours = jax.jit(hypergradients.through(bilevel.unrolled, 200)(o))
    if with_jaxopt:
        import jaxopt

        solver = jaxopt.GradientDescent(
            o.problem.inner_loss, stepsize=1.0 / o.largest, maxiter=200, tol=0.0, acceleration=False, implicit_diff=False
        )
        theirs = jax.grad(lambda phi: o.problem.outer_loss(solver.run(jnp.zeros_like(o.theta), phi, o.batch).params, phi, o.batch))
    else:
        step = jax.jit(lambda theta, phi: theta - jax.grad(o.problem.inner_loss)(theta, phi, o.batch) / o.largest)

        def by_python(phi):
            theta = jnp.zeros_like(o.theta)
            for _ in range(200):
                theta = step(theta, phi)
            return o.problem.outer_loss(theta, phi, o.batch)

        theirs = jax.grad(by_python)
    assert float(jnp.linalg.norm(theirs(o.phi) - ours(o.phi)) / jnp.linalg.norm(o.grad)) < 1e-9
    calls = {name: bench.Run(lambda f=f: jax.block_until_ready(f(o.phi)), 1) for name, f in {"ours": ours, "theirs": theirs}.items()}
    times = bench.measure(calls, num_rounds)
    return "jaxopt's unrolled" if with_jaxopt else "a Python loop of", float(np.median(times["theirs"].cpu / times["ours"].cpu))


_HEAD = """\
d outer / d phi for the features of 50 poisons beside 1,000 rows of 50 features, the outer loss being minus the validation loss; float64.
Cells are relative error / cost, the cost being CPU time over that of one inner gradient in the same round (medians of {rounds} rounds).
The exact gradient is Mei & Zhu's formula in NumPy. Rows are built to a condition number ({conditions}): an orthonormal basis
with geometric eigenvalues, see `experiments/lib/oracles.py`. The columns "elsewhere" are errors that other implementations of the same
iterations had on other data with the same condition numbers, so that orders of magnitude are what can be compared. Implicit ways start
at the inner optimum, with a zero p; steps of descent and of the Neumann series are 1 / lambda_max, Adam's are .01.
"""
_NOTES = """\
More than twice the error elsewhere (taken as 1e-14 at least): {worse}.

The reversal of back-gradient is not mended, but reported: its residual is far above 1 where it explodes. `stored=True` is exact.
"""
