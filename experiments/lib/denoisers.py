"""Denoised smoothing: a classifier that is never trained on noise, and the denoisers that are trained to stand before it."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.lib import data, experiment, models, runs, smoothed
from robustjax import base, smoothing, training
from robustjax.base import ModelFn

NAMES = ("denoised, white box", "denoised, queries")
_RATE = 2e-3


class Denoiser(nnx.Module):
    """A DnCNN on pixels folded two by two into channels: it predicts the noise, which is subtracted (Zhang et al., 2017 and 2018)."""

    def __init__(self, input_shape, *, num_channels=24, num_layers=3, rngs):
        folded = 4 * input_shape[-1]
        widths = [folded, *[num_channels] * num_layers]
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths)])
        # Runs are short: statistics with the usual momentum of .99 would still remember their first values.
        self.norms = nnx.List([nnx.BatchNorm(num_channels, momentum=0.9, rngs=rngs) for _ in range(num_layers)])
        self.last = nnx.Conv(num_channels, folded, (3, 3), rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, H, W, C], H and W even."""
        batch, height, width, channels = x.shape
        folded = (batch, height // 2, width // 2, 2, 2, channels)
        h = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5).reshape(*folded[:3], -1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = nnx.relu(norm(conv(h)))
        return x - self.last(h).reshape(folded).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def classifiers(sigma: float, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort) -> dict[str, ModelFn]:
    """A classifier that is trained on images as they are and then frozen, alone and behind two denoisers.

    One denoiser is trained through it; the other, for when nothing but answers can be had, through another architecture that is trained
    on its answers.
    """
    base_fn = _natural("base", effort.architecture, dataset.y_train, settings, dataset, effort)
    answers = jax.jit(lambda model_fn, x: model_fn(x).argmax(axis=1))(base_fn, dataset.x_train)
    teachers = (base_fn, _natural("surrogate", "mlp", answers, settings, dataset, effort))
    behind = {name: train(name, teacher, sigma, settings, dataset, effort) for name, teacher in zip(NAMES, teachers, strict=True)}
    return {"unprotected": base_fn} | {name: smoothing.denoised(base_fn, denoiser) for name, denoiser in behind.items()}


def train(name: str, model_fn: ModelFn, sigma: float, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort):
    """A denoiser for a classifier: first toward the image (mean squared error), then toward the prediction (stability).

    Returns:
      It as a function of noisy images, a callable pytree.
    """
    x, y, about = dataset.x_train, dataset.y_train, {"effort": list(effort)}
    model = _architecture(x.shape[1:], settings.seed)
    error = base.bind(training.denoise, apply_fn=model.apply_fn, sigma=sigma)
    first = runs.Plan(model, error, _RATE, effort.num_warm_epochs, effort.batch_size)
    model = runs.continued(model, runs.classifier(f"denoiser-{sigma}", first, x, y, settings, **about))
    stability = base.bind(error, objective="stability", model_fns=(model_fn,))
    plan = runs.Plan(model, stability, _RATE, effort.num_epochs, effort.batch_size)
    return runs.classifier(f"{name}-{sigma}", plan, x, y, settings, **about)


def _natural(name, architecture, y, settings, dataset, effort):
    model = models.for_data(architecture, settings.seed, dataset.x_train, dataset.y_train)
    loss = base.bind(training.natural, apply_fn=model.apply_fn)
    plan = runs.Plan(model, loss, effort.learning_rate, effort.num_epochs, effort.batch_size)
    return runs.classifier(name, plan, dataset.x_train, jnp.asarray(y), settings, effort=list(effort))


@functools.cache  # one apply_fn, so that programs are shared
def _architecture(input_shape, seed):
    return models.from_nnx(Denoiser(input_shape, rngs=nnx.Rngs(seed)))
