"""The kind of an attack: which ask for no gradient, which look for the smallest norm instead of the largest loss, and which stop alone.

`tests/protocols/test_attacks.py` compares the first two lists with what results say in `AttackResult.info`.
"""

from collections.abc import Callable

from robustjax import base, loops, threats
from robustjax.attacks import (
    _alma,
    _carlini_wagner,
    _carlini_wagner_l0,
    _carlini_wagner_linf,
    _ddn,
    _deepfool,
    _ead,
    _fab,
    _fmn,
    _lbfgs,
    _sigma_zero,
    _square,
    combinators,
)
from robustjax.base import Attack

BLACK_BOX: tuple[Callable, ...] = (_square.square,)
MINIMUM_NORM: tuple[Callable, ...] = (
    _alma.alma,
    _carlini_wagner.carlini_wagner,
    _carlini_wagner_l0.carlini_wagner_l0,
    _carlini_wagner_linf.carlini_wagner_linf,
    _ddn.ddn,
    _deepfool.deepfool,
    _ead.ead,
    _fab.fab,
    _fmn.fmn,
    _lbfgs.lbfgs,
    _sigma_zero.sigma_zero,
)
STOPS_ALONE: tuple[Callable, ...] = (_deepfool.deepfool,)  # the steps after an example is done change nothing; one loop, no combination


def is_black_box(attack: Attack) -> bool:
    """Whether every plain attack of an attack uses only outputs of the model; a user's own attack is assumed to use gradients."""
    return all(combinators.function_of(part) in BLACK_BOX for part in combinators.parts(attack))


def minimised_norm(attack: Attack) -> str | None:
    """The name of the ball whose norm the attack makes small; None if it ascends a loss, or is made of several attacks."""
    parts = combinators.parts(attack)
    if len(parts) != 1 or combinators.function_of(parts[0]) not in MINIMUM_NORM:
        return None
    found = combinators.threats_of(attack)
    return type(found[0]).__name__ if found and isinstance(found[0], threats.Ball) else None


def stops_alone(attack: Attack) -> bool:
    """Whether an attack leaves every example as it is once that is done, in any loop, so that a driver may take it out of the batch.

    A loop of the user's own, such as `loops.host`, is not replaced.
    """
    has_own_loop = isinstance(attack, base.Configured) and attack.get("loop_fn", loops.scan) not in (loops.scan, loops.while_)
    return combinators.function_of(attack) in STOPS_ALONE and not has_own_loop
