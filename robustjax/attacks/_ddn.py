"""Decoupling direction and norm: a gradient step, then a sphere that shrinks or grows (Rony et al., 2019)."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, prng, threats
from robustjax.attacks import objective, schedules
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn


def ddn(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    init_eps: Numeric = 1.0,
    gamma: Numeric = 0.05,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l2 attack: ascend the loss, then rescale delta to a radius that falls by gamma where fooled and rises elsewhere.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L2`; its eps decides success.
      num_steps: 100 is usual; one forward and one backward pass each.
      init_eps: the first radius.
      gamma: relative change of the radius per step.
      loss_fn, success_fn: (logits, y) -> [B], what is ascended, and what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The smallest perturbation that fooled the model; loss = -norm.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.8, 0.4]]), jnp.array([0])  # the boundary x_0 = x_1 is .4 / sqrt(2) = .28 away
      >>> result = rj.attacks.ddn(jax.random.key(0), lambda x: x, x, y, threat=rj.L2(0.5), num_steps=100)
      >>> bool(result.success[0]), round(float(result.info.norm[0]), 2)
      (True, 0.28)

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Rony et al., CVPR 2019, Algorithm 1, arXiv:1811.09600. Differs: no quantisation to 256 levels.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    checks.positive(init_eps=init_eps, gamma=gamma)
    objective.require_threat(threat, (threats.L2,), "ddn")
    keys = objective.streams(key, x)
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys, num_steps=num_steps, gamma=gamma)
    zeros = jnp.zeros_like(x)
    eps = jnp.zeros(x.shape[0], x.dtype) + init_eps
    delta, _, found = loop_fn(step, (zeros, eps, objective.unsuccessful(zeros, x)), num_steps)
    last = objective.evaluate(objective.step_problem(problem, keys.model, num_steps), delta)
    return objective.minimum_norm_result(problem, objective.keep_best(found, objective.as_minimum_norm(last, threat)))


def _step(i, carry, *, problem, keys, num_steps, gamma):
    delta, eps, found = carry
    problem = objective.step_problem(problem, keys.model, i)
    x, threat = problem.x, problem.threat
    candidate, grad = objective.ascend(problem, delta)
    found = objective.keep_best(found, objective.as_minimum_norm(candidate, threat))
    # Direction: one step along the normalised gradient, or along noise where the gradient is zero.
    noise = prng.sample(jax.random.normal, prng.fold_in(keys.own, i), x)
    flat_spot = arrays.per_example(threat.dual_norm(grad) == 0, x)
    direction = threat.steepest(jnp.where(flat_spot, noise, grad), x, delta)
    delta = delta + schedules.cosine(i, num_steps, 1.0, 0.01) * direction
    # Norm: the radius changes by the factor 1 -+ gamma, and delta is put on its sphere.
    eps = jnp.minimum(eps * jnp.where(candidate.success, 1.0 - gamma, 1.0 + gamma), threat.max_norm(x))
    scale = arrays.ratio(eps, threat.norm(delta))
    low, high = threat.delta_bounds(x)
    return jnp.clip(delta * arrays.per_example(scale, x), min=low, max=high), eps, found
