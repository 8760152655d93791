"""Randomized smoothing on MNIST against what it must reach: a LeNet, methods compared on the same images, and sequential certification.

`ROBUSTJAX_DATA=DIR python -m experiments.smoothing_gates` writes docs/results/smoothing.md; runs killed on the way go on.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import certify
from experiments.lib import data, experiment, report, smoothed, votes
from robustjax import smoothing

METHODS = ("Gaussian", "Consistency", "MACER", "SmoothAdv")
EFFORTS = {
    0.5: smoothed.Effort("lenet", 12, 3, 100, 1e-3, 2, 2, 16),
    0.25: smoothed.Effort("lenet", 8, 6, 100, 1e-3, 2, 2, 16),
}
GRID = tuple(np.arange(0.0, 2.25, 0.25).tolist())
# LeNet, all 10,000 images, mean of 5 seeds: the logs of Jeong & Shin's consistency regularisation (NeurIPS 2020).
PUBLISHED = {
    0.25: {"Gaussian": 0.9108, "Consistency": 0.928, "MACER": 0.9201, "SmoothAdv": 0.9322},
    0.5: {"Gaussian": 1.558, "Consistency": 1.655, "MACER": 1.590, "SmoothAdv": 1.687},
}
_MANY, _ENOUGH = 100_000, 500  # samples, images of the bar
_TOLERANCE = 0.05  # of the average radius, on 500 images
_TOO_FEW = "too few to judge"


class Gain(NamedTuple):
    """A difference of average radii on the same images."""

    mean: float
    error: float  # its standard error

    def __str__(self):
        return f"{self.mean:+.4f} +- {self.error:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sigmas", type=float, nargs="+", choices=tuple(EFFORTS), default=list(EFFORTS))
    parser.add_argument("--num-images", type=int, default=500, help="on which methods are compared")
    parser.add_argument("--n", type=int, default=10_000, help="samples of each of them")
    parser.add_argument("--num-fixed", type=int, nargs="+", default=[500], help="images with 100,000 samples: of all, or of each sigma")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="runs/smoothing_gates", help="where models and votes are kept")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/smoothing.md"))
    options = parser.parse_args(arguments)
    experiment.prepare()
    settings = experiment.Settings("mnist", options.seed, options.runs)
    mnist = data.load("mnist")
    if len(options.num_fixed) not in (1, len(options.sigmas)):
        parser.error(f"--num-fixed takes one number, or one for each of the {len(options.sigmas)} sigmas")
    command = " ".join(["python -m experiments.smoothing_gates", *(sys.argv[1:] if arguments is None else arguments)])

    def write(title, sigma, body):
        body = f"{body}\n    ROBUSTJAX_DATA=DIR {command}\n"
        print(body, flush=True)
        report.replace_section(options.out, _HEAD, title.format(sigma=sigma), body, _ORDER)

    for sigma in options.sigmas:
        write(_COMPARED_TITLE, sigma, compare(sigma, settings, mnist, options.num_images, options.n))
    for sigma, num_images in zip(options.sigmas, options.num_fixed * (len(options.sigmas) // len(options.num_fixed)), strict=True):
        write(_SEQUENTIAL_TITLE, sigma, sequential(sigma, settings, mnist, num_images))


def compare(sigma: float, settings: experiment.Settings, mnist: data.Dataset, num_images: int, num_samples: int) -> str:
    """The section of one sigma: a row for each method, and the paired differences."""
    x, y = certify.spread(mnist.x_test, mnist.y_test, num_images)
    poll = votes.Poll(sigma, num_samples=num_samples, seed=settings.seed)
    summaries, radii = {}, {}
    for name in METHODS:
        model_fn = smoothed.train(name, sigma, settings, mnist.x_train, mnist.y_train, EFFORTS[sigma])
        state = votes.cast(pathlib.Path(settings.out) / "votes" / f"{name}-{sigma}-{num_images}.npz", poll, model_fn, x)
        summaries[name] = certify.summarize(poll, state, y, GRID)
        radii[name] = right_radii(poll.certify(state), y)
    header = ["method", "ACR", "published", *(f"{radius:g}" for radius in GRID), "> .99", "at the cap", "less Gaussian"]
    cap = float(smoothing.radii.gaussian_l2(smoothing.binomial_lower(num_samples, num_samples, poll.alpha), sigma))
    rows = [
        row(name, summaries[name], PUBLISHED[sigma][name], np.isclose(radii[name], cap), gain(radii[name], radii["Gaussian"]))
        for name in METHODS
    ]
    lead = min((gain(radii["SmoothAdv"], radii[name]) for name in METHODS if name != "SmoothAdv"), key=lambda g: g.mean - g.error)
    over = gain(radii["MACER"], radii["Gaussian"])
    return _COMPARED.format(
        num_images=num_images, num_samples=num_samples, cap=f"{cap:.3f}", cut=described(EFFORTS[sigma]),
        table=report.markdown(header, rows),
        lead=f"{lead} ({verdict(lead.mean > lead.error)})", over=f"{over} ({verdict(over.mean > over.error)})",
    )  # fmt: skip


def sequential(sigma: float, settings: experiment.Settings, mnist: data.Dataset, num_images: int) -> str:
    """The section of a Gaussian model: all samples for every image, and the rule replayed on the same samples."""
    x, y = certify.spread(mnist.x_test, mnist.y_test, num_images)
    model_fn = smoothed.train("Gaussian", sigma, settings, mnist.x_train, mnist.y_train, EFFORTS[sigma])
    fixed = votes.Poll(sigma, num_samples=_MANY, seed=settings.seed)
    at = [*range(1000, min(_MANY, 10_000) + 1, 1000), *range(15_000, _MANY + 1, 5000)]
    selection, estimations = votes.looks(pathlib.Path(settings.out) / "votes" / f"looks-{sigma}-{num_images}", fixed, model_fn, x, at)
    whole = certify.summarize(fixed, smoothing.VoteState(selection, estimations[-1]), y, GRID)
    rows, verdicts = [["fixed", *_cells(whole), "1"]], []
    is_enough = num_images >= _ENOUGH
    within = tuple(radius for radius in GRID if radius <= 3 * sigma)
    rules = {"grid": (GRID, None), "grid, tolerance 0.05": (GRID, 0.05), "grid up to 3 sigma": (within, None)}
    for name, (grid, tolerance) in rules.items():
        poll = fixed._replace(grid=grid, tolerance=tolerance)
        summary = certify.summarize(poll, votes.replay(poll, selection, estimations), y, GRID)
        saving, loss = savings(whole, summary, len(grid))
        rows.append([name, *_cells(summary), f"{saving:.2f}"])
        near = verdict(loss <= 0.5) if is_enough else _TOO_FEW
        verdicts.append(f"{saving:.2f} times fewer ({verdict(saving >= 3)}), accuracy within {loss:.2f} points ({near})")
    error = float(np.std(right_radii(fixed.certify(smoothing.VoteState(selection, estimations[-1])), y)) / np.sqrt(num_images))
    published = PUBLISHED[sigma]["Gaussian"]
    near = verdict(abs(whole.average_radius - published) <= _TOLERANCE) if is_enough else _TOO_FEW
    header = ["samples", "ACR", *(f"{radius:g}" for radius in GRID), "samples of an image", "times fewer"]
    return _SEQUENTIAL.format(
        num_images=num_images, num_looks=len(at), table=report.markdown(header, rows), published=published, near=near,
        radius=f"{whole.average_radius:.4f} +- {error:.4f}", grid_only=verdicts[0], tolerant=verdicts[1], within=verdicts[2],
    )  # fmt: skip


def right_radii(certificate, y) -> np.ndarray:
    """Radii [N], wrong and abstained images as 0: their mean is the ACR."""
    return np.where(certificate.prediction == y, certificate.radius, 0.0)


def gain(radii: np.ndarray, others: np.ndarray) -> Gain:
    """How much larger the radii of the same images are, on average."""
    difference = radii - others
    return Gain(float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference))))


def savings(whole: certify.Summary, less: certify.Summary, num_radii: int) -> tuple[float, float]:
    """How many times fewer samples, and the largest difference of certified accuracy at the first radii of GRID in points."""
    return whole.samples / less.samples, 100 * float(np.abs(whole.certified - less.certified)[:num_radii].max())


def row(name: str, summary: certify.Summary, published: float, is_capped: np.ndarray, over: Gain) -> list[str]:
    """A row of the comparison."""
    shares = [f"{100 * share:.1f}" for share in (summary.shares[certify.SHARES.index(0.99)], is_capped.mean())]
    return [name, *_cells(summary)[:1], f"{published:g}", *_cells(summary)[1:-1], *shares, "" if name == "Gaussian" else str(over)]


def verdict(is_met: bool) -> str:
    """In a word."""
    return "met" if is_met else "MISSED"


def described(effort: smoothed.Effort) -> str:
    """What was done of the full recipe."""
    return (
        f"60,000 training images, one seed; {effort.num_warm_epochs} epochs on Gaussian noise shared by all methods, then "
        f"{effort.num_epochs} of each, in place of 90; Adam at {effort.learning_rate:g} and batches of {effort.batch_size}; SmoothAdv with "
        f"m = {effort.num_attack_copies} and T = {effort.num_attack_steps} at eps 1; MACER with k = {effort.num_radius_copies}; "
        "Consistency with m = 2"
    )


def _cells(summary):
    return [f"{summary.average_radius:.4f}", *(f"{100 * value:.1f}" for value in summary.certified), f"{summary.samples:.0f}"]


_HEAD = """\
# Randomized smoothing against its bars

