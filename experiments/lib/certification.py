"""What the votes of a data set say: average radius, certified accuracy, and how large the shares of the right class are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.lib import votes
from experiments.lib.gates import Gate
from robustjax import smoothing

SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)  # of the votes


class Summary(NamedTuple):
    """What the votes of a data set say."""

    average_radius: float  # ACR: wrong and abstained images count as 0
    certified: np.ndarray  # [R] fraction rightly certified at each radius of a grid
    shares: np.ndarray  # [S] fraction of images whose right class has more than each of SHARES of the votes
    abstained: float
    samples: float  # votes of an image, on average, those for choosing its class included


def summarize(poll: votes.Poll, state: smoothing.VoteState, y: np.ndarray, grid: Sequence[float]) -> Summary:
    """The numbers of a table from votes and labels; ACR alone says little, so the distribution of probabilities is beside it."""
    certificate = poll.certify(state)
    selection, estimation = (np.maximum(part, 0) for part in state)  # images whose logits were not finite are marked: they have no votes
    right = estimation[np.arange(len(y)), y] / np.maximum(estimation.sum(axis=1), 1)
    return Summary(
        smoothing.average_radius(certificate, y),
        smoothing.certified_accuracy(certificate, y, grid),
        np.array([np.mean(right > share) for share in SHARES]),
        float(np.mean(certificate.prediction == -1)),
        float(np.mean(estimation.sum(axis=1) + selection.sum(axis=1))),
    )


def describe(summary: Summary, poll: votes.Poll, grid: Sequence[float]) -> str:
    """The summary in words and rows."""
    row = lambda values: " ".join(f"{value:7.4g}" for value in values)  # noqa: E731
    return "\n".join([
        f"average certified radius      {summary.average_radius:.4f}",
        f"radius                        {row(grid)}",
        f"certified accuracy, %         {row(100 * summary.certified)}",
        f"share of the right class >    {row(SHARES)}",
        f"images, %                     {row(100 * summary.shares)}",
        f"abstained, %                  {100 * summary.abstained:.2f}",
        f"samples of an image           {summary.samples:.0f} of {poll.num_selection + poll.num_samples}",
    ])  # fmt: skip


def spread(x, y, num_images: int):
    """So many images evenly over a data set: its beginning is often easier than its end."""
    if not 0 < num_images <= len(x):
        raise ValueError(f"asked for {num_images} of {len(x)} images; pass between 1 and {len(x)}.")
    rows = np.arange(num_images) * len(x) // num_images
    return x[rows], y[rows]


class Gain(NamedTuple):
    """A difference of average radii on the same images."""

    mean: float
    error: float  # its standard error

    def __str__(self):
        return f"{self.mean:+.4f} +- {self.error:.4f}"

    def gate(self, what: str) -> Gate:
        """Met beyond one standard error."""
        return Gate(what, self.mean, low=self.error, digits="+.4f")


def apart(states: Sequence[smoothing.VoteState], summaries: Sequence[Summary]) -> tuple[np.ndarray, float]:
    """By how much two counts of the same images differ, in votes over votes cast [N], and two certified accuracies at most, in points."""
    one, other = (state.estimation for state in states)
    moved = 0.5 * np.abs(one - other).sum(axis=1) / one.sum(axis=1)
    return moved, round(_points(*summaries, len(summaries[0].certified)), 9)


def right_radii(certificate, y) -> np.ndarray:
    """Radii [N], wrong and abstained images as 0: their mean is the ACR."""
    return np.where(certificate.prediction == y, certificate.radius, 0.0)


def gain(radii: np.ndarray, others: np.ndarray) -> Gain:
    """How much larger the radii of the same images are, on average."""
    difference = radii - others
    return Gain(float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference))))


def savings(whole: Summary, less: Summary, num_radii: int) -> tuple[float, float]:
    """How many times fewer samples, and the largest difference of certified accuracy at the first radii in points."""
    return whole.samples / less.samples, _points(whole, less, num_radii)


def row(name: str, summary: Summary, published: float | None, is_capped: np.ndarray, over: Gain) -> list[str]:
    """A row of the comparison."""
    shares = [f"{100 * share:.1f}" for share in (summary.shares[SHARES.index(0.99)], is_capped.mean())]
    average, *certified, _ = cells(summary)
    return [name, average, "" if published is None else f"{published:g}", *certified, *shares, "" if name == "Gaussian" else str(over)]


def _points(one, other, num_radii):
    return 100 * float(np.abs(one.certified - other.certified)[:num_radii].max())


def cells(summary: Summary) -> list[str]:
    """Average radius, certified accuracy at each radius, votes of an image."""
    return [f"{summary.average_radius:.4f}", *(f"{100 * value:.1f}" for value in summary.certified), f"{summary.samples:.0f}"]
