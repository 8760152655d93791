"""sigma-zero: a smooth stand-in for the l0 norm, and a threshold that cuts small changes (Cina et al., 2025)."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, loops, losses, threats
from robustjax.attacks import objective, penalty, schedules
from robustjax.base import Array, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn


def sigma_zero(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_steps: int,
    learning_rate: Numeric = 1.0,
    sigma: Numeric = 1e-3,
    init_threshold: Numeric = 0.3,
    threshold_rate: Numeric = 0.01,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Minimum-norm l0 attack: min max(-loss, 0) + mean_i delta_i^2 / (delta_i^2 + sigma); each step sets small coordinates to zero.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: an `L0`; its eps decides success.
      num_steps: 1,000 is the paper's; one forward and one backward pass each.
      learning_rate: of Adam; falls to a tenth along a cosine.
      sigma: how sharply the smooth function turns from 0 to 1, in squared units of x.
      init_threshold: |delta_i| below which a coordinate is set back to zero.
      threshold_rate: change of the threshold in each step, relative to the learning rate: up where fooled, down elsewhere.
      loss_fn: (logits, y) -> [B], positive where fooled.
      success_fn: (logits, y) -> [B], what counts as fooled.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The sparsest perturbation that fooled the model; loss = -number of coordinates.

    Guarantee:
      feasibility only: the result lies in the box; not optimality.
    Source: Cina et al., ICLR 2025, Algorithm 1, arXiv:2402.01879.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    checks.positive(learning_rate=learning_rate, sigma=sigma)
    objective.require_threat(threat, (threats.L0,), "sigma_zero")
    keys = objective.streams(key, x).model
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(
        _step, problem=problem, keys=keys, num_steps=num_steps, learning_rate=learning_rate, sigma=sigma, threshold_rate=threshold_rate
    )
    zeros = jnp.zeros_like(x)
    threshold = jnp.zeros(x.shape[0], x.dtype) + init_threshold
    carry = (zeros, penalty.adam_init(zeros), threshold, objective.unsuccessful(zeros, x))
    delta, _, _, found = loop_fn(step, carry, num_steps)
    last = objective.evaluate(objective.step_problem(problem, keys, num_steps), delta)
    return objective.minimum_norm_result(problem, objective.keep_best(found, objective.as_minimum_norm(last, threat)))


def _step(i, carry, *, problem, keys, num_steps, learning_rate, sigma, threshold_rate):
    delta, memory, threshold, found = carry
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat

    def total(delta):
        candidate = objective.evaluate(problem, delta)
        sparsity = arrays.sum_examples(jnp.square(delta) / (jnp.square(delta) + sigma)) / arrays.size(delta)
        return jnp.sum(jnp.maximum(-candidate.loss, 0.0) + sparsity), candidate

    grad, candidate = jax.grad(total, has_aux=True)(delta)
    candidate, grad = objective.marked(candidate, grad)
    found = objective.keep_best(found, objective.as_minimum_norm(candidate, threat))
    rate = schedules.cosine(i, num_steps, learning_rate, 0.1 * learning_rate)
    delta, memory = penalty.adam_step(arrays.normalize(grad, jnp.inf), memory, delta, rate)
    low, high = threat.delta_bounds(x)
    delta = jnp.clip(delta, min=low, max=high)
    # Fooled, the attack can afford fewer coordinates, so that the threshold rises; not fooled, it falls.
    change = threshold_rate * rate / learning_rate
    threshold = jnp.clip(threshold + jnp.where(candidate.success, change, -change), min=0.0, max=1.0)
    delta = jnp.where(jnp.abs(delta) < arrays.per_example(threshold, x), 0.0, delta)
    return delta, memory, threshold, found
