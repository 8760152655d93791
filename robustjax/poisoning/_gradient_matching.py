"""Witches' Brew: poisons whose training gradient points where the target's adversarial gradient does (Geiping et al., 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks, losses
from robustjax.base import ApplyFn, Array, Key, LossFn, NormThreat, Numeric
from robustjax.bilevel import problem
from robustjax.poisoning import _craft, arguments
from robustjax.poisoning import task as tasks
from robustjax.poisoning._craft import PoisonResult
from robustjax.poisoning.task import Task


def gradient_matching(
    key: Key,
    task: Task,
    *,
    params: Any,
    model_state: Any = None,
    apply_fn: ApplyFn,
    threat: NormThreat,
    num_steps: int,
    learning_rate: Numeric = 0.1,
    num_restarts: int = 1,
    loss_fn: LossFn = losses.cross_entropy,
    augment_fn: Callable[[Key, Array], Array] | None = None,
) -> PoisonResult:
    """min over poisons in the threat of 1 - cos(gradient of the targets' loss to y_target, gradient of the poisons' own loss).

    Args:
      key: of starts and augmentation.
      task: the training set, its poisoned rows, and the targets with what they are to be read as.
      params: of a network trained on the clean set, in which gradients are matched. model_state: its statistics, None without.
      apply_fn: (params, model_state, x, mode) -> (logits, model_state).
      threat: around each base image.
      num_steps: 250 is the paper's.
      learning_rate: of Adam on the gradient's sign, relative to eps; falls tenfold after 3/8, 5/8 and 7/8 of the steps.
      num_restarts: random starts, vmapped; the one with the smallest loss is returned.
      loss_fn: of training.
      augment_fn: (key, x [M, ...]) -> x of all poisons, differentiable; what training will do to the poisons.

    Returns:
      The poisons; their loss is 0 where the gradients are aligned, 1 where they are orthogonal, NaN if every restart broke down.

    Raises:
      TypeError: no key, no threat, numbers that are no integers, functions that cannot be called. ValueError: images, labels or targets of
        another shape, type or range; a loss that is not one per example; numbers below 1; a rate that is not above 0.

    Guarantee:
      feasibility only.
    Source: Witches' Brew, Geiping et al., ICLR 2021, Algorithm 1, arXiv:2009.02276. Differs: the gradient is of all poisons at once.
    """
    problem.one_key(key)
    tasks.check(task, threat)
    checks.counts(num_steps=num_steps, num_restarts=num_restarts)
    checks.positive(learning_rate=learning_rate)
    tasks.check_labels(task, arguments.classes(apply_fn, params, model_state, task.x_base))
    x, y = task.x_base, task.y_base

    def gradient(x, y):
        def mean_loss(params):
            logits = apply_fn(params, model_state, x, "eval")[0]
            return arguments.per_example("loss_fn", loss_fn(logits, y), len(x)).mean()

        return jax.grad(mean_loss)(params)

    wanted = jax.lax.stop_gradient(gradient(jnp.asarray(task.x_target), jnp.asarray(task.y_target)))

    def mismatch(key, poisons):
        seen = poisons if augment_fn is None else augment_fn(key, poisons)
        problem.alike("what augment_fn returns", seen, poisons, "the poisons")
        return 1.0 - cosine(gradient(seen, y), wanted)

    steps = [round(num_steps * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = optax.piecewise_constant_schedule(1.0, dict.fromkeys(steps, 0.1))
    optimizer = _craft.signed(optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: -schedule(count))))
    scaled = optax.chain(optimizer, optax.scale(learning_rate), optax.stateless(lambda u, _: arrays.per_example(threat.radius(), u) * u))
    one = base.bind(
        _craft.craft_poisons,
        x=x,
        threat=threat,
        gradient_fn=_craft.differentiated(mismatch),
        optimizer=scaled,
        num_steps=num_steps,
        delta=None,
    )
    runs = jax.vmap(lambda key: one(key))(jax.random.split(key, num_restarts))
    best = jnp.argmin(jnp.where(jnp.isnan(runs.loss), jnp.inf, runs.loss))
    return jax.tree.map(lambda leaf: leaf[best], runs)


def cosine(a: Any, b: Any) -> Array:
    """<a, b> / (|a| |b|) over pytrees of any scale; 0 where one vanishes, with a gradient of zero; NaN stays NaN.

    Raises:
      ValueError: pytrees of different structure or shapes.
    """
    problem.alike("b", b, a, "a")
    return problem.inner(_unit(a), _unit(b))


def _unit(a):
    size = problem.norm(a)
    return jax.tree.map(lambda leaf: problem.at_least_float32(leaf) / jnp.where(size == 0, 1.0, size), a)
