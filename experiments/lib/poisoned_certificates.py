"""Poisoned certificates: a class's training images changed a little, and what victims trained on them certify (PACD)."""

import functools
import pathlib
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments.lib import evaluation, experiment, models, poisons, runs, smoothed
from robustjax import base, poisoning, smoothing
from robustjax.base import Certificate
from robustjax.threats import Linf

SIGMA, LABEL = 0.5, 8
SETS = ("clean", "random noise", "poisoned")
Victim = Literal["Gaussian", "MACER", "SmoothAdv"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
_NUM_NOISE = 20  # of the soft radius
_LINEAR_RATES = {"Gaussian": 1e-2, "MACER": 1e-4, "SmoothAdv": 1e-3}  # the authors'


class Size(NamedTuple):
    """How large a run is."""

    num_points: int  # certified, of the poisoned class
    num_others: int  # of each other class
    num_samples: int  # votes for each
    num_craft_epochs: int
    num_epochs: int  # of the victims that are judged
    architecture: str = "mlp_shallow"
    eps: float = 0.1  # linf
    batch_size: int = 100  # of the victims
    radius_weight: float | None = None  # of MACER; None for the paper's on MNIST

    @property
    def effort(self) -> smoothed.Effort:
        """Of the victims; 16 copies, weight 16 and eps 1 are the values of MACER and SmoothAdv on MNIST."""
        return smoothed.Effort(
            self.architecture, batch_size=self.batch_size, num_attack_steps=2, num_attack_copies=1, num_radius_copies=16,
            radius_weight=self.radius_weight,
        )  # fmt: skip

    @property
    def crafting(self) -> smoothed.Effort:
        """Of the victims while poisons are crafted: MACER has one copy and weight 1, the authors'."""
        return self.effort._replace(num_radius_copies=1, radius_weight=1.0)


class Split(NamedTuple):
    """Images to train on, to craft with, and to certify."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray  # of the poisoned class
    x_points: np.ndarray
    y_points: np.ndarray


class Judged(NamedTuple):
    """A victim trained from scratch, by what it certifies."""

    certificate: Certificate
    y: np.ndarray
    accuracy: float  # without noise, over the certified points of all classes alike

    def num_points(self, label: int) -> int:
        """How many points of a class were certified."""
        return int((self.y == label).sum())

    def radius(self, label: int) -> float:
        """The average certified radius of a class."""
        mine = self.y == label
        return smoothing.average_radius(jax.tree.map(lambda part: part[mine], self.certificate), self.y[mine])

    def curve(self, label: int, grid) -> np.ndarray:
        """Certified accuracy of a class over radii."""
        mine = self.y == label
        return smoothing.certified_accuracy(jax.tree.map(lambda part: part[mine], self.certificate), self.y[mine], grid)


def split_of(train, rest, num_val: int, size: Size) -> Split:
    """The training images, and the others: first those to craft with, then those to certify."""
    (x, y), (x_rest, y_rest) = train, rest
    x_val = x_rest[:num_val][y_rest[:num_val] == LABEL]
    x_test, y_test = x_rest[num_val:], y_rest[num_val:]
    counts = {label: size.num_points if label == LABEL else size.num_others for label in range(10)}
    rows = np.concatenate([np.flatnonzero(y_test == label)[:count] for label, count in counts.items()])
    return Split(x, y, x_val, x_test[rows], y_test[rows])


def judge(name: str, split: Split, settings: experiment.DataOptions, size: Size) -> dict[str, Judged]:
    """A victim trained from scratch on each of the three sets, by name of the set."""
    rows = np.flatnonzero(split.y == LABEL)
    threat = Linf(size.eps)
    provenance = poisons.Provenance(
        settings.dataset, "lower_radius", f"{size.architecture}, {name} at {SIGMA}", f"{len(rows)} images, linf {size.eps}", settings.seed,
        {
            "num_epochs": size.num_craft_epochs, "num_images": len(split.x), "linear_rate": _LINEAR_RATES[name], "num_noise": _NUM_NOISE,
            "effort": list(size.crafting),
        },
    )  # fmt: skip
    kind = f"{settings.dataset}-{size.architecture}-{len(split.x)}-{size.num_craft_epochs}"
    crafted = poisons.kept(
        pathlib.Path(settings.out) / "poisons" / f"certified-{kind}-{name}-{settings.seed}.npz",
        provenance,
        functools.partial(craft, name, split, settings, size),
    )
    control = np.asarray(poisoning.random_control(jax.random.key(settings.seed), split.x[rows], threat))
    clean = split.x, split.y
    sets = (clean, *(poisoning.insert(*clean, rows, x, threat=threat) for x in (control, crafted.x)))
    return {label: _judged(name, x, y, split, settings, size) for label, (x, y) in zip(SETS, sets, strict=True)}


def craft(name: str, split: Split, settings: experiment.DataOptions, size: Size) -> poisons.Crafted:
    """Every training image of the class, changed within the threat."""
    network = models.stateless(size.architecture, 10, split.x.shape[1:])
    rows = np.flatnonzero(split.y == LABEL)
    task = poisoning.Task(split.x, split.y, rows, split.x_val, np.full(len(split.x_val), LABEL))
    loss = base.bind(smoothed.losses(SIGMA, size.crafting)[name], apply_fn=network.apply_fn)
    attack = base.bind(
        poisoning.poison_certificates,
        threat=Linf(size.eps),
        victim=poisoning.VictimTraining(network.apply_fn, network.init_fn, loss, num_clean=min(900, len(split.x) - len(rows))),
        certificate=poisoning.SoftCertificate(SIGMA, _NUM_NOISE),
        descent=poisoning.ResponseDescent(size.num_craft_epochs, min(100, len(rows)), linear_rate=_LINEAR_RATES[name]),
    )
    with experiment.status(f"poisons against {name} ..."):
        found = jax.jit(attack)(jax.random.key(settings.seed), task)
    return poisons.Crafted(rows, np.asarray(found.x), split.y[rows])


def others(judged: Judged) -> float:
    """The mean over the other classes of their average certified radius."""
    return float(np.mean([judged.radius(label) for label in np.unique(judged.y) if label != LABEL]))


def _judged(name, x, y, split, settings, size):
    model = models.build(size.architecture, settings.seed, 10, x.shape[1:])
    loss, options = smoothed.losses(SIGMA, size.effort)[name], {"num_epochs": size.num_epochs, "batch_size": size.batch_size}
    with experiment.status(f"{name}: a victim from scratch ..."):
        model_fn = runs.fit(model, loss, 1e-3, x, y, seed=settings.seed, **options)
        chunk_size = min(100, size.num_samples)
        votes = smoothing.vote_dataset(
            jax.random.key(settings.seed), model_fn, split.x_points, sigma=SIGMA, num_samples=size.num_samples,
            num_step_samples=min(1000, size.num_samples), batch_size=20, chunk_size=chunk_size, mesh=experiment.mesh(),
        )  # fmt: skip
        *_, last = votes
    labels = split.y_points
    predicted = np.asarray(evaluation.predicted(model_fn, split.x_points))
    accuracy = float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))
    return Judged(smoothing.certify(last.selection, last.estimation, sigma=SIGMA), labels, accuracy)
