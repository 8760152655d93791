"""Twelve points in the plane: the boundary of standard and of certified training, with the boxes in which nothing may change."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import evaluation, experiment, models, report, runs, style
from experiments.tutorial.part1 import why_adversarial_examples
from robustjax import attacks, base, bounds, training
from robustjax.threats import Linf

EPS = 0.08
NUM_POINTS = 12
METHODS = {
    "intervals": bounds.interval,
    "Wong & Kolter": base.bind(bounds.crown, slope="parallel"),
    "CROWN": bounds.crown,
    "alpha-CROWN": bounds.alpha_crown,
}


def run(settings: experiment.Settings) -> report.Section:
    """Two decision regions of one architecture, and how many of the boxes each method certifies, between proof and attack."""
    x, y = points(settings.seed)
    threat = Linf(EPS, box=(0.0, 1.0))
    wong_kolter = base.bind(training.certified, threat=threat, bound_fn=METHODS["Wong & Kolter"], kappa=0.0)
    losses = {"standard training": base.bind(training.natural), "certified training": wong_kolter}
    model = models.from_nnx(models.Mlp((2,), 2, width=100, num_hidden=3, rngs=models.nnx.Rngs(settings.seed)))
    num_steps = settings.pick(3, 500, 1000)
    pgd = base.bind(attacks.pgd, threat=threat, step_size=EPS / 8, num_steps=40)
    plot, axes = plt.subplots(1, 2, figsize=(10, 4.8))
    rows, notes = [], []
    for axis, (name, loss) in zip(axes, losses.items(), strict=True):
        model_fn = runs.fit(model, loss, optax.adam(1e-3), x, y, seed=settings.seed, num_epochs=num_steps, batch_size=NUM_POINTS)
        grid, extent = why_adversarial_examples.grid()
        style.regions(axis, np.asarray(evaluation.predicted(model_fn, grid)).reshape(extent))
        axis.scatter(*x.T, c=[style.PALETTE[label] for label in y], s=16)
        for point in x:
            axis.add_patch(plt.Rectangle(point - EPS, 2 * EPS, 2 * EPS, fill=False, color=style.GREY, lw=0.8))
        axis.set_title(name)
        attacked = evaluation.attacked(pgd, jax.random.key(settings.seed), model_fn, x, y)
        certified = {method: certified_points(model_fn, x, y, threat, bound_fn) for method, bound_fn in METHODS.items()}
        held = ~np.asarray(attacked.success)
        check(certified, held)
        rows.append([name, *(str(found.sum()) for found in certified.values()), str(held.sum())])
        notes.append(f"{name}: {certified['Wong & Kolter'].sum()} of {NUM_POINTS} boxes certified, {held.sum()} hold against PGD")
    caption = f"Boxes: linf balls of radius {EPS}, in which the training on the right lets nothing change. {'; '.join(notes)}."
    alt = (
        "Two unit squares with the same twelve points in two colours, each in a small grey box. On the left the border between the two "
        "coloured regions cuts some of the boxes; on the right it winds around all of them."
    )
    about = f"Boxes of {NUM_POINTS} in which the class is proved to be right, method by method, and those that PGD does not break."
    items = [
        report.figure("Standard and certified training", caption, plot, alt),
        report.Table("Proved and attacked", about, ["trained with", *METHODS, "PGD"], rows),
    ]
    text = (
        "A network of three hidden layers is trained on twelve points, once by cross-entropy, once by Wong and Kolter's bound of the worst "
        "cross-entropy in each box. The bound is loose for a network that was not trained for it: few boxes are certified on the left even "
        "where no attack finds an error. Training on the bound makes it tight."
    )
    more = "twice the steps of training."
    return report.Section("A convex relaxation in the plane", text, items, more=more)


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit square that lie more than 4 eps apart in the l1 norm, as in the notebook of Wong & Kolter, with random classes."""
    draws, found = np.random.default_rng(seed), []
    while len(found) < NUM_POINTS:
        point = draws.uniform(size=2)
        if all(np.abs(point - other).sum() > 4 * EPS for other in found):
            found.append(point)
    return np.array(found, np.float32), draws.permutation(np.arange(NUM_POINTS) % 2).astype(np.int32)


def certified_points(model_fn, x, y, threat, bound_fn) -> np.ndarray:
    """Which points keep their class in the whole threat [N]."""
    found = bounds.certify(model_fn, x, y, threat=threat, bound_fn=bound_fn)
    return found.certified


def check(certified: dict[str, np.ndarray], held: np.ndarray) -> None:
    """Requires that no attack breaks what is certified.

    Raises:
      ArithmeticError: it does.
    """
    for method, found in certified.items():
        if (found & ~held).any():
            raise ArithmeticError(f"{method} certifies {int((found & ~held).sum())} points that PGD moves over the boundary.")
