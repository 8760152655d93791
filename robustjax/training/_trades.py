"""TRADES: accuracy on the inputs plus beta times the change of the prediction around them (Zhang et al., 2019)."""

from typing import Any

import jax

from robustjax import losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, Numeric
from robustjax.training import _natural, crafting, weights
from robustjax.training._natural import Risk
from robustjax.training.weights import WeightsFn


def trades(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    beta: Numeric,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    target_detached: bool = False,
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """loss(f(x), y) + beta * max over the threat of KL(p(x) || p(x')).

    Args:
      params: a pytree of parameters, which are trained.
      model_state: what the forward pass updates (statistics of BatchNorm), or None.
      key: of the attack.
      x: inputs [B, ...]. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (logits [B, C], model_state), mode "eval", "batch" or "train".
      attack: any attack on a loss; its loss becomes the divergence from the clean prediction. The divergence has no gradient at x: start
        the attack at random (`delta=None`), or with `delta=attacks.small_noise` as the authors do.
      beta: weight of the boundary error; 1 to 6.
      loss_fn: (logits [B, C], y [B]) -> loss of each example [B], at the clean inputs.
      craft_mode: mode in which the model is attacked; "batch" uses the statistics of the batch without keeping them.
      target_detached: whether the clean prediction inside the divergence is a constant for the outer gradient.
      weights_fn: (risk, params) -> the parameters at which the risk is taken; `base.bind(training.awp, gamma=...)` perturbs them.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "clean_accuracy"}); both forward passes update the statistics, the clean one
      first.

    Guarantee:
      none: evaluate the trained model.

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> attack = base.bind(attacks.pgd, threat=threats.Linf(0.1), step_size=0.05, num_steps=3, delta=attacks.small_noise)
      >>> loss_fn = base.bind(training.trades, apply_fn=apply_fn, attack=attack, beta=6.0)
      >>> loss, (state, metrics) = loss_fn(jnp.eye(2), None, jax.random.key(0), jnp.eye(2), jnp.array([0, 1]))
      >>> sorted(metrics)
      ['accuracy', 'clean_accuracy', 'loss']

    Source: Zhang et al., ICML 2019, eq. 5, arXiv:1901.08573. Differs: the divergence is computed from log-probabilities on both
      sides; the clean forward pass is made once in training mode, where the authors' code makes two.
    """
    x_adv = crafting.attacked_inputs_by_kl(attack, key, apply_fn, params, model_state, x, craft_mode)

    def risk(params):
        logits, state = apply_fn(params, model_state, x, "train")
        logits_adv, state = apply_fn(params, state, x_adv, "train")
        log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits) if target_detached else logits)
        divergence = losses.kl(logits_adv, log_probs)
        loss = loss_fn(logits, y).mean() + beta * divergence.mean()
        return loss, (state, {"loss": loss, "accuracy": _natural.accuracy(logits_adv, y), "clean_accuracy": _natural.accuracy(logits, y)})

    return risk(weights_fn(risk, params))
