"""Losses between an adversarial one and its bound by intervals: MTL-IBP, CC-IBP and Exp-IBP (De Palma et al., 2024)."""

from typing import Any

import jax.numpy as jnp

from robustjax import bounds, losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, NormThreat, Numeric
from robustjax.bounds.certificates import BoundFn
from robustjax.training import _certified, crafting
from robustjax.training._natural import Risk


def mtl_ibp(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: NormThreat,
    attack: Attack,
    alpha: Numeric,
    bound_fn: BoundFn = bounds.interval,
    reg_weight: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
) -> Risk:
    """alpha * loss(worst logits) + (1 - alpha) * loss(f(x_adv), y): the loss of `certified` and that of `adversarial`, side by side.

    Args:
      params, model_state, x, y, apply_fn: parameters, state, batch and network, as for `certified`.
      key: of the attack.
      threat: the ball of the bounds.
      attack: (key, model_fn, x, y) -> AttackResult; in the same ball, or in a larger one (2.1 eps at 2/255 on CIFAR-10).
      alpha: weight of the bounds in [0, 1]; the paper has .01 and .08 on MNIST at eps .1 and .3, and .004 and .5 on CIFAR-10
        at 2/255 and 8/255.
      bound_fn, reg_weight, loss_fn: bounds, weight of the regularisers and the loss, as for `certified`.
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.

    Returns:
      The loss and (model_state of the forward pass on attacked inputs, {"loss", "accuracy" under attack, "certified_accuracy"}).

    Guarantee:
      none: certify the trained model.
    Source: De Palma et al., ICLR 2024, arXiv:2305.13991. Differs: statistics of BatchNorm are those of the attacked batch.
    """
    worst, logits, state, penalty = _parts(params, model_state, key, x, y, apply_fn, threat, attack, bound_fn, reg_weight, craft_mode)
    loss = alpha * loss_fn(worst, y).mean() + (1.0 - alpha) * loss_fn(logits, y).mean() + penalty
    return _certified.outcome(loss, worst, logits, y, state)


def cc_ibp(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: NormThreat,
    attack: Attack,
    alpha: Numeric,
    bound_fn: BoundFn = bounds.interval,
    reg_weight: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
) -> Risk:
    """loss(alpha * worst logits + (1 - alpha) * attacked logits): the convex combination inside the loss.

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key of the attack, batch and network, as for `mtl_ibp`.
      threat, attack, bound_fn, reg_weight, loss_fn, craft_mode: ball, attack, bounds, regularisers and loss, as for `mtl_ibp`.
      alpha: weight of the bounds in [0, 1], as for `mtl_ibp`.

    Returns:
      As for `mtl_ibp`.

    Guarantee:
      none: certify the trained model.
    Source: De Palma et al., ICLR 2024, arXiv:2305.13991. Differs: statistics of BatchNorm are those of the attacked batch.
    """
    worst, logits, state, penalty = _parts(params, model_state, key, x, y, apply_fn, threat, attack, bound_fn, reg_weight, craft_mode)
    attacked = logits - jnp.take_along_axis(logits, y[:, None], axis=1)  # as worst, less the logit of y
    loss = loss_fn(alpha * worst + (1.0 - alpha) * attacked, y).mean() + penalty
    return _certified.outcome(loss, worst, logits, y, state)


def exp_ibp(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: NormThreat,
    attack: Attack,
    alpha: Numeric,
    bound_fn: BoundFn = bounds.interval,
    reg_weight: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
) -> Risk:
    """loss(worst logits)^alpha * loss(f(x_adv), y)^(1 - alpha), example by example: a line between the two in the logarithm.

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key of the attack, batch and network, as for `mtl_ibp`.
      threat, attack, bound_fn, reg_weight, craft_mode: ball, attack, bounds and regularisers, as for `mtl_ibp`.
      alpha: exponent of the bounds in [0, 1].
      loss_fn: as for `certified`, and not below zero.

    Returns:
      As for `mtl_ibp`.

    Guarantee:
      none: certify the trained model.
    Source: De Palma et al., ICLR 2024, arXiv:2305.13991. Differs: statistics of BatchNorm are those of the attacked batch.
    """
    worst, logits, state, penalty = _parts(params, model_state, key, x, y, apply_fn, threat, attack, bound_fn, reg_weight, craft_mode)
    # A loss that was rounded to zero has no logarithm, and no slope.
    bound, attacked = (jnp.log(jnp.maximum(loss_fn(z, y), jnp.finfo(z.dtype).tiny)) for z in (worst, logits))
    loss = jnp.exp(alpha * bound + (1.0 - alpha) * attacked).mean() + penalty
    return _certified.outcome(loss, worst, logits, y, state)


def _parts(params, model_state, key, x, y, apply_fn, threat, attack, bound_fn, reg_weight, craft_mode):
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)
    logits, state = apply_fn(params, model_state, x_adv, "train")
    model_fn = _certified.bounded_model(apply_fn, params, state)
    worst = _certified.worst_logits(model_fn, x, y, threat, bound_fn)
    return worst, logits, state, _certified.regularization(model_fn, x, threat, reg_weight)
