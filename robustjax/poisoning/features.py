"""Poisons that collide with a target in feature space: Poison Frogs (Shafahi et al., 2018), bullseye polytope (Aghakhani et al., 2021)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base
from robustjax.base import Array, Key
from robustjax.poisoning.craft import PoisonResult, craft, differentiated


class Collision(NamedTuple):
    """Poisons whose features are the target's."""

    x: Array  # [M, ...] in the box
    distance: Array  # [M] |features(x) - features(target)|
    change: Array  # [M] |x - base|


def feature_collision(
    features_fn: Callable,
    x: Array,
    x_target: Array,
    *,
    step_size,
    beta,
    num_steps: int,
    watermark=0.0,
    num_memory: int = 40,
    box: tuple = (0.0, 1.0),
) -> Collision:
    """min over x' of |features(x') - features(target)| + beta |x' - base|^2 in a box, by forward-backward splitting.

    Forward: a gradient step on the distance (not squared); backward: the proximal step (x' + step_size beta base) / (1 + step_size beta).

    Args:
      features_fn: images [M, ...] -> features [M, K]; of the frozen part of a network.
      x: base images [M, ...].
      x_target: the target [1, ...] or one for each base [M, ...].
      step_size: of the forward step; halved, image by image, while the objective is not below its mean over the last steps.
      beta: of the base image.
      num_steps: 1,500 at most in the paper.
      watermark: opacity of the target blended into the base to start with; 0.3 in the paper where training is end to end.
      num_memory: steps between two looks at the objective's mean.
      box: of valid inputs.

    Returns:
      The poisons with their distances.

    Guarantee:
      none: a collision is what `distance` says.
    Source: Shafahi et al., NeurIPS 2018, Algorithm 1, arXiv:1804.00792. Differs: the step is halved after every `num_memory` steps
      whose last objective is not below their mean; the authors' test fires at other steps by a slip of precedence.
    """
    x_target = jnp.broadcast_to(x_target, x.shape)
    origin = (1.0 - watermark) * x + watermark * x_target
    wanted = jax.lax.stop_gradient(features_fn(x_target))

    def distance(x):
        return arrays.norm(features_fn(x) - wanted, 2)

    def step(carry, i):
        poisons, size, total = carry
        (_, apart), grad = jax.value_and_grad(lambda x: (distance(x).sum(), distance(x)), has_aux=True)(poisons)
        cost = apart + beta * arrays.total(jnp.square(poisons - origin))
        look = (i + 1) % num_memory == 0
        total = total + cost
        size = jnp.where(look & (cost >= total / num_memory), 0.5 * size, size)
        scale = arrays.per_example(size, x)
        moved = (poisons - scale * grad + scale * beta * origin) / (1.0 + scale * beta)
        return (jnp.clip(moved, min=box[0], max=box[1]), size, jnp.where(look, 0.0, total)), None

    zeros = jnp.zeros(x.shape[0], x.dtype)
    (poisons, _, _), _ = jax.lax.scan(step, (origin, zeros + step_size, zeros), jnp.arange(num_steps))
    return Collision(poisons, distance(poisons), arrays.norm(poisons - x, 2))


def bullseye(
    key: Key,
    features_fns: Sequence[Callable],
    x: Array,
    x_target: Array,
    *,
    threat,
    num_steps: int,
    learning_rate,
) -> PoisonResult:
    """min over poisons in the threat of the mean over networks of |mean features of the poisons - features of the target|^2, relative.

    Args:
      key: of the start.
      features_fns: frozen networks, images [M, ...] -> features [M, K].
      x: base images [M, ...], all of the class that the target is to get.
      x_target: the target [T, ...]; several views of it are averaged.
      threat: around each base image.
      num_steps, learning_rate: of Adam.

    Returns:
      The poisons.

    Guarantee:
      feasibility only.
    Source: Aghakhani et al., EuroS&P 2021, arXiv:2005.00191.
    """
    centres = [jax.lax.stop_gradient(features_fn(x_target).mean(axis=0)) for features_fn in features_fns]

    def miss(key, poisons):
        del key
        gaps = [
            jnp.square(features_fn(poisons).mean(axis=0) - centre).sum() / jnp.square(centre).sum()
            for features_fn, centre in zip(features_fns, centres, strict=True)
        ]
        return jnp.stack(gaps).mean()

    run = base.bind(craft, threat=threat, gradient_fn=differentiated(miss), num_steps=num_steps)
    return run(key, x, optimizer=optax.adam(learning_rate), delta=0.0)
