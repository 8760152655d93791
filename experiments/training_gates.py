"""Adversarial training against what it must reach: seeds, spread and bars, in one table.

`ROBUSTJAX_DATA=DIR python -m experiments.training_gates` writes docs/results/adversarial_training.md; `--gates` chooses rows.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments import accuracy_against_robustness, adversarial_training, manifolds
from experiments.lib import data, experiment

_EPS = 0.3


class Gate(NamedTuple):
    """A value over seeds against its bar."""

    what: str
    values: np.ndarray  # [seeds]
    bound: float | None = None  # None where there is no bar
    is_upper: bool = False  # whether the bound is the largest allowed value

    @property
    def met(self) -> bool:
        """By the mean over seeds."""
        mean = self.values.mean()
        return self.bound is None or bool(mean <= self.bound if self.is_upper else mean >= self.bound)


def main(arguments=None) -> None:
    """The command line."""
    makers = {"digits": digits, "overfitting": overfitting, "manifold": manifold, "mnist": mnist}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gates", nargs="+", choices=tuple(makers), default=list(makers))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="of the whole MNIST")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/adversarial_training.md"))
    options = parser.parse_args(arguments)
    experiment.prepare()
    command = " ".join(["python -m experiments.training_gates", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.gates:
        start = time.perf_counter()
        rows = [_line(gate) for gate in makers[name](options)]
        print("\n".join(rows), flush=True)
        made = f"    ROBUSTJAX_DATA=DIR {command}\n\n{time.perf_counter() - start:.0f} s for this section."
        _replace_section(options.out, _TITLES[name], "\n".join([_HEADER, *rows]) + f"\n\n{made}\n")


def digits(options) -> Iterator[Gate]:
    """Natural, PGD and TRADES training of an MLP on the 8x8 digits."""
    sweeps = accuracy_against_robustness.sweep(options.seeds, num_epochs=60)
    yield Gate("PGD training, PGD-50", 100 * sweeps["PGD"].robust, 60)
    yield Gate("natural training, PGD-50", 100 * sweeps["natural"].robust, 15, is_upper=True)
    for name, values in sweeps.items():
        if name.startswith("TRADES"):
            yield Gate(f"{name}, clean", 100 * values.clean)
            yield Gate(f"{name}, PGD-50", 100 * values.robust)
    yield Gate("TRADES, clean at .5 less clean at 6", 100 * (sweeps["TRADES 0.5"].clean - sweeps["TRADES 6"].clean), 0)
    yield Gate("TRADES, robust at 3 less robust at .5", 100 * (sweeps["TRADES 3"].robust - sweeps["TRADES 0.5"].robust), 0)


def overfitting(options) -> Iterator[Gate]:
    """Single- and multi-step training of the ConvNet on 8,000 images of MNIST, judged on 2,000."""
    mnist = data.load("mnist")
    tables: dict[str, list[dict[str, float]]] = {"FGSM": [], "RS-FGSM": [], "PGD": []}
    x, y = mnist.x_train[:8400], mnist.y_train[:8400]
    held_out, x, y = (x[8000:], y[8000:]), x[:8000], y[:8000]
    for name, rows in tables.items():
        recipe = adversarial_training.recipes(_EPS, num_epochs=12)[name]
        for seed in range(options.seeds):
            rows.append(_trained_and_judged(name, recipe, seed, x, y, held_out, mnist.x_test[:2000], mnist.y_test[:2000]))
    value = lambda name, column: np.array([row[column] for row in tables[name]])  # noqa: E731
    yield Gate("FGSM training from 0, FGSM", value("FGSM", "FGSM"), 40)
    yield Gate("FGSM training from 0, PGD-40", value("FGSM", "PGD-40"), 2, is_upper=True)
    yield Gate("RS-FGSM training, PGD-40", value("RS-FGSM", "PGD-40"), 30)
    yield Gate("PGD-7 training with a ramp of eps, clean", value("PGD", "clean"), 93)
    yield Gate("PGD-7 training with a ramp of eps, PGD-40", value("PGD", "PGD-40"), 60)
    yield Gate("PGD-7 training with a ramp of eps, C&W-60", value("PGD", "C&W-60"))


def manifold(options) -> Iterator[Gate]:
    """Four ways to train on MNIST projected on 24 principal components."""
    mnist = data.load("mnist")
    projected = manifolds.project(mnist.x_train[:8000], mnist.y_train[:8000], mnist.x_test[:1000], mnist.y_test[:1000])
    names = (*manifolds.BARS, "DMAT, TRADES form")
    tables = [manifolds.accuracies(projected, seed, num_epochs=12, num_steps=50, names=names) for seed in range(options.seeds)]
    value = lambda name, column: np.array([table[name][column] for table in tables])  # noqa: E731
    for name in names:
        for column, panel in enumerate(manifolds.PANELS):
            bound, is_upper = _MANIFOLD_BARS.get((name, panel), (None, False))
            yield Gate(f"{name}, {panel}", value(name, column), bound, is_upper)
    yield Gate("DMAT less AT, standard accuracy", value("DMAT", 0) - value("AT", 0), 5)
    yield Gate("OM-AT less normal, OM-PGD-50", value("OM-AT", 2) - value("normal", 2), 10)


def mnist(options) -> Iterator[Gate]:
    """Madry's training at eps .3 on all of MNIST, scaled to the ConvNet."""
    whole = data.load("mnist")
    recipe = adversarial_training.recipes(_EPS, options.epochs)["PGD"]._replace(num_ramp_epochs=2)
    held_out, x, y = (whole.x_train[59000:], whole.y_train[59000:]), whole.x_train[:59000], whole.y_train[:59000]
    rows = [_trained_and_judged("PGD", recipe, seed, x, y, held_out, whole.x_test, whole.y_test) for seed in range(options.seeds)]
    for column, bound in {"clean": 97.5, "FGSM": None, "PGD-40": 88.0, "C&W-60": None}.items():
        yield Gate(f"PGD-7 training, {options.epochs} epochs, {column}", np.array([row[column] for row in rows]), bound)


