"""From votes to predictions and certificates, on the host in float64.

Inputs whose logits were not finite under noise (`counting.not_finite`) always abstain.
"""

from collections.abc import Callable, Mapping

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

from robustjax import checks
from robustjax.base import Certificate, Numeric
from robustjax.smoothing import counting, probabilities, radii, voting
from robustjax.smoothing.radii import RadiusFn


def predict(counts: ArrayLike, *, alpha: float = 0.001) -> np.ndarray:
    """The smoothed classifier's prediction [B] from votes [B, C], or -1 where the two leading classes are too close to call.

    At least log2(2 / alpha) votes are needed, or it abstains everywhere: 11 for alpha .001.

    Args:
      counts: votes [B, C], as `count_predictions` draws them.
      alpha: probability of a wrong prediction, for each input.

    Guarantee:
      With probability at least 1 - alpha per input, the prediction is the smoothed classifier's, or -1.

    Example:
      >>> smoothing.predict(np.array([[990, 10, 0], [480, 520, 0]]), alpha=0.001)
      array([ 0, -1])

    Source: Cohen et al., ICML 2019, PREDICT, arXiv:1902.02918.
    """
    (counts,) = voting.whole_votes(counts)
    probabilities.check_alpha(alpha)
    voting.fixed_number(counts.sum(axis=1))
    first, second = np.sort(counts, axis=1)[:, :-3:-1].T
    # BinomPValue of PREDICT: the two-sided test of a fair coin is symmetric, so that its p-value is twice the upper tail.
    p_value = np.minimum(2.0 * scipy.stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return np.where(p_value <= alpha, counts.argmax(axis=1), -1)


def certify(
    selection: ArrayLike,
    estimation: ArrayLike,
    *,
    sigma: Numeric,
    alpha: float = 0.001,
    radius_fn: RadiusFn = radii.gaussian_l2,
    num_samples: int | None = None,
    fingerprint: Mapping | None = None,
) -> Certificate:
    """Cohen's certificate: the class from one set of votes, its probability from another.

    More than log2(1 / alpha) votes are needed to certify anything: 10 for alpha .001.

    Args:
      selection: votes [B, C] from which the class is guessed; 100 samples are usual.
      estimation: votes [B, C], drawn with another key; 100,000 samples are usual, with which the largest radius is 3.81 sigma. Counts
        rarely show whether the keys were different: `smoothing.vote` splits one key in two.
      sigma: standard deviation of the noise that the votes were drawn under, in the unit of x; a scalar or [B].
      alpha: probability of a wrong certificate, for each input; for all inputs at once see `bonferroni`.
      radius_fn: (p_lower [B], sigma) -> radius [B], which belongs to the noise and the norm; see `radii`.
      num_samples: the planned number of estimation votes; if given, any other number is refused.
      fingerprint: of the `VoteState` that holds the votes; if given, a sigma that differs from the one of the votes is refused.

    Returns:
      Prediction, radius, and whether the input is certified; numpy in float64. It abstains where logits were not finite.

    Raises:
      ValueError: alpha outside (0, 1), sigma not positive, no votes, negative votes, the same votes twice (the same key), inputs with
        different numbers of votes, or another number than the planned one: votes that were stopped early need `certify_sequential`.
        Also so few votes for this alpha that nothing could be certified.

    Guarantee:
      With probability at least 1 - alpha per input, no x' with |x' - x| < radius changes the smoothed prediction. Assumes the exact
      noise, independent sets of votes, and a number of votes that does not depend on the votes; floating point is not covered.

    Example:
      >>> selection, estimation = np.array([[98, 2], [55, 45]]), np.array([[9900, 100], [5040, 4960]])
      >>> certificate = smoothing.certify(selection, estimation, sigma=0.25, alpha=0.001)
      >>> certificate.prediction, certificate.radius.round(3)
      (array([ 0, -1]), array([0.553, 0.   ]))

    Source: Cohen et al., ICML 2019, CERTIFY, arXiv:1902.02918. Differs: takes counts, so sampling and statistics are two functions.
    """
    chosen, for_chosen, totals = voting.selected(selection, estimation, sigma, alpha, fingerprint)
    _require_fixed(totals, num_samples, alpha, alpha)
    # LowerConfBound of CERTIFY, then its radius sigma Phi^-1(p_lower).
    return certificate(chosen, probabilities.binomial_lower(for_chosen, totals, alpha), sigma, radius_fn)


def certify_two_sided(
    selection: ArrayLike,
    estimation: ArrayLike,
    *,
    sigma: Numeric,
    alpha: float = 0.001,
    num_samples: int | None = None,
    fingerprint: Mapping | None = None,
) -> Certificate:
    """sigma / 2 (Phi^-1(pA) - Phi^-1(pB)), with pB bounded class by class instead of by 1 - pA; never much below `certify`.

    Half of alpha bounds pA, the other half is shared by the other classes (Bonferroni): more than log2(2 / alpha) votes are needed.
    The noise is Gaussian and the norm l2.

    Args:
      selection, estimation: votes [B, C] for choosing the class, and others for bounding the probabilities, as for `certify`.
      sigma: standard deviation of the noise that the votes were drawn under, in the unit of x; a scalar or [B].
      alpha: probability of a wrong certificate, for each input.
      num_samples, fingerprint: what was planned, as for `certify`.

    Returns:
      Prediction, radius, and whether the input is certified; it can certify where no class holds half of the votes.

    Raises:
      ValueError: as for `certify`.

    Guarantee:
      That of `certify`.
    Source: Cohen et al., ICML 2019, theorem 1, arXiv:1902.02918.
    """
    chosen, for_chosen, totals = voting.selected(selection, estimation, sigma, alpha, fingerprint)
    _require_fixed(totals, num_samples, alpha, alpha / 2.0)
    _, counts = voting.whole_votes(selection, estimation)
    p_lower = probabilities.binomial_lower(for_chosen, totals, alpha / 2.0)
    # The upper bounds of the C - 1 other classes hold together, each at its share of alpha / 2; the largest bounds pB.
    others = probabilities.binomial_upper(counts, totals[:, None], alpha / 2.0 / (counts.shape[1] - 1))
    others[np.arange(len(counts)), chosen] = 0.0
    p_upper = np.minimum(others.max(axis=1), 1.0 - p_lower)
    certified = p_lower > p_upper
    radius = np.where(certified, 0.5 * np.asarray(sigma) * (scipy.special.ndtri(p_lower) - scipy.special.ndtri(p_upper)), 0.0)
    return Certificate(np.where(certified, chosen, -1), radius, certified)


def certify_soft(
    selection: ArrayLike,
    votes: counting.SoftVotes,
    num_samples: int,
    *,
    sigma: Numeric,
    alpha: float = 0.001,
    bound_fn: Callable[..., np.ndarray] = probabilities.bernstein_lower,
    radius_fn: RadiusFn = radii.gaussian_l2,
) -> Certificate:
    """The certificate of a soft smoothed classifier, whose prediction is the class of the largest mean probability.

    Args:
      selection: votes [B, C] from which the class is guessed, hard or `SoftVotes.low`.
      votes: soft votes drawn with another key.
      num_samples: the number of samples that they sum.
      sigma: standard deviation of the noise that the votes were drawn under, in the unit of x; a scalar or [B].
      alpha: probability of a wrong certificate, for each input.
      bound_fn: (mean, variance, num_samples, alpha) -> lower bound of the mean; `bernstein_lower` or `hoeffding_lower`.
      radius_fn: `radii.gaussian_l2` (lemma 2), or `radii.lipschitz_l2` (lemma 1).

    Returns:
      Prediction, radius, and whether the input is certified, for the soft classifier, which is not the hard one.

    Raises:
      ValueError: as for `certify`, and a num_samples that the votes contradict. TypeError: votes that are not soft.

    Guarantee:
      That of `certify`, for the soft classifier.
    Source: Salman et al., NeurIPS 2019, lemmas 1 and 2, arXiv:1906.04584; Zhai et al., ICLR 2020, appendix C, arXiv:2001.02378.
    """
    if not isinstance(votes, counting.SoftVotes):
        raise TypeError(f"expected SoftVotes, as count_soft draws them, got a {type(votes).__name__}; hard votes go to certify.")
    checks.counts(num_samples=num_samples)
    if num_samples < 2 or (np.asarray(votes.drawn) != num_samples).any():
        raise ValueError(
            f"the votes are not the sum of num_samples={num_samples} >= 2 samples; pass how many were drawn in all, or look for "
            "logits that are not finite, which do not count."
        )
    chosen, _, total = voting.selected(selection, votes.low, sigma, alpha)
    voting.require_enough(num_samples, alpha, lambda number: bound_fn(1.0, 0.0, number, alpha), least=2)
    rows = np.arange(len(chosen))
    # Sums rounded down for the mean and up for the squares: the bound cannot be too high by the rounding.
    low, squares = (np.asarray(part)[rows, chosen] * counting.SOFT_UNIT for part in (votes.low, votes.squares))
    mean = low / num_samples
    variance = (squares - num_samples * mean**2) / (num_samples - 1)
    p_lower = np.clip(bound_fn(mean, variance, num_samples, alpha), 0.0, 1.0)
    return certificate(chosen, np.where(total > 0, p_lower, 0.0), sigma, radius_fn)


def certificate(chosen: np.ndarray, p_lower: np.ndarray, sigma: Numeric, radius_fn: RadiusFn) -> Certificate:
    """The certificate of the chosen classes [B] whose probability is at least p_lower [B]; it abstains below 1/2.

    Raises:
      ValueError: a radius_fn that does not return one number for each input. TypeError: it cannot be called.
    """
    checks.functions(radius_fn=radius_fn)
    radius = np.asarray(radius_fn(p_lower, sigma), np.float64)
    abstained = p_lower < 0.5
    if radius.shape != np.shape(p_lower) or np.isnan(radius[~abstained]).any():
        raise ValueError(f"radius_fn gave {radius} for the probabilities of {len(p_lower)} inputs; it must give a number for each.")
    radius = np.where(abstained, 0.0, np.maximum(radius, 0.0))
    return Certificate(np.where(abstained, -1, chosen), radius, radius > 0)


def _require_fixed(totals, num_samples, alpha, share):
    number = voting.fixed_number(totals, num_samples)
    if number is not None:
        voting.require_enough(number, alpha, lambda samples: probabilities.binomial_lower(samples, samples, share))
