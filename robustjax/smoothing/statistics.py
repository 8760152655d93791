"""From votes to statements, on the host in float64: exact binomial bounds, prediction, certificates, and curves over a data set.

Float32 will not do: bisection on a float32 incomplete beta function overstates a third of the radii at 100,000 samples.
Rows of votes with logits that were not finite (`counting.not_finite`) abstain, whatever is asked.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.special
import scipy.stats

from robustjax import checks
from robustjax.base import Certificate
from robustjax.smoothing import counting, radii


def binomial_lower(num_votes, num_samples, alpha) -> np.ndarray:
    """The largest p with P(at least num_votes of num_samples | p) <= alpha (Clopper & Pearson, 1934); 0 for no votes.

    Raises:
      ValueError: more votes than samples, negative ones or NaN; alpha is no number in (0, 1).

    Guarantee:
      Below the true probability with probability at least 1 - alpha, for a fixed number of samples.
    """
    check_alpha(alpha)
    num_votes, num_samples = possible(num_votes, num_samples)
    bound = scipy.special.betaincinv(np.maximum(num_votes, 1.0), num_samples - num_votes + 1.0, alpha)
    return np.where(num_votes > 0, bound, 0.0)


def binomial_upper(num_votes, num_samples, alpha) -> np.ndarray:
    """The smallest p with P(at most num_votes of num_samples | p) <= alpha; 1 if all votes are for the class."""
    num_votes, num_samples = possible(num_votes, num_samples)
    return 1.0 - binomial_lower(num_samples - num_votes, num_samples, alpha)


def hoeffding_lower(mean, variance, num_samples, alpha) -> np.ndarray:
    """mean - sqrt(log(1 / alpha) / (2 n)), for samples in [0, 1]; the variance is not used (Hoeffding, 1963)."""
    check_alpha(alpha)
    mean, _ = _moments(mean, variance, num_samples, 1)
    return mean - np.sqrt(np.log(1.0 / alpha) / (2.0 * num_samples))


def bernstein_lower(mean, variance, num_samples, alpha) -> np.ndarray:
    """mean - sqrt(2 V log(2 / alpha) / n) - 7 log(2 / alpha) / (3 (n - 1)), V the sample variance of samples in [0, 1].

    Source: Maurer & Pontil, COLT 2009, theorem 4, arXiv:0907.3740.
    """
    check_alpha(alpha)
    mean, variance = _moments(mean, variance, num_samples, 2)
    log_term = np.log(2.0 / alpha)
    return mean - np.sqrt(2.0 * variance * log_term / num_samples) - 7.0 * log_term / (3.0 * (num_samples - 1.0))


def predict(counts, *, alpha=0.001) -> np.ndarray:
    """The smoothed classifier's prediction [B] from votes [B, C], or -1 where the two leading classes are too close to call.

    It takes at least log2(2 / alpha) votes not to abstain everywhere: 11 for alpha .001.

    Guarantee:
      With probability at least 1 - alpha per input, the prediction is the smoothed classifier's, or -1.
    Source: Cohen et al., ICML 2019, PREDICT, arXiv:1902.02918.
    """
    (counts,) = whole_votes(counts)
    check_alpha(alpha)
    _fixed_number(counts.sum(axis=1))
    first, second = np.sort(counts, axis=1)[:, :-3:-1].T
    # The two-sided test of a fair coin is symmetric: twice the upper tail.
    p_value = np.minimum(2.0 * scipy.stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return np.where(p_value <= alpha, counts.argmax(axis=1), -1)


def certify(
    selection,
    estimation,
    *,
    sigma,
    alpha=0.001,
    radius_fn: Callable = radii.gaussian_l2,
    num_samples: int | None = None,
    fingerprint: Mapping | None = None,
) -> Certificate:
    """Cohen's certificate: the class from one set of votes, its probability from another.

    It takes more than log2(1 / alpha) votes to certify anything: 10 for alpha .001.

    Args:
      selection: votes [B, C] from which the class is guessed; 100 samples are usual.
      estimation: votes [B, C], drawn with another key; 100,000 samples are usual, of which the largest radius is 3.81 sigma. Counts
        rarely tell whether the keys were different: `smoothing.vote` splits one in two.
      sigma: standard deviation of the noise that the votes were cast under, in the unit of x; a scalar or [B].
      alpha: probability of a wrong certificate, for each input; see `bonferroni` for all of them at once.
      radius_fn: of the noise and the norm; see `radii`.
      num_samples: what was planned for estimation; if given, any other number of votes is refused.
      fingerprint: of the `VoteState` that the votes are of; if given, another sigma than theirs is refused.

    Returns:
      Prediction, radius and whether it is certified; numpy in float64. It abstains where logits were not finite.

    Raises:
      ValueError: alpha outside (0, 1), sigma not positive, no votes, negative ones, the same votes twice (the same key), or inputs with
        different numbers of votes, or not the planned one: what was stopped early goes to `certify_sequential`. So few votes for this
        alpha that nothing could be certified.

    Guarantee:
      With probability at least 1 - alpha per input, no x' with |x' - x| < radius changes the smoothed prediction. Assumes the exact
      noise, independent sets of votes, and a number of them that no vote had a say in; floating point is not covered.
    Source: Cohen et al., ICML 2019, CERTIFY, arXiv:1902.02918. Differs: takes counts, so sampling and statistics are two functions.
    """
    chosen, votes, totals = selected(selection, estimation, sigma, alpha, fingerprint)
    _require_fixed(totals, num_samples, alpha, alpha)
    return certificate(chosen, binomial_lower(votes, totals, alpha), sigma, radius_fn)


def certify_two_sided(
    selection, estimation, *, sigma, alpha=0.001, num_samples: int | None = None, fingerprint: Mapping | None = None
) -> Certificate:
    """sigma / 2 (Phi^-1(pA) - Phi^-1(pB)), with pB bounded class by class instead of by 1 - pA; never much below `certify`.

    Half of alpha bounds pA, the other half is shared by the other classes (Bonferroni): it takes more than log2(2 / alpha) votes.

    Args:
      selection, estimation, sigma, alpha, num_samples, fingerprint: as for `certify`; Gaussian noise, l2.

    Returns:
      As `certify`; it can certify where no class holds half of the votes.

    Raises:
      ValueError: as `certify`.

    Guarantee:
      As `certify`.
    Source: Cohen et al., ICML 2019, theorem 1, arXiv:1902.02918.
    """
    chosen, votes, totals = selected(selection, estimation, sigma, alpha, fingerprint)
    _require_fixed(totals, num_samples, alpha, alpha / 2.0)
    _, counts = whole_votes(selection, estimation)
    p_lower = binomial_lower(votes, totals, alpha / 2.0)
    others = binomial_upper(counts, totals[:, None], alpha / 2.0 / (counts.shape[1] - 1))
    others[np.arange(len(counts)), chosen] = 0.0
    p_upper = np.minimum(others.max(axis=1), 1.0 - p_lower)
    certified = p_lower > p_upper
    radius = np.where(certified, 0.5 * sigma * (scipy.special.ndtri(p_lower) - scipy.special.ndtri(p_upper)), 0.0)
    return Certificate(np.where(certified, chosen, -1), radius, certified)


def certify_soft(
    selection,
    votes: counting.SoftVotes,
    num_samples: int,
    *,
    sigma,
    alpha=0.001,
    bound_fn: Callable = bernstein_lower,
    radius_fn: Callable = radii.gaussian_l2,
) -> Certificate:
    """The certificate of a soft smoothed classifier, whose prediction is the class of the largest mean probability.

    Args:
      selection: votes [B, C] from which the class is guessed, hard or `SoftVotes.low`.
      votes: soft votes drawn with another key.
      num_samples: how many they sum.
      sigma, alpha: as for `certify`.
      bound_fn: of the mean; `bernstein_lower` or `hoeffding_lower`.
      radius_fn: `radii.gaussian_l2` (lemma 2), or `radii.lipschitz_l2` (lemma 1).

    Returns:
      As `certify`, for the soft classifier, which is another one than the hard one.

    Raises:
      ValueError: as `certify`, and a num_samples that the votes contradict. TypeError: votes that are not soft.

    Guarantee:
      As `certify`.
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
    chosen, _, total = selected(selection, votes.low, sigma, alpha)
    require_enough(num_samples, alpha, lambda number: bound_fn(1.0, 0.0, number, alpha), least=2)
    rows = np.arange(len(chosen))
    low, squares = (np.asarray(part)[rows, chosen] * counting.SOFT_UNIT for part in (votes.low, votes.squares))
    mean = low / num_samples
    variance = (squares - num_samples * mean**2) / (num_samples - 1)
    p_lower = np.clip(bound_fn(mean, variance, num_samples, alpha), 0.0, 1.0)
    return certificate(chosen, np.where(total > 0, p_lower, 0.0), sigma, radius_fn)


