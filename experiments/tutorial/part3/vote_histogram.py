"""What a smoothed classifier is: the votes of f(x + noise) for one image, and the certificate that they are."""

import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, report, smoothed, votes
from robustjax import smoothing
from robustjax.smoothing import counting

SIGMA = 0.5


def run(settings: experiment.Settings) -> report.Section:
    """An image, the image in noise, and the histogram, for an easy and for a hard digit."""
    dataset, effort = smoothed.images(settings), smoothed.effort_of(settings)
    model_fn = smoothed.train("Gaussian", SIGMA, settings, dataset.x_train, dataset.y_train, effort)
    x, y = dataset.x_test[:50], dataset.y_test[:50]
    num_samples = 200 if settings.quick else 10_000
    folder = pathlib.Path(settings.out) / "vote_histogram"
    # Which images are shown is decided by other noise than that of their certificates.
    few = votes.Poll(SIGMA, num_samples=100, num_step_samples=100, seed=settings.seed + 1)
    share = votes.cast(folder / "few.npz", few, model_fn, x).estimation[np.arange(len(y)), y] / 100
    shown = np.array([np.argmax(share), np.argmin(np.abs(share - 0.75))])
    poll = few._replace(num_samples=num_samples, seed=settings.seed)
    state = votes.cast(folder / "many.npz", poll, model_fn, x[shown])
    certificate = poll.certify(state)
    plot, axes = plt.subplots(len(shown), 3, figsize=(10, 5.4), width_ratios=(1, 1, 2.6))
    for place, (image, label, counts) in enumerate(zip(x[shown], y[shown], state.estimation, strict=True)):
        noisy = counting.noisy(jax.random.split(jax.random.key(settings.seed), 1), image[None], SIGMA, 1)[0][0, 0]
        for axis, picture, title in zip(axes[place], (image, noisy), (f"x, a {label}", "x + noise"), strict=False):
            axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=1)
            axis.set(title=title, xticks=[], yticks=[])
        histogram(axes[place, 2], state.selection[place], counts, certificate.radius[place], poll)
    axes[-1, 2].set_xlabel("class")
    plot.tight_layout()
    caption = (
        f"{num_samples} samples of noise of standard deviation {SIGMA}. The class is chosen by {poll.num_selection} other votes; its "
        f"share is bounded from below with confidence 1 - {poll.alpha}, and R = sigma Phi^-1(bound): even where all votes agree, their "
        "number limits R."
    )
    text = (
        "The smoothed classifier answers with the class that the base classifier names most often in noise. It cannot be computed, only "
        "polled; but if one class is sure to have more than half of the votes, no perturbation shorter than R can take its lead."
    )
    return report.Section("A certificate by vote", text, [report.figure("Votes for f(x + noise)", caption, plot)])


def histogram(axis, selection, counts, radius: float, poll: votes.Poll) -> None:
    """Votes by class, with the bound and what follows from it."""
    chosen = int(np.argmax(selection))
    share = counts / counts.sum()
    bound = float(smoothing.binomial_lower(counts[chosen], counts.sum(), poll.alpha))
    axis.bar(np.arange(len(counts)), share, color=["C0" if k == chosen else "#bbb" for k in range(len(counts))])
    axis.axhline(0.5, color="#888", lw=0.8, ls=":", label="one half")
    axis.hlines(bound, chosen - 0.4, chosen + 0.4, color="C3", label="lower bound of pA")
    axis.legend(fontsize=8, loc="center left" if chosen >= 5 else "center right")
    verdict = f"R = {radius:.3f}" if bound >= 0.5 else "abstains"
    axis.set(xticks=np.arange(len(counts)), ylim=(0, 1.08), title=f"{counts[chosen]} of {counts.sum()} votes: pA >= {bound:.4f}, {verdict}")
    axis.set_ylabel("share of the votes")
