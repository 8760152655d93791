"""Votes as the statistics need them: whole, of two independent sets, and enough of them. A mistake is an error that says so.

Rows of votes with logits that were not finite (`counting.not_finite`) count as no votes, for which every bound is 0.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from robustjax import checks
from robustjax.base import Numeric
from robustjax.smoothing import counting, probabilities


def whole_votes(*sets: ArrayLike, least: int = 1) -> list[np.ndarray]:
    """Sets of votes [B, C] of the same inputs as int64, with zeros for inputs whose logits were not finite in one of them.

    Args:
      *sets: votes, as `counting.count_predictions` draws them.
      least: votes that an input must have in the last set.

    Raises:
      ValueError: they are not integers [B, C], of different shapes, negative, or too few.
    """
    checks.on_host(*sets)
    given = [np.asarray(counts) for counts in sets]
    for counts in given:
        if counts.ndim != 2 or not np.issubdtype(counts.dtype, np.integer) or counts.shape[1] < 2:
            raise ValueError(
                f"expected votes [B, C] as integers, C >= 2, got {counts.shape} of {counts.dtype}; pass what vote or vote_dataset gave."
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


def selected(
    selection: ArrayLike, estimation: ArrayLike, sigma: Numeric, alpha: float, fingerprint: Mapping | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class that the first votes choose, the number of the second votes for it, and the number of all second votes, each [B].

    Raises:
      ValueError: votes, sigma or alpha that are not what `certify` needs.
    """
    selection, estimation = whole_votes(selection, estimation)
    probabilities.check_alpha(alpha)
    counting.check_sigma(sigma, len(selection))
    if fingerprint is not None:
        _require_cast_under(sigma, fingerprint)
    split = (selection > 0).sum(axis=1) > 1  # where all votes agree, two independent sets may well be equal
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


def fixed_number(totals: np.ndarray, planned: int | None = None) -> int | None:
    """The number of votes that all inputs have; inputs whose logits were not finite have none, whatever was planned.

    Args:
      totals: number of votes of each input [B].
      planned: what it must be; None for whatever it is.

    Returns:
      The number, or `planned` if there is no input with votes.

    Raises:
      ValueError: the numbers differ, or are not the planned one.
    """
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


def require_enough(num_samples: int, alpha: float, best_fn: Callable[[int], float | np.ndarray], least: int = 1) -> None:
    """Requires that a certificate is possible: if all num_samples votes were for one class, its bound would be above 1/2.

    Args:
      num_samples, alpha: the planned number of votes and probability of a wrong certificate.
      best_fn: number of samples -> the bound of a class that has all the votes.
      least: number of samples that a bound needs.

    Raises:
      ValueError: no certificate is possible; the message says how many votes are needed.
    """
    best = float(best_fn(num_samples))
    if best > 0.5:
        return
    # Double the number until it is enough, then bisect between the last two.
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
