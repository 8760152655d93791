"""Adversarial training: empirical risk on the inputs that an attack makes of the batch (Madry et al., 2018)."""

from collections.abc import Callable

from robustjax import losses
from robustjax.base import Array, Attack, Key, LossFn
from robustjax.training import _natural, crafting, weights


def adversarial(
    params,
    model_state,
    key: Key,
    x,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: Callable = weights.unperturbed,
):
    """min over params of E max over the threat of loss: the maximum by `attack`, the gradient at its point (Danskin).

    The attack makes the method: `pgd` is Madry's, `fgsm` from 0 is Goodfellow's without its clean half, `rs_fgsm` makes it fast
    adversarial training, `n_fgsm` N-FGSM, and codes x with a `threats.Latent` on-manifold adversarial training.

    Args:
      params, model_state, x, y, apply_fn, loss_fn: as for `natural`.
      key: of the attack.
      attack: (key, model_fn, x, y) -> AttackResult, hyper-parameters bound.
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.
      weights_fn: where in parameter space the risk is taken; `base.bind(training.awp, gamma=...)` for adversarial weights.

    Returns:
      The loss at the attacked inputs and (model_state of that forward pass, {"loss", "accuracy"} under attack).

    Guarantee:
      none: robustness is what an evaluation shows.
    Source: Madry et al., ICLR 2018, eq. 2.1, arXiv:1706.06083; fast: Wong et al., ICLR 2020, arXiv:2001.03994.
    """
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        return _natural.natural(params, model_state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)

    return risk(weights_fn(risk, params))


def mixed(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    attack: Attack,
    clean_weight=0.5,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: Callable = weights.unperturbed,
):
    """clean_weight * loss(x) + (1 - clean_weight) * loss(x_adv): Goodfellow's mix, with any attack.

    Args:
      params, model_state, key, x, y, apply_fn, attack, loss_fn, craft_mode, weights_fn: as for `adversarial`.
      clean_weight: of the inputs as they are.

    Returns:
      The loss and (model_state, {"loss", "accuracy"} under attack). Both forward passes leave their statistics, the clean one first.

    Guarantee:
      none: robustness is what an evaluation shows.
    Source: Goodfellow et al., ICLR 2015, section 6, arXiv:1412.6572.
    """
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        clean, (state, _) = _natural.natural(params, model_state, key, x, y, apply_fn=apply_fn, loss_fn=loss_fn)
        attacked, (state, metrics) = _natural.natural(params, state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)
        loss = clean_weight * clean + (1.0 - clean_weight) * attacked
        return loss, (state, metrics | {"loss": loss})

    return risk(weights_fn(risk, params))
