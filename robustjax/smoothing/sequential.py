"""Certificates at a time of one's own choosing: stop sampling an image as soon as more votes would not matter.

A bound that may be looked at after every vote costs more than one at a fixed number. Here nine tenths of alpha wait for the last look, at
`num_samples`, where the bound is Clopper-Pearson's and the largest radius hardly smaller; the rest pays for stopping before.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.special

from robustjax import checks
from robustjax.base import Certificate
from robustjax.smoothing import counting, radii, statistics

LAST_SHARE = 0.9  # of alpha, for the look at num_samples
_PRIOR = (1.0, 0.05)  # Beta: bets near probability 1, where the large radii are; a uniform prior costs 11 nats there, this 0.6
_UNLIKELY = 1e-2  # a surprise that may cost an image its last grid step, never its validity
_NUM_BISECTIONS = 60


def anytime_lower(num_votes, num_drawn, alpha) -> np.ndarray:
    """A lower bound of a probability from the votes so far, whenever one looks.

    {p: Beta mixture of likelihoods / likelihood at p < 1 / alpha} is a confidence sequence, since under p the ratio is a nonnegative
    martingale of mean 1 (Ville); this is its lower end.

    Args:
      num_votes, num_drawn: [B] votes for the class, and in all.
      alpha: probability that the bound is above the truth at any time.

    Raises:
      ValueError: more votes than were drawn, negative ones or NaN; alpha is no number in (0, 1).

    Guarantee:
      With probability at least 1 - alpha the bounds at all times are below the truth, whatever rule stops the sampling.
    Source: Robbins, 1970; Howard et al., Annals of Statistics 2021, arXiv:1810.08240. Differs: a prior with its mass near 1.
    """
    statistics.check_alpha(alpha)
    votes, total = np.broadcast_arrays(*statistics.possible(num_votes, num_drawn))
    rest = total - votes
    log_mixture = scipy.special.betaln(votes + _PRIOR[0], rest + _PRIOR[1]) - scipy.special.betaln(*_PRIOR)

    def outside(p):
        return log_mixture - scipy.special.xlogy(votes, p) - scipy.special.xlog1py(rest, -p) >= -np.log(alpha)

    # The ratio falls in p up to votes / total. In the distance 1 - p, by factors: near 1 it is the distance that counts.
    far, near = np.ones(votes.shape), np.maximum(rest / np.maximum(total, 1.0), 1e-12)
    near = np.minimum(near, 1.0)
    for _ in range(_NUM_BISECTIONS):
        middle = np.sqrt(far * near)
        inside = ~outside(1.0 - middle)
        far, near = np.where(inside, far, middle), np.where(inside, middle, near)
    return 1.0 - far


def lower_bound(num_votes, num_drawn, *, num_samples: int, alpha=0.001) -> np.ndarray:
    """The bound of a stopped image: Clopper-Pearson's at `num_samples`, the anytime bound before.

    Guarantee:
      Below the true probability with probability at least 1 - alpha, whatever rule stopped the sampling.

    Raises:
      ValueError: more votes drawn than num_samples, more for the class than drawn, or alpha outside (0, 1).
    """
    statistics.check_alpha(alpha)
    checks.counts(num_samples=num_samples)
    num_drawn = np.asarray(num_drawn)
    if (num_drawn > num_samples).any():
        raise ValueError(
            f"{num_drawn.max()} votes were drawn, more than the planned num_samples={num_samples}; pass the number that was planned."
        )
    last = statistics.binomial_lower(num_votes, num_drawn, LAST_SHARE * alpha)
    return np.where(num_drawn == num_samples, last, anytime_lower(num_votes, num_drawn, (1.0 - LAST_SHARE) * alpha))


def certify_sequential(
    selection,
    estimation,
    *,
    num_samples: int,
    sigma,
    alpha=0.001,
    radius_fn: Callable = radii.gaussian_l2,
    fingerprint: Mapping | None = None,
) -> Certificate:
    """Cohen's certificate from votes whose number differs from image to image, however it was chosen.

    It takes more than log2(1 / (.9 alpha)) votes to certify anything: 11 for alpha .001.

    Args:
      selection, estimation, sigma, alpha, radius_fn, fingerprint: as for `statistics.certify`; the rows of `estimation` may have
        different sums.
      num_samples: the planned number of votes, at which no image goes on.

    Returns:
      As `certify`; the largest radius at 100,000 samples is 3.81 sigma, as there to two digits.

    Raises:
      ValueError: as `certify`, except that numbers of votes may differ; more votes than num_samples.

    Guarantee:
      As `certify`, for every stopping rule.
    """
    chosen, votes, drawn = statistics.selected(selection, estimation, sigma, alpha, fingerprint)
    _require_enough(num_samples, alpha)
    return statistics.certificate(chosen, lower_bound(votes, drawn, num_samples=num_samples, alpha=alpha), sigma, radius_fn)


def undecided(
    selection,
    estimation,
    *,
    num_samples: int,
    sigma,
    alpha=0.001,
    grid: Sequence[float] = (),
    tolerance: float | None = None,
    radius_fn: Callable = radii.gaussian_l2,
) -> np.ndarray:
    """Which images [B] are worth more votes: a rule to stop by, on which no guarantee depends.

    Args:
      selection, estimation: votes so far [B, C].
      num_samples, sigma, alpha, radius_fn: as for `certify_sequential`.
      grid: radii that matter; an image is undecided while one of them lies above its radius and still within reach. The radius 0 asks
        whether it is certified at all.
      tolerance: an image is also undecided while its radius may grow by more; None asks for the grid alone.

    Raises:
      ValueError: as `certify_sequential`, or a grid that does not increase, or a negative tolerance.
    """
    edges = statistics.increasing(grid)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"expected a tolerance >= 0, got {tolerance}; pass how much a radius may still grow, or None.")
    statistics.check_alpha(alpha)
    _require_enough(num_samples, alpha)
    given = selection, estimation
    selection, estimation = statistics.whole_votes(selection, estimation, least=0)
    is_finite = ~np.any([counting.not_finite(votes) for votes in given], axis=0)
    counting.check_sigma(sigma, len(selection))
    votes = estimation[np.arange(len(estimation)), selection.argmax(axis=1)]
    drawn = estimation.sum(axis=1)
    seen = np.maximum(drawn, 1)
    now = radius_fn(lower_bound(votes, seen, num_samples=num_samples, alpha=alpha), sigma)
    # The most votes that are likely at the end.
    hopeful = votes + (num_samples - drawn) * statistics.binomial_upper(votes, seen, _UNLIKELY)
    reach = radius_fn(statistics.binomial_lower(hopeful, num_samples, LAST_SHARE * alpha), sigma)
    matters = ((now[:, None] < edges) & (edges <= reach[:, None])).any(axis=1)
    if tolerance is not None:
        matters |= np.maximum(reach, 0.0) - np.maximum(now, 0.0) > tolerance
    return is_finite & ((drawn == 0) | ((drawn < num_samples) & matters))


def _require_enough(num_samples, alpha):
    checks.counts(num_samples=num_samples)
    statistics.require_enough(num_samples, alpha, lambda number: statistics.binomial_lower(number, number, LAST_SHARE * alpha))
