"""The min-max attack: the worst feasible point for the SVM at every step of its learning (Steinhardt et al., 2017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import checks
from robustjax.base import Array
from robustjax.poisoning.sanitized import _feasible
from robustjax.poisoning.sanitized._feasible import Feasible


class WorstPoints(NamedTuple):
    """The last points that were worst, and what they cost the learner."""

    x: np.ndarray  # [share * N, D], one at least
    y: np.ndarray  # [share * N] their labels
    average_loss: float  # of the learner over all points met: see `min_max_attack`


def min_max_attack(
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    sets: tuple[Feasible, Feasible],
    *,
    share: float,
    weight_decay: float,
    step_size: float,
    num_steps: int,
) -> WorstPoints:
    """Poisons that are the worst feasible points for the SVM as it learns: online gradient descent on max over feasible points of the loss.

    The average of the losses met is, up to the regret of the learner and the accuracy of the worst points, an upper bound of the training
    loss under any feasible poisons.

    Args:
      x: [N, D] clean data. y: [N], -1 or 1.
      sets: where points of label 1 and of label -1 may lie.
      share: poisons over clean points; .03 in the paper.
      weight_decay: of the victim, weight_decay / 2 |w|^2 without the bias.
      step_size: of the learner's subgradient descent, falling like 1 / sqrt.
      num_steps: of that descent; each meets one point.

    Returns:
      The last points met.

    Raises:
      TypeError: sets that are none, another number of steps than an integer. ValueError: labels other than -1 and 1, or only one of them;
        rows of another shape, or NaN; a share that is not above 0 and at most 1; weight decay below 0; no step, or fewer steps
        than poisons.

    Guarantee:
      feasibility only: the points lie in the sets that the defender keeps.
    Source: Steinhardt, Koh & Liang, NeurIPS 2017, Algorithm 1, arXiv:1706.03691.
    """
    _feasible.check_sets(x, y, sets, share, weight_decay)
    checks.counts(num_steps=num_steps)
    checks.positive(step_size=step_size)
    num_poisons = max(1, int(share * len(x)))
    if num_steps < num_poisons:
        raise ValueError(f"num_steps={num_steps} meet too few points for {num_poisons} poisons; pass at least {num_poisons}.")
    x, y = jnp.asarray(x, jnp.result_type(float)), jnp.asarray(y, jnp.result_type(float))

    def worst(theta):  # of each label: the feasible point against its side
        w = theta[:-1]
        points = jnp.concatenate([one.extreme(-label * w) for one, label in zip(sets, (1.0, -1.0), strict=True)])
        labels = jnp.array([1.0, -1.0])
        loss = jnp.maximum(1.0 - labels * (points @ w + theta[-1]), 0.0)
        first = jnp.argmax(loss)
        return points[first], labels[first], loss[first]

    def objective(theta, point, label):
        hinge = jnp.maximum(1.0 - y * (x @ theta[:-1] + theta[-1]), 0.0).mean()
        poison = jnp.maximum(1.0 - label * (point @ theta[:-1] + theta[-1]), 0.0)
        return hinge + share * poison + 0.5 * weight_decay * theta[:-1] @ theta[:-1]

    def step(theta, i):
        point, label, _ = worst(theta)
        value, grad = jax.value_and_grad(objective)(theta, point, label)
        return theta - step_size / jnp.sqrt(i + 1.0) * grad, (point, label, value)

    run = jax.jit(lambda theta: jax.lax.scan(step, theta, jnp.arange(num_steps)))
    _, (points, labels, values) = run(jnp.zeros(x.shape[1] + 1, x.dtype))
    return WorstPoints(np.asarray(points[-num_poisons:]), np.asarray(labels[-num_poisons:]), float(values.mean()))
