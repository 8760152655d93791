"""Poisoned certificates: a small change of one class's training images takes its certified radius away (PACD)."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, experiment, poisoned_certificates, report, style
from experiments.lib.poisoned_certificates import LABEL, SIGMA, VICTIMS, Judged, Size


def run(settings: experiment.Settings) -> report.Section:
    """Certified accuracy against radius for three victims, and the radius of every class."""
    dataset = data.load(settings.dataset)
    size = settings.pick(Size(4, 2, 200, 1, 1), Size(40, 8, 500, 15, 15), Size(40, 12, 1000, 20, 20))
    victims = settings.pick(VICTIMS[:1], VICTIMS[:2], VICTIMS)
    rest = len(dataset.x_test) // 3
    rows = slice(400 if settings.quick else None)
    split = poisoned_certificates.split_of((dataset.x_train[rows], dataset.y_train[rows]), (dataset.x_test, dataset.y_test), rest, size)
    found = {name: poisoned_certificates.judge(name, split, settings, size) for name in victims}
    more = "SmoothAdv as a third victim, poisons and victims trained for a third longer, twice the votes."
    return report.Section("Certificates of poisoned training data", _TEXT, [curves(found, size), _table(found)], more=more)


def curves(found: dict[str, dict[str, Judged]], size: Size) -> report.Figure:
    """Certified accuracy of the class against radius, a panel for each victim."""
    grid = np.linspace(0, 2, 81)
    plot, axes = plt.subplots(1, len(found), figsize=(4 * len(found) + 1, 3.6), sharey=True)
    for axis, (name, sets) in zip(np.atleast_1d(axes), found.items(), strict=True):
        for label, judged in sets.items():
            axis.plot(grid, 100 * judged.curve(LABEL, grid), color=style.of(label), label=f"{label}: ACR {judged.radius(LABEL):.2f}")
        axis.set(title=name, xlabel="l2 radius", ylim=(0, 101), xlim=(0, 2))
        axis.legend()
        axis.grid()
    np.atleast_1d(axes)[0].set_ylabel(f"certified accuracy of class {LABEL} in %")
    num_points = next(iter(found.values()))["clean"].num_points(LABEL)
    caption = (
        f"All training images of class {LABEL} are changed by at most {size.eps} in linf, labels kept; every victim is trained from "
        f"scratch on each set at sigma {SIGMA}. {num_points} test images, {size.num_samples:,} votes each, alpha .001. Random "
        "noise: signs of the same size."
    )
    told = "; ".join(
        f"{name}: " + ", ".join(f"{label} {judged.radius(LABEL):.2f}" for label, judged in sets.items()) for name, sets in found.items()
    )
    alt = (
        f"A panel for each victim: certified accuracy of class {LABEL} falls with the radius, latest for clean data, much earlier for "
        f"poisoned data. Average certified radius of {told}."
    )
    return report.figure(f"What victims certify of class {LABEL}", caption, plot, alt)


def _table(found):
    rows = []
    for name, sets in found.items():
        for label, judged in sets.items():
            rows.append([name, label, *(f"{judged.radius(c):.2f}" for c in range(10)), f"{100 * judged.accuracy:.0f}"])
    caption = "Average certified radius (ACR), wrong and abstained images as 0, and the accuracy without noise in %, all classes alike."
    return report.Table("ACR by class", caption, ["victim", "trained on", *(str(c) for c in range(10)), "accuracy"], rows)


_TEXT = (
    "A defense with a proof still believes its training data. Whoever may change the images of one class a little, and chooses the "
    "changes through what the victim will learn from them (bilevel), takes the certificates of that class away, and leaves those of the "
    "others. Some of the loss is due to any change of this size, so the control is noise of the same size."
)
