"""The sandwich r_cert <= r <= r_num: what is proved about an image, beside the nearest error that an attack finds."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import evaluation, experiment, report, smoothed, style, votes
from robustjax import attacks, base, smoothing
from robustjax.threats import L2

SIGMA = 0.5
METHODS = ("Gaussian", "SmoothAdv")
STRETCHES = (0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the attack's perturbation, which is found on a few samples of noise
FEW = (1.0, 1.2, 1.5)
ALPHA = 0.001  # of the certificates and, shared by the stretches, of the predictions


class Bounds(NamedTuple):
    """What is known about the distance of images to the nearest error of the smoothed classifier."""

    certified: np.ndarray  # [N] r_cert; 0 where it abstains
    found: np.ndarray  # [N] r_num; infinite where no x' is sure to be of another class
    prediction: np.ndarray  # [N] of the smoothed classifier at x, -1 where it abstains


def run(settings: experiment.Settings) -> report.Section:
    """A scatter of both radii and one table; fails if more images contradict than chance allows."""
    dataset, effort = smoothed.images(settings), smoothed.effort_of(settings)
    num_images, num_samples, num_steps = settings.pick((4, 200, 5), (30, 1000, 30), (40, 5000, 60))
    stretches = settings.pick(STRETCHES, FEW, STRETCHES)
    x, y = dataset.x_test[:num_images], dataset.y_test[:num_images]
    plot, axis = plt.subplots(figsize=(5.6, 5.2))
    rows = []
    for name in METHODS:
        model_fn = smoothed.train(name, SIGMA, settings, dataset.x_train, dataset.y_train, effort)
        folder = pathlib.Path(settings.out) / "sandwich" / name
        bounds = measure(folder, model_fn, x, settings.seed, num_samples, num_steps, stretches)
        num_wrong = check(bounds, ALPHA, ALPHA)
        known = np.isfinite(bounds.found) & (bounds.prediction >= 0)
        axis.plot(bounds.certified[known], bounds.found[known], ".", color=style.of(name), label=name, alpha=0.8)
        rows.append(row(name, bounds, y, num_wrong))
    cap = float(smoothing.radii.gaussian_l2(smoothing.binomial_lower(num_samples, num_samples, ALPHA), SIGMA))
    axis.plot([0, cap], [0, cap], "--", color=style.INK, lw=1, label="r_num = r_cert")
    axis.axvline(cap, color=style.GREY, lw=1, zorder=0, label="all votes agree")
    axis.set(xlabel="r_cert, proved", ylabel="r_num, found", xlim=(0, 1.1 * cap), ylim=(0, None))
    axis.legend()
    most = smoothing.failures(num_images, 2 * ALPHA)
    caption = (
        f"The first {num_images} test images, sigma {SIGMA}, {num_samples} samples: they cannot certify more than {cap:.2f}, where all "
        "votes agree. Below the diagonal would be a contradiction. "
        f"r_num: FMN on the mean softmax of 16 fresh noises a step, its perturbation stretched by {', '.join(map(str, stretches))}; x' "
        f"counts only if the votes there name another class at level {ALPHA} / {len(stretches)}."
    )
    about = (
        f"Medians over images with both radii. Both are statements about a random poll: at most {most} of {num_images} may contradict "
        f"(binomial quantile .999 of alpha_certify + alpha_predict = {2 * ALPHA:g}); beyond it this experiment fails."
    )
    header = ["trained with", "r_cert", "r_num", "r_num / r_cert", "both known", "right", "contradictions"]
    alt = (
        "A scatter of the distance that an attack found against the radius that was proved, for images of two models. Every point lies on "
        "or above the diagonal, most well above it; a vertical line marks the largest radius that so many votes can prove."
    )
    items = [report.figure("The sandwich", caption, plot, alt), report.Table("Proved and found", about, header, rows)]
    text = (
        "An attack shows that the distance to the nearest error is at most r_num, a certificate that it is at least r_cert. Between them "
        "lies what neither knows. No smarter attack can move a point below the diagonal, no better proof above its r_num."
    )
    more = "40 images, 5,000 samples, which prove larger radii, and an attack of twice the steps and six lengths."
    return report.Section("Between proof and attack", text, items, more=more)


def measure(folder: pathlib.Path, model_fn, x, seed: int, num_samples: int, num_steps: int, stretches=STRETCHES) -> Bounds:
    """Both radii of every image; the attack is FMN on the smoothed classifier, from its own prediction."""
    poll = votes.Poll(SIGMA, num_samples=num_samples, num_step_samples=num_samples, seed=seed, alpha=ALPHA)
    state = votes.cast(folder / "clean.npz", poll, model_fn, x)
    certificate = poll.certify(state)
    label = state.selection.argmax(axis=1)
    fmn = base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=num_steps)
    smoothed_fn = smoothing.soft(model_fn, sigma=SIGMA, num_samples=16)
    result = evaluation.attacked(fmn, jax.random.key(seed), smoothed_fn, x, label)
    x_adv = np.asarray(result.x)
    found = np.full(len(x), np.inf)
    for place, stretch in enumerate(sorted(stretches, reverse=True)):
        stretched = np.clip(x + np.float32(stretch) * (x_adv - x), 0.0, 1.0)
        there = votes.cast(folder / f"{stretch}.npz", poll._replace(seed=seed + 1 + place), model_fn, stretched)
        prediction = smoothing.predict(there.estimation, alpha=ALPHA / len(stretches))
        fooled = np.asarray(result.success) & (prediction != -1) & (prediction != label)
        found = np.where(fooled, np.minimum(found, np.linalg.norm((stretched - x).reshape(len(x), -1), axis=1)), found)
    return Bounds(certificate.radius, found, certificate.prediction)


def check(bounds: Bounds, alpha_certify: float, alpha_predict: float) -> int:
    """How many images contradict: another class is sure to be nearer than the certificate says that any is.

    Raises:
      ArithmeticError: more than the two error probabilities explain.
    """
    num_wrong = int(np.sum((bounds.prediction >= 0) & (bounds.found < bounds.certified)))
    allowed = smoothing.failures(len(bounds.found), alpha_certify + alpha_predict)
    if num_wrong > allowed:
        raise ArithmeticError(f"{num_wrong} of {len(bounds.found)} certificates are contradicted by an attack, where {allowed} may be.")
    return num_wrong


def row(name: str, bounds: Bounds, y: np.ndarray, num_wrong: int) -> list[str]:
    """A row of the table."""
    known = np.isfinite(bounds.found) & (bounds.prediction >= 0)
    medians = ["-"] * 3
    if known.any():
        certified, found = bounds.certified[known], bounds.found[known]
        ratio = np.median(found / np.maximum(certified, 1e-9))
        medians = [f"{value:.3f}" for value in (np.median(certified), np.median(found), ratio)]
    return [name, *medians, f"{known.sum()} of {len(y)}", f"{np.sum(bounds.prediction == y)}", str(num_wrong)]
