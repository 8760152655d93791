"""Poisoned certificates against their bars, on MNIST's test file or, with `--whole`, on a whole training file and larger networks.

`ROBUSTJAX_DATA=DIR python -m experiments certified_poisoning_gates --page docs/results/certified_poisoning.md`; `--whole` wants an
accelerator.
"""

import dataclasses
import time

import numpy as np

from experiments.lib import data, experiment, gates, pages, poisoned_certificates
from experiments.lib.poisoned_certificates import LABEL, SETS, SIGMA, VICTIMS, Judged, Size, others

# --whole: the authors' network on MNIST (theirs on CIFAR-10, a ResNet-20, has statistics), their eps, batches, and weight of MACER.
_WHOLE = {"digits": ("lenet", 0.1, 100, None), "mnist": ("lenet", 0.1, 250, None), "cifar10": ("convnet_pooled", 0.03, 100, 4.0)}
_ORDER = (*VICTIMS, *(f"{name}, whole {dataset}" for dataset in _WHOLE for name in VICTIMS))
_COLUMNS = (f"ACR of class {LABEL} (by seed)", f"certified accuracy of class {LABEL} at 0", "ACR of the other classes", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.DataOptions):
    """Which victims, how often, on what."""

    out: str = "runs/certified_poisoning"
    dataset: data.Name = "mnist"
    whole: bool = False
    """The training file of the data set, on a larger network."""
    craft_epochs: int = 30
    """50 are the authors'."""
    seeds: int = 2
    victims: tuple[poisoned_certificates.Victim, ...] = VICTIMS


def run(settings: Settings) -> None:
    """A section for each victim."""
    with experiment.refused():
        if settings.whole and settings.dataset not in _WHOLE:
            raise ValueError(f"--whole takes one of {tuple(_WHOLE)}, got {settings.dataset}")
    experiment.prepare()
    dataset = data.load(settings.dataset)
    if settings.whole:
        size = Size(500, 15, 10_000, settings.craft_epochs, 30, *_WHOLE[dataset.name])
        train, rest = (dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)
    else:
        size = Size(150, 15, 10_000, settings.craft_epochs, 30)
        parts = [slice(6 * len(dataset.x_test) // 10), slice(6 * len(dataset.x_test) // 10, None)]
        train, rest = ((dataset.x_test[part], dataset.y_test[part]) for part in parts)
    if settings.quick:
        size = size._replace(num_points=4, num_others=2, num_samples=200, num_craft_epochs=1, num_epochs=1)
    split = poisoned_certificates.split_of(train, rest, min(1000, len(rest[0]) // 4), size)
    for name in settings.victims:
        start, seeds = time.perf_counter(), range(settings.seeds)
        found = [poisoned_certificates.judge(name, split, dataclasses.replace(settings, seed=seed), size) for seed in seeds]
        title = f"{name}, whole {dataset.name}" if settings.whole else name
        experiment.publish("certified_poisoning_gates", settings, _PAGE, title, section(found, size), start, seeds=seeds)


def check(seeds: list[dict[str, Judged]]) -> list[gates.Gate]:
    """The bars of a victim, by means over seeds: the miniature's, the authors' (more than 30 % less) and that of the other classes."""
    mean = {name: np.mean([sets[name].radius(LABEL) for sets in seeds]) for name in SETS}
    rest = {name: np.mean([others(sets[name]) for sets in seeds]) for name in SETS}
    return [
        gates.Gate(
            f"ACR of class {LABEL}, poisoned / random noise", float(mean["poisoned"] / mean["random noise"]), high=0.5, digits=".3f"
        ),
        gates.Gate(f"ACR of class {LABEL}, poisoned / clean", float(mean["poisoned"] / mean["clean"]), high=0.7, digits=".3f"),
        gates.Gate("ACR of the other classes, poisoned / clean", float(rest["poisoned"] / rest["clean"]), 0.9, 1.1, digits=".3f"),
    ]


def section(seeds: list[dict[str, Judged]], size: Size) -> list[pages.Block]:
    """A victim's part of the page."""
    about = (
        f"{size.architecture}, crafted in {size.num_craft_epochs} passes, linf {size.eps}; victims trained from scratch in "
        f"{size.num_epochs} epochs on batches of {size.batch_size}; {seeds[0]['clean'].num_points(LABEL)} points of class {LABEL}, "
        f"{size.num_others} of each other."
    )
    rows = []
    for label in SETS:
        values = [
            [sets[label].radius(LABEL), sets[label].curve(LABEL, [1e-9])[0], others(sets[label]), sets[label].accuracy] for sets in seeds
        ]
        cells = [f"{np.mean(column):.3f} ({', '.join(f'{value:.3f}' for value in column)})" for column in zip(*values, strict=True)]
        rows.append([label, *cells])
    return [pages.text(about), pages.table(["trained on", *_COLUMNS], rows), pages.gates_of(check(seeds))]


_PAGE = pages.Page(
    "Poisoned certificates against their bars",
    f"""\
MNIST's test file: 6,000 images to train on, of which all of class {LABEL} are changed in linf; 1,000 to craft with; the rest to certify,
with 10,000 votes each, alpha .001, sigma {SIGMA}. "Whole": the training file, and the test file to craft with and to certify. Victims are
trained from scratch on the clean set, on random signs of the same size, and on the poisons. ACR: average certified radius. Seeds are of
poisons, weights, batches and votes. The bar against random noise is of a smaller miniature, which measured, for Gaussian victims, .95 and
.99 clean, .38 with random signs, .05 and .08 with poisons; that against clean is what the authors report on whole data sets. Poisons
against SmoothAdv are crafted on the schedule of the others, 10 steps of the victim and a restart every 10 passes; the authors take 1 and
20 there.
""",
    _ORDER,
)
