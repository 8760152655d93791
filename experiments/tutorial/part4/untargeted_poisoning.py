"""Untargeted poisoning through the training set: images with wrong labels, learned so that the retrained model fails (Mehra & Hamm, 2021).

`python -m experiments untargeted_poisoning` makes the figure of the report on embedded digits;
`ROBUSTJAX_DATA=DIR python -m experiments untargeted_poisoning --dataset mnist --table docs/results/untargeted_poisoning.md` the table on
MNIST's test images, curve by curve: finished ones are kept under `--out`, so that it goes on where it was stopped.
"""

import argparse
import json
import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, experiment, files, report
from experiments.lib import learned_poisons as learned
from robustjax.base import Array


def flip(images: learned.Split, num_poisons: int, seed: int) -> tuple[Array, learned.Batch]:
    """Copies of the first training images with random wrong labels: the first poisons, and the random control."""
    (x, y), (x_val, y_val) = images.train, images.val
    shift = np.random.default_rng(seed).integers(1, learned.NUM_CLASSES, num_poisons)
    return x[:num_poisons], learned.Batch(x, y, x_val, y_val, (y[:num_poisons] + shift) % learned.NUM_CLASSES)


def accuracies(
    methods: dict[str, learned.Method | None],
    images: learned.Split,
    counts: tuple[int, ...],
    seed: int,
    keep_fn=lambda name, counts, make: make(),
) -> dict[str, list[float]]:
    """Test accuracy in % by name, for each number of poisons; "clean" (no poisons) and "random flips" (method None) among them."""
    phi, batch = flip(images, max(counts), seed)
    clean = learned.fit_clean(batch)

    def poisoned(method):
        sets = [phi[:count] for count in counts] if method is None else learned.attack_each(method, phi, clean, batch, counts)
        victims = [learned.fit(made, batch._replace(y_poison=batch.y_poison[: len(made)])) for made in sets]
        return [learned.accuracy(victim, *images.test) for victim in victims]

    found = {"clean": keep_fn("clean", (0,), lambda: [learned.accuracy(clean, *images.test)])}
    for name, method in methods.items():
        found[name] = keep_fn(name, counts, lambda method=method: poisoned(method))
    return found


# --- report and table ------------------------------------------------------------------------------------------------------------


def run(settings: experiment.Settings) -> report.Section:
    """Accuracy against the number of poisons."""
    images = learned.split(data.load(settings.dataset), settings.seed, *((100, 100) if settings.quick else (1000, 1000)))
    num_updates, num_backward = (2, 2) if settings.quick else (200, 30)
    methods = {
        "random flips": None,
        "back-gradient": learned.backward(num_backward),
        "ApproxGrad": learned.approximate(num_updates),
        "penalty": learned.penalty(num_updates),
    }
    counts = (5,) if settings.quick else (20, 60)
    found = accuracies(methods, images, counts, settings.seed)
    plot, axis = plt.subplots(figsize=(5.5, 4.0))
    for name in methods:
        axis.plot((0, *counts), found["clean"] + found[name], "o-", label=name)
    axis.set_xlabel(f"poisons among {len(images.train[0])} training images")
    axis.set_ylabel("test accuracy in %")
    axis.legend()
    caption = (
        f"A linear softmax, retrained from scratch on its training images and the poisons, on {len(images.test[0])} test images. Poisons "
        f"start as copies of training images with a random wrong label (random flips), and learn their pixels in [0, 1]: ApproxGrad and "
        f"the penalty method in {num_updates} updates, back-gradient in {num_backward}."
    )
    text = (
        "A few percent of the training set is enough, if it is chosen: labels flipped at random cost little, the same number of images "
        "learned through the victim's training costs far more. The victim is judged after training from scratch."
    )
    return report.Section("Poisons against accuracy", text, [report.figure("Accuracy against the number of poisons", caption, plot)])


