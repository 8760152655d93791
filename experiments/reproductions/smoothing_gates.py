"""Randomized smoothing against what it must reach: a LeNet on MNIST, a ResNet-20 on CIFAR-10, methods compared on the same images.

`ROBUSTJAX_DATA=DIR python -m experiments smoothing_gates` writes docs/results/smoothing.md; runs killed on the way go on. On an
accelerator, `--images-per-device 100` and longer training (`--effort num_epochs=60 batch_size=256`) cost little.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.lib import certification, data, experiment, models, report, smoothed, votes
from robustjax import smoothing

_LENET = smoothed.Effort("lenet", 12, 3, 100, 1e-3, 2, 2, 16)
_RESNET = smoothed.Effort("resnet20", 15, 15, 100, 1e-3, 2, 2, 16, 4.0, 10.0)
EFFORTS = {"mnist": {0.5: _LENET, 0.25: _LENET._replace(num_warm_epochs=8, num_epochs=6)}, "cifar10": {0.5: _RESNET}}
# All 10,000 images, n = 100,000, mean of 5 seeds on MNIST: the logs of Jeong & Shin's consistency regularisation (NeurIPS 2020).
PUBLISHED = {
    "mnist": {
        0.25: {"Gaussian": 0.9108, "Stability": 0.9152, "Consistency": 0.928, "MACER": 0.9201, "SmoothAdv": 0.9322},
        0.5: {"Gaussian": 1.558, "Stability": 1.572, "Consistency": 1.655, "MACER": 1.590, "SmoothAdv": 1.687},
    },
    "cifar10": {0.5: {"Gaussian": 0.524, "Stability": 0.499, "Consistency": 0.687, "MACER": 0.661, "SmoothAdv": 0.692}},
}
GRID = tuple(np.arange(0.0, 2.25, 0.25).tolist())
_MANY, _ENOUGH = 100_000, 500  # samples, images of the bar
_TOLERANCE = 0.05  # of the average radius, on 500 images
_TOO_FEW = "too few to judge"


class Gain(NamedTuple):
    """A difference of average radii on the same images."""

    mean: float
    error: float  # its standard error

    def __str__(self):
        return f"{self.mean:+.4f} +- {self.error:.4f}"


class Case(NamedTuple):
    """A data set and a sigma, with the images that are judged, and how."""

    settings: experiment.Settings
    dataset: data.Dataset
    sigma: float
    effort: smoothed.Effort
    num_images: int
    images_per_device: int

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Evenly spread over the test set."""
        return certification.spread(self.dataset.x_test, self.dataset.y_test, self.num_images)

    def model_fn(self, method: str):
        """Trained by a method."""
        return smoothed.train(method, self.sigma, self.settings, self.dataset.x_train, self.dataset.y_train, self.effort)

    def cast(self, name: str, poll: votes.Poll, model_fn) -> smoothing.VoteState:
        """Of the images, kept on file."""
        path = pathlib.Path(self.settings.out) / "votes" / f"{name}-{self.sigma}-{self.num_images}.npz"
        return votes.cast(path, poll, model_fn, self.points[0], images_per_device=self.images_per_device)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=tuple(EFFORTS), default="mnist")
    parser.add_argument("--sigmas", type=float, nargs="+", help="of those of the data set; all by default")
    parser.add_argument("--methods", nargs="+", choices=smoothed.METHODS, default=list(smoothed.METHODS), help="to compare")
    parser.add_argument("--num-images", type=int, default=500, help="on which methods are compared")
    parser.add_argument("--n", type=int, default=10_000, help="samples of each of them")
    parser.add_argument("--num-fixed", type=int, nargs="+", default=[500], help="images with 100,000 samples: of all, or of each sigma")
    parser.add_argument("--num-halved", type=int, default=0, help="images whose votes are also cast in bfloat16")
    parser.add_argument("--effort", type=_change, nargs="+", default=[], metavar="NAME=NUMBER", help="of training, beside what is usual")
    parser.add_argument("--images-per-device", type=int, default=2, help="at once, under noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="runs/smoothing_gates", help="where models and votes are kept")
    parser.add_argument("--out", type=experiment.output, default="docs/results/smoothing.md")
    options = parser.parse_args(arguments)
    efforts = EFFORTS[options.dataset]
    sigmas = options.sigmas or list(efforts)
    if not set(sigmas) <= set(efforts):
        parser.error(f"--sigmas takes some of {list(efforts)} on {options.dataset}")
    if not {"Gaussian", "MACER", "SmoothAdv"} <= set(options.methods):
        parser.error(f"--methods compares Gaussian, MACER and SmoothAdv, with others or without; got {', '.join(options.methods)}")
    if len(options.num_fixed) not in (1, len(sigmas)):
        parser.error(f"--num-fixed takes one number, or one for each of the {len(sigmas)} sigmas")
    experiment.prepare()
    settings = experiment.Settings(dataset=options.dataset, seed=options.seed, out=str(pathlib.Path(options.runs) / options.dataset))
    dataset = data.load(options.dataset)
    command = " ".join(["python -m experiments smoothing_gates", *(sys.argv[1:] if arguments is None else arguments)])

    def write(title, case, body):
        body = f"{body}\n    ROBUSTJAX_DATA=DIR {command}\n"
        print(body, flush=True)
        report.replace_section(options.out, _HEAD, title.format(dataset=_TITLES[options.dataset], sigma=case.sigma), body, _ORDER)

    cases = [
        Case(settings, dataset, sigma, efforts[sigma]._replace(**dict(options.effort)), options.num_images, options.images_per_device)
        for sigma in sigmas
    ]
    for case, num_fixed in zip(cases, options.num_fixed * (len(sigmas) // len(options.num_fixed)), strict=True):
        write(_COMPARED_TITLE, case, compare(case, options.n, options.methods))
        if num_fixed:
            write(_SEQUENTIAL_TITLE, case, sequential(case._replace(num_images=num_fixed)))
        if options.num_halved:
            write(_HALVED_TITLE, case, halved(case._replace(num_images=options.num_halved), options.n))


def compare(case: Case, num_samples: int, methods: Sequence[str]) -> str:
    """The section of one sigma: a row for each method, and the paired differences."""
    _, y = case.points
    poll = votes.Poll(case.sigma, num_samples=num_samples, seed=case.settings.seed)
    summaries, radii = {}, {}
    for name in methods:
        state = case.cast(name, poll, case.model_fn(name))
        summaries[name] = certification.summarize(poll, state, y, GRID)
        radii[name] = right_radii(poll.certify(state), y)
    header = ["method", "ACR", "published", *(f"{radius:g}" for radius in GRID), "> .99", "at the cap", "less Gaussian"]
    cap = float(smoothing.radii.gaussian_l2(smoothing.binomial_lower(num_samples, num_samples, poll.alpha), case.sigma))
    published = PUBLISHED[case.settings.dataset][case.sigma]
    rows = [
        row(name, summaries[name], published.get(name), np.isclose(radii[name], cap), gain(radii[name], radii["Gaussian"]))
        for name in methods
    ]
    lead = min((gain(radii["SmoothAdv"], radii[name]) for name in methods if name != "SmoothAdv"), key=lambda g: g.mean - g.error)
    over = gain(radii["MACER"], radii["Gaussian"])
    return _COMPARED.format(
        num_images=case.num_images, num_samples=num_samples, cap=f"{cap:.3f}", cut=described(case.effort, methods),
        num_train=f"{len(case.dataset.x_train):,}", num_test=f"{len(case.dataset.x_test):,}",
        table=report.markdown(header, rows), device=jax.devices()[0].device_kind,
        lead=f"{lead} ({verdict(lead.mean > lead.error)})", over=f"{over} ({verdict(over.mean > over.error)})",
    )  # fmt: skip


def sequential(case: Case) -> str:
    """The section of a Gaussian model: all samples for every image, and the rule replayed on the same samples."""
    sigma, num_images, (x, y) = case.sigma, case.num_images, case.points
    fixed = votes.Poll(sigma, num_samples=_MANY, seed=case.settings.seed)
    at = [*range(1000, min(_MANY, 10_000) + 1, 1000), *range(15_000, _MANY + 1, 5000)]
    folder = pathlib.Path(case.settings.out) / "votes" / f"looks-{sigma}-{num_images}"
    selection, estimations = votes.looks(folder, fixed, case.model_fn("Gaussian"), x, at, images_per_device=case.images_per_device)
    whole = certification.summarize(fixed, smoothing.VoteState(selection, estimations[-1]), y, GRID)
    rows, verdicts = [["fixed", *_cells(whole), "1"]], []
    is_enough = num_images >= _ENOUGH
    within = tuple(radius for radius in GRID if radius <= 3 * sigma)
    rules = {"grid": (GRID, None), "grid, tolerance 0.05": (GRID, 0.05), "grid up to 3 sigma": (within, None)}
    for name, (grid, tolerance) in rules.items():
        poll = fixed._replace(grid=grid, tolerance=tolerance)
        summary = certification.summarize(poll, votes.replay(poll, selection, estimations), y, GRID)
        saving, loss = savings(whole, summary, len(grid))
        rows.append([name, *_cells(summary), f"{saving:.2f}"])
        near = verdict(loss <= 0.5) if is_enough else _TOO_FEW
        verdicts.append(f"{saving:.2f} times fewer ({verdict(saving >= 3)}), accuracy within {loss:.2f} points ({near})")
    error = float(np.std(right_radii(fixed.certify(smoothing.VoteState(selection, estimations[-1])), y)) / np.sqrt(num_images))
    published = PUBLISHED[case.settings.dataset][sigma]["Gaussian"]
    near = verdict(abs(whole.average_radius - published) <= _TOLERANCE) if is_enough else _TOO_FEW
    header = ["samples", "ACR", *(f"{radius:g}" for radius in GRID), "samples of an image", "times fewer"]
    return _SEQUENTIAL.format(
        num_images=num_images, num_looks=len(at), device=jax.devices()[0].device_kind, table=report.markdown(header, rows),
        published=published, near=near, radius=f"{whole.average_radius:.4f} +- {error:.4f}", grid_only=verdicts[0],
        tolerant=verdicts[1], within=verdicts[2],
    )  # fmt: skip


def halved(case: Case, num_samples: int) -> str:
    """The section of a Gaussian model whose votes are cast in float32 and in bfloat16, under the same noise."""
    _, y = case.points
    poll = votes.Poll(case.sigma, num_samples=num_samples, seed=case.settings.seed)
    whole_fn = case.model_fn("Gaussian")
    states = case.cast("Gaussian", poll, whole_fn), case.cast("Gaussian-bfloat16", poll, models.in_bfloat16(whole_fn))
    summaries = [certification.summarize(poll, state, y, GRID) for state in states]
    moved, loss = apart(states, summaries)
    header = ["votes in", "ACR", *(f"{radius:g}" for radius in GRID)]
    rows = [[name, *_cells(summary)[:-1]] for name, summary in zip(("float32", "bfloat16"), summaries, strict=True)]
    return _HALVED.format(
        num_images=case.num_images, num_samples=num_samples, device=jax.devices()[0].device_kind, table=report.markdown(header, rows),
        moved=f"{100 * moved.mean():.3f}", most=f"{100 * moved.max():.2f}",
        loss=f"{loss:.2f} points ({verdict(loss <= 0.2) if case.num_images >= _ENOUGH else _TOO_FEW})",
    )  # fmt: skip


def apart(states: Sequence[smoothing.VoteState], summaries: Sequence[certification.Summary]) -> tuple[np.ndarray, float]:
    """By how much two counts of the same images differ, in votes over votes cast [N], and two certified accuracies at most, in points."""
    one, other = (state.estimation for state in states)
    moved = 0.5 * np.abs(one - other).sum(axis=1) / one.sum(axis=1)
    return moved, round(_points(*summaries, len(GRID)), 9)


def right_radii(certificate, y) -> np.ndarray:
    """Radii [N], wrong and abstained images as 0: their mean is the ACR."""
    return np.where(certificate.prediction == y, certificate.radius, 0.0)


def gain(radii: np.ndarray, others: np.ndarray) -> Gain:
    """How much larger the radii of the same images are, on average."""
    difference = radii - others
    return Gain(float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference))))


