"""Expectation over transformation: a randomised model or input transformation, averaged (Athalye et al., 2018)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import base, checks, prng
from robustjax.base import Array, ModelFn


@base.node
class Expectation:
    """A model that draws afresh and averages: see `eot`."""

    bound: base.Configured

    def __call__(self, x: Array) -> Array:
        raise ValueError("an expectation over transformations is random: call .draw(keys)(x), as every attack does each step.")

    def draw(self, keys: Array) -> ModelFn:
        """The average over the draws of these keys [B]."""
        return base.bind(self.bound, keys=prng.example_keys(keys, keys.shape[0]))


def eot(model_fn: ModelFn, *, num_samples: int, transform_fn: Callable | None = None) -> Expectation:
    """The model's mean logits over random transformations of its input and its own randomness, drawn afresh each step.

    The gradient of the mean is the mean of the gradients; a draw that is fixed for the whole attack gives a false sense of
    security.

    Args:
      model_fn: a model, randomised (with a `draw`) or not.
      num_samples: draws in each evaluation; that many forward and backward passes.
      transform_fn: (key, x [...]) -> transformed x, of one example; None where the model itself is random.

    Returns:
      A randomised model: attacks and `evaluate` call its `draw(keys)` in every step.

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
