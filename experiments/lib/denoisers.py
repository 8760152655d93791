"""Denoised smoothing: a classifier that is never trained on noise, and the denoisers that are trained to stand before it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.lib import data, experiment, models, runs, smoothed
from robustjax import base, smoothing, training
from robustjax.base import ModelFn

NAMES = ("denoised, white box", "denoised, queries")


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


def base_classifier(settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort) -> ModelFn:
    """The unprotected classifier: trained on images as they are, then frozen."""
    return _natural("base", effort.architecture, dataset.y_train, settings, dataset, effort)


def surrogate(base_fn: ModelFn, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort) -> ModelFn:
    """Another architecture trained on the base classifier's answers, for when nothing but answers can be had."""
    answers = jax.jit(lambda model_fn, x: model_fn(x).argmax(axis=1))(base_fn, dataset.x_train)
    return _natural("surrogate", "mlp", answers, settings, dataset, effort)


def train(name: str, model_fn: ModelFn, sigma: float, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort):
    """A denoiser for a classifier: first toward the image (mean squared error), then toward the prediction (stability).

    Returns:
      It as a function of noisy images, a callable pytree.
    """
    x, y = dataset.x_train, dataset.y_train
    first = runs.run(f"denoiser-{sigma}", error_plan(sigma, settings, dataset, effort), x, y, settings, effort=list(effort)).last
    plan = stability_plan(model_fn, sigma, first, settings, dataset, effort)
    return runs.classifier(plan, runs.run(f"{name}-{sigma}", plan, x, y, settings, effort=list(effort)).last)


def error_plan(sigma: float, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort) -> runs.Plan:
    """Mean squared error, from the first weights; the same for all classifiers."""
    model = _architecture(dataset.x_train.shape[1:], settings.seed)
    loss = base.bind(training.denoise, apply_fn=model.apply_fn, sigma=sigma)
    return _plan(model, loss, effort.num_warm_epochs, dataset, effort)


def stability_plan(model_fn: ModelFn, sigma: float, start, settings, dataset: data.Dataset, effort: smoothed.Effort) -> runs.Plan:
    """Cross-entropy to the classifier's own prediction, from the state `start`."""
    model = _architecture(dataset.x_train.shape[1:], settings.seed)
    model = model._replace(params=start.params, model_state=start.model_state)
    loss = base.bind(training.denoise, apply_fn=model.apply_fn, sigma=sigma, objective="stability", model_fns=(model_fn,))
    return _plan(model, loss, effort.num_epochs, dataset, effort)


def classifiers(sigma: float, settings: experiment.Settings, dataset: data.Dataset, effort: smoothed.Effort) -> dict[str, ModelFn]:
    """The base classifier alone and behind both denoisers."""
    base_fn = base_classifier(settings, dataset, effort)
    teachers = dict(zip(NAMES, (base_fn, surrogate(base_fn, settings, dataset, effort)), strict=True))
    behind = {name: train(name, teacher, sigma, settings, dataset, effort) for name, teacher in teachers.items()}
    return {"unprotected": base_fn} | {name: smoothing.denoised(base_fn, denoiser) for name, denoiser in behind.items()}


def _natural(name, architecture, y, settings, dataset, effort):
    x, num_epochs = dataset.x_train, effort.num_epochs
    model = models.build(architecture, settings.seed, int(dataset.y_train.max()) + 1, x.shape[1:])
    optimizer = runs.cosine_adam(effort.learning_rate, len(x), num_epochs, effort.batch_size)
    plan = runs.Plan(model, base.bind(training.natural, apply_fn=model.apply_fn), optimizer, num_epochs, effort.batch_size)
    return runs.classifier(plan, runs.run(name, plan, x, jnp.asarray(y), settings, effort=list(effort)).last)


def _plan(model, loss, num_epochs, dataset, effort):
    num_steps = num_epochs * (len(dataset.x_train) // effort.batch_size)
    return runs.Plan(model, loss, optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)), num_epochs, effort.batch_size)


@functools.cache  # one apply_fn, so that programs are shared
def _architecture(input_shape, seed):
    return models.from_nnx(Denoiser(input_shape, rngs=nnx.Rngs(seed)))