def certified_accuracy(certificate: Certificate, y, grid: Sequence[float]) -> np.ndarray:
    """The fraction of inputs that are certified, rightly, at least as far as each radius of a grid [R].

    Raises:
      ValueError: labels that are not integers [B], no inputs, or radii that are negative, NaN or do not increase.
    """
    right = _right(certificate, y)
    return np.array([np.mean(right & (certificate.radius >= radius)) for radius in increasing(grid)])


def average_radius(certificate: Certificate, y) -> float:
    """The average certified radius (ACR): wrong and abstained inputs count as 0.

    It rewards easy inputs: report the distribution of the probabilities, or the curve, beside it (Sun et al., 2025).

    Raises:
      ValueError: labels that are not integers [B], or no inputs.
    """
    return float(np.mean(np.where(_right(certificate, y), certificate.radius, 0.0)))


def failures(num_examples: int, alpha: float, confidence: float = 0.999) -> int:
    """How many of `num_examples` statements, each wrong with probability at most alpha, are wrong at most, with this confidence.

    For a whole data set to hold at once see `bonferroni`.
    """
    checks.counts(least=0, num_examples=num_examples)
    check_alpha(alpha)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; 0.999 is usual.")
    return int(scipy.stats.binom.ppf(confidence, num_examples, alpha))


