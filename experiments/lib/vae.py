"""Variational autoencoders of images in NNX, with and without an adversary, trained by the library's own `fit`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.lib import data, experiment, models, runs
from robustjax import base

KINDS = ("VAE", "VAE-GAN")
NUM_CODES = 10
_KL_WEIGHT = 0.5
_FOOLING_WEIGHT = 2.0  # of -log D against the summed squared error of an image


class Autoencoder(NamedTuple):
    """A trained pair."""

    encode: Callable  # images [B, ...] -> mean codes [B, NUM_CODES]
    decoder: Any  # codes -> images, a callable pytree


class Networks(nnx.Module):
    """Encoder, decoder and critic; the VAE leaves the critic alone."""

    def __init__(self, input_shape, *, width=256, rngs):
        size = int(jnp.prod(jnp.array(input_shape)))
        self.shape = tuple(input_shape)
        self.encoder = models.Mlp(input_shape, 2 * NUM_CODES, width=width, rngs=rngs)
        self.decoder = models.Mlp((NUM_CODES,), size, width=width, rngs=rngs)
        self.critic = models.Mlp(input_shape, 1, width=width, rngs=rngs)

    def encode(self, x):
        """Mean and log variance of the codes."""
        return jnp.split(self.encoder(x), 2, axis=1)

    def decode(self, code):
        """Images in [0, 1]."""
        return nnx.sigmoid(self.decoder(code)).reshape(code.shape[0], *self.shape)


def load(kind: str, settings: experiment.Settings, dataset: data.Dataset) -> Autoencoder:
    """The autoencoder of a data set, from its checkpoint if there is one."""
    graph, params = nnx.split(Networks(dataset.x_train.shape[1:], rngs=nnx.Rngs(settings.seed)))
    merged = base.bind(_merged, graph=graph)
    num_epochs = settings.pick(1, 25, 60) if settings.dataset == "digits" else settings.pick(1, 20, 20)
    x = dataset.x_train[:200] if settings.quick else dataset.x_train
    loss = base.bind(_loss, merged=merged, kind=kind)
    plan = runs.Plan(models.Model(merged, params, None), loss, optax.adam(1e-3), num_epochs, batch_size=100)
    params = runs.train(kind.lower(), plan, x, dataset.y_train[: len(x)], settings, kind=kind).last.params
    return Autoencoder(jax.jit(lambda x: merged(params).encode(x)[0]), base.bind(_decoded, merged=merged, params=params))


def _merged(params, *, graph):
    return nnx.merge(graph, params)


def _decoded(code, *, merged, params):
    return merged(params).decode(code)


def _loss(params, model_state, key, x, y, *, merged, kind):
    """Evidence bound with a decoder of unit variance; the VAE-GAN adds -log D of what is made, and trains the critic D.

    Every player moves by its own loss alone: to the others its part is detached.
    """
    del y
    key_code, key_prior = jax.random.split(key)
    players, frozen = merged(params), merged(jax.lax.stop_gradient(params))
    mean, log_variance = players.encode(x)
    decoded = players.decode(mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key_code, mean.shape))
    error = jnp.square(decoded - x).reshape(len(x), -1).sum(axis=1).mean()
    divergence = 0.5 * jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1.0 - log_variance, axis=1).mean()
    loss = error + _KL_WEIGHT * divergence
    if kind == "VAE-GAN":
        made = jnp.concatenate([decoded, players.decode(jax.random.normal(key_prior, mean.shape))])
        fooling = nnx.softplus(-frozen.critic(made)).mean()
        told = nnx.softplus(-players.critic(x)).mean() + nnx.softplus(players.critic(jax.lax.stop_gradient(made))).mean()
        loss = loss + _FOOLING_WEIGHT * fooling + told
    return loss, (model_state, {"loss": loss, "error": error})
