"""The slide "Attack examples": what L-BFGS, C&W, PGD and the augmented Lagrangian make of ten digits, on two models."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, experiment, report, victims
from robustjax import attacks, base
from robustjax.threats import L2, Linf


def run(settings: experiment.Settings) -> report.Section:
    """One picture for each model: rows of attacks, columns of digits, predictions above."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    items = [picture(name, model_fn, dataset, settings) for name, model_fn in models.items()]
    text = (
        "One test image of each class. L-BFGS, C&W and the augmented Lagrangian look for the smallest l2 perturbation that changes "
        f"the prediction; PGD uses the whole linf budget of {victims.EPS[settings.dataset]:.3g} per pixel."
    )
    return report.Section("Attack examples", text, items)


def rows(dataset: str, quick: bool) -> dict[str, base.Configured]:
    """The attacks of the slide, in its order."""
    less = 10 if quick else 1
    eps = victims.EPS[dataset]
    anywhere = L2(jnp.inf)
    return {
        "L-BFGS": base.bind(attacks.lbfgs, threat=anywhere, num_binary_search_steps=6, num_steps=max(50 // less, 5)),
        "C&W": base.bind(attacks.carlini_wagner, threat=anywhere, num_binary_search_steps=6, num_steps=200 // less, learning_rate=0.02),
        "PGD": base.bind(attacks.pgd, threat=Linf(eps), step_size=eps / 10, num_steps=40 // less),
        "L-aug": base.bind(attacks.alma, threat=anywhere, num_steps=400 // less),
    }


def picture(name: str, model_fn, dataset: data.Dataset, settings: experiment.Settings) -> report.Figure:
    """Rows of attacks, columns of digits, on one model."""
    x, y = _one_of_each(model_fn, dataset)
    shown = {"original": (x, np.asarray(jax.jit(model_fn)(x).argmax(axis=1)))}
    for row, attack in rows(settings.dataset, settings.quick).items():
        result = jax.jit(attack)(jax.random.key(settings.seed), model_fn, x, y)
        shown[row] = (np.asarray(result.x), np.asarray(jax.jit(model_fn)(result.x).argmax(axis=1)))
    plot, axes = plt.subplots(len(shown), len(x), figsize=(len(x), 1.25 * len(shown)))
    for line, (row, (images, predictions)) in zip(axes, shown.items(), strict=True):
        line[0].set_ylabel(row)
        for axis, image, prediction, label in zip(line, images, predictions, y, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(str(prediction), fontsize=9, color="black" if prediction == label else "red", pad=2)
            axis.set_xticks([])
            axis.set_yticks([])
    median = lambda images: np.median(np.linalg.norm((images - x).reshape(len(x), -1), axis=1))  # noqa: E731
    distances = ", ".join(f"{row} {median(images):.2f}" for row, (images, _) in shown.items() if row != "original")
    return report.figure(
        f"The {name} model", f"Predictions above, wrong ones in red. Median l2 distances from the original: {distances}.", plot
    )


def _one_of_each(model_fn, dataset):
    correct = np.asarray(jax.jit(model_fn)(dataset.x_test[:500]).argmax(axis=1)) == dataset.y_test[:500]
    rows = []
    for label in range(10):
        of_label = np.flatnonzero(dataset.y_test[:500] == label)
        right = of_label[correct[of_label]]
        rows.append(right[0] if len(right) else of_label[0])
    return dataset.x_test[rows], dataset.y_test[rows]
