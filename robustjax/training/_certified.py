"""Certified training: the loss of the worst logits that bounds of the model allow (Wong & Kolter, 2018; Gowal et al., 2018)."""

from typing import Any

import jax.numpy as jnp

from robustjax import bounds, losses, lowering, threats
from robustjax.base import ApplyFn, Array, Key, LossFn, ModelFn, NormThreat, Numeric
from robustjax.bounds.certificates import BoundFn
from robustjax.training import _natural, crafting, short_warmup
from robustjax.training._natural import Risk


def certified(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    threat: NormThreat,
    bound_fn: BoundFn,
    kappa: Numeric,
    reg_weight: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
) -> Risk:
    """kappa * loss(f(x), y) + (1 - kappa) * loss(-m, y), with m_k a lower bound of z_y - z_k over the threat.

    The second loss is an upper bound of the largest in the threat. The bounds decide the method: `bounds.interval` is IBP,
    `bounds.crown_ibp` CROWN-IBP, `bounds.crown` CROWN, and `base.bind(bounds.crown, slope="parallel")` the robust loss of Wong & Kolter.
    Their dual network takes as dual variable of an unstable ReLU the slope u / (u - l) of its chord, below as above; a linear bound
    carried back with these two parallel lines is the same sum, term by term, and so are the bounds of the layers before.

    Bounds are taken of the network in mode "eval", with the statistics that the forward pass on the clean inputs leaves. Without a ramp
    of eps and kappa, see `certified_ramp`, training often ends in a constant prediction.

    Args:
      params: a pytree of parameters, which are trained.
      model_state: what the forward pass updates (statistics of BatchNorm), or None.
      key: unused.
      x: inputs [B, ...], or codes if the threat is `Latent`. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (logits [B, C], model_state), mode "eval", "batch" or "train".
      threat: the norm ball against which the model is trained; often a little larger than the one that is certified later.
      bound_fn: (model_fn, x, threat) -> Bounds, with its options bound by `base.bind`.
      kappa: weight of the loss at the clean inputs; from 1 to .5 in IBP, 0 in Wong & Kolter's.
      reg_weight: weight of the terms of `ibp_regularization`; None leaves them out.
      loss_fn: (logits [B, C], y [B]) -> loss of each example [B]; one that never falls where another logit than that of y grows, and
        stays where all logits grow alike.

    Returns:
      The loss and (model_state, {"loss", "accuracy", "certified_accuracy"}), at the clean inputs and of the worst logits.

    Guarantee:
      at kappa = 0 and without reg_weight, the loss is at least the mean of the largest losses in the threat, of the network in mode
      "eval" and up to rounding. None about the trained model: certify it by `bounds.certify`.

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> options = {"threat": threats.Linf(0.1), "bound_fn": bounds.interval, "kappa": 0.0}
      >>> loss_fn = base.bind(training.certified, apply_fn=apply_fn, **options)
      >>> loss, (state, metrics) = loss_fn(jnp.eye(2), None, jax.random.key(0), jnp.eye(2), jnp.array([0, 1]))
      >>> round(float(loss), 3)  # log(1 + exp(-0.8)): the attack takes .1 from one logit, and adds .1 to the other
      0.371

    Source: Gowal et al., ICCV 2019, arXiv:1810.12715; Wong & Kolter, ICML 2018, arXiv:1711.00851; Zhang et al., ICLR 2020,
      arXiv:1906.06316. Differs: BatchNorm is bounded with its running statistics.
    """
    del key
    return risk(params, model_state, x, y, x, apply_fn, threat, bound_fn, kappa, reg_weight, loss_fn)


def risk(params, model_state, x, y, center, apply_fn, threat, bound_fn, kappa, reg_weight, loss_fn) -> Risk:
    """The same with bounds over a ball around other points [B, ...] than x."""
    logits, state = apply_fn(params, model_state, inputs(threat, x), "train")
    model_fn = bounded_model(apply_fn, params, state)
    worst = worst_logits(model_fn, center, y, threat, bound_fn)
    loss = kappa * loss_fn(logits, y).mean() + (1.0 - kappa) * loss_fn(worst, y).mean()
    loss = loss + regularization(model_fn, center, threat, reg_weight)
    return outcome(loss, worst, logits, y, state)


def outcome(loss: Array, worst: Array, logits: Array, y: Array, model_state: Any) -> Risk:
    """What a certified loss returns: the metrics are accuracies of the logits and of the worst ones."""
    accuracy, certified_accuracy = _natural.accuracy(logits, y), _natural.accuracy(worst, y)
    return loss, (model_state, {"loss": loss, "accuracy": accuracy, "certified_accuracy": certified_accuracy})


def worst_logits(model_fn: ModelFn, x: Array, y: Array, threat: NormThreat, bound_fn: BoundFn) -> Array:
    """Logits [B, C], 0 for y, that are at least as bad as any in the threat: upper bounds of z_k - z_y."""
    return -bounds.margins(model_fn, x, y, threat, bound_fn).lower


def bounded_model(apply_fn: ApplyFn, params: Any, model_state: Any) -> ModelFn:
    """The model x -> logits in mode "eval", which bounds walk as its author wrote it: their rules choose fast convolutions themselves."""
    return crafting.classifier(lowering.original(apply_fn), params, model_state)


def regularization(model_fn: ModelFn, x: Array, threat: NormThreat, weight: Numeric | None) -> Array:
    """weight * the terms of `ibp_regularization`; 0 without a weight."""
    return jnp.zeros(()) if weight is None else jnp.asarray(weight) * short_warmup.ibp_regularization(model_fn, x, threat)


def inputs(threat: NormThreat, x: Array) -> Array:
    """The inputs of the model: x, or what a decoder makes of codes."""
    return threat.decoder(x) if isinstance(threat, threats.Latent) else x
