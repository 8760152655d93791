"""Targeted poisoning through the training set: digits read as another, and single images by poisons with right labels (Mehra & Hamm, 2021).

`python -m experiments targeted_poisoning --page docs/results/targeted_poisoning.md` writes both tables as a page of results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import data, evaluation, experiment, report
from experiments.lib import learned_poisons as learned
from robustjax import poisoning
from robustjax.base import Array, Bilevel
from robustjax.threats import Linf

SOURCE, WANTED = 8, 3  # test images of the one are to be read as the other
EPS = 0.2  # of poisons with right labels
COLUMNS = ("clean", "control", "ApproxGrad", "penalty")


class Size(NamedTuple):
    """How large a run is."""

    num_train: int = 500
    num_val: int = 500
    num_swapped: int = 30  # poisons with swapped labels
    num_swapped_updates: int = 1000
    num_trials: int = 20  # single targets
    num_kept: int = 20  # poisons for each, with their labels
    num_kept_updates: int = 200


class CleanBatch(NamedTuple):
    """What the losses of poisons with right labels take; phi [M, D] is added to their bases."""

    batch: learned.Batch
    bases: Array  # [M, D]


def run(settings: experiment.Settings) -> report.Section:
    """Both tables."""
    size = Size(100, 100, 5, 2, 2, 3, 2) if settings.quick else Size()
    images = learned.split(data.load(settings.dataset), settings.seed, size.num_train, size.num_val)
    text = (
        "The same machinery aims: an outer loss that is small where chosen images are read as the adversary wants. With labels under the "
        "adversary's hand one digit becomes another while the rest stays right; with labels kept, single images are moved across."
    )
    return report.Section("Poisons with an aim", text, [swapped_labels(images, size), clean_labels(images, size, settings.seed)])


def swapped_labels(images: learned.Split, size: Size) -> report.Table:
    """One digit as another: poisons start as training images of both with their labels swapped."""
    (x, y), (x_val, y_val), (x_test, y_test) = images
    rows = jnp.flatnonzero((y == SOURCE) | (y == WANTED))[: size.num_swapped]
    mine = y_val == SOURCE
    batch = learned.Batch(x, y, x_val[mine], jnp.full(int(mine.sum()), WANTED), SOURCE + WANTED - y[rows])
    poisons = {"control": x[rows]}
    clean = learned.fit_clean(batch)
    for name, method in _methods(size.num_swapped_updates, learned.TARGETED, learned.box).items():
        poisons[name] = learned.attack(method, x[rows], clean, batch)
    victims = {"clean": clean} | {name: learned.fit(phi, batch) for name, phi in poisons.items()}
    test, others = y_test == SOURCE, y_test != SOURCE
    lines = [
        [f"test {SOURCE}s read as {WANTED}", *(f"{learned.accuracy(victims[name], x_test[test], WANTED):.1f} %" for name in COLUMNS)],
        ["accuracy on other digits", *(f"{learned.accuracy(victims[name], x_test[others], y_test[others]):.1f} %" for name in COLUMNS)],
    ]
    caption = (
        f"A linear softmax on {len(x)} images and {len(rows)} poisons, which start as {SOURCE}s and {WANTED}s with their labels swapped "
        f"(the control) and learn their pixels in [0, 1] in {size.num_swapped_updates} updates."
    )
    return report.Table(f"{SOURCE}s as {WANTED}s", caption, ["", *COLUMNS], lines)


def clean_labels(images: learned.Split, size: Size, seed: int) -> report.Table:
    """Single test images as the victim's second choice: poisons are images of that label, which they keep."""
    methods = _methods(size.num_kept_updates, Bilevel(_inner_loss, _outer_loss), _shift)
    found = np.array([trial(methods, images, size, 1000 * seed + number) for number in range(size.num_trials)])
    caption = (
        f"A random test image that the clean victim reads rightly, and its second choice as the wanted label: copies of {size.num_kept} "
        f"random training images of that label, of {size.num_train} in all, are changed by at most {EPS} in linf and keep their label, in "
        f"{size.num_kept_updates} updates. {size.num_trials} trials with 95 % Clopper-Pearson intervals; clean are the copies as they are, "
        "the control are random signs of the same size."
    )
    return report.Table("Single images, labels kept", caption, ["", *COLUMNS], [["success", *map(evaluation.rate, found.T)]])


def trial(methods: dict[str, learned.Method], images: learned.Split, size: Size, seed: int) -> list[bool]:
    """Whether the target is read as wanted, by column."""
    (x, y), (x_test, y_test) = images.train, images.test
    rng = np.random.default_rng(seed)
    batch = learned.Batch(x, y, x[:0], y[:0], y[:0])
    clean = learned.fit_clean(batch)
    scores = np.asarray(x_test @ clean)
    row = int(rng.choice(np.flatnonzero(scores.argmax(axis=1) == np.asarray(y_test))))
    wanted = int(np.argsort(scores[row])[-2])
    bases = x[poisoning.choose(jax.random.key(seed), np.asarray(y), size.num_kept, label=wanted)]
    label = jnp.full(1, wanted)
    batch = batch._replace(x_val=x_test[row][None], y_val=label, y_poison=jnp.full(len(bases), wanted))
    # What is poisoned are copies: the images stay in the training set as they are.
    poisons = {"clean": bases, "control": poisoning.random_control(jax.random.key(seed), bases, Linf(EPS))}
    for name, method in methods.items():
        poisons[name] = _moved(bases, learned.attack(method, jnp.zeros_like(bases), clean, CleanBatch(batch, bases)))
    return [int((batch.x_val @ learned.fit(poisons[name], batch)).argmax()) == wanted for name in COLUMNS]


def _methods(num_updates, problem, project_fn):
    options = {"num_updates": num_updates, "problem": problem, "project_fn": project_fn}
    return {"ApproxGrad": learned.approximate(**options), "penalty": learned.penalty(**options, weight=1.0)}


def _shift(phi):
    return jnp.clip(phi, -EPS, EPS)


def _moved(bases, phi):
    return jnp.clip(bases + phi, 0.0, 1.0)


def _inner_loss(theta, phi, made):
    return learned.TARGETED.inner_loss(theta, _moved(made.bases, phi), made.batch)


def _outer_loss(theta, phi, made):
    return learned.TARGETED.outer_loss(theta, phi, made.batch)
