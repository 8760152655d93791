"""What the votes of a data set say: average radius, certified accuracy, and how large the shares of the right class are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.lib import votes
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
