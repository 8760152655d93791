"""Adversarial training against what it must reach: seeds, spread and bars, in one table.

`ROBUSTJAX_DATA=DIR python -m experiments training_gates` writes docs/results/adversarial_training.md; `--gates` chooses rows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.lib import data, evaluation, experiment, report, victims
from experiments.tutorial.part2 import accuracy_against_robustness, adversarial_training, manifolds
from robustjax import attacks, evaluate
from robustjax.threats import Linf


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


class Split(NamedTuple):
    """The images of a gate; the held-out ones, of which the best epoch is chosen, follow those for training."""

    dataset: str
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def main(arguments=None) -> None:
    """The command line."""
    makers = {
        "digits": digits, "overfitting": overfitting, "manifold": manifold, "mnist": mnist, "fashion": fashion, "cifar10": cifar10,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gates", nargs="+", choices=tuple(makers), default=list(makers))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="of the whole MNIST")
    parser.add_argument("--out", type=experiment.output, default="docs/results/adversarial_training.md")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args(arguments)
    experiment.prepare()
    command = " ".join(["python -m experiments training_gates", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.gates:
        start = time.perf_counter()
        rows = [_line(gate) for gate in makers[name](options)]
        print("\n".join(rows), flush=True)
        made = f"    ROBUSTJAX_DATA=DIR {command}\n\n{time.perf_counter() - start:.0f} s for this section."
        body = "\n\n".join(filter(None, ["\n".join([_HEADER, *rows]), _NOTES.get(name), made]))
        report.replace_section(options.out, _HEAD, _TITLES[name], body, tuple(_TITLES.values()))


def digits(options) -> Iterator[Gate]:
    """Natural, PGD and TRADES training of an MLP on the 8x8 digits."""
    sweeps = accuracy_against_robustness.sweep(options.seeds, num_epochs=2 if options.quick else 60)
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
    split = _split("mnist", 8000, 400, 2000, options)
    recipes = _recipes(split, 12, options)
    value = _judged(split, {name: recipes[name] for name in ("FGSM", "RS-FGSM", "PGD")}, options)
    yield Gate("FGSM training from 0, FGSM", value["FGSM", "FGSM"], 40)
    yield Gate("FGSM training from 0, PGD-40", value["FGSM", "PGD-40"], 2, is_upper=True)
    yield Gate("RS-FGSM training, PGD-40", value["RS-FGSM", "PGD-40"], 30)
    yield Gate("PGD-7 training with a ramp of eps, clean", value["PGD", "clean"], 93)
    yield Gate("PGD-7 training with a ramp of eps, PGD-40", value["PGD", "PGD-40"], 60)
    yield Gate("PGD-7 training with a ramp of eps, C&W-60", value["PGD", "C&W-60"])


def manifold(options) -> Iterator[Gate]:
    """Four ways to train on the test file of MNIST projected on 24 principal components."""
    whole, num_train = data.load("mnist"), 200 if options.quick else 9000
    train, test = slice(num_train), slice(num_train, num_train + 1000)
    projected = manifolds.project(whole.x_test[train], whole.y_test[train], whole.x_test[test], whole.y_test[test])
    names = (*manifolds.BARS, "DMAT, TRADES form")
    num_epochs, num_steps = (1, 5) if options.quick else (12, 50)
    tables = [manifolds.accuracies(projected, seed, num_epochs, num_steps, names) for seed in range(options.seeds)]
    value = lambda name, column: np.array([table[name][column] for table in tables])  # noqa: E731
    for name in names:
        for column, panel in enumerate(manifolds.PANELS):
            bound, is_upper = _MANIFOLD_BARS.get((name, panel), (None, False))
            yield Gate(f"{name}, {panel}", value(name, column), bound, is_upper)
    yield Gate("DMAT less AT, standard accuracy", value("DMAT", 0) - value("AT", 0), 5)
    yield Gate("OM-AT less normal, OM-PGD-50", value("OM-AT", 2) - value("normal", 2), 10)


def mnist(options) -> Iterator[Gate]:
    """Madry's training at eps .3 on all of MNIST, scaled to the ConvNet."""
    split = _split("mnist", 59000, 1000, 10000, options)
    recipe = _recipes(split, options.epochs, options)["PGD"]._replace(num_ramp_epochs=2)
    value = _judged(split, {"PGD": recipe}, options)
    for column, bound in {"clean": 97.5, "FGSM": None, "PGD-40": 88.0, "C&W-60": None}.items():
        yield Gate(f"PGD-7 training, {options.epochs} epochs, {column}", value["PGD", column], bound)


