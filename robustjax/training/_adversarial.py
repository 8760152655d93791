"""Adversarial training: empirical risk on the inputs that an attack makes from the batch (Madry et al., 2018)."""

from typing import Any

from robustjax import losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, Numeric
from robustjax.training import _natural, crafting, weights
from robustjax.training._natural import Risk
from robustjax.training.weights import WeightsFn


def adversarial(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """min over params of E max over the threat of loss: `attack` finds the maximum, the gradient is taken there (Danskin).

    The attack decides the method: with `pgd` it is Madry's, with `fgsm` from 0 Goodfellow's without the clean half, with `rs_fgsm` fast
    adversarial training, with `n_fgsm` N-FGSM, and with codes as x and a `threats.Latent` on-manifold adversarial training.

    Args:
      params: a pytree of parameters, which are trained.
      model_state: what the forward pass updates (statistics of BatchNorm), or None.
      key: of the attack.
      x: inputs [B, ...]. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (logits [B, C], model_state), mode "eval", "batch" or "train".
      attack: (key, model_fn, x, y) -> AttackResult, with its hyper-parameters bound.
      loss_fn: (logits [B, C], y [B]) -> loss of each example [B].
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.
      weights_fn: (risk, params) -> the parameters at which the risk is taken; `base.bind(training.awp, gamma=...)` perturbs them.

    Returns:
      The loss at the attacked inputs and (model_state of that forward pass, {"loss", "accuracy"} under attack).

    Guarantee:
      none: evaluate the trained model.

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> attack = base.bind(attacks.pgd, threat=threats.Linf(0.1), step_size=0.05, num_steps=3)
      >>> loss_fn = base.bind(training.adversarial, apply_fn=apply_fn, attack=attack)
      >>> loss, (state, metrics) = loss_fn(jnp.eye(2), None, jax.random.key(0), jnp.eye(2), jnp.array([0, 1]))
      >>> round(float(loss), 3)  # log(1 + exp(-0.8)): the attack takes .1 from one logit, and adds .1 to the other
      0.371

    Source: Madry et al., ICLR 2018, eq. 2.1, arXiv:1706.06083; fast: Wong et al., ICLR 2020, arXiv:2001.03994.
    """
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        return _natural.natural(params, model_state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)

    return risk(weights_fn(risk, params))


def mixed(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    clean_weight: Numeric = 0.5,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """clean_weight * loss(x) + (1 - clean_weight) * loss(x_adv): Goodfellow's mix, with any attack.

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key of the attack, batch and network, as for `adversarial`.
      attack, loss_fn, craft_mode, weights_fn: attack, loss, mode of the attacked network and place of the risk, as for `adversarial`.
      clean_weight: weight of the loss at the clean inputs.

    Returns:
      The loss and (model_state, {"loss", "accuracy"} under attack). Both forward passes update the statistics, the clean one first.

    Guarantee:
      none: evaluate the trained model.
    Source: Goodfellow et al., ICLR 2015, section 6, arXiv:1412.6572.
    """
    x_adv = crafting.attacked_inputs(attack, key, apply_fn, params, model_state, x, y, craft_mode)

    def risk(params):
        clean, (state, _) = _natural.natural(params, model_state, key, x, y, apply_fn=apply_fn, loss_fn=loss_fn)
        attacked, (state, metrics) = _natural.natural(params, state, key, x_adv, y, apply_fn=apply_fn, loss_fn=loss_fn)
        loss = clean_weight * clean + (1.0 - clean_weight) * attacked
        return loss, (state, metrics | {"loss": loss})

    return risk(weights_fn(risk, params))
