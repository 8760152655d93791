"""Auto-PGD: momentum, and a step size that halves where progress stalls (Croce & Hein, 2020)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, loops, losses, threats
from robustjax.attacks import _apgd_l1, objective
from robustjax.base import Array, AttackResult, Delta, Key, LoopFn, LossFn, ModelFn, NormThreat, SuccessFn

_MOMENTUM = 0.75  # weight of the gradient step against the previous move (alpha in the paper)
_PROGRESS = 0.75  # fraction of the window's steps that must raise the loss (rho)


class _State(NamedTuple):
    delta: Array  # [B, ...] current iterate
    previous: Array  # [B, ...] the one before
    best: Array  # [B, ...] of the largest loss
    best_grad: Array  # [B, ...] its gradient
    best_loss: Array  # [B]
    checked_loss: Array  # [B] best_loss at the last check
    last_loss: Array  # [B]
    step_size: Array  # [B]
    num_rises: Array  # [B] steps of this window that raised the loss
    reduced: Array  # [B] bool, halved at the last check
    found: objective.Found


def apgd(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    delta: Delta | None = None,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Auto-PGD: gradient ascent without a step size to choose, from 2 eps down by halves.

    At fixed checkpoints an example whose loss rose in too few steps, or whose best loss stands still, returns to its best point
    and halves its step.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `Linf`, `L2` or `L1`.
      num_steps: number of gradients; 100 is the paper's.
      loss_fn: (logits, y) -> [B], what is ascended: `losses.cross_entropy` or `losses.dlr`; for one target class
        `base.bind(losses.targeted_dlr, target=...)`, or `attacks.over_targets`.
      success_fn: (logits, y) -> [B], what counts as fooled.
      delta: where to start: None for a random place, 0. for x itself, or a perturbation.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The best iterate by (success, loss); num_steps gradients and one forward pass. An `L1` threat runs `apgd_l1`.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> rj.attacks.apgd(jax.random.key(0), lambda x: x, x, y, threat=rj.Linf(0.125), num_steps=10).delta
      Array([[-0.125,  0.125]], dtype=float32)

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Croce & Hein, ICML 2020, Algorithm 1, arXiv:2003.01690. Differs: starts at `threat.init`, and returns the misclassified
      iterate of largest loss, where the reference returns the last one.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    objective.require_threat(threat, (threats.Linf, threats.L2, threats.L1), "apgd")
    if isinstance(threat, threats.L1):
        return _apgd_l1.apgd_l1(
            key, model_fn, x, y, threat=threat, num_steps=num_steps, loss_fn=loss_fn, success_fn=success_fn, delta=delta, loop_fn=loop_fn
        )
    keys = objective.streams(key, x)
    delta = objective.start(threat, keys.start, x, delta)
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys.model, windows=jnp.asarray(_windows(num_steps)))
    state = loop_fn(step, _initial(delta, x, threat), num_steps, objective.has_succeeded)
    last = objective.evaluate(objective.step_problem(problem, keys.model, num_steps), state.delta)
    return objective.result(problem, objective.keep_best(state.found, last))


def _windows(num_steps: int) -> np.ndarray:
    """The length of the window that ends with i steps taken, 0 where none does: checks grow denser from .22 to .06 of the run."""
    windows = np.zeros(num_steps, np.int32)
    length, taken = max(int(0.22 * num_steps), 1), 0
    while (taken := taken + length) < num_steps:
        windows[taken] = length
        length = max(length - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    return windows


def _initial(delta, x, threat):
    lowest = jnp.full(x.shape[0], -jnp.inf, x.dtype)
    zero = jnp.zeros(x.shape[0], x.dtype)
    return _State(
        delta=delta,
        previous=delta,
        best=delta,
        best_grad=jnp.zeros_like(delta),
        best_loss=lowest,
        checked_loss=lowest,
        last_loss=zero,
        step_size=zero + 2.0 * threat.finite_radius(x),
        num_rises=jnp.zeros(x.shape[0], jnp.int32),
        reduced=jnp.ones(x.shape[0], bool),
        found=objective.unsuccessful(delta, x),
    )


def _step(i, state, *, problem, keys, windows):
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    candidate, grad = objective.ascend(problem, state.delta)
    delta, loss = candidate.delta, candidate.loss
    better = loss > state.best_loss
    best, best_grad = arrays.where_example(better, (delta, grad), (state.best, state.best_grad))
    best_loss = jnp.where(better, loss, state.best_loss)

    # Condition 1: too few steps of the window raised the loss; condition 2: the step was not halved, and yet the best loss stands still.
    # The first loss is compared with nothing; the one after it with 0, as in the authors' code.
    num_rises = state.num_rises + ((i > 0) & (loss > state.last_loss)).astype(jnp.int32)
    checked = windows[i] > 0
    stuck = (num_rises.astype(x.dtype) <= _PROGRESS * windows[i].astype(x.dtype)) | (~state.reduced & (state.checked_loss >= best_loss))
    halved = checked & stuck
    step_size = jnp.where(halved, 0.5 * state.step_size, state.step_size)
    delta, grad = arrays.where_example(halved, (best, best_grad), (delta, grad))

    # A projected step z, then with the weight alpha the move to z and with the rest the last move.
    length = arrays.per_example(step_size, x)
    stepped = threat.project(delta + length * threat.steepest(grad, x, delta), x)
    weight = jnp.where(i > 0, _MOMENTUM, 1.0).astype(x.dtype)
    moved = threat.project(delta + weight * (stepped - delta) + (1.0 - weight) * (delta - state.previous), x)
    return _State(
        delta=moved,
        previous=delta,
        best=best,
        best_grad=best_grad,
        best_loss=best_loss,
        checked_loss=jnp.where(checked | (i == 0), best_loss, state.checked_loss),
        last_loss=jnp.where(i > 0, loss, 0.0),
        step_size=step_size,
        num_rises=jnp.where(checked, 0, num_rises),
        reduced=jnp.where(checked, halved, state.reduced),
        found=objective.keep_best(state.found, candidate),
    )