def savings(whole: certification.Summary, less: certification.Summary, num_radii: int) -> tuple[float, float]:
    """How many times fewer samples, and the largest difference of certified accuracy at the first radii of GRID in points."""
    return whole.samples / less.samples, _points(whole, less, num_radii)


def row(name: str, summary: certification.Summary, published: float | None, is_capped: np.ndarray, over: Gain) -> list[str]:
    """A row of the comparison."""
    shares = [f"{100 * share:.1f}" for share in (summary.shares[certification.SHARES.index(0.99)], is_capped.mean())]
    average, *certified, _ = _cells(summary)
    return [name, average, "" if published is None else f"{published:g}", *certified, *shares, "" if name == "Gaussian" else str(over)]


def verdict(is_met: bool) -> str:
    """In a word."""
    return "met" if is_met else "MISSED"


def described(effort: smoothed.Effort, methods: Sequence[str]) -> str:
    """What was done of the full recipe."""
    own = {
        "Consistency": "m = 2" + ("" if effort.consistency_weight is None else f", weight {effort.consistency_weight:g}"),
        "SmoothMix": f"m = 2, T = {effort.num_attack_steps}, steps of .5",
        "MACER": f"k = {effort.num_radius_copies}" + ("" if effort.radius_weight is None else f", weight {effort.radius_weight:g}"),
        "SmoothAdv": f"m = {effort.num_attack_copies}, T = {effort.num_attack_steps}, eps 1",
    }
    parts = [f"{name} with {own[name]}" for name in methods if name in own]
    return (
        f"one seed; {effort.num_warm_epochs} epochs on Gaussian noise shared by all methods, then {effort.num_epochs} of each; Adam at "
        f"{effort.learning_rate:g} and batches of {effort.batch_size}; {'; '.join(parts)}"
    )


