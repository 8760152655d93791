"""Training a denoiser for a classifier that is not changed: denoised smoothing (Salman et al., 2020)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from robustjax import checks, losses, prng
from robustjax.base import ApplyFn, Array, Key, ModelFn, Numeric
from robustjax.smoothing import _denoised, counting
from robustjax.training._natural import Risk

_OBJECTIVES = ("denoising", "stability", "classification")


def denoise(
    params: Any,
    model_state: Any,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: ApplyFn,
    sigma: Numeric,
    objective: str = "denoising",
    model_fns: Sequence[ModelFn] = (),
) -> Risk:
    """The distance of D(x + noise) from x, in pixels or in the predictions of classifiers.

    Args:
      params, model_state: of the denoiser D.
      key: of the noise.
      x: inputs [B, ...]. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (denoised x [B, ...], model_state).
      sigma: standard deviation of the noise, in the unit of x.
      objective: "denoising": mean squared error; "stability": cross-entropy to the classifier's own prediction at x;
        "classification": cross-entropy to y.
      model_fns: fixed classifiers that the last two objectives differentiate through: the classifier itself (white box), or surrogates
        of one that only answers queries. Their losses are averaged.

    Returns:
      The loss and (model_state, {"loss", "error"}); the error is the mean squared error.

    Raises:
      ValueError: an unknown objective, no classifier where one is needed, sigma not positive, a denoiser that changes the shape, or
        labels that are not integers [B] if they are used. TypeError: inputs of half precision.

    Guarantee:
      none: certify the denoised classifier by `smoothing.certify`.
    Source: Salman et al., NeurIPS 2020, section 3, arXiv:2003.01908.
    """
    if objective not in _OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}; choose one of {_OBJECTIVES}.")
    if objective != "denoising" and not model_fns:
        raise ValueError(f"the objective {objective!r} looks through a classifier; pass model_fns=(model_fn,), or objective='denoising'.")
    checks.inputs(x)
    samples, _ = counting.noisy(prng.example_keys(key, x.shape[0]), x, sigma, 1)
    restored, model_state = apply_fn(params, model_state, samples[:, 0], "train")
    _denoised.check_restored(restored, x)
    error = jnp.square(restored.astype(x.dtype) - x).mean()
    if objective == "denoising":
        loss = error
    else:
        if objective == "classification":
            checks.labels(y, x.shape[0])
        targets = [y if objective == "classification" else losses.as_logits(model_fn(x)).argmax(axis=1) for model_fn in model_fns]
        each = [losses.cross_entropy(model_fn(restored), target).mean() for model_fn, target in zip(model_fns, targets, strict=True)]
        loss = jnp.stack(each).mean()
    return loss, (model_state, {"loss": loss, "error": error})
