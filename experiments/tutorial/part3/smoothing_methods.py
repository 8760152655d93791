"""How far training for smoothing carries: certified accuracy against radius by method and sigma, and what each method costs."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import certification, denoisers, experiment, report, runs, smoothed, style, votes
from robustjax import smoothing

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(settings: experiment.Settings) -> report.Section:
    """One panel for each sigma, one row for each method and sigma."""
    dataset, effort = smoothed.images(settings), smoothed.effort_of(settings)
    x, y = certification.spread(dataset.x_test, dataset.y_test, settings.pick(8, 50, 100))
    num_samples = settings.pick(100, 500, 1000)
    methods = settings.pick(("Gaussian", "SmoothAdv"), smoothed.METHODS, smoothed.METHODS)
    sigmas = settings.pick((0.25,), (0.5,), smoothed.SIGMAS)
    plot, axes = plt.subplots(1, len(sigmas), figsize=(3.5 + 4 * len(sigmas), 4.4), sharey=True, squeeze=False)
    axes, rows = axes[0], []
    for axis, sigma in zip(axes, sigmas, strict=True):
        models = {
            name: smoothed.train(name, sigma, settings, dataset.x_train, dataset.y_train, effort) for name in methods
        } | denoisers.classifiers(sigma, settings, dataset, effort)
        poll = votes.Poll(sigma, num_samples=num_samples, num_step_samples=num_samples, seed=settings.seed)
        for name, model_fn in models.items():
            path = pathlib.Path(settings.out) / "smoothing_methods" / f"{name}-{sigma}.npz"
            state = votes.cast(path, poll, model_fn, x)
            summary = certification.summarize(poll, state, y, GRID)
            run_name = "base" if name == "unprotected" else f"{name}-{sigma}"
            rows.append(row(name, sigma, summary, runs.seconds_per_epoch(settings.out, run_name)))
            curve(axis, poll.certify(state), y, name)
        axis.set(title=f"sigma {sigma}", xlabel="radius (l2)", xlim=(0, None), ylim=(0, 1.02))
    axes[0].set_ylabel("certified accuracy")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    most = float(poll.certify(poll_of_one_mind(num_samples)).radius[0]) / sigma
    caption = (
        f"{len(x)} test images, {num_samples} noise samples each, alpha .001 for an image: no radius can exceed {most:.2f} sigma. "
        "Unprotected: trained on images without noise, and certified under noise like the others."
    )
    header = ["trained with", "sigma", "ACR", *(f"r = {radius:g}" for radius in GRID), "share > .99", "s per epoch"]
    about = (
        "ACR: average certified radius, wrong and abstained images as 0. r: certified accuracy in %. Share: images in % whose right "
        "class has more than 99 % of the votes, because ACR alone rewards making easy images easier. Denoised: seconds of the stability "
        f"phase. All methods go on for {effort.num_epochs} epochs from a model (denoiser) trained for {effort.num_warm_epochs} on "
        f"Gaussian noise; SmoothAdv with m = {effort.num_attack_copies}, T = {effort.num_attack_steps}, MACER with "
        f"k = {effort.num_radius_copies}."
    )
    text = (
        "A smoothed classifier is as robust as its base classifier is steady in noise. One that was never trained on noise is not; a "
        "denoiser in front of it mends much of that without touching it, and some even if only its answers are known. "
        "Training for it directly goes farther: consistency under noise, the certified radius itself (MACER), or adversarial examples "
        "of the smoothed classifier (SmoothAdv, SmoothMix). A larger sigma buys radius with accuracy."
    )
    alt = (
        f"{len(sigmas)} panel(s), one for each sigma: certified accuracy falls in steps as the radius grows. The dotted line of the "
        "unprotected model is lowest, the dashed lines of denoised models lie between it and the solid ones of methods of training."
    )
    items = [
        report.figure("Certified accuracy", caption, plot, alt),
        report.Table("Methods of training for smoothing", about, header, rows),
    ]
    more = "two values of sigma, twice the training, 100 images with 1,000 votes each."
    return report.Section("Training for smoothing", text, items, more=more)


def row(name: str, sigma: float, summary: certification.Summary, seconds: float) -> list[str]:
    """A row of the table."""
    certified = [f"{100 * value:.0f}" for value in summary.certified]
    share = 100 * summary.shares[certification.SHARES.index(0.99)]
    return [name, f"{sigma:g}", f"{summary.average_radius:.3f}", *certified, f"{share:.0f}", f"{seconds:.2g}"]


def curve(axis, certificate, y, name: str) -> None:
    """Certified accuracy over all radii: a step down at the radius of every image."""
    radii = np.sort(certificate.radius[certificate.prediction == y])
    heights = np.arange(len(radii), -1, -1) / len(y)
    dashes = "--" if name in denoisers.NAMES else ":" if name == "unprotected" else "-"
    places = np.r_[0.0, radii]
    axis.step(np.r_[places, places[-1]], np.r_[heights[:1], heights], where="pre", ls=dashes, color=style.of(name), label=name)


def poll_of_one_mind(num_samples: int):
    """Votes that all agree."""
    return smoothing.VoteState(np.array([[100, 0]]), np.array([[num_samples, 0]]))