def bonferroni(alpha: float, num_examples: int) -> float:
    """The alpha of each of `num_examples` statements, for all to hold at once with probability at least 1 - alpha.

    The largest radius at 100,000 samples and alpha .001 falls from 3.81 sigma to 3.60 for 10,000 images.
    """
    check_alpha(alpha)
    checks.counts(num_examples=num_examples)
    return alpha / num_examples


def certificate(chosen, p_lower, sigma, radius_fn: Callable) -> Certificate:
    """The certificate of the chosen classes [B] whose probability is at least p_lower [B]; below 1/2 it abstains.

    Raises:
      ValueError: a radius_fn that does not give one number for each. TypeError: it cannot be called.
    """
    checks.functions(radius_fn=radius_fn)
    radius = np.asarray(radius_fn(p_lower, sigma), np.float64)
    abstained = p_lower < 0.5
    if radius.shape != np.shape(p_lower) or np.isnan(radius[~abstained]).any():
        raise ValueError(f"radius_fn gave {radius} for the probabilities of {len(p_lower)} inputs; it must give a number for each.")
    radius = np.where(abstained, 0.0, np.maximum(radius, 0.0))
    return Certificate(np.where(abstained, -1, chosen), radius, radius > 0)


def selected(selection, estimation, sigma, alpha, fingerprint: Mapping | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class that the first votes choose, its votes among the second, and their number [B]; what is wrong is named.

    Where logits were not finite there are no votes of none, of which every bound is 0.
    """
    selection, estimation = whole_votes(selection, estimation)
    check_alpha(alpha)
    counting.check_sigma(sigma, len(selection))
    if fingerprint is not None:
        _require_cast_under(sigma, fingerprint)
    split = (selection > 0).sum(axis=1) > 1
    if split.any() and np.array_equal(selection[split], estimation[split]):
        raise ValueError("selection and estimation are the same votes; draw them with different keys, or the bound does not hold.")
    chosen = selection.argmax(axis=1)
    return chosen, estimation[np.arange(len(chosen)), chosen], estimation.sum(axis=1)


def _require_cast_under(sigma, fingerprint):
    if not isinstance(fingerprint, Mapping) or "sigma" not in fingerprint:
        raise TypeError(f"expected the fingerprint of a VoteState, got a {type(fingerprint).__name__}; pass state.fingerprint.")
    cast = fingerprint["sigma"]
    if not np.allclose(sigma, cast, rtol=1e-6, atol=0.0):
        raise ValueError(f"the votes were cast under sigma={cast}, not under sigma={sigma}; pass theirs, or cast votes anew.")


def whole_votes(*sets, least: int = 1) -> list[np.ndarray]:
    """Sets of votes [B, C] of the same inputs as int64, without those of inputs whose logits were not finite in one of them.

    Args:
      *sets: as `counting.count_predictions` draws them.
      least: votes that an input must have in the last set.

    Raises:
      ValueError: they are no integers [B, C], of different shapes, negative, or too few.
    """
    checks.on_host(*sets)
    given = [np.asarray(counts) for counts in sets]
    for counts in given:
        if counts.ndim != 2 or not np.issubdtype(counts.dtype, np.integer) or counts.shape[1] < 2:
            raise ValueError(
                f"expected votes [B, C] as integers, C >= 2, got {counts.shape} of {counts.dtype}; pass what vote or sample gave."
            )
        if counts.shape != given[0].shape:
            raise ValueError(
                f"expected votes of the same inputs and classes, got {given[0].shape} and {counts.shape}; pass both sets of one vote."
            )
    spoiled = np.any([counting.not_finite(counts) for counts in given], axis=0)
    for counts, number in zip(given, [1] * (len(given) - 1) + [least], strict=True):
        finite = counts[~spoiled]
        if (finite < 0).any() or (finite.sum(axis=1) < number).any():
            raise ValueError("expected at least one vote for every input and no negative ones; n0 and n must be positive.")
    return [np.where(spoiled[:, None], 0, counts).astype(np.int64) for counts in given]


def possible(num_votes, num_samples) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of votes and of samples as float64, between 0 and each other.

    Raises:
      ValueError: they are not.
    """
    checks.on_host(num_votes, num_samples)
    votes, samples = np.asarray(num_votes, np.float64), np.asarray(num_samples, np.float64)
    if any(1 not in sizes and len(set(sizes)) > 1 for sizes in zip(votes.shape[::-1], samples.shape[::-1], strict=False)):
        raise ValueError(
            f"expected votes and samples of shapes that broadcast, got {votes.shape} and {samples.shape}; of votes [B, C] the samples are "
            "votes.sum(axis=1, keepdims=True)."
        )
    is_wrong = ~((votes >= 0) & (votes <= samples) & np.isfinite(samples))
    if is_wrong.any():
        got, of = (np.broadcast_to(part, is_wrong.shape)[is_wrong][0] for part in (votes, samples))
        raise ValueError(f"got {got:g} votes of {of:g} samples; pass the votes for one class, and how many were drawn in all.")
    return votes, samples


def require_enough(num_samples: int, alpha, best_fn: Callable, least: int = 1) -> None:
    """Were all of num_samples votes for one class, its probability would be bounded above 1/2.

    Args:
      num_samples, alpha: of the plan.
      best_fn: number of samples -> the bound of a class that has all the votes.
      least: number of samples that it takes for a bound.

    Raises:
      ValueError: it would not, so that nothing could be certified; it says how many it takes.
    """
    best = float(best_fn(num_samples))
    if best > 0.5:
        return
    enough = max(num_samples, least)
    while best_fn(enough) <= 0.5 and enough < 2**40:
        enough *= 2
    least = enough // 2
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if best_fn(middle) > 0.5 else (middle, enough)
    raise ValueError(
        f"num_samples={num_samples} votes certify nothing at alpha={alpha}: were all for one class, its probability would be at least "
        f"{best:.3f}, which is no majority; draw at least num_samples={enough}, or allow a larger alpha."
    )


def increasing(grid: Sequence[float]) -> np.ndarray:
    """A grid of radii [R] as float64.

    Raises:
      ValueError: they are no row of numbers that are not negative and increase.
    """
    edges = np.asarray(grid, np.float64)
    if edges.ndim != 1 or not np.all(edges >= 0) or np.any(np.diff(edges) <= 0):
        raise ValueError(f"expected a grid of radii >= 0 that increase, got {grid}; pass e.g. (0.0, 0.25, 0.5).")
    return edges


def check_alpha(alpha) -> None:
    """It is a probability.

    Raises:
      ValueError: it is not.
    """
    value = np.asarray(alpha)
    if value.ndim or not np.issubdtype(value.dtype, np.number) or not 0 < value < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}; 0.001 is usual, one number for all inputs.")


