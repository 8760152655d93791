"""The slide "Attack examples": what L-BFGS, C&W, PGD and the augmented Lagrangian make of ten digits, on two models."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import data, evaluation, experiment, report, style, victims
from robustjax import attacks, base
from robustjax.threats import L2, Linf


def run(settings: experiment.Settings) -> report.Section:
    """One picture for each model: rows of attacks, columns of digits, predictions above."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    figures = [picture(name, model_fn, dataset, settings) for name, model_fn in models.items()]
    text = (
        "One test image of each class. L-BFGS, C&W and the augmented Lagrangian look for the smallest l2 perturbation that changes "
        f"the prediction; PGD uses the whole linf budget of {victims.EPS[settings.dataset]:.3g} per pixel."
    )
    more = "the minimum-norm attacks with twice the steps, so that their changes are smaller."
    return report.Section("Attack examples", text, figures, slide="Attack examples", more=more)


def rows(settings: experiment.Settings) -> dict[str, base.Configured]:
    """The attacks of the slide, in its order."""
    eps, anywhere = victims.EPS[settings.dataset], L2(jnp.inf)
    num_quasi_newton, num_adam, rate, num_lagrangian = settings.pick((5, 20, 0.02, 40), (30, 100, 0.05, 200), (50, 200, 0.02, 400))
    return {
        "L-BFGS": base.bind(attacks.lbfgs, threat=anywhere, num_binary_search_steps=6, num_steps=num_quasi_newton),
        "C&W": base.bind(attacks.carlini_wagner, threat=anywhere, num_binary_search_steps=6, num_steps=num_adam, learning_rate=rate),
        "PGD": base.bind(attacks.pgd, threat=Linf(eps), step_size=eps / 10, num_steps=settings.pick(4, 40, 40)),
        "L-aug": base.bind(attacks.alma, threat=anywhere, num_steps=num_lagrangian),
    }


def picture(name: str, model_fn, dataset: data.Dataset, settings: experiment.Settings) -> report.Figure:
    """Rows of attacks, columns of digits, on one model."""
    x, y = _one_of_each(model_fn, dataset)
    images = {"original": x}
    for row, attack in rows(settings).items():
        images[row] = np.asarray(evaluation.attacked(attack, jax.random.key(settings.seed), model_fn, x, y).x)
    predictions = {row: np.asarray(evaluation.predicted(model_fn, part)) for row, part in images.items()}
    plot = style.gallery({row: (part, predictions[row], predictions[row] != y) for row, part in images.items()})
    median = lambda part: np.median(np.linalg.norm((part - x).reshape(len(x), -1), axis=1))  # noqa: E731
    distances = ", ".join(f"{row} {median(part):.2f}" for row, part in images.items() if row != "original")
    alt = (
        f"{len(images)} rows of ten handwritten digits: the originals, and what {', '.join(list(images)[1:])} make of them against the "
        f"{name} model. {sum(int((part != y).sum()) for part in predictions.values())} of the predictions above them are wrong."
    )
    caption = f"Predictions above, wrong ones in orange. Median l2 distances from the original: {distances}."
    return report.figure(f"The {name} model", caption, plot, alt)


def _one_of_each(model_fn, dataset):
    correct = np.asarray(evaluation.predicted(model_fn, dataset.x_test[:500])) == dataset.y_test[:500]
    rows = []
    for label in range(10):
        of_label = np.flatnonzero(dataset.y_test[:500] == label)
        right = of_label[correct[of_label]]
        rows.append(right[0] if len(right) else of_label[0])
    return dataset.x_test[rows], dataset.y_test[rows]
