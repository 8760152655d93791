"""Untargeted poisoning of MNIST at full length, against the accuracies that Mehra & Hamm (2021) report.

`ROBUSTJAX_DATA=DIR python -m experiments untargeted_poisoning_gates --page docs/results/untargeted_poisoning.md`; finished curves are kept
under `--out`, so that it goes on where it was stopped.
"""

import dataclasses
import pathlib
import time

import numpy as np

from experiments.lib import data, experiment, files, gates, pages
from experiments.lib import learned_poisons as learned
from experiments.tutorial.part4 import untargeted_poisoning

PUBLISHED: dict[str, dict[int, str]] = {
    "clean": {},
    "random flips": {30: "84.9", 60: "84.6"},
    "ApproxGrad": {30: "74.4", 60: "67.0"},
    "penalty": {30: "75.1", 60: "67.6"},
    "back-gradient": {30: "82 (RMD)", 60: "79 (RMD)"},
}
BOUNDS = {"random flips": {"low": 85.0}, "ApproxGrad": {"high": 70.0}, "penalty": {"high": 70.0}}  # at 60 poisons


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.DataOptions):
    """How many poisons, how long, how often."""

    out: str = "runs/untargeted_poisoning"
    dataset: data.Name = "mnist"
    counts: tuple[int, ...] = (10, 20, 30, 40, 50, 60)
    """Numbers of poisons."""
    seeds: int = 3
    updates: int = 5000


def run(settings: Settings) -> None:
    """Accuracy by attack and number of poisons."""
    experiment.prepare()
    start, num_updates = time.perf_counter(), 2 if settings.quick else settings.updates
    num_images = (100, 100) if settings.quick else (1000, 1000)
    methods = {
        "random flips": None,
        "ApproxGrad": learned.approximate(num_updates),
        "penalty": learned.penalty(num_updates),
        "back-gradient": learned.backward(max(num_updates // 10, 1)),
    }
    dataset, seeds = data.load(settings.dataset), range(settings.seed, settings.seed + settings.seeds)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in ("clean", *methods)}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for seed in seeds:

        def keep(name, counts, make, seed=seed):
            about = {
                "dataset": settings.dataset,
                "updates": num_updates,
                "seed": seed,
                "counts": counts,
                "name": name,
                "images": num_images,
            }
            path = pathlib.Path(settings.out) / f"{name} {seed} {num_updates} {'-'.join(map(str, counts))}.npz"
            values, lasted = files.kept(path, lambda: _timed(make), **about)
            print(name, seed, values, flush=True)
            seconds[name].append(lasted)
            for count, value in zip(counts, values, strict=True):
                found[name].setdefault(count, []).append(value)
            return values

        untargeted_poisoning.accuracies(methods, learned.split(dataset, seed, *num_images), settings.counts, seed, keep)
    means = {name: {count: f"{np.mean(values):.1f}" for count, values in by_count.items()} for name, by_count in found.items()}
    rows = [
        [name, str(count), means[name][count], ", ".join(f"{value:.1f}" for value in values), PUBLISHED[name].get(count, "")]
        for name, by_count in found.items()
        for count, values in by_count.items()
    ]
    checked = [gates.over_seeds(f"{name}, 60 poisons", found[name][60], **bound) for name, bound in BOUNDS.items() if 60 in found[name]]
    told = ", ".join(f"{name} {np.mean(seconds[name]):.0f} s" for name, method in methods.items() if method is not None)
    table = pages.table(["poisons", "number", "accuracy in %", "seeds", "published"], rows)
    blocks = [table, pages.gates_of(checked), pages.text(f"Of one seed, all numbers of poisons at once: {told}.")]
    page = pages.Page("Untargeted poisoning", _HEAD.format(updates=num_updates, back=num_updates // 10))
    experiment.publish("untargeted_poisoning_gates", settings, page, "", blocks, start, seeds=seeds)


def _timed(make):
    start = time.perf_counter()
    return make(), time.perf_counter() - start


_HEAD = """\
MNIST's 10,000 test images, permuted by the seed: 1,000 for training, 1,000 for validation, 8,000 for testing. The victim is a linear
softmax without bias (weight decay .0025 |W|^2), retrained from scratch on training images and poisons. Poisons start as copies of the
first training images with a random wrong label (that is the row of random flips); the attacks learn their pixels in [0, 1]. Penalty and
ApproxGrad have the authors' constants ({updates} updates; in ApproxGrad, Adam's moments for theta and for the linear system start afresh
in each); back-gradient goes back through 100 steps from zero, {back} times, with all
poisons at once. Published: means of 5 runs as reported by Mehra & Hamm (2021), whose row for back-gradient is reverse mode through
warm-started steps (RMD).
"""
