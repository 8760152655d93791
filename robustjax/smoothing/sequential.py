"""Certificates that allow to stop at any time: stop sampling an image as soon as more votes would not matter.

A bound that holds after every vote costs more than a bound for a fixed number of votes. Here nine tenths of alpha are kept for the last
look, at `num_samples`, where the bound is Clopper-Pearson's and the largest radius hardly smaller; the rest pays for earlier stops.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from robustjax import checks
from robustjax.base import Certificate, Numeric
from robustjax.smoothing import certificates, counting, curves, probabilities, radii, voting
from robustjax.smoothing.radii import RadiusFn

LAST_SHARE = 0.9  # of alpha, for the last look, at num_samples
_PRIOR = (1.0, 0.05)  # Beta: bets near probability 1, where the large radii are; a uniform prior costs 11 nats there, this 0.6
_UNLIKELY = 1e-2  # chance of a wrong guess, which may cost an image a step of the grid, but never its validity
_NUM_BISECTIONS = 60


def anytime_lower(num_votes: ArrayLike, num_drawn: ArrayLike, alpha: float) -> np.ndarray:
    """A lower bound of a probability from the votes so far, which holds at all times together.

    {p: Beta mixture of likelihoods / likelihood at p < 1 / alpha} is a confidence sequence, since under p the ratio is a nonnegative
    martingale of mean 1 (Ville); the bound is its lower end.

    Args:
      num_votes, num_drawn: [B] votes for the class, and in all.
      alpha: probability that the bound is above the truth at any time.

    Raises:
      ValueError: more votes than were drawn, negative votes or NaN; an alpha that is not a number in (0, 1).

    Guarantee:
      With probability at least 1 - alpha the bounds at all times are below the truth, whatever rule stops the sampling.
    Source: Robbins, 1970; Howard et al., Annals of Statistics 2021, arXiv:1810.08240. Differs: a prior with its mass near 1.
    """
    probabilities.check_alpha(alpha)
    votes, total = np.broadcast_arrays(*probabilities.possible(num_votes, num_drawn))
    rest = total - votes
    log_mixture = scipy.special.betaln(votes + _PRIOR[0], rest + _PRIOR[1]) - scipy.special.betaln(*_PRIOR)

    def outside(p):
        return log_mixture - scipy.special.xlogy(votes, p) - scipy.special.xlog1py(rest, -p) >= -np.log(alpha)

    # The ratio decreases in p up to votes / total: bisection finds where it passes 1 / alpha. It runs over 1 - p, on a logarithmic scale,
    # since near 1 the distance from 1 decides the radius.
    far, near = np.ones(votes.shape), np.maximum(rest / np.maximum(total, 1.0), 1e-12)
    near = np.minimum(near, 1.0)
    for _ in range(_NUM_BISECTIONS):
        middle = np.sqrt(far * near)
        inside = ~outside(1.0 - middle)
        far, near = np.where(inside, far, middle), np.where(inside, middle, near)
    return 1.0 - far


def lower_bound(num_votes: ArrayLike, num_drawn: ArrayLike, *, num_samples: int, alpha: float = 0.001) -> np.ndarray:
    """The bound of an image whose sampling was stopped: Clopper-Pearson's at `num_samples`, `anytime_lower` before.

    Args:
      num_votes, num_drawn: [B] votes for the class, and in all.
      num_samples: the planned number of votes, at which every image stops.
      alpha: probability that the bound is above the truth.

    Guarantee:
      Below the true probability with probability at least 1 - alpha, whatever rule stopped the sampling.

    Raises:
      ValueError: more votes drawn than num_samples, more for the class than drawn, or alpha outside (0, 1).
    """
    probabilities.check_alpha(alpha)
    checks.counts(num_samples=num_samples)
    num_drawn = np.asarray(num_drawn)
    if (num_drawn > num_samples).any():
        raise ValueError(
            f"{num_drawn.max()} votes were drawn, more than the planned num_samples={num_samples}; pass the number that was planned."
        )
    last = probabilities.binomial_lower(num_votes, num_drawn, LAST_SHARE * alpha)
    return np.where(num_drawn == num_samples, last, anytime_lower(num_votes, num_drawn, (1.0 - LAST_SHARE) * alpha))


def certify_sequential(
    selection: ArrayLike,
    estimation: ArrayLike,
    *,
    num_samples: int,
    sigma: Numeric,
    alpha: float = 0.001,
    radius_fn: RadiusFn = radii.gaussian_l2,
    fingerprint: Mapping | None = None,
) -> Certificate:
    """Cohen's certificate from votes whose number differs from image to image, whatever rule chose it.

    More than log2(1 / (.9 alpha)) votes are needed to certify anything: 11 for alpha .001.

    Args:
      selection, estimation: two independent sets of votes [B, C], as for `certify`; here the rows of `estimation` may have different sums.
      num_samples: the planned number of votes, at which every image stops.
      sigma: standard deviation of the noise that the votes were drawn under, in the unit of x; a scalar or [B].
      alpha: probability of a wrong certificate, for each input.
      radius_fn, fingerprint: radius of the noise and the norm, and what the votes were drawn from, as for `certify`.

    Returns:
      Prediction, radius, and whether the input is certified, as for `certify`. The largest radius at 100,000 samples is 3.81 sigma,
      the same to two digits.

    Raises:
      ValueError: as for `certify`, except that numbers of votes may differ; more votes than num_samples.

    Guarantee:
      That of `certify`, for every stopping rule.
    """
    chosen, votes, drawn = voting.selected(selection, estimation, sigma, alpha, fingerprint)
    _require_enough(num_samples, alpha)
    return certificates.certificate(chosen, lower_bound(votes, drawn, num_samples=num_samples, alpha=alpha), sigma, radius_fn)


def undecided(
    selection: ArrayLike,
    estimation: ArrayLike,
    *,
    num_samples: int,
    sigma: Numeric,
    alpha: float = 0.001,
    grid: Sequence[float] = (),
    tolerance: float | None = None,
    radius_fn: RadiusFn = radii.gaussian_l2,
) -> np.ndarray:
    """Which images [B] need more votes: a rule for stopping, on which no guarantee depends.

    Args:
      selection, estimation: votes so far [B, C].
      num_samples, sigma, alpha, radius_fn: the plan, as for `certify_sequential`.
      grid: radii that matter; an image is undecided while one of them is larger than its radius and can still be reached. The radius 0
        asks whether it is certified at all.
      tolerance: an image is also undecided while its radius may grow by more than this; None looks at the grid alone.

    Raises:
      ValueError: as for `certify_sequential`, or a grid that does not increase, or a negative tolerance.
    """
    edges = curves.increasing(grid)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"expected a tolerance >= 0, got {tolerance}; pass how much a radius may still grow, or None.")
    probabilities.check_alpha(alpha)
    _require_enough(num_samples, alpha)
    given = selection, estimation
    selection, estimation = voting.whole_votes(selection, estimation, least=0)
    is_finite = ~np.any([counting.not_finite(votes) for votes in given], axis=0)
    counting.check_sigma(sigma, len(selection))
    votes = estimation[np.arange(len(estimation)), selection.argmax(axis=1)]
    drawn = estimation.sum(axis=1)
    seen = np.maximum(drawn, 1)
    now = radius_fn(lower_bound(votes, seen, num_samples=num_samples, alpha=alpha), sigma)
    # What can still be reached: the largest number of votes that is likely at the end, and the bound that it would give.
    hopeful = votes + (num_samples - drawn) * probabilities.binomial_upper(votes, seen, _UNLIKELY)
    reach = radius_fn(probabilities.binomial_lower(hopeful, num_samples, LAST_SHARE * alpha), sigma)
    matters = ((now[:, None] < edges) & (edges <= reach[:, None])).any(axis=1)
    if tolerance is not None:
        matters |= np.maximum(reach, 0.0) - np.maximum(now, 0.0) > tolerance
    return is_finite & ((drawn == 0) | ((drawn < num_samples) & matters))


def _require_enough(num_samples, alpha):
    checks.counts(num_samples=num_samples)
    voting.require_enough(num_samples, alpha, lambda number: probabilities.binomial_lower(number, number, LAST_SHARE * alpha))