def _trained_and_judged(name, recipe, seed, x, y, held_out, x_test, y_test) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = experiment.Settings("mnist", seed, folder)
        model_fn = adversarial_training.train(name, recipe, settings, x, y, held_out)
        parts = [
            adversarial_training.accuracies(model_fn, x_test[rows], y_test[rows], _EPS, seed)
            for rows in np.split(np.arange(len(x_test)), len(x_test) // 1000)
        ]
    row = {column: float(np.mean([part[column] for part in parts])) for column in parts[0]}
    print(name, seed, row, flush=True)
    return row


def _replace_section(path: pathlib.Path, title: str, body: str) -> None:
    # The page keeps what other runs wrote, each section with its own command.
    kept = path.read_text().split("\n## ")[1:] if path.exists() else []
    sections = dict(section.split("\n\n", 1) for section in kept) | {title: body}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEAD + "".join(f"\n## {name}\n\n{sections[name].rstrip()}\n" for name in _TITLES.values() if name in sections))


def _line(gate):
    values = ", ".join(f"{value:.1f}" for value in gate.values)
    bar = " | "
    if gate.bound is not None:
        bar = f"{'<=' if gate.is_upper else '>='} {gate.bound:g} | {'met' if gate.met else 'MISSED'}"
    return f"| {gate.what} | {gate.values.mean():.1f} | {values} | {bar} |"


_MANIFOLD_BARS: dict[tuple[str, str], tuple[float | None, bool]] = {
    ("AT", "PGD-50"): (30, False),
    ("OM-AT", "PGD-50"): (2, True),
    ("OM-AT", "OM-PGD-50"): (58, False),
    ("DMAT", "PGD-50"): (33, False),
    ("DMAT", "OM-PGD-50"): (55, False),
}
_TITLES: dict[str, str] = {
    "digits": "8x8 digits: an MLP 64-128-128-10, linf .15, 60 epochs",
    "overfitting": "MNIST, 8,000 images for training and 2,000 for testing: the ConvNet, linf .3, 12 epochs",
    "manifold": "MNIST on 24 principal components, 8,000 and 1,000 images: an MLP 784-200-200-10, linf .15 in pixels, .3 in the code",
    "mnist": "MNIST, 59,000 images for training (1,000 held out) and 10,000 for testing: the ConvNet, linf .3",
}
_HEADER = "| accuracy in % | mean | seeds | bar | |\n|---|---|---|---|---|"
_HEAD = """\
# Adversarial training against its bars

Accuracies in % over seeds of weights, batches and attacks. RS-FGSM and PGD keep the best epoch on held-out images (PGD-10), which are
neither trained nor tested on. PGD-40 and C&W-60 (PGD on the margin) take steps of eps / 12 from a random start; PGD-50 steps of eps / 10.
"""

if __name__ == "__main__":
    main()