MNIST, LeNet (conv 5x5 20, conv 5x5 50, dense 500), alpha .001 for an image, images evenly spread over the test set. ACR: average
certified radius in l2, wrong and abstained images as 0. Columns of numbers: certified accuracy in % at that radius; "> .99": images in %
whose right class has more than 99 % of the votes. Published: all 10,000 images, five seeds, 90 epochs, n = 100,000, from the logs of
[consistency regularisation](https://arxiv.org/abs/2006.04062).
"""
_COMPARED_TITLE, _SEQUENTIAL_TITLE = "Methods at sigma {sigma}", "Sequential certification: Gaussian, sigma {sigma}"
_ORDER = [title.format(sigma=sigma) for title in (_COMPARED_TITLE, _SEQUENTIAL_TITLE) for sigma in EFFORTS]
_COMPARED = """\
{num_images} images, n = {num_samples} for all rows, compared image by image. No radius can exceed {cap}, less than with n = 100,000: the
share of images there cannot tell methods apart.
Trained: {cut}.

{table}

Bars: SmoothAdv above every other of these four: {lead} over the next; MACER above Gaussian: {over}. Differences are of the ACR over the
same images, +- one standard error, and count as met beyond it, which chance alone reaches one time in six.
"""
_SEQUENTIAL = """\
{num_images} images, at most n = 100,000 samples each, {num_looks} looks; the rule is replayed on the very samples of the fixed run.
"grid": an image stops when no radius of the table is in doubt; with a tolerance it also goes on while its radius may grow by more. A rule
is judged at the radii that it asks for. The last row asks for no radius beyond three sigma: nearer to the largest radius of 3.81 sigma
every certificate takes most of the votes
(with a tenth of alpha, 3.5 sigma take 39,600 votes at least, all of them for the class: log 10,000 over -log Phi(3.5)).

{table}

Bars: ACR of the fixed run {published} +- .05 on 500 images: {radius} on these, +- one standard error ({near}). At least 3 times fewer
samples, within .5 point: grid {grid_only}; with tolerance {tolerant}; up to 3 sigma {within}.
"""

if __name__ == "__main__":
    from experiments import smoothing_gates

    smoothing_gates.main(sys.argv[1:])
