"""Dual manifold adversarial training: perturbed pixels, and perturbed codes of a decoder (Lin et al., 2020)."""

from typing import Any, NamedTuple

import jax

from robustjax import base, losses
from robustjax.base import ApplyFn, Array, Attack, Key, LossFn, Numeric
from robustjax.training import _natural, crafting, weights
from robustjax.training._natural import Risk
from robustjax.training.weights import WeightsFn


class Coded(NamedTuple):
    """Inputs that lie on a manifold, with their codes: x = decoder(code). If `fit` gets them as x, both are batched together."""

    x: Array  # [B, ...]
    code: Array  # [B, K]


def dual_manifold(
    params: Any,
    model_state: Any,
    key: Key,
    x: Coded,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    latent_attack: Attack,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """loss(x_adv) / 2 + loss(decoder(code_adv)) / 2: the form of the authors' code.

    Args:
      params, model_state, key, y, apply_fn: parameters, state, key of the attacks, labels and network, as for `adversarial`.
      x: inputs and codes.
      attack: on the inputs.
      latent_attack: on the codes, with a `threats.Latent`.
      loss_fn, craft_mode, weights_fn: loss, mode of the attacked network and place of the risk, as for `adversarial`.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "manifold_accuracy"}); both forward passes update the statistics.

    Raises:
      ValueError: the outputs of the decoder have another shape than x.

    Guarantee:
      none: evaluate the trained model.
    Source: Lin et al., NeurIPS 2020, arXiv:2009.02470, as released.
    """
    key_image, key_code = jax.random.split(key)
    off = crafting.attacked_inputs(attack, key_image, apply_fn, params, model_state, x.x, y, craft_mode)
    decoded_fn = base.bind(_decoded, apply_fn=apply_fn, expected=x)
    on = crafting.attacked_inputs(latent_attack, key_code, decoded_fn, params, model_state, x.code, y, craft_mode)

    def risk(params):
        image, (state, metrics) = _natural.natural(params, model_state, key, off, y, apply_fn=apply_fn, loss_fn=loss_fn)
        code, (state, on_metrics) = _natural.natural(params, state, key, on, y, apply_fn=apply_fn, loss_fn=loss_fn)
        loss = 0.5 * image + 0.5 * code
        return loss, (state, metrics | {"loss": loss, "manifold_accuracy": on_metrics["accuracy"]})

    return risk(weights_fn(risk, params))


def dual_manifold_trades(
    params: Any,
    model_state: Any,
    key: Key,
    x: Coded,
    y: Array,
    *,
    apply_fn: ApplyFn,
    attack: Attack,
    latent_attack: Attack,
    beta: Numeric,
    loss_fn: LossFn = losses.cross_entropy,
    craft_mode: str = "eval",
    target_detached: bool = False,
    weights_fn: WeightsFn = weights.unperturbed,
) -> Risk:
    """loss(x) + beta * max KL(p(x) || p(x')) + beta * max KL(p(x) || p(decoder(code'))): the form of the paper.

    Args:
      params, model_state, key, x, y, apply_fn: parameters, state, key of the attacks, batch and network, as for `dual_manifold`.
      attack, latent_attack, loss_fn, craft_mode, weights_fn: attacks, loss, mode and place of the risk, as for `dual_manifold`.
      beta: weight of the two divergences.
      target_detached: whether the clean prediction inside the divergences is a constant for the outer gradient.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "manifold_accuracy", "clean_accuracy"}); the three forward passes update the
      statistics in the order clean, off, on the manifold.

    Raises:
      ValueError: the outputs of the decoder have another shape than x.

    Guarantee:
      none: evaluate the trained model.
    Source: Lin et al., NeurIPS 2020, section 4, arXiv:2009.02470.
    """
    key_image, key_code = jax.random.split(key)
    off = crafting.attacked_inputs_by_kl(attack, key_image, apply_fn, params, model_state, x.x, craft_mode)
    decoded_fn = base.bind(_decoded, apply_fn=apply_fn, expected=x)
    on = crafting.attacked_inputs_by_kl(latent_attack, key_code, decoded_fn, params, model_state, x.code, craft_mode, clean=x.x)

    def risk(params):
        logits, state = apply_fn(params, model_state, x.x, "train")
        logits_off, state = apply_fn(params, state, off, "train")
        logits_on, state = apply_fn(params, state, on, "train")
        log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits) if target_detached else logits)
        divergence = losses.kl(logits_off, log_probs) + losses.kl(logits_on, log_probs)
        loss = loss_fn(logits, y).mean() + beta * divergence.mean()
        metrics = {
            "accuracy": _natural.accuracy(logits_off, y),
            "manifold_accuracy": _natural.accuracy(logits_on, y),
            "clean_accuracy": _natural.accuracy(logits, y),
        }
        return loss, (state, metrics | {"loss": loss})

    return risk(weights_fn(risk, params))


def _decoded(params, model_state, x, mode, *, apply_fn, expected):
    # The model as the latent attack sees it. The shape is checked here, since the network's error would only name its first layer.
    shape = expected.x.shape[1:]
    if x.shape[1:] != shape:
        raise ValueError(
            f"expected a decoder that makes [B, {', '.join(map(str, shape))}] of the codes {expected.code.shape}, got {x.shape}; "
            "the decoded codes must agree with the inputs."
        )
    return apply_fn(params, model_state, x, mode)