def fashion(options) -> Iterator[Gate]:
    """Single- and multi-step training on 20,000 images of Fashion-MNIST at eps .1."""
    split = _split("fashion_mnist", 20000, 400, 1000, options)
    recipes = _recipes(split, 6, options)
    names = ("PGD", "RS-FGSM", "FGSM")
    value = _judged(split, {name: recipes[name]._replace(learning_rate=2e-3, num_ramp_epochs=0) for name in names}, options)
    for name in names:
        for column in ("clean", "PGD-40", "C&W-60"):
            yield Gate(f"{name} training, {column}", value[name, column], 60 if (name, column) == ("RS-FGSM", "PGD-40") else None)


def cifar10(options) -> Iterator[Gate]:
    """Three ways to train the ConvNet on two fifths of CIFAR-10, up to AutoAttack."""
    split = _split("cifar10", 19600, 400, 1000, options)
    recipes = _recipes(split, 8, options)
    names = ("undefended", "RS-FGSM", "PGD")
    value = _judged(split, {name: recipes[name] for name in names}, options, num_strong=200)
    for name in names:
        for column in ("clean", "PGD-40", "AutoAttack"):
            yield Gate(f"{name}, {column}", value[name, column])


def _split(dataset, num_train, num_held_out, num_test, options):
    whole = data.load(dataset)
    if options.quick:
        num_train, num_held_out, num_test = 200, 20, 20
    train, rest, test = slice(num_train), slice(num_train, num_train + num_held_out), slice(num_test)
    parts = ((whole.x_train[train], whole.y_train[train]), (whole.x_train[rest], whole.y_train[rest]))
    return Split(dataset, *parts, (whole.x_test[test], whole.y_test[test]))


def _recipes(split, num_epochs, options):
    return adversarial_training.recipes(victims.EPS[split.dataset], 2 if options.quick else num_epochs)


def _judged(split, recipes, options, num_strong=0) -> dict[tuple[str, str], np.ndarray]:
    # Accuracies over seeds by (method, attack).
    rows = {name: [_trained_and_judged(name, recipe, seed, split, options, num_strong) for seed in range(options.seeds)]
            for name, recipe in recipes.items()}  # fmt: skip
    return {(name, column): np.array([row[column] for row in table]) for name, table in rows.items() for column in table[0]}


def _trained_and_judged(name, recipe, seed, split, options, num_strong) -> dict[str, float]:
    eps, less = victims.EPS[split.dataset], 10 if options.quick else 1
    x, y = split.test
    with tempfile.TemporaryDirectory() as folder:
        settings = experiment.Settings(dataset=split.dataset, seed=seed, out=folder, quick=options.quick)
        model_fn = adversarial_training.train(name, recipe, settings, *split.train, split.held_out)
        parts = [
            adversarial_training.accuracies(model_fn, x[rows], y[rows], eps, seed, less)
            for rows in np.split(np.arange(len(x)), max(len(x) // 1000, 1))
        ]
        row = {column: float(np.mean([part[column] for part in parts])) for column in parts[0]}
        if num_strong:
            x, y = x[:num_strong], y[:num_strong]
            ensemble = attacks.ensemble(Linf(eps), num_steps=100 // less, num_targets=9 if less == 1 else 2, num_queries=5000 // less)
            key, mesh = jax.random.key(seed), experiment.mesh()
            state = evaluation.run(f"{folder}/autoattack", key, ensemble, model_fn, x, y, batch_size=len(x), mesh=mesh)
            row["AutoAttack"] = 100 * evaluate.accuracies(state)["worst case"]
    print(name, seed, row, flush=True)
    return row


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
    "manifold": "MNIST's test file on 24 principal components, 9,000 and 1,000 images: an MLP 784-200-200-10, linf .15, .3 in the code",
    "mnist": "MNIST, 59,000 images for training (1,000 held out) and 10,000 for testing: the ConvNet, linf .3",
    "fashion": "Fashion-MNIST, 20,000 images for training (400 held out) and 1,000 for testing: the ConvNet, linf .1, 6 epochs",
    "cifar10": "CIFAR-10, 19,600 images for training (400 held out) and 1,000 for testing: the ConvNet, linf 8/255, 8 epochs",
}
_NOTES: dict[str, str] = {
    "cifar10": """\
A record without a bar: a small network on two fifths of the data, without augmentation. AutoAttack ("standard") runs on the first 200
test images. Published for a PreActResNet-18 on all of the data, which needs a GPU: RS-FGSM 83.3 clean and 43.2 under AutoAttack (Wong
et al., ICLR 2020, as on RobustBench), PGD-10 training 82.9 clean and 53.5 under PGD-10 at its best epoch (Rice et al., ICML 2020).""",
}
_HEADER = "| accuracy in % | mean | seeds | bar | |\n|---|---|---|---|---|"
_HEAD = """\
# Adversarial training against its bars

Accuracies in % over seeds of weights, batches and attacks. RS-FGSM and PGD keep the best epoch on held-out images (PGD-10), which are
neither trained nor tested on. PGD-40 and C&W-60 (PGD on the margin) take steps of eps / 12 from a random start; PGD-50 steps of eps / 10.
"""
