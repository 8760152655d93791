"""The two models that part 1 attacks: one undefended, one adversarially trained; trained once, checkpointed every epoch."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.lib import checkpoint, data, experiment, models
from robustjax import attacks, base, training
from robustjax.base import ModelFn
from robustjax.threats import Linf


class Recipe(NamedTuple):
    """How a victim is trained."""

    architecture: str = "convnet"
    eps: float = 0.0  # 0 trains on the inputs as they are
    num_ramp_epochs: int = 0  # over which eps grows from 0: PGD-AT at .3 sticks at a constant class without
    num_steps: int = 7
    num_epochs: int = 12
    batch_size: int = 100
    learning_rate: float = 2e-3


EPS = {"digits": 0.3, "mnist": 0.3, "fashion_mnist": 0.1, "cifar10": 8 / 255}


def recipes(dataset: str, quick: bool) -> dict[str, Recipe]:
    """The recipes of the two victims for a data set."""
    num_epochs, num_ramp_epochs = (16, 5) if dataset == "digits" else (6, 2)
    natural = Recipe(num_epochs=1 if quick else num_epochs // 2)
    robust = Recipe(eps=EPS[dataset], num_ramp_epochs=num_ramp_epochs, num_epochs=num_epochs)
    return {"undefended": natural, "robust": robust._replace(num_epochs=1, num_steps=1) if quick else robust}


def load(settings: experiment.Settings, dataset: data.Dataset) -> dict[str, ModelFn]:
    """The trained victims by name."""
    return {name: train(name, recipe, settings, dataset) for name, recipe in recipes(settings.dataset, settings.quick).items()}


def train(name: str, recipe: Recipe, settings: experiment.Settings, dataset: data.Dataset) -> ModelFn:
    """A victim, from its last checkpoint if there is one."""
    model = models.build(recipe.architecture, settings.seed, int(dataset.y_train.max()) + 1, dataset.x_train.shape[1:])
    steps_per_epoch = len(dataset.x_train) // recipe.batch_size
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.num_epochs * steps_per_epoch)
    optimizer = optax.adam(schedule)
    about = {"dataset": dataset.name, "seed": settings.seed, "recipe": list(recipe)}
    files = checkpoint.Checkpoints(pathlib.Path(settings.out) / "models" / name)
    first = training.init(model.params, model.model_state, optimizer)
    done, state = files.latest(first, **about)
    mesh = experiment.mesh()
    key = jax.random.key(settings.seed)
    x, y = dataset.x_train, dataset.y_train
    with experiment.progress() as bar:
        task = bar.add_task(f"training {name}", total=recipe.num_epochs, completed=done or 0)
        for epoch in range(done or 0, recipe.num_epochs):
            step_fn = training.step(_loss(recipe, epoch, model.apply_fn), optimizer)
            state, metrics = _epoch(state, key, x, y, step_fn=step_fn, batch_size=recipe.batch_size, mesh=mesh)
            if not np.isfinite(metrics["loss"]).all():
                raise FloatingPointError(f"the loss of {name} is not finite in epoch {epoch}; its last good checkpoint is epoch {epoch}.")
            files.save(epoch + 1, state, **about)
            bar.advance(task)
    files.close()
    return training.classifier(model.apply_fn, state.params, state.model_state)


def _loss(recipe, epoch, apply_fn):
    if recipe.eps == 0:
        return base.bind(training.natural, apply_fn=apply_fn)
    eps = recipe.eps * min(1.0, (epoch + 1) / (recipe.num_ramp_epochs + 1))
    attack = base.bind(attacks.pgd, threat=Linf(eps), step_size=2.5 * eps / recipe.num_steps, num_steps=recipe.num_steps)
    return base.bind(training.adversarial, apply_fn=apply_fn, attack=base.bind(attack, keep_fn=attacks.keep_last))


def _fit(state, key, x, y, *, step_fn, batch_size, mesh):
    def place(batch):
        return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))

    place_fn = place if batch_size % mesh.size == 0 else None
    return training.fit(state, key, x, y, step_fn=step_fn, num_epochs=1, batch_size=batch_size, place_fn=place_fn)


_epoch = jax.jit(_fit, static_argnames=("batch_size", "mesh"))
