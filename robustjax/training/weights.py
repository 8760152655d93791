"""What training does to weights besides descent: adversarial perturbation (AWP), and an average over steps (EMA)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax.base import ApplyFn, Array, Numeric

RiskFn = Callable[[Any], tuple[Array, Any]]  # params -> (loss, aux)
WeightsFn = Callable[[RiskFn, Any], Any]  # (risk, params) -> the parameters at which the risk is taken


def unperturbed(risk: RiskFn, params: Any) -> Any:
    """Returns the parameters unchanged: the default `weights_fn` of training losses."""
    del risk
    return params


def awp(risk: RiskFn, params: Any, *, gamma: Numeric) -> Any:
    """Adversarial weight perturbation: params + v, |v| = gamma |w| along the gradient of the risk, tensor by tensor.

    The gradient of the risk at params + v updates params. Tensors of rank below 2 (biases, scales of BatchNorm) are not perturbed.

    Args:
      risk: params -> (loss, aux) on the attacked batch.
      params: where the gradient for v is taken; this costs one forward and one backward pass.
      gamma: relative size; .01 with adversarial training, .005 with TRADES.

    Guarantee:
      none: evaluate the trained model.
    Source: Wu et al., NeurIPS 2020, arXiv:2004.05884. Differs: the direction is the gradient itself, where the authors' code takes a step
      of SGD with momentum and weight decay; weight decay acts on the unperturbed weights.
    """
    grad = jax.lax.stop_gradient(jax.grad(lambda params: risk(params)[0])(params))

    def perturbed(weight, slope):
        if weight.ndim < 2:
            return weight
        size = jnp.linalg.norm(slope)
        unit = jnp.where(size > 0, slope / jnp.where(size > 0, size, 1.0), 0.0)
        return weight + jax.lax.stop_gradient(gamma * jnp.linalg.norm(weight)) * unit

    return jax.tree.map(perturbed, params, grad)


class AveragedState(NamedTuple):
    """State of `averaged`."""

    inner: Any  # state of the wrapped optimizer
    average: Any  # like the parameters
    num_steps: Array


def averaged(optimizer: optax.GradientTransformation, decay: Numeric = 0.995) -> optax.GradientTransformation:
    """The optimizer, which also keeps an exponential moving average of the parameters: see `average`.

    Args:
      optimizer: an optax transformation that updates the parameters.
      decay: weight of the past; in step t it is min(decay, (1 + t) / (10 + t)), so that the initial parameters are soon forgotten.

    Guarantee:
      none: evaluate the trained model.
    Source: Gowal et al., 2020, arXiv:2010.03593 (decay .995); the ramp is that of TensorFlow's moving averages.
    """

    def init(params):
        return AveragedState(optimizer.init(params), params, jnp.int32(0))

    def update(grads, state, params=None):
        updates, inner = optimizer.update(grads, state.inner, params)
        step = state.num_steps + 1
        keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, 1.0 - keep)
        return updates, AveragedState(inner, average, step)

    return optax.GradientTransformation(init, update)


def average(opt_state: Any) -> Any:
    """The averaged parameters from the state of an optimizer that contains `averaged`.

    Raises:
      ValueError: the optimizer keeps no average.
    """
    is_averaged = lambda node: isinstance(node, AveragedState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_averaged) if is_averaged(node)]
    if not found:
        raise ValueError("the optimizer keeps no average; wrap it: training.averaged(optimizer, decay=0.995).")
    return found[0].average


def batch_norm_statistics(apply_fn: ApplyFn, params: Any, model_state: Any, x: Array, *, batch_size: int) -> Any:
    """The model_state after training forward passes over x: statistics of BatchNorm for averaged parameters.

    Args:
      apply_fn: (params, model_state, x, mode) -> (logits [B, C], model_state).
      params: the parameters that the statistics are computed for.
      model_state: the statistics to start from.
      x: inputs [N, ...]; the last N mod batch_size rows are left out.
      batch_size: B.
    """
    num_batches = len(x) // batch_size
    batches = x[: num_batches * batch_size].reshape(num_batches, batch_size, *x.shape[1:])
    return jax.lax.scan(lambda state, batch: (apply_fn(params, state, batch, "train")[1], None), model_state, batches)[0]
