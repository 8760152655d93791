"""The boundary of a toy before and after adversarial training, and what attacks make of digits on a robust model."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import data, evaluation, experiment, models, report, runs, style, victims
from experiments.tutorial.part1 import attack_grid, why_adversarial_examples
from robustjax import attacks, base, training
from robustjax.threats import L2

EPS = 0.08
NUM_POINTS = 200


def run(settings: experiment.Settings) -> report.Section:
    """Two decision regions of the same network, trained on points and on l2 balls around them; the grid on the robust model."""
    x, y = _moons(settings.seed)
    pgd = base.bind(attacks.pgd, threat=L2(EPS), step_size=EPS / 4, num_steps=10)
    losses = {"natural training": base.bind(training.natural), "adversarial training": base.bind(training.adversarial, attack=pgd)}
    model = models.from_nnx(models.Mlp((2,), 2, width=64, rngs=models.nnx.Rngs(settings.seed)))
    num_epochs = settings.pick(2, 100, 150)
    plot, axes = plt.subplots(1, 2, figsize=(10, 4.8))
    notes = []
    for axis, (name, loss) in zip(axes, losses.items(), strict=True):
        model_fn = runs.fit(model, loss, optax.adam(1e-2), x, y, seed=settings.seed, num_epochs=num_epochs, batch_size=50)
        grid, extent = why_adversarial_examples.grid()
        style.regions(axis, np.asarray(evaluation.predicted(model_fn, grid)).reshape(extent))
        axis.scatter(*x.T, c=[style.PALETTE[label] for label in y], s=12)
        for point in x[::8]:
            axis.add_patch(plt.Circle(point, EPS, fill=False, color=style.GREY, lw=0.7))
        axis.set_title(name)
        clean = np.mean(np.asarray(evaluation.predicted(model_fn, x)) == y)
        robust = 1.0 - np.mean(evaluation.attacked(pgd, jax.random.key(settings.seed), model_fn, x, y).success)
        notes.append(f"{name}: {clean:.0%} clean, {robust:.0%} under PGD")
    caption = (
        f"{NUM_POINTS} points, a network of two hidden layers; circles: l2 balls of radius {EPS} around every eighth point. "
        f"{'; '.join(notes)}."
    )
    alt = (
        "Two squares, each cut into two coloured regions between the same two interleaved moons of points. After natural training the "
        "border runs close to some points and cuts the circles around them; after adversarial training it keeps away from both moons."
    )
    toy = report.figure("The boundary before and after", caption, plot, alt)
    dataset = data.load(settings.dataset)
    grid_figure = attack_grid.picture("robust", victims.load(settings, dataset)["robust"], dataset, settings)
    text = (
        "Natural training puts the boundary anywhere between the classes; adversarial training moves it away from the points, toward a "
        "ball's radius where they leave room. The grid of attacks that part 1 shows for both models is here the robust model's alone: "
        "its smallest perturbations are strokes, which often complete another digit."
    )
    more = "longer training of the toy and of the robust model, and attacks of twice the steps."
    return report.Section("What adversarial training does to the boundary", text, [toy, grid_figure], more=more)


def _moons(seed):
    from sklearn.datasets import make_moons

    x, y = make_moons(NUM_POINTS, noise=0.06, random_state=seed)
    low, high = x.min(axis=0), x.max(axis=0)
    return (0.1 + 0.8 * (x - low) / (high - low)).astype(np.float32), y.astype(np.int32)
