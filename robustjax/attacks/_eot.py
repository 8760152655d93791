"""Expectation over transformation: a randomised model or input transformation, averaged (Athalye et al., 2018)."""

import jax
import jax.numpy as jnp

from robustjax import base, checks, prng
from robustjax.base import Array, ModelFn, TransformFn


@base.node
class Expectation:
    """A model that draws afresh and averages: see `eot`."""

    bound: base.Configured

    def __call__(self, x: Array) -> Array:
        raise ValueError("an expectation over transformations is random: call .draw(keys)(x), as every attack does each step.")

    def draw(self, keys: Array) -> ModelFn:
        """The average over the draws of these keys [B]."""
        return base.bind(self.bound, keys=prng.example_keys(keys, keys.shape[0]))


def eot(model_fn: ModelFn, *, num_samples: int, transform_fn: TransformFn | None = None) -> Expectation:
    """The model's mean logits over random transformations of its input and its own randomness, drawn afresh each step.

    The gradient of the mean is the mean of the gradients; a draw that is fixed for the whole attack would make a model look more robust
    than it is.

    Args:
      model_fn: a model, randomised (with a `draw`) or not.
      num_samples: number of draws in each evaluation, each a forward and a backward pass.
      transform_fn: (key, x [...]) -> transformed x, of one example; None where the model itself is random.

    Returns:
      A randomised model, whose `draw(keys)` attacks and `evaluate` call in every step.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> model_fn = rj.attacks.eot(lambda x: x, num_samples=8, transform_fn=lambda key, x: x + 0.01 * jax.random.normal(key, x.shape))
      >>> attack = rj.bind(rj.attacks.pgd, threat=rj.Linf(0.125), step_size=0.05, num_steps=9)
      >>> attack(jax.random.key(0), model_fn, jnp.array([[0.6, 0.5]]), jnp.array([0])).success
      Array([ True], dtype=bool)

    Source: Athalye et al., ICML 2018, arXiv:1707.07397. Differs: averages logits, where AutoAttack averages the gradients of losses.
    """
    checks.counts(num_samples=num_samples)
    return Expectation(base.bind(_mean_logits, model=base.Held(model_fn), transform_fn=transform_fn, num_samples=num_samples))


def _mean_logits(x, *, keys, model, transform_fn, num_samples):
    def sample(i):
        key_transform, key_model = prng.split(prng.fold_in(keys, i), 2)
        moved = x if transform_fn is None else jax.vmap(transform_fn)(key_transform, x)
        return base.draw(model.model_fn, key_model)(moved)

    return jax.lax.map(sample, jnp.arange(num_samples)).mean(axis=0)
