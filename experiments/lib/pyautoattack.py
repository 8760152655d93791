"""The members of the public AutoAttack, pyautoattack on torch, on the same weights and from the same starts."""

import logging
import time
from typing import Any, NamedTuple

import numpy as np

from experiments.lib import peers


class Case(NamedTuple):
    """A model in both frameworks, and the images that both classify correctly."""

    name: str
    model_fn: Any  # images [B, ...] -> logits [B, C]
    module: Any  # torch.nn.Module on NCHW
    x: np.ndarray  # [B, H, W, C]
    y: np.ndarray  # [B]
    num_images: int  # of which B are classified correctly


class Outcome(NamedTuple):
    """What an attack did to the images of a case."""

    success: np.ndarray  # [B] bool
    loss: np.ndarray | None = None  # [B] the largest, where both packages define it alike
    seconds: float = np.nan


def apgd(case: Case, norm: str, eps: float, num_steps: int, delta: np.ndarray, loss: str) -> Outcome:
    """APGD from the images plus delta."""
    from pyautoattack import autopgd_base

    attack = autopgd_base.APGDAttack(case.module, n_iter=num_steps, norm=norm, eps=eps, loss=loss, logger=logging.getLogger())
    return _from_start(attack, case, delta, [None])


def targeted_apgd(case: Case, norm: str, eps: float, num_steps: int, delta: np.ndarray, num_targets: int) -> Outcome:
    """APGD-T: every image against every target, so that losses compare."""
    from pyautoattack import autopgd_base

    attack = autopgd_base.APGDAttack_targeted(case.module, n_iter=num_steps, norm=norm, eps=eps, logger=logging.getLogger())
    ranking = case.module(peers.to_torch(case.x)).argsort(dim=1, descending=True)
    return _from_start(attack, case, delta, [ranking[:, rank] for rank in range(1, num_targets + 1)])


def targeted_fab(case: Case, norm: str, eps: float, num_steps: int, num_targets: int) -> Outcome:
    """FAB-T, which stops at the first target within eps."""
    from pyautoattack import fab_pt

    options = {"norm": norm, "n_iter": num_steps, "eps": eps, "targeted": True, "n_target_classes": num_targets}
    return _perturbed(case, fab_pt.FABAttack_PT(case.module, **options).perturb)


def square(case: Case, norm: str, eps: float, num_queries: int, seed: int) -> Outcome:
    """Square."""
    from pyautoattack import square

    options = {"norm": norm, "eps": eps, "n_queries": num_queries, "p_init": 0.8, "seed": seed, "resc_schedule": False}
    return _perturbed(case, square.SquareAttack(case.module, **options).perturb)


def ensemble(case: Case, norm: str, eps: float) -> Outcome:
    """AutoAttack "standard" by its front door."""
    import pyautoattack

    whole = pyautoattack.AutoAttack(case.module, norm=norm, eps=eps, seed=0, version="standard")
    return _perturbed(case, lambda x, y: whole.run_standard_evaluation(x, y, batch_size=len(y))[0])


def _from_start(attack, case, delta, targets):
    began = time.perf_counter()
    x, y, start = peers.to_torch(case.x), peers.to_torch(case.y), peers.to_torch(case.x + delta)
    attack.init_hyperparam(x)
    success, loss = np.zeros(len(case.y), bool), np.full(len(case.y), -np.inf)
    for attack.y_target in targets:
        _, stands, loss_best, _ = attack.attack_single_run(x, y, x_init=start)
        fooled, loss_best = ~stands.numpy(), loss_best.numpy()
        better = np.where(fooled == success, loss_best > loss, fooled)
        success, loss = np.where(better, fooled, success), np.where(better, loss_best, loss)
    return Outcome(success, loss, time.perf_counter() - began)


def _perturbed(case, perturb):
    began = time.perf_counter()
    perturbed = perturb(peers.to_torch(case.x), peers.to_torch(case.y))
    success = case.module(perturbed).numpy().argmax(axis=1) != case.y
    return Outcome(success, None, time.perf_counter() - began)
