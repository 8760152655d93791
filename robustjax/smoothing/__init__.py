"""Randomized smoothing: votes under noise on the device, statistics on the host in float64, and the smoothed classifier as a model."""

from typing import TYPE_CHECKING

from robustjax import renamed
from robustjax.smoothing import noise, radii
from robustjax.smoothing._denoised import denoised, diffusion_denoiser
from robustjax.smoothing._soft import Smoothed, log_mean_softmax, soft
from robustjax.smoothing.certificates import certify, certify_soft, certify_two_sided, predict
from robustjax.smoothing.counting import SOFT_UNIT, SoftVotes, count_predictions, count_soft, not_finite
from robustjax.smoothing.curves import average_radius, bonferroni, certified_accuracy, failures
from robustjax.smoothing.probabilities import bernstein_lower, binomial_lower, binomial_upper, hoeffding_lower
from robustjax.smoothing.sampling import VoteState, vote, vote_dataset
from robustjax.smoothing.sequential import anytime_lower, certify_sequential, lower_bound, undecided

__all__ = [
    "SOFT_UNIT",
    "Smoothed",
    "SoftVotes",
    "VoteState",
    "anytime_lower",
    "average_radius",
    "bernstein_lower",
    "binomial_lower",
    "binomial_upper",
    "bonferroni",
    "certified_accuracy",
    "certify",
    "certify_sequential",
    "certify_soft",
    "certify_two_sided",
    "count_predictions",
    "count_soft",
    "denoised",
    "diffusion_denoiser",
    "failures",
    "hoeffding_lower",
    "log_mean_softmax",
    "lower_bound",
    "noise",
    "not_finite",
    "predict",
    "radii",
    "soft",
    "undecided",
    "vote",
    "vote_dataset",
]

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(__name__, sample="vote_dataset")
