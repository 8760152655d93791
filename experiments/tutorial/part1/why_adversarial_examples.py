"""Why adversarial examples exist: three classes in the plane, their boundary, and the nearest point beyond it."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import experiment, models, report, runs, style
from robustjax import attacks, base
from robustjax.threats import L2
from robustjax.training import natural

CENTRES = np.array([[0.25, 0.3], [0.75, 0.35], [0.5, 0.75]])
SPREAD = 0.09
NUM_POINTS = 300
NUM_SHOWN = 12


def run(settings: experiment.Settings) -> report.Section:
    """The decision regions of a small network, and minimum-norm adversarial examples of some points."""
    rng = np.random.default_rng(settings.seed)
    y = np.arange(NUM_POINTS) % 3
    x = np.clip(CENTRES[y] + SPREAD * rng.normal(size=(NUM_POINTS, 2)), 0.0, 1.0).astype(np.float32)
    model = models.from_nnx(models.Mlp((2,), 3, width=64, rngs=models.nnx.Rngs(settings.seed)))
    num_epochs = settings.pick(2, 40, 60)
    model_fn = runs.fit(model, natural, optax.adam(1e-2), x, y, seed=settings.seed, num_epochs=num_epochs, batch_size=60)
    points, extent = grid()
    labels = np.asarray(jax.jit(model_fn)(points).argmax(axis=1)).reshape(extent)

    attack = base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=settings.pick(20, 150, 300), step_size=0.3)
    result = jax.jit(attack)(jax.random.key(settings.seed), model_fn, x[:NUM_SHOWN], y[:NUM_SHOWN])

    plot, axes = plt.subplots(1, 2, figsize=(10, 4.8))
    for axis in axes:
        style.regions(axis, labels)
    axes[0].scatter(*x.T, c=[style.PALETTE[label] for label in y], s=10)
    axes[0].set_title("training points and decision regions")
    axes[1].set_title("the nearest point of another class")
    for start, end, label in zip(x, np.asarray(result.x), y, strict=False):
        axes[1].annotate("", end, start, arrowprops={"arrowstyle": "->", "color": style.INK})
        axes[1].plot(*start, "o", color=style.PALETTE[label], ms=5)
        axes[1].plot(*end, "x", color=style.INK, ms=5)
    distance = np.asarray(result.info.norm)
    caption = (
        f"Every class lies apart, and still every point is at most a step from a boundary: {NUM_SHOWN} points and the smallest "
        f"perturbation found by FMN (l2), median length {np.median(distance):.3f} where the classes' centres are .5 apart."
    )
    text = (
        "A classifier cuts the whole space into regions, also where it has seen no data. An adversarial example is the nearest "
        "point of another region; in many dimensions it is near in every norm."
    )
    alt = (
        "Two squares of three coloured regions that meet in the middle. Left: three separate clouds of points, one in each region. "
        "Right: a few of the points, each with a short arrow to the nearest place beyond the border of its region."
    )
    more = "a longer training of the network, and an attack of twice the steps."
    return report.Section("Why adversarial examples exist", text, [report.figure("Three classes", caption, plot, alt)], more=more)


def grid(side: int = 200) -> tuple[np.ndarray, tuple[int, int]]:
    """Points that fill the unit square [side * side, 2], and the shape that lays their values out as a picture."""
    ticks = np.linspace(0, 1, side)
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).astype(np.float32), (side, side)
