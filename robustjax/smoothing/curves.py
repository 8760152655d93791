"""What certificates say about a data set: certified accuracy, average radius, and how many statements may be wrong."""

from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from robustjax import checks
from robustjax.base import Certificate
from robustjax.smoothing import probabilities


def certified_accuracy(certificate: Certificate, y: ArrayLike, grid: Sequence[float]) -> np.ndarray:
    """The fraction of inputs that are certified and classified correctly, at each radius of a grid [R].

    Args:
      certificate: of the inputs [B].
      y: labels [B].
      grid: radii [R], increasing; an input counts at a radius if its own is at least as large.

    Raises:
      ValueError: labels that are not integers [B], no inputs, or radii that are negative, NaN or do not increase.
    """
    right = _right(certificate, y)
    return np.array([np.mean(right & (certificate.radius >= radius)) for radius in increasing(grid)])


def average_radius(certificate: Certificate, y: ArrayLike) -> float:
    """The average certified radius (ACR): inputs that are wrong or abstain count as 0.

    It rewards easy inputs: report the distribution of the probabilities, or the curve, beside it (Sun et al., 2025).

    Args:
      certificate: of the inputs [B].
      y: labels [B].

    Raises:
      ValueError: labels that are not integers [B], or no inputs.
    """
    return float(np.mean(np.where(_right(certificate, y), certificate.radius, 0.0)))


def failures(num_examples: int, alpha: float, confidence: float = 0.999) -> int:
    """How many of `num_examples` statements are wrong at most, with this confidence, if each is wrong with probability at most alpha.

    For a whole data set to hold at once see `bonferroni`.
    """
    checks.counts(least=0, num_examples=num_examples)
    probabilities.check_alpha(alpha)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; 0.999 is usual.")
    return int(scipy.stats.binom.ppf(confidence, num_examples, alpha))


def bonferroni(alpha: float, num_examples: int) -> float:
    """The alpha of each of `num_examples` statements, for all to hold at once with probability at least 1 - alpha.

    For 10,000 images the largest radius at 100,000 samples and alpha .001 falls from 3.81 sigma to 3.60.
    """
    probabilities.check_alpha(alpha)
    checks.counts(num_examples=num_examples)
    return alpha / num_examples


def increasing(grid: Sequence[float]) -> np.ndarray:
    """A grid of radii [R] as float64.

    Raises:
      ValueError: it is not a row of numbers that are at least 0 and increase.
    """
    edges = np.asarray(grid, np.float64)
    if edges.ndim != 1 or not np.all(edges >= 0) or np.any(np.diff(edges) <= 0):
        raise ValueError(f"expected a grid of radii >= 0 that increase, got {grid}; pass e.g. (0.0, 0.25, 0.5).")
    return edges


def _right(certificate, y):
    if not isinstance(certificate, Certificate):
        raise TypeError(f"expected the Certificate first and the labels second, got a {type(certificate).__name__} first.")
    checks.on_host(y)
    y = np.asarray(y)
    checks.labels(y, len(certificate.prediction))
    if len(y) == 0:
        raise ValueError("expected the certificate of at least one input, got none; an average of nothing is no number.")
    return certificate.prediction == y
