"""Influence functions against the truth: what a test loss does when a training image is left out, predicted and by training again."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import scipy.special

from experiments.lib import data, experiment, report, style
from robustjax import base, bilevel, poisoning

CLASSES = (1, 7)
REG = 0.01
_BAR = 0.98  # of the correlation


class Scatter(NamedTuple):
    """Changes of the loss of one test image."""

    predicted: np.ndarray  # [N] for every training image
    rows: np.ndarray  # which of them were left out
    exact: np.ndarray  # the change of the test loss for each of these
    residual: float  # of the worst linear system
    test: int  # the test image

    def pearson(self, part: slice = slice(None)) -> float:
        """The correlation of predicted and exact changes, of a part of the rows."""
        return float(np.corrcoef(self.predicted[self.rows][part], self.exact[part])[0, 1])

    def slope(self, part: slice = slice(None)) -> float:
        """Of exact against predicted changes, by least squares."""
        predicted, exact = self.predicted[self.rows][part], self.exact[part]
        return float(predicted @ exact / (predicted @ predicted))


def run(settings: experiment.Settings) -> report.Section:
    """A scatter plot, and the images that help and harm most."""
    dataset = data.load(settings.dataset)
    x, y = _binary(dataset.x_train, dataset.y_train, settings.pick(200, 500, 1000))
    x_test, y_test = _binary(dataset.x_test, dataset.y_test, 200)
    num_top, num_random = settings.pick((4, 3), (40, 30), (60, 40))
    found = scatter(x, y, x_test, y_test, num_top, num_random, settings.seed)
    text = (
        "Newton's step to the minimum without an image, one linear system for each of them, predicts what leaving it out would do to a "
        "test loss. The images that matter most look like the test image: those of its own class hold its loss down, those of the other "
        "class drive it up."
    )
    pictures = _pictures(found, x, x_test, dataset.x_train.shape[1:3])
    items = [_plot(found, num_top, num_random, len(x)), _table(found, num_top), pictures]
    return report.Section("Which training images decide", text, items, more="1,000 training images, of which 100 are left out one by one.")


def scatter(x, y, x_test, y_test, num_top: int, num_random: int, seed: int) -> Scatter:
    """Of the hardest test image that is classified rightly: the most influential training images, and random others.

    Args:
      x: [N, D] training inputs in float64. y: [N], -1 or 1.
      x_test, y_test: likewise.
      num_top, num_random: how many images are left out, one by one.
      seed: of the random ones.
    """
    theta, factor = train(x, y)
    test_losses = _losses(theta, x_test, y_test)
    test = int(np.argmax(np.where(test_losses < np.log(2.0), test_losses, -np.inf)))
    with jax.enable_x64(True):
        one = functools.partial(_loss, x=jnp.asarray(x_test[test]), y=jnp.asarray(y_test[test]))
        influence = functools.partial(
            poisoning.influence, loss_fn=_loss, test_loss_fn=one, regularizer_fn=_penalty,
            linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=200, tolerance=1e-10),
        )  # fmt: skip
        found = jax.jit(influence)(theta, x, y)
        predicted, residual = np.asarray(found.removal), float(found.residual)
    order = np.argsort(-np.abs(predicted))
    others = np.random.default_rng(seed).choice(order[num_top:], num_random, replace=False)
    rows = np.concatenate([order[:num_top], others])
    left_out = [train(np.delete(x, row, axis=0), np.delete(y, row), theta, factor)[0] for row in rows]
    exact = np.array([_losses(changed, x_test[[test]], y_test[[test]])[0] - test_losses[test] for changed in left_out])
    return Scatter(predicted, rows, exact, residual, test)


def train(x: np.ndarray, y: np.ndarray, theta=None, factor=None) -> tuple[np.ndarray, tuple]:
    """Logistic regression to its minimum by Newton's steps, and the factor of its Hessian.

    Args:
      x: [N, D]. y: [N], -1 or 1.
      theta: [D + 1] where to start, the bias last.
      factor: of a Hessian near enough to be used instead: that of all images, when one is left out.
    """
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    theta = np.zeros(ones.shape[1]) if theta is None else theta
    found = factor
    for _ in range(200):
        p = scipy.special.expit(-y * (ones @ theta))
        slope = REG * theta - (y * p) @ ones / len(x)
        if found is not None and np.linalg.norm(slope) < 1e-10:
            return theta, found
        if factor is None:
            found = scipy.linalg.cho_factor((ones * (p * (1.0 - p))[:, None]).T @ ones / len(x) + REG * np.eye(len(theta)))
        theta = theta - scipy.linalg.cho_solve(found, slope)
    raise FloatingPointError(f"Newton's steps stopped at a slope of {np.linalg.norm(slope):.1e}; the data need a larger regularizer.")


def _loss(theta, x, y):
    return jax.nn.softplus(-y * (x @ theta[:-1] + theta[-1]))


def _penalty(theta):
    return 0.5 * REG * jnp.sum(jnp.square(theta))


def _losses(theta, x, y):
    return np.logaddexp(0.0, -y * (x @ theta[:-1] + theta[-1]))


def _plot(found, num_top, num_random, num_images):
    plot, axis = plt.subplots(figsize=(5.5, 5))
    predicted = found.predicted[found.rows]
    for part, color, label in (
        (slice(num_top), style.VERMILION, f"the {num_top} most influential"),
        (slice(num_top, None), style.BLUE, f"{num_random} random"),
    ):
        axis.scatter(predicted[part], found.exact[part], s=14, color=color, label=label)
    low, high = min(predicted.min(), found.exact.min()), max(predicted.max(), found.exact.max())
    axis.plot([low, high], [low, high], ":", color=style.INK, lw=1, label="prediction = truth")
    axis.set(xlabel="predicted change of the test loss", ylabel="change after training again without the image")
    axis.legend()
    axis.grid()
    caption = (
        f"Logistic regression of digits {CLASSES[0]} and {CLASSES[1]}, {num_images} training images, weight decay {REG}; the test image is "
        f"the hardest that is classified rightly."
    )
    alt = (
        "A scatter of the change of the test loss after training again against the predicted change. The points lie along the diagonal "
        f"(correlation {found.pearson():.3f}); the most influential images spread along it, the random ones crowd at zero."
    )
    return report.figure("Influence against leaving out", caption, plot, alt)


def _table(found, num_top):
    parts = {"all of these": slice(None), "the most influential": slice(num_top), "random": slice(num_top, None)}
    rows = [[name, str(len(found.exact[part])), f"{found.pearson(part):.4f}", f"{found.slope(part):.2f}"] for name, part in parts.items()]
    caption = (
        f"Predicted change of the test loss against that after training again without an image. Bar: Pearson at least {_BAR} for all: "
        f"{'met' if found.pearson() >= _BAR else 'MISSED'}. Residual of the worst linear system: {found.residual:.0e}."
    )
    return report.Table("Prediction and truth", caption, ["images left out", "number", "Pearson", "slope"], rows)


def _pictures(found, x, x_test, side):
    order = np.argsort(found.predicted)
    groups = {"helpful": order[::-1][:4], "harmful": order[:4]}
    plot, axes = plt.subplots(2, 5, figsize=(8, 3.6))
    for axis in axes.ravel():
        axis.axis("off")
    style.picture(axes[0, 0], x_test[found.test].reshape(side), "test image", fontsize=9)
    for row, (name, members) in zip(axes[:, 1:], groups.items(), strict=True):
        for axis, member in zip(row, members, strict=True):
            style.picture(axis, x[member].reshape(side), f"{name}: {found.predicted[member]:+.3f}", fontsize=9)
    caption = "The most helpful and the most harmful training images, with the change of the test loss that leaving them out would make."
    alt = (
        "A digit of the test set. Beside it four training digits that help, which change its loss by up to "
        f"{found.predicted[order[-1]]:+.3f} when they are left out, and below these four that harm, up to {found.predicted[order[0]]:+.3f}."
    )
    return report.figure("Who helps, who harms", caption, plot, alt)


def _binary(x, y, most):
    rows = np.flatnonzero(np.isin(y, CLASSES))[:most]
    return x[rows].reshape(len(rows), -1).astype(np.float64), np.where(y[rows] == CLASSES[0], -1.0, 1.0)
