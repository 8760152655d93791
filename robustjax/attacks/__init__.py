"""Test-time attacks: `(key, model_fn, x, y, *, threat, ...) -> AttackResult`, and attacks made of attacks."""

from typing import TYPE_CHECKING

from robustjax import renamed
from robustjax.attacks._alma import alma
from robustjax.attacks._apgd import apgd
from robustjax.attacks._apgd_l1 import apgd_l1
from robustjax.attacks._autoattack import autoattack, ensemble
from robustjax.attacks._carlini_wagner import carlini_wagner
from robustjax.attacks._carlini_wagner_l0 import carlini_wagner_l0
from robustjax.attacks._carlini_wagner_linf import carlini_wagner_linf
from robustjax.attacks._checked import checked
from robustjax.attacks._ddn import ddn
from robustjax.attacks._deepfool import deepfool
from robustjax.attacks._ead import ead
from robustjax.attacks._eot import eot
from robustjax.attacks._fab import fab
from robustjax.attacks._fmn import fmn
from robustjax.attacks._lbfgs import lbfgs
from robustjax.attacks._pgd import bim, fgsm, mi_fgsm, n_fgsm, normalize, pgd, r_fgsm, rs_fgsm, steepest
from robustjax.attacks._sigma_zero import sigma_zero
from robustjax.attacks._square import square
from robustjax.attacks.combinators import each, parts, restarts, worst_case
from robustjax.attacks.goals import over_targets, targeted, with_loss
from robustjax.attacks.objective import keep_best, keep_last, small_noise

__all__ = [
    "alma",
    "apgd",
    "apgd_l1",
    "autoattack",
    "bim",
    "carlini_wagner",
    "carlini_wagner_l0",
    "carlini_wagner_linf",
    "checked",
    "ddn",
    "deepfool",
    "each",
    "ead",
    "ensemble",
    "eot",
    "fab",
    "fgsm",
    "fmn",
    "keep_best",
    "keep_last",
    "lbfgs",
    "mi_fgsm",
    "n_fgsm",
    "normalize",
    "over_targets",
    "parts",
    "pgd",
    "r_fgsm",
    "restarts",
    "rs_fgsm",
    "sigma_zero",
    "small_noise",
    "square",
    "steepest",
    "targeted",
    "with_loss",
    "worst_case",
]

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(__name__, with_goal="with_loss")
