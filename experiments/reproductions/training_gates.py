"""Adversarial training against what it must reach: seeds, spread and bars, in one table.

`ROBUSTJAX_DATA=DIR python -m experiments training_gates --page docs/results/adversarial_training.md`; `--gates` chooses sections.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments.lib import data, evaluation, experiment, gates, pages, victims
from experiments.lib.gates import over_seeds
from experiments.tutorial.part2 import accuracy_against_robustness, adversarial_training, manifolds
from robustjax import attacks, evaluate
from robustjax.threats import Linf


class Split(NamedTuple):
    """The images of a gate; the held-out ones, of which the best epoch is chosen, follow those for training."""

    dataset: str
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


Name = Literal["digits", "overfitting", "manifold", "mnist", "fashion", "cifar10"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """Which gates, how often, how long."""

    gates: tuple[Name, ...] = get_args(Name)
    seeds: int = 3
    epochs: int = 10
    """Of the whole MNIST."""


def run(settings: Settings) -> None:
    """A section for each name."""
    experiment.prepare()
    makers = {
        "digits": digits, "overfitting": overfitting, "manifold": manifold, "mnist": mnist, "fashion": fashion, "cifar10": cifar10,
    }  # fmt: skip
    for name in settings.gates:
        start = time.perf_counter()
        blocks = [pages.gates_of(makers[name](settings)), *([pages.text(_NOTES[name])] if name in _NOTES else [])]
        experiment.publish("training_gates", settings, _PAGE, _TITLES[name], blocks, start, seeds=range(settings.seeds))


def digits(options) -> Iterator[gates.Gate]:
    """Natural, PGD and TRADES training of an MLP on the 8x8 digits."""
    sweeps = accuracy_against_robustness.sweep(options.seeds, num_epochs=2 if options.quick else 60)
    yield over_seeds("PGD training, PGD-50", 100 * sweeps["PGD"].robust, 60)
    yield over_seeds("natural training, PGD-50", 100 * sweeps["natural"].robust, high=15)
    for name, values in sweeps.items():
        if name.startswith("TRADES"):
            yield over_seeds(f"{name}, clean", 100 * values.clean)
            yield over_seeds(f"{name}, PGD-50", 100 * values.robust)
    yield over_seeds("TRADES, clean at .5 less clean at 6", 100 * (sweeps["TRADES 0.5"].clean - sweeps["TRADES 6"].clean), 0)
    yield over_seeds("TRADES, robust at 3 less robust at .5", 100 * (sweeps["TRADES 3"].robust - sweeps["TRADES 0.5"].robust), 0)


def overfitting(options) -> Iterator[gates.Gate]:
    """Single- and multi-step training of the ConvNet on 8,000 images of MNIST, judged on 2,000."""
    split = _split("mnist", 8000, 400, 2000, options)
    recipes = _recipes(split, 12, options)
    value = _judged(split, {name: recipes[name] for name in ("FGSM", "RS-FGSM", "PGD")}, options)
    yield over_seeds("FGSM training from 0, FGSM", value["FGSM", "FGSM"], 40)
    yield over_seeds("FGSM training from 0, PGD-40", value["FGSM", "PGD-40"], high=2)
    yield over_seeds("RS-FGSM training, PGD-40", value["RS-FGSM", "PGD-40"], 30)
    yield over_seeds("PGD-7 training with a ramp of eps, clean", value["PGD", "clean"], 93)
    yield over_seeds("PGD-7 training with a ramp of eps, PGD-40", value["PGD", "PGD-40"], 60)
    yield over_seeds("PGD-7 training with a ramp of eps, C&W-60", value["PGD", "C&W-60"])


def manifold(options) -> Iterator[gates.Gate]:
    """Four ways to train on the test file of MNIST projected on 24 principal components."""
    whole, num_train = data.load("mnist"), 200 if options.quick else 9000
    train, test = slice(num_train), slice(num_train, num_train + 1000)
    projected = manifolds.project(whole.x_test[train], whole.y_test[train], whole.x_test[test], whole.y_test[test])
    names = (*manifolds.BARS, "DMAT, TRADES form")
    num_epochs, num_steps = (1, 5) if options.quick else (12, 50)
    tables = [manifolds.accuracies(projected, seed, num_epochs, num_steps, names) for seed in range(options.seeds)]
    value = lambda name, column: np.array([table[name][column] for table in tables])  # noqa: E731
    for name in names:
        for column, panel in enumerate(("standard accuracy", "PGD-50", "OM-PGD-50")):
            yield over_seeds(f"{name}, {panel}", value(name, column), **_MANIFOLD_BARS.get((name, panel), {}))
    yield over_seeds("DMAT less AT, standard accuracy", value("DMAT", 0) - value("AT", 0), 5)
    yield over_seeds("OM-AT less normal, OM-PGD-50", value("OM-AT", 2) - value("normal", 2), 10)


def mnist(options) -> Iterator[gates.Gate]:
    """Madry's training at eps .3 on all of MNIST, scaled to the ConvNet."""
    split = _split("mnist", 59000, 1000, 10000, options)
    recipe = _recipes(split, options.epochs, options)["PGD"]._replace(num_ramp_epochs=2)
    value = _judged(split, {"PGD": recipe}, options)
    for column, bound in {"clean": 97.5, "FGSM": None, "PGD-40": 88.0, "C&W-60": None}.items():
        yield over_seeds(f"PGD-7 training, {options.epochs} epochs, {column}", value["PGD", column], bound)


def fashion(options) -> Iterator[gates.Gate]:
    """Single- and multi-step training on 20,000 images of Fashion-MNIST at eps .1."""
    split = _split("fashion_mnist", 20000, 400, 1000, options)
    recipes = _recipes(split, 6, options)
    names = ("PGD", "RS-FGSM", "FGSM")
    value = _judged(split, {name: recipes[name]._replace(learning_rate=2e-3, num_ramp_epochs=0) for name in names}, options)
    for name in names:
        for column in ("clean", "PGD-40", "C&W-60"):
            yield over_seeds(f"{name} training, {column}", value[name, column], 60 if (name, column) == ("RS-FGSM", "PGD-40") else None)


def cifar10(options) -> Iterator[gates.Gate]:
    """Three ways to train the ConvNet on two fifths of CIFAR-10, up to AutoAttack."""
    split = _split("cifar10", 19600, 400, 1000, options)
    recipes = _recipes(split, 8, options)
    names = ("undefended", "RS-FGSM", "PGD")
    value = _judged(split, {name: recipes[name] for name in names}, options, num_strong=200)
    for name in names:
        for column in ("clean", "PGD-40", "AutoAttack"):
            yield over_seeds(f"{name}, {column}", value[name, column])


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


_MANIFOLD_BARS: dict[tuple[str, str], dict[str, float]] = {
    ("AT", "PGD-50"): {"low": 30},
    ("OM-AT", "PGD-50"): {"high": 2},
    ("OM-AT", "OM-PGD-50"): {"low": 58},
    ("DMAT", "PGD-50"): {"low": 33},
    ("DMAT", "OM-PGD-50"): {"low": 55},
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
_PAGE = pages.Page(
    "Adversarial training against its bars",
    """\
Accuracies in % over seeds of weights, batches and attacks. RS-FGSM and PGD keep the best epoch on held-out images (PGD-10), which are
neither trained nor tested on. PGD-40 and C&W-60 (PGD on the margin) take steps of eps / 12 from a random start; PGD-50 steps of eps / 10.
""",
    tuple(_TITLES.values()),
)
