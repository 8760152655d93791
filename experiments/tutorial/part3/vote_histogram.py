"""What a smoothed classifier is: the votes of f(x + noise) for one image, and the certificate that they are."""

import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, report, smoothed, style, votes
from robustjax import smoothing
from robustjax.smoothing import counting

SIGMA = 0.5


def run(settings: experiment.Settings) -> report.Section:
    """An image, the image in noise, and the histogram, for an easy and for a hard digit."""
    dataset, effort = smoothed.images(settings), smoothed.effort_of(settings)
    model_fn = smoothed.train("Gaussian", SIGMA, settings, dataset.x_train, dataset.y_train, effort)
    x, y = dataset.x_test[:50], dataset.y_test[:50]
    num_samples = settings.pick(200, 10_000, 10_000)
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
            style.picture(axis, picture, title)
        histogram(axes[place, 2], state.selection[place], counts, certificate.radius[place], poll)
    axes[-1, 2].set_xlabel("class")
    caption = (
        f"{num_samples} samples of noise of standard deviation {SIGMA}. The class is chosen by {poll.num_selection} other votes; its "
        f"share is bounded from below with confidence 1 - {poll.alpha}, and R = sigma Phi^-1(bound): even where all votes agree, their "
        "number limits R."
    )
    text = (
        "The smoothed classifier answers with the class that the base classifier names most often in noise. It cannot be computed, only "
        "polled; but if one class is sure to have more than half of the votes, no perturbation shorter than R can take its lead."
    )
    told = "; ".join(
        f"{counts.max() / counts.sum():.0%} of the votes name {counts.argmax()}, R {radius:.2f}"
        for counts, radius in zip(state.estimation, certificate.radius, strict=True)
    )
    alt = f"Two rows, an easy digit and a hard one: the image, the image in noise, and a bar chart of its votes by class. {told}."
    more = "a base classifier trained twice as long."
    return report.Section("A certificate by vote", text, [report.figure("Votes for f(x + noise)", caption, plot, alt)], more=more)


def histogram(axis, selection, counts, radius: float, poll: votes.Poll) -> None:
    """Votes by class, with the bound and what follows from it."""
    chosen = int(np.argmax(selection))
    share = counts / counts.sum()
    bound = float(smoothing.binomial_lower(counts[chosen], counts.sum(), poll.alpha))
    axis.bar(np.arange(len(counts)), share, color=[style.BLUE if k == chosen else style.GREY for k in range(len(counts))])
    axis.axhline(0.5, color=style.INK, lw=0.8, ls=":", label="one half")
    axis.hlines(bound, chosen - 0.4, chosen + 0.4, color=style.VERMILION, label="lower bound of pA")
    axis.legend(loc="center left" if chosen >= 5 else "center right")
    verdict = f"R = {radius:.3f}" if bound >= 0.5 else "abstains"
    axis.set(xticks=np.arange(len(counts)), ylim=(0, 1.08), title=f"{counts[chosen]} of {counts.sum()} votes: pA >= {bound:.4f}, {verdict}")
    axis.set_ylabel("share of the votes")
