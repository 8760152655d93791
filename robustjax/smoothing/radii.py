"""Certified radii from a lower bound of the probability of the predicted class, in float64 on the host.

Each is a function `(p_lower [B], sigma) -> radius [B]`, negative where p_lower is below 1/2: there nothing is certified. They assume
that the rest of the probability may lie in one class. sigma is the standard deviation of the noise.
"""

import math
from collections.abc import Callable

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from robustjax import checks
from robustjax.base import Numeric

RadiusFn = Callable[..., np.ndarray]  # (p_lower [B], sigma) -> radius [B]


def gaussian_l2(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """sigma Phi^-1(p): the largest that holds for every classifier with this probability under Gaussian noise.

    Source: Cohen et al., ICML 2019, theorem 1, arXiv:1902.02918; for soft votes Salman et al., NeurIPS 2019, lemma 2.
    """
    return sigma * scipy.special.ndtri(_probability(p_lower, sigma))


def gaussian_lp(p_lower: ArrayLike, sigma: Numeric, *, order: float, num_features: int) -> np.ndarray:
    """The radius of the lp ball inside the l2 ball of `gaussian_l2`: for p > 2 smaller by num_features^(1/2 - 1/p).

    This loss, which grows with the number of features, cannot be avoided: see Blum et al. (2020), Kumar et al. (2020), Yang et al. (2020).

    Args:
      p_lower: lower bound of the probability of the predicted class [B].
      sigma: standard deviation of the noise, in the unit of x.
      order: p, at least 1; np.inf for linf.
      num_features: of one input.

    Source: Yang et al., ICML 2020, arXiv:2002.08118.
    """
    checks.counts(num_features=num_features)
    if not order >= 1:
        raise ValueError(f"order={order} is no norm; pass 1, 2, ..., or np.inf.")
    shrunk = max(0.0, 0.5 - (0.0 if order == np.inf else 1.0 / order))
    return gaussian_l2(p_lower, sigma) / num_features**shrunk


def lipschitz_l2(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """sigma sqrt(pi / 2) (p - 1/2), since a smoothed function with values in [0, 1] is sqrt(2 / pi) / sigma-Lipschitz.

    Source: Salman et al., NeurIPS 2019, lemma 1, arXiv:1906.04584.
    """
    return sigma * math.sqrt(math.pi / 2.0) * (_probability(p_lower, sigma) - 0.5)


def pixel_dp_l2(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """The radius of PixelDP under Gaussian noise: differential privacy, the first certificate by smoothing.

    sup over e in (0, 1] of sigma e / sqrt(2 log(1.25 / d)), d = (p - exp(2 e) (1 - p)) / (1 + exp(e)) > 0.

    Source: Lecuyer et al., IEEE S&P 2019, proposition 1, arXiv:1802.03471. Differs: the best e and d for every probability.
    """
    p = _probability(p_lower, sigma)[..., None]
    # Proposition 1 on a grid of e: the largest d that p allows. Each gives a valid radius; the grid loses at most a thousandth.
    privacy = np.linspace(1e-3, 1.0, 1000)
    delta = (p - np.exp(2.0 * privacy) * (1.0 - p)) / (1.0 + np.exp(privacy))
    valid = delta > 0
    radius = privacy / np.sqrt(2.0 * np.log(1.25 / np.where(valid, delta, 1.0)))
    best = np.where(valid, radius, -np.inf).max(axis=-1)
    return np.where(np.isfinite(best), sigma * np.maximum(best, 0.0), np.minimum(gaussian_l2(p_lower, sigma), 0.0))


def renyi_l2(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """Li et al.'s radius under Gaussian noise, from the Renyi divergence of the shifted noise: between PixelDP's and Cohen's.

    sup over a > 1 of sigma sqrt(-(2 / a) log(1 - p - q + 2 (p^(1-a) / 2 + q^(1-a) / 2)^(1/(1-a)))), q = 1 - p.

    Source: Li et al., NeurIPS 2019, theorem 1, arXiv:1809.03113.
    """
    p = np.clip(_probability(p_lower, sigma), 0.5, 1.0)[..., None]  # below 1/2 Cohen's is the smaller
    # Theorem 1 on a grid of a, each a valid radius. Its powers may over- and underflow, so that they are added as logarithms.
    order = 1.0 + np.geomspace(1e-3, 1e4, 2000)
    log_p, log_q = np.log(p), np.log(np.maximum(1.0 - p, 1e-300))
    exponent = 1.0 - order
    log_mean = np.logaddexp(exponent * log_p, exponent * log_q) - math.log(2.0)
    radius = sigma * np.sqrt(np.maximum(-(2.0 / order) * (math.log(2.0) + log_mean / exponent), 0.0)).max(axis=-1)
    return np.minimum(radius, gaussian_l2(p_lower, sigma))  # near 1/2 rounding under the root could make it larger


def uniform_l1(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """2 lambda (p - 1/2), lambda = sqrt(3) sigma, for uniform noise on [-lambda, lambda] and for splitting noise.

    Source: Lee et al., NeurIPS 2019, arXiv:1906.04948; Levine & Feizi, ICML 2021, arXiv:2103.10834.
    """
    return 2.0 * math.sqrt(3.0) * sigma * (_probability(p_lower, sigma) - 0.5)


def uniform_linf(p_lower: ArrayLike, sigma: Numeric, *, num_features: int) -> np.ndarray:
    """2 lambda (1 - (3/2 - p)^(1 / num_features)), lambda = sqrt(3) sigma, for uniform noise.

    Source: Yang et al., ICML 2020, arXiv:2002.08118.
    """
    checks.counts(num_features=num_features)
    p = _probability(p_lower, sigma)
    return 2.0 * math.sqrt(3.0) * sigma * -np.expm1(np.log(1.5 - p) / num_features)


def laplace_l1(p_lower: ArrayLike, sigma: Numeric) -> np.ndarray:
    """-lambda log(2 (1 - p)), lambda = sigma / sqrt(2), for Laplace noise.

    Source: Teng et al., 2020; Yang et al., ICML 2020, arXiv:2002.08118.
    """
    return -sigma / math.sqrt(2.0) * np.log(2.0 * (1.0 - _probability(p_lower, sigma)))


def _probability(p_lower, sigma):
    checks.on_host(p_lower, sigma)
    checks.positive(sigma=sigma)
    p = np.asarray(p_lower, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"expected probabilities in [0, 1], got {p_lower}; pass a lower bound, such as binomial_lower gives.")
    return p
