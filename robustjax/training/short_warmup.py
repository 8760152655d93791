"""What keeps interval bounds from growing before training, and while it warms up: initialisation and regularisers (Shi et al., 2021)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from robustjax.base import Array, Key, ModelFn, NormThreat, Numeric
from robustjax.bounds import _interval


def ibp_init(params: Any, key: Key) -> Any:
    """Kernels drawn from N(0, (sqrt(2 pi) / fan_in)^2), with which a layer and its ReLU keep the width of intervals, in the mean.

    An interval grows by the sum of |w| over the inputs, which is 2 in the mean, and a ReLU halves it. A standard deviation of
    1 / sqrt(fan_in), about the usual one, makes it grow by a factor of sqrt(fan_in / (2 pi)) in each layer.

    Args:
      params: parameters; leaves of rank 2 and more are kernels [..., inputs, outputs], as Flax has them, and fan_in is the product of all
        their axes but the last. Others (biases, scales of BatchNorm) stay as they are.
      key: one key.

    Returns:
      Like params.

    Guarantee:
      none: it is where training starts.
    Source: Shi et al., NeurIPS 2021, arXiv:2103.17268.
    """
    leaves, tree = jax.tree.flatten(params)

    def drawn(i, leaf):
        if leaf.ndim < 2:
            return leaf
        return math.sqrt(2.0 * math.pi) / math.prod(leaf.shape[:-1]) * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)

    return jax.tree.unflatten(tree, [drawn(i, leaf) for i, leaf in enumerate(leaves)])


def ibp_regularization(model_fn: ModelFn, x: Array, threat: NormThreat, *, tolerance: Numeric = 0.5) -> Array:
    """Tightness of intervals plus balance of ReLUs, the mean over all ReLU layers: 0 where both are within the tolerance.

    Tightness is max(0, tolerance - r_0 / r) / tolerance, for the mean radius r of the intervals before a ReLU and r_0 of those of the
    inputs. Balance is the same of two ratios, the smaller to the larger, between units that are active for every input of the threat and
    units that never are: of the sums of their centres, and of the sums of squared distances of their centres from the mean. All sums are
    over the batch.

    Args:
      model_fn: x [B, ...] -> logits [B, C], with ReLUs or functions like them.
      x: inputs [B, ...].
      threat: a norm ball around x.
      tolerance: tau, the ratio from which on nothing is asked.

    Returns:
      A scalar. Shi et al. give it the weight .5 at the beginning of the ramp of eps, and 0 at its end.

    Raises:
      ValueError: the model has no ReLU.

    Guarantee:
      none: a part of a loss.
    Source: Shi et al., NeurIPS 2021, arXiv:2103.17268. Differs: a layer where no unit keeps its sign has no balance, as in the
      authors' code.
    """
    first, *layers = _interval.of_relus(model_fn, x, threat)
    if not layers:
        raise ValueError("expected a model with ReLUs, got none; leave the regularisation out: reg_weight=None.")
    missed = lambda ratio: jnp.maximum(0.0, tolerance - ratio) / tolerance  # noqa: E731
    return sum(missed(_ratio(_radius(first), _radius(layer))) + _imbalance(layer, missed) for layer in layers) / len(layers)


def _radius(bounds):
    return jnp.mean(0.5 * bounds.upper - 0.5 * bounds.lower)


def _imbalance(bounds, missed):
    center = 0.5 * bounds.lower + 0.5 * bounds.upper
    active, inactive = bounds.lower > 0, bounds.upper < 0
    distance = jnp.square(center - center.mean())
    pairs = [[jnp.sum(jnp.where(mask, a, 0.0)) for mask in (active, inactive)] for a in (jnp.abs(center), distance)]
    balance = sum(missed(_ratio(jnp.minimum(*pair), jnp.maximum(*pair))) for pair in pairs)
    return jnp.where(jnp.any(active | inactive), balance, 0.0)


def _ratio(one, other):
    return jnp.where(other > 0, one / jnp.where(other > 0, other, 1.0), 0.0)