def _change(text):
    name, _, number = text.partition("=")
    if name not in smoothed.Effort._fields[1:]:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=NUMBER, the name one of {', '.join(smoothed.Effort._fields[1:])}")
    return name, json.loads(number)


def _points(one, other, num_radii):
    return 100 * float(np.abs(one.certified - other.certified)[:num_radii].max())


def _cells(summary):
    return [f"{summary.average_radius:.4f}", *(f"{100 * value:.1f}" for value in summary.certified), f"{summary.samples:.0f}"]


_HEAD = """\
# Randomized smoothing against its bars

A LeNet on MNIST (conv 5x5 20, conv 5x5 50, dense 500), a ResNet-20 on CIFAR-10. alpha .001 for an image, images evenly spread over the
test images at hand. On a GPU, float32 is JAX's default precision: it multiplies in TF32. ACR: average certified radius in l2, wrong and
abstained images as 0. Columns of numbers: certified accuracy in % at that radius; "> .99": images in % whose right class has more than
99 % of the votes. Published: all 10,000 images, 90 epochs on the whole training set (CIFAR-10: 50,000 images, shifted and mirrored),
n = 100,000, on MNIST the mean of five seeds, from the logs of [consistency regularisation](https://arxiv.org/abs/2006.04062).
"""
_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
_COMPARED_TITLE = "{dataset}, methods at sigma {sigma}"
_SEQUENTIAL_TITLE = "{dataset}, sequential certification: Gaussian, sigma {sigma}"
_HALVED_TITLE = "{dataset}, votes in bfloat16: Gaussian, sigma {sigma}"
_ORDER = [
    title.format(dataset=_TITLES[dataset], sigma=sigma)
    for dataset, efforts in EFFORTS.items()
    for title in (_COMPARED_TITLE, _SEQUENTIAL_TITLE, _HALVED_TITLE)
    for sigma in efforts
]
_COMPARED = """\
{num_images} of {num_test} test images, n = {num_samples} for all rows, compared image by image; {device}. No radius can exceed {cap}; the
share of images there cannot tell methods apart.
Trained on {num_train} images: {cut}.

{table}

Bars: SmoothAdv above every other of these: {lead} over the next; MACER above Gaussian: {over}. Differences are of the ACR over
the same images, +- one standard error, and count as met beyond it, which chance alone reaches one time in six.
"""
_SEQUENTIAL = """\
{num_images} images, at most n = 100,000 samples each, {num_looks} looks; {device}; the rule is replayed on the samples of the fixed run.
"grid": an image stops when no radius of the table is in doubt; with a tolerance it also goes on while its radius may grow by more. A rule
is judged at the radii that it asks for. The last row asks for no radius beyond three sigma: nearer to the largest radius of 3.81 sigma
every certificate takes most of the votes
(with a tenth of alpha, 3.5 sigma take 39,600 votes at least, all of them for the class: log 10,000 over -log Phi(3.5)).

{table}

Bars: ACR of the fixed run {published} +- .05 on 500 images: {radius} on these, +- one standard error ({near}). At least 3 times fewer
samples, within .5 point: grid {grid_only}; with tolerance {tolerant}; up to 3 sigma {within}.
"""
_HALVED = """\
{num_images} images, n = {num_samples}, under the same noise in both rows, drawn in float32; {device}. In the lower row the noisy image,
weights, arithmetic and logits are bfloat16; logits that are equal then vote for the lower class.

{table}

The two counts of an image differ by {moved} % of its votes on average, by {most} % at most. Bar:
certified accuracy within .2 point at every radius: {loss}.
"""
