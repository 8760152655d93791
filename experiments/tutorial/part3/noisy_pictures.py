"""Quality of certification: what the noise looks like that a radius costs, and how short the radius is beside it."""

import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, report, smoothed, style, votes
from robustjax.smoothing import counting

SIGMAS = (0.25, 0.5, 1.0)
NUM_PICTURES = 4


def run(settings: experiment.Settings) -> report.Section:
    """A row of digits for each sigma, each with the radius certified by a model trained at that sigma."""
    dataset, effort = smoothed.images(settings), smoothed.effort_of(settings)
    first = [int(np.argmax(dataset.y_test == label)) for label in range(NUM_PICTURES)]
    x, y = dataset.x_test[first], dataset.y_test[first]
    num_samples = settings.pick(200, 2000, 10_000)
    plot, axes = plt.subplots(1 + len(SIGMAS), NUM_PICTURES, figsize=(8, 9))
    keys = jax.random.split(jax.random.key(settings.seed), NUM_PICTURES)
    for axis, picture in zip(axes[0], x, strict=True):
        style.picture(axis, picture, "no noise, no certificate", fontsize=9)
    rows = []
    for sigma, line in zip(SIGMAS, axes[1:], strict=True):
        model_fn = smoothed.train("Gaussian", sigma, settings, dataset.x_train, dataset.y_train, effort)
        poll = votes.Poll(sigma, num_samples=num_samples, num_step_samples=num_samples, seed=settings.seed)
        path = pathlib.Path(settings.out) / "noisy_pictures" / f"{sigma}.npz"
        certificate = poll.certify(votes.cast(path, poll, model_fn, x))
        noisy = counting.noisy(keys, x, sigma, 1)[0][:, 0]
        length = sigma * np.sqrt(x[0].size)  # of the noise, up to a few percent
        for axis, picture, label, prediction, radius in zip(line, noisy, y, certificate.prediction, certificate.radius, strict=True):
            verdict = "abstains" if prediction == -1 else f"R = {radius:.2f}" if prediction == label else f"wrong: {prediction}"
            style.picture(axis, picture, f"{verdict}, noise {length:.0f}", fontsize=9)
        rows.append([f"{sigma:g}", f"{length:.1f}", *(f"{radius:.2f}" for radius in certificate.radius)])
    for sigma, axis in zip((0, *SIGMAS), axes[:, 0], strict=True):
        axis.set_ylabel(f"sigma {sigma:g}")
    caption = (
        f"Every row in its own noise, with the radius R certified with {num_samples} samples by a model trained in that noise, beside the "
        "length of the noise, sigma times the root of the number of pixels. Pixels are clipped for display only."
    )
    table = report.Table(
        "Radius and noise", "Certified l2 radius of the digits above.", ["sigma", "length of the noise", *map(str, y)], rows
    )
    text = (
        "A certificate of radius R is bought with noise many times longer than R: the classifier must read what hardly is to be read. "
        "Noise in a random direction leaves the vote as it is, however long; a perturbation that is chosen, and longer than R, might not."
    )
    alt = (
        f"The digits {', '.join(map(str, y))} without noise, and below them in Gaussian noise of sigma {', '.join(map(str, SIGMAS))}. At "
        "sigma .25 they are easy to read, at 1 they hardly show."
    )
    more = "models trained twice as long, and 10,000 samples, which allow larger radii."
    figures = [report.figure("Digits in noise", caption, plot, alt), table]
    return report.Section("The price of a radius", text, figures, slide="Quality of certification", more=more)