def table(settings: experiment.Settings, path: pathlib.Path, command: str, counts: tuple[int, ...], num_seeds: int, num_updates: int):
    """Writes the table of the full-length attacks, after every curve."""
    store = files.try_file(pathlib.Path(settings.out) / "untargeted_poisoning.json")
    curves = files.read_json(store) if store.exists() else {}  # [accuracies, seconds] of one method, seed and choice of numbers
    methods = {
        "random flips": None,
        "ApproxGrad": learned.approximate(num_updates),
        "penalty": learned.penalty(num_updates),
        "back-gradient": learned.backward(num_updates // 10),
    }
    dataset = data.load(settings.dataset)
    found: dict[str, dict[int, list]] = {name: {} for name in ("clean", *methods)}
    for seed in range(settings.seed, settings.seed + num_seeds):

        def keep(name, counts, make, seed=seed):
            curve = f"{settings.dataset} {num_updates} {seed} {','.join(map(str, counts))} {name}"
            if curve not in curves:
                start = time.perf_counter()
                curves[curve] = [make(), time.perf_counter() - start]
                files.write(store, json.dumps(curves, indent=1))
                print(curve, curves[curve], flush=True)
            values, seconds = curves[curve]
            for count, value in zip(counts, values, strict=True):
                found[name].setdefault(count, []).append((value, seconds))
            files.write(path, _page(found, command, num_updates))
            return values

        accuracies(methods, learned.split(dataset, seed), counts, seed, keep)


_PUBLISHED = {"clean": {}, "random flips": {30: "84.9", 60: "84.6"}, "ApproxGrad": {30: "74.4", 60: "67.0"}}
_PUBLISHED |= {"penalty": {30: "75.1", 60: "67.6"}, "back-gradient": {30: "82 (RMD)", 60: "79 (RMD)"}}
_BARS = {"random flips": (">=", 85.0), "ApproxGrad": ("<=", 70.0), "penalty": ("<=", 70.0)}  # at 60 poisons


def _page(found, command, num_updates):
    lines = []
    for name, by_count in found.items():
        for count, values in by_count.items():
            accuracy = np.array([value for value, _ in values])
            sign, bound = _BARS.get(name, ("", 0.0)) if count == 60 else ("", 0.0)
            met = bool(accuracy.mean() >= bound if sign == ">=" else accuracy.mean() <= bound)
            bar = f"{sign} {bound:g} | {'met' if met else 'MISSED'}" if sign else " | "
            seeds = ", ".join(f"{a:.1f}" for a in accuracy)
            lines.append(f"| {name} | {count} | {accuracy.mean():.1f} | {seeds} | {_PUBLISHED[name].get(count, '')} | {bar} |")
    seconds = ", ".join(
        f"{name} {np.mean([seconds for _, seconds in next(iter(by_count.values()))]):.0f} s"
        for name, by_count in found.items()
        if by_count and name not in ("clean", "random flips")
    )
    return _PAGE.format(command=command, rows="\n".join(lines), updates=num_updates, back=num_updates // 10, seconds=seconds)


_PAGE = """\
# Untargeted poisoning

    ROBUSTJAX_DATA=DIR {command}

MNIST's 10,000 test images, permuted by the seed: 1,000 for training, 1,000 for validation, 8,000 for testing. The victim is a linear
softmax without bias (weight decay .0025 |W|^2), retrained from scratch on training images and poisons. Poisons start as copies of the
first training images with a random wrong label (that is the row of random flips); the attacks learn their pixels in [0, 1]. Penalty and
ApproxGrad have the authors' constants ({updates} updates; in ApproxGrad, Adam's moments for theta and for the linear system start afresh
in each); back-gradient goes back through 100 steps from zero, {back} times, with all
poisons at once. Published: means of 5 runs as reported by Mehra & Hamm (2021), whose row for back-gradient is reverse mode through
warm-started steps (RMD).

| poisons | number | accuracy in % | seeds | published | bar | |
|---|---|---|---|---|---|---|
{rows}

Of one seed, all numbers of poisons at once: {seconds}.
"""


def main(arguments) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", type=experiment.output, help="write the table of full-length attacks here, as Markdown")
    parser.add_argument("--counts", nargs="+", type=int, default=[10, 20, 30, 40, 50, 60], help="of poisons, in the table")
    parser.add_argument("--seeds", type=int, default=3, help="in the table")
    parser.add_argument("--updates", type=int, default=5000, help="in the table")
    settings, options = experiment.old_parse(parser, arguments)
    if options.table is None:
        experiment.section(run, settings)
        return
    command = " ".join(["python -m experiments untargeted_poisoning", *arguments])
    table(settings, options.table, command, tuple(options.counts), options.seeds, options.updates)
