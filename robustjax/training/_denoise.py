"""Training a denoiser for a classifier that stays as it is: denoised smoothing (Salman et al., 2020)."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from robustjax import checks, losses, prng
from robustjax.base import Array, Key, ModelFn
from robustjax.smoothing import _denoised, counting

_OBJECTIVES = ("denoising", "stability", "classification")


def denoise(
    params,
    model_state,
    key: Key,
    x: Array,
    y: Array,
    *,
    apply_fn: Callable,
    sigma,
    objective: str = "denoising",
    model_fns: Sequence[ModelFn] = (),
):
    """How far D(x + noise) is from x, for the eye or for classifiers.

    Args:
      params, model_state: of the denoiser D.
      key: of the noise.
      x: inputs [B, ...]. y: labels [B].
      apply_fn: (params, model_state, x, mode) -> (denoised x, model_state).
      sigma: standard deviation of the noise, in the unit of x.
      objective: "denoising": mean squared error; "stability": cross-entropy to the classifier's own prediction at x;
        "classification": cross-entropy to y.
      model_fns: frozen classifiers through which the last two differentiate; the classifier itself (white box), or surrogates of one
        that answers only queries. Their losses are averaged.

    Returns:
      The loss and (model_state, {"loss", "error"}), the latter the mean squared error.

    Raises:
      ValueError: an unknown objective, no classifier where one is needed, sigma not positive, a denoiser that changes the shape, or
        labels that are not integers [B] where they are used. TypeError: inputs of half precision.

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
