"""Poisons that collide with a target in feature space: Poison Frogs (Shafahi et al., 2018), bullseye polytope (Aghakhani et al., 2021)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks
from robustjax.base import Array, Key, Numeric, Threat
from robustjax.bilevel import problem
from robustjax.poisoning import _craft, arguments
from robustjax.poisoning import task as tasks
from robustjax.poisoning._craft import PoisonResult
from robustjax.poisoning.task import Task

FeaturesFn = Callable[[Array], Array]  # images [M, ...] -> features [M, K], of the frozen part of a network


class Collision(NamedTuple):
    """How far `feature_collision` came, evaluated at its poisons: exact, whatever the descent did."""

    distance: Array  # [M] |features(x) - features(target)|
    change: Array  # [M] |x - base|


def feature_collision(
    key: Key,
    task: Task,
    *,
    features_fn: FeaturesFn,
    step_size: Numeric,
    beta: Numeric,
    num_steps: int,
    watermark: Numeric = 0.0,
    num_memory: int = 40,
    box: tuple = (0.0, 1.0),
) -> PoisonResult:
    """min over x' of |features(x') - features(target)| + beta |x' - base|^2 in a box, by forward-backward splitting.

    Forward: a gradient step on the distance (not squared); backward: the proximal step (x' + step_size beta base) / (1 + step_size beta).

    Args:
      key: not used: nothing is drawn.
      task: the training set, its poisoned rows, and the target [1, ...], or one for each row [M, ...]; labels are not used.
      features_fn: images [M, ...] -> features [M, K], of the frozen part of a network.
      step_size: of the forward step; halved, image by image, while the objective is not below its mean over the last steps.
      beta: of the base image.
      num_steps: 1,500 at most in the paper.
      watermark: opacity of the target blended into the base to start with; 0.3 in the paper where training is end to end.
      num_memory: steps between two looks at the objective's mean.
      box: of valid inputs.

    Returns:
      The poisons, their losses as means over all, and as state the `Collision`.

    Raises:
      TypeError: no task, numbers of steps that are no integers, a features_fn that cannot be called. ValueError: images outside the box, a
        target or features of another shape, numbers below 1, an opacity outside [0, 1], beta or step_size below 0.

    Guarantee:
      none: how near the features came is what `Collision.distance` says.
    Source: Poison Frogs, Shafahi et al., NeurIPS 2018, Algorithm 1, arXiv:1804.00792. Differs: the step is halved after every `num_memory`
      steps whose last objective is not below their mean; the authors' test fires at other steps by a slip of precedence.
    """
    del key
    tasks.check(task)
    checks.box(box)
    arguments.inside(task.x, box)
    x, x_target = task.x_base, jnp.asarray(task.x_target)
    if x_target.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"expected one target [1, ...] or one for each base, {x.shape[0]}, got {x_target.shape[0]}.")
    checks.counts(num_steps=num_steps, num_memory=num_memory)
    problem.not_negative(step_size=step_size, beta=beta)
    arguments.fractions(watermark=watermark)
    _check_features(features_fn, x)
    x_target = jnp.broadcast_to(x_target, x.shape)
    step_size, beta, watermark = (jnp.asarray(number).astype(x.dtype) for number in (step_size, beta, watermark))
    origin = (1.0 - watermark) * x + watermark * x_target
    low, high = (jnp.asarray(bound).astype(x.dtype) for bound in box)
    wanted = jax.lax.stop_gradient(problem.at_least_float32(features_fn(x_target)))

    def distance(x):
        return arrays.norm(problem.at_least_float32(features_fn(x)) - wanted, 2).astype(x.dtype)

    def step(carry, i):
        poisons, size, total = carry
        (_, apart), grad = jax.value_and_grad(lambda x: (distance(x).sum(), distance(x)), has_aux=True)(poisons)
        cost = apart + beta * arrays.sum_examples(jnp.square(poisons - origin))
        look = (i + 1) % num_memory == 0
        total = total + cost
        size = jnp.where(look & (cost >= total / num_memory), 0.5 * size, size)
        scale = arrays.per_example(size, x)
        moved = (poisons - scale * grad + scale * beta * origin) / (1.0 + scale * beta)
        return (jnp.clip(moved, min=low, max=high), size, jnp.where(look, 0.0, total)), cost.mean()

    zeros = jnp.zeros(x.shape[0], x.dtype)
    (poisons, _, _), losses = jax.lax.scan(step, (origin, zeros + step_size, zeros), jnp.arange(num_steps))
    delta = poisons - x
    return PoisonResult(poisons, delta, losses[-1], losses, Collision(distance(poisons), arrays.norm(delta, 2)))


def bullseye(
    key: Key,
    task: Task,
    *,
    features_fns: Sequence[FeaturesFn],
    threat: Threat,
    num_steps: int,
    learning_rate: Numeric,
) -> PoisonResult:
    """min over poisons in the threat of the mean over networks of |mean features of the poisons - features of the target|^2, relative.

    Args:
      key: of the start.
      task: the training set, its poisoned rows, all of the class that the target is to get, and the target [T, ...]; several views of it
        are averaged. Labels are not used.
      features_fns: frozen networks, images [M, ...] -> features [M, K].
      threat: around each base image.
      num_steps: of Adam. learning_rate: of Adam.

    Returns:
      The poisons.

    Raises:
      TypeError: no key, no threat, another number of steps than an integer, networks that cannot be called. ValueError: no network; images
        outside the box; a target or features of another shape; numbers below 1; a rate that is not above 0.

    Guarantee:
      feasibility only.
    Source: the bullseye polytope, Aghakhani et al., EuroS&P 2021, arXiv:2005.00191.
    """
    problem.one_key(key)
    tasks.check(task, threat)
    x, x_target = task.x_base, jnp.asarray(task.x_target)
    checks.counts(num_steps=num_steps)
    checks.positive(learning_rate=learning_rate)
    if callable(features_fns) or len(features_fns) == 0:
        raise ValueError(f"expected features_fns as a list of networks, one at least, got {features_fns!r}; pass [features_fn].")
    for features_fn in features_fns:
        _check_features(features_fn, x)
    centres = [jax.lax.stop_gradient(problem.at_least_float32(features_fn(x_target)).mean(axis=0)) for features_fn in features_fns]

    def miss(key, poisons):
        del key
        gaps = []
        for features_fn, centre in zip(features_fns, centres, strict=True):
            gap = problem.at_least_float32(features_fn(poisons)).mean(axis=0) - centre
            size = problem.norm(centre)  # features that are all zero are nothing to be relative to
            gaps.append(jnp.square(gap / jnp.where(size == 0, 1.0, size)).sum())
        return jnp.stack(gaps).mean()

    run = base.bind(_craft.craft_poisons, threat=threat, gradient_fn=_craft.differentiated(miss), num_steps=num_steps)
    return run(key, x, optimizer=optax.adam(learning_rate), delta=0.0)


def _check_features(features_fn, x):
    problem.takes(features_fn, "features_fn(x)", x)
    made = jax.eval_shape(features_fn, x)
    if not hasattr(made, "shape") or len(made.shape) < 2 or made.shape[0] != x.shape[0]:
        got = f"shape {made.shape}" if hasattr(made, "shape") else f"a {type(made).__name__}"
        raise ValueError(f"expected features_fn to return features [{x.shape[0]}, K] of as many images, got {got}.")
