"""Randomized smoothing against what it must reach: a LeNet on MNIST, a ResNet-20 on CIFAR-10, methods compared on the same images.

`ROBUSTJAX_DATA=DIR python -m experiments smoothing_gates --page docs/results/smoothing.md`; runs killed on the way go on. On an
accelerator, `--images-per-device 100` and longer training (`--effort num_epochs 60 batch_size 256`) cost little.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.lib import certification, data, experiment, models, smoothed, votes
from experiments.lib.gates import Gate
from experiments.lib.pages import Block, Page, gates_of, table, text
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """What is trained, and how much is judged."""

    out: str = "runs/smoothing_gates"
    dataset: Literal["mnist", "cifar10"] = "mnist"
    seed: int = 0
    sigmas: tuple[float, ...] = ()
    """Of those of the data set; all by default."""
    methods: tuple[smoothed.Method, ...] = smoothed.METHODS
    """To compare."""
    num_images: int = 500
    """On which methods are compared."""
    n: int = 10_000
    """Samples of each of them."""
    num_fixed: tuple[int, ...] = (500,)
    """Images with 100,000 samples: of all, or of each sigma."""
    num_halved: int = 0
    """Images whose votes are also cast in bfloat16."""
    effort: tuple[tuple[smoothed.Change, int | float], ...] = ()
    """Of training, beside what is usual: NAME NUMBER."""
    images_per_device: int = 2
    """At once, under noise."""


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


def run(settings: Settings) -> None:
    """Sections for each sigma."""
    if settings.quick:
        few = (("num_warm_epochs", 1), ("num_epochs", 1), *settings.effort)
        settings = dataclasses.replace(settings, num_images=6, n=200, num_fixed=(0,), effort=few)
    efforts, dataset = EFFORTS[settings.dataset], settings.dataset
    sigmas = settings.sigmas or tuple(efforts)
    with experiment.refused():
        if not set(sigmas) <= set(efforts):
            raise ValueError(f"--sigmas takes some of {list(efforts)} on {dataset}")
        if not {"Gaussian", "MACER", "SmoothAdv"} <= set(settings.methods):
            raise ValueError(f"--methods compares Gaussian, MACER and SmoothAdv, with others or without; got {', '.join(settings.methods)}")
        if len(settings.num_fixed) not in (1, len(sigmas)):
            raise ValueError(f"--num-fixed takes one number, or one for each of the {len(sigmas)} sigmas")
    experiment.prepare()
    made = experiment.Settings(dataset=dataset, seed=settings.seed, out=str(pathlib.Path(settings.out) / dataset))
    loaded = data.load(dataset)
    if settings.quick:
        loaded = loaded._replace(x_train=loaded.x_train[:200], y_train=loaded.y_train[:200])
    for sigma, num_fixed in zip(sigmas, settings.num_fixed * (len(sigmas) // len(settings.num_fixed)), strict=True):
        effort = efforts[sigma]._replace(**dict(settings.effort))
        case = Case(made, loaded, sigma, effort, settings.num_images, settings.images_per_device)
        sections = {
            _COMPARED_TITLE: lambda case=case: compare(case, settings.n, settings.methods),
            _SEQUENTIAL_TITLE: lambda case=case, num_fixed=num_fixed: sequential(case._replace(num_images=num_fixed)) if num_fixed else [],
            _HALVED_TITLE: lambda case=case: (
                halved(case._replace(num_images=settings.num_halved), settings.n) if settings.num_halved else []
            ),
        }
        for title, make in sections.items():
            start = time.perf_counter()
            if blocks := make():
                title = title.format(dataset=_TITLES[dataset], sigma=sigma)
                experiment.publish("smoothing_gates", settings, _PAGE, title, blocks, start, seeds=[settings.seed])


def compare(case: Case, num_samples: int, methods: Sequence[str]) -> list[Block]:
    """The section of one sigma: a row for each method, and the paired differences."""
    _, y = case.points
    poll = votes.Poll(case.sigma, num_samples=num_samples, seed=case.settings.seed)
    summaries, radii = {}, {}
    for name in methods:
        state = case.cast(name, poll, case.model_fn(name))
        summaries[name] = certification.summarize(poll, state, y, GRID)
        radii[name] = certification.right_radii(poll.certify(state), y)
    header = ["method", "ACR", "published", *(f"{radius:g}" for radius in GRID), "> .99", "at the cap", "less Gaussian"]
    cap = float(smoothing.radii.gaussian_l2(smoothing.binomial_lower(num_samples, num_samples, poll.alpha), case.sigma))
    published = PUBLISHED[case.settings.dataset][case.sigma]
    rows = [
        certification.row(
            name, summaries[name], published.get(name), np.isclose(radii[name], cap), certification.gain(radii[name], radii["Gaussian"])
        )
        for name in methods
    ]
    lead = min(
        (certification.gain(radii["SmoothAdv"], radii[name]) for name in methods if name != "SmoothAdv"), key=lambda g: g.mean - g.error
    )
    over = certification.gain(radii["MACER"], radii["Gaussian"])
    about = (
        f"{case.num_images} of {len(case.dataset.x_test):,} test images, n = {num_samples} for all rows, compared image by image. No "
        f"radius can exceed {cap:.3f}; the share of images there cannot tell methods apart. Trained on {len(case.dataset.x_train):,} "
        f"images: {smoothed.described(case.effort, methods)}. Gates are differences of the ACR over the same images and count as met "
        "beyond one standard error, which chance alone reaches one time in six."
    )
    checked = [lead.gate("ACR of SmoothAdv less that of the next"), over.gate("ACR of MACER less that of Gaussian")]
    return [text(about), table(header, rows), gates_of(checked)]


def sequential(case: Case) -> list[Block]:
    """The section of a Gaussian model: all samples for every image, and the rule replayed on the same samples."""
    sigma, num_images, (x, y) = case.sigma, case.num_images, case.points
    fixed = votes.Poll(sigma, num_samples=_MANY, seed=case.settings.seed)
    at = [*range(1000, min(_MANY, 10_000) + 1, 1000), *range(15_000, _MANY + 1, 5000)]
    folder = pathlib.Path(case.settings.out) / "votes" / f"looks-{sigma}-{num_images}"
    selection, estimations = votes.looks(folder, fixed, case.model_fn("Gaussian"), x, at, images_per_device=case.images_per_device)
    last = smoothing.VoteState(selection, estimations[-1])
    whole = certification.summarize(fixed, last, y, GRID)
    away = abs(whole.average_radius - PUBLISHED[case.settings.dataset][sigma]["Gaussian"])
    error = float(np.std(certification.right_radii(fixed.certify(last), y)) / np.sqrt(num_images))
    checked = [_if_enough(f"ACR of the fixed run (+- {error:.4f}), away from the published", away, _TOLERANCE, num_images)]
    rows = [["fixed", *certification.cells(whole), "1"]]
    within = tuple(radius for radius in GRID if radius <= 3 * sigma)
    rules = {"grid": (GRID, None), "grid, tolerance 0.05": (GRID, 0.05), "grid up to 3 sigma": (within, None)}
    for name, (grid, tolerance) in rules.items():
        poll = fixed._replace(grid=grid, tolerance=tolerance)
        summary = certification.summarize(poll, votes.replay(poll, selection, estimations), y, GRID)
        saving, loss = certification.savings(whole, summary, len(grid))
        rows.append([name, *certification.cells(summary), f"{saving:.2f}"])
        checked.append(Gate(f"{name}: times fewer samples", saving, low=3))
        checked.append(_if_enough(f"{name}: accuracy away from that of the fixed run, in points", loss, 0.5, num_images))
    header = ["samples", "ACR", *(f"{radius:g}" for radius in GRID), "samples of an image", "times fewer"]
    about = _SEQUENTIAL.format(num_images=num_images, num_looks=len(at))
    return [text(about), table(header, rows), gates_of(checked)]


def halved(case: Case, num_samples: int) -> list[Block]:
    """The section of a Gaussian model whose votes are cast in float32 and in bfloat16, under the same noise."""
    _, y = case.points
    poll = votes.Poll(case.sigma, num_samples=num_samples, seed=case.settings.seed)
    whole_fn = case.model_fn("Gaussian")
    states = case.cast("Gaussian", poll, whole_fn), case.cast("Gaussian-bfloat16", poll, models.in_bfloat16(whole_fn))
    summaries = [certification.summarize(poll, state, y, GRID) for state in states]
    moved, loss = certification.apart(states, summaries)
    rows = [[name, *certification.cells(summary)[:-1]] for name, summary in zip(("float32", "bfloat16"), summaries, strict=True)]
    about = (
        f"{case.num_images} images, n = {num_samples}, under the same noise in both rows, drawn in float32. In the lower row the noisy "
        "image, weights, arithmetic and logits are bfloat16; logits that are equal then vote for the lower class. The two counts of an "
        f"image differ by {100 * moved.mean():.3f} % of its votes on average, by {100 * moved.max():.2f} % at most."
    )
    checked = _if_enough("certified accuracy away from that in float32, at any radius, in points", loss, 0.2, case.num_images)
    return [text(about), table(["votes in", "ACR", *(f"{radius:g}" for radius in GRID)], rows), gates_of([checked])]


def _if_enough(what, value, most, num_images):
    return Gate(what, value, high=most) if num_images >= _ENOUGH else Gate(f"{what} (too few images to judge)", value)


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
_SEQUENTIAL = """\
{num_images} images, at most n = 100,000 samples each, {num_looks} looks; the rule is replayed on the samples of the fixed run.
"grid": an image stops when no radius of the table is in doubt; with a tolerance it also goes on while its radius may grow by more. A rule
is judged at the radii that it asks for. The last row asks for no radius beyond three sigma: nearer to the largest radius of 3.81 sigma
every certificate takes most of the votes
(with a tenth of alpha, 3.5 sigma take 39,600 votes at least, all of them for the class: log 10,000 over -log Phi(3.5)).
"""
_PAGE = Page(
    "Randomized smoothing against its bars",
    """\
A LeNet on MNIST (conv 5x5 20, conv 5x5 50, dense 500), a ResNet-20 on CIFAR-10. alpha .001 for an image, images evenly spread over the
test images at hand. On a GPU, float32 is JAX's default precision: it multiplies in TF32. ACR: average certified radius in l2, wrong and
abstained images as 0. Columns of numbers: certified accuracy in % at that radius; "> .99": images in % whose right class has more than
99 % of the votes. Published: all 10,000 images, 90 epochs on the whole training set (CIFAR-10: 50,000 images, shifted and mirrored),
n = 100,000, on MNIST the mean of five seeds, from the logs of [consistency regularisation](https://arxiv.org/abs/2006.04062).
""",
    tuple(_ORDER),
)
