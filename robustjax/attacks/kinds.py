"""What kind of attack an attack is: which ones ask for no gradient, and which look for the smallest norm instead of the largest loss."""

from collections.abc import Callable

from robustjax import base, threats
from robustjax.attacks import combinators
from robustjax.attacks.alma import alma
from robustjax.attacks.carlini_wagner import carlini_wagner
from robustjax.attacks.carlini_wagner_l0 import carlini_wagner_l0
from robustjax.attacks.carlini_wagner_linf import carlini_wagner_linf
from robustjax.attacks.ddn import ddn
from robustjax.attacks.deepfool import deepfool
from robustjax.attacks.ead import ead
from robustjax.attacks.fab import fab
from robustjax.attacks.fmn import fmn
from robustjax.attacks.lbfgs import lbfgs
from robustjax.attacks.sigma_zero import sigma_zero
from robustjax.attacks.square import square
from robustjax.base import Attack

BLACK_BOX: tuple[Callable, ...] = (square,)
MINIMUM_NORM: tuple[Callable, ...] = (
    alma, carlini_wagner, carlini_wagner_l0, carlini_wagner_linf, ddn, deepfool, ead, fab, fmn, lbfgs, sigma_zero,
)  # fmt: skip


def is_black_box(attack: Attack) -> bool:
    """Whether every plain attack in it asks for outputs alone; a user's own attack is taken to use gradients."""
    return all(_function(part) in BLACK_BOX for part in combinators.parts(attack))


def minimised_norm(attack: Attack) -> str | None:
    """The name of the ball whose norm the attack makes small, or None if it raises a loss, or is made of several attacks."""
    parts = combinators.parts(attack)
    if len(parts) != 1 or _function(parts[0]) not in MINIMUM_NORM:
        return None
    found = combinators.threats_of(attack)
    return type(found[0]).__name__ if found and isinstance(found[0], threats.Ball) else None


def _function(attack):
    return attack.function if isinstance(attack, base.Configured) else attack
