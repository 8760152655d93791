"""Decoupling direction and norm: a gradient step, then a sphere that shrinks or grows (Rony et al., 2019)."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, schedules
from robustjax.base import Array, AttackResult, Key, LossFn, ModelFn, SuccessFn


def ddn(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat,
    num_steps: int,
    init_eps=1.0,
    gamma=0.05,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn=loops.scan,
) -> AttackResult:
    """Minimum-norm l2 attack: ascend the loss, then rescale delta to a radius that falls by gamma where fooled and rises elsewhere.

    Args:
      key, model_fn, x, y, loss_fn, success_fn, loop_fn: as for `pgd`.
      threat: an `L2`; its eps decides success.
      num_steps: 100 is usual; one forward and one backward pass each.
      init_eps: the first radius.
      gamma: relative change of the radius per step.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Rony et al., CVPR 2019, Algorithm 1, arXiv:1811.09600. Differs: no quantisation to 256 levels.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    checks.positive(init_eps=init_eps, gamma=gamma)
    objective.require(threat, (threats.L2,), "ddn")
    keys = objective.streams(key, x)
    goal = objective.Goal(threat, loss_fn, success_fn)
    step = base.bind(_step, model_fn=model_fn, x=x, y=y, keys=keys, num_steps=num_steps, gamma=gamma, goal=goal)
    zeros = jnp.zeros_like(x)
    eps = jnp.zeros(x.shape[0], x.dtype) + init_eps
    delta, _, found = loop_fn(step, (zeros, eps, objective.nothing(zeros, x)), num_steps)
    last = objective.evaluate(objective.step_model(model_fn, keys.model, num_steps), x, y, delta, goal)
    return objective.result_by_norm(x, objective.keep_best(found, objective.by_norm(last, threat)), threat)


def _step(i, carry, *, model_fn, x, y, keys, num_steps, gamma, goal):
    delta, eps, found = carry
    threat = goal.threat
    candidate, grad = objective.ascend(objective.step_model(model_fn, keys.model, i), x, y, delta, goal)
    found = objective.keep_best(found, objective.by_norm(candidate, threat))
    noise = arrays.sample(jax.random.normal, arrays.fold_in(keys.own, i), x)
    flat_spot = arrays.per_example(threat.dual_norm(grad) == 0, x)
    direction = threat.steepest(jnp.where(flat_spot, noise, grad), x, delta)
    delta = delta + schedules.cosine(i, num_steps, 1.0, 0.01) * direction
    eps = jnp.minimum(eps * jnp.where(candidate.success, 1.0 - gamma, 1.0 + gamma), threat.largest_norm(x))
    scale = arrays.ratio(eps, threat.norm(delta))
    low, high = threat.room(x)
    return jnp.clip(delta * arrays.per_example(scale, x), min=low, max=high), eps, found
