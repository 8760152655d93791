"""SABR: intervals of a small box around an attacked point instead of the whole ball (Mueller et al., 2023)."""

from typing import Any

import jax

from robustjax import bounds, losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, NormThreat, Numeric
from robustjax.bounds.certificates import BoundFn
from robustjax.training import _certified, crafting
from robustjax.training._natural import Risk


def sabr(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: NormThreat,
    attack: Attack,
    box_ratio: Numeric,
    bound_fn: BoundFn = bounds.interval,
    kappa: Numeric = 0.0,
    reg_weight: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
) -> Risk:
    """The loss of the worst logits over a ball of radius box_ratio * eps around an attacked point x* with |x* - x| <= (1 - box_ratio) eps.

    The small ball lies in the whole one, so that the loss is no bound of the worst loss, and the model is left more freedom.

    Args:
      params, model_state, x, y, apply_fn: parameters, state, batch and network, as for `certified`.
      key: of the attack.
      threat: the whole ball, of radius eps.
      attack: (key, model_fn, x, y) -> AttackResult; its perturbation is projected to the radius (1 - box_ratio) eps. In that ball itself it
        is the paper's: `training.inner_pgd(threat.with_radius((1 - box_ratio) * threat.radius()), num_steps=8)`.
      box_ratio: lambda, in [0, 1]; at 1 the loss is that of `certified`. The paper has .4 and .6 on MNIST at eps .1 and .3, and .1 and
        .7 on CIFAR-10 at 2/255 and 8/255.
      bound_fn, kappa, reg_weight, loss_fn: bounds, weight of the clean loss, of the regularisers, and the loss, as for `certified`.
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.

    Returns:
      The loss and (model_state of the clean forward pass, {"loss", "accuracy", "box_accuracy"}), at the clean inputs and of the worst
      logits of the small balls, which certifies nothing.

    Guarantee:
      none: certify the trained model.
    Source: Mueller et al., ICLR 2023, arXiv:2210.04871. Differs: no shrinking of boxes after a ReLU; the clean forward pass,
      which statistics of BatchNorm come from, may have a weight.
    """
    model_fn = crafting.classifier(apply_fn, jax.lax.stop_gradient(params), model_state, craft_mode)
    around = threat.with_radius((1.0 - box_ratio) * threat.radius())
    center = jax.lax.stop_gradient(x + around.project(attack(key, model_fn, x, y).delta, x))
    small = threat.with_radius(box_ratio * threat.radius())
    loss, (state, metrics) = _certified.risk(params, model_state, x, y, center, apply_fn, small, bound_fn, kappa, reg_weight, loss_fn)
    return loss, (state, {"loss": loss, "accuracy": metrics["accuracy"], "box_accuracy": metrics["certified_accuracy"]})