def _require_fixed(totals, num_samples, alpha, share):
    number = _fixed_number(totals, num_samples)
    if number is not None:
        require_enough(number, alpha, lambda samples: binomial_lower(samples, samples, share))


def _fixed_number(totals, planned=None):
    # Of inputs whose logits were not finite there are no votes, whatever was planned.
    if planned is not None:
        checks.counts(num_samples=planned)
    counted = totals[totals > 0]
    if counted.size == 0:
        return planned
    planned = int(counted.max()) if planned is None else planned
    if (counted != planned).any():
        raise ValueError(
            f"expected {planned} votes for every input, got {counted.min()} to {counted.max()}: a bound for a fixed number does not hold "
            "where the votes decided when to stop; use certify_sequential with the planned num_samples."
        )
    return planned


def _moments(mean, variance, num_samples, least):
    mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    is_possible = np.all((mean >= 0) & (mean <= 1)) and not np.isnan(variance).any()
    if not is_possible or not np.all(np.asarray(num_samples) >= least):
        raise ValueError(
            f"expected a mean in [0, 1] and a variance of at least {least} samples, got {mean}, {variance} and {num_samples}; "
            "the bound is of samples in [0, 1]."
        )
    return mean, np.maximum(variance, 0.0)


def _right(certificate, y):
    if not isinstance(certificate, Certificate):
        raise TypeError(f"expected the Certificate first and the labels second, got a {type(certificate).__name__} first.")
    checks.on_host(y)
    y = np.asarray(y)
    checks.labels(y, len(certificate.prediction))
    if len(y) == 0:
        raise ValueError("expected the certificate of at least one input, got none; an average of nothing is no number.")
    return certificate.prediction == y
