"""Random weights, inputs, radii and methods on many architectures: whether any output that is reached leaves its bounds.

`python -m experiments fuzz_bounds --page docs/results/fuzz_bounds.md`. Each architecture is compiled once for all its
cases; they take turns with three balls.
"""

import dataclasses
import math
import time

from experiments.lib import bounded_models, experiment, fuzzing, gates, pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How many cases, and from which seed on."""

    cases: int = 10_000
    """At least so many, each of one set of weights, one input, one radius and one method."""
    seed: int = 0


def run(settings: Settings) -> None:
    """A row for each architecture, and the gates."""
    start, rows, found = time.perf_counter(), [], []
    experiment.prepare(1)
    names = ["mlp", "tanh"] if settings.quick else [*bounded_models.MORE]
    methods = {name: fuzzing.METHODS[name] for name in ("interval", "CROWN")} if settings.quick else fuzzing.METHODS
    num_seeds = 2 if settings.quick else math.ceil(settings.cases / (len(names) * len(methods)))
    for i, name in enumerate(names):
        ball = [*fuzzing.BALLS][i % len(fuzzing.BALLS)]
        seeds = range(settings.seed, settings.seed + num_seeds)
        made = list(fuzzing.cases(bounded_models.MORE[name], ball, seeds, methods))
        violations = [f"{case.method}, seed {case.seed}" for case in made if case.is_violation]
        rows.append([name, ball, f"{len(made)}", f"{fuzzing.worst(made):.1e}", "; ".join(violations) or "none"])
        experiment.console.print(*rows[-1])
        found += made
    checked = [gates.Gate("outputs outside their bounds", sum(case.is_violation for case in found), high=0, digits="d")]
    if not settings.quick:
        checked += [gates.Gate("cases", len(found), low=10_000, digits="d"), gates.Gate("architectures", len(names), low=30, digits="d")]
    blocks = [pages.table(_HEADER, rows), pages.gates_of(checked)]
    experiment.publish("fuzz_bounds", settings, _PAGE, "", blocks, start, seeds=[settings.seed])


_HEADER = ["architecture", "ball", "cases", "least slack", "violations"]
_PAGE = pages.Page(
    "Bounds against random weights, inputs and radii",
    pages.text(
        "Every case draws weights, an input and a radius over three decades, in float64, and reaches "
        "random points, corners and the corners to which gradients point. Methods: "
        + ", ".join(fuzzing.METHODS)
        + ". The slack is the least "
        "distance between a bound and an output that was reached, over the largest output; one below -1e-9 is a violation."
    )["text"],
)
