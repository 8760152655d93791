"""Training runs of experiments: progress, checkpoints that survive a kill, best and last by held-out score, no silent NaN."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.lib import checkpoint, evaluation, experiment, files, models
from robustjax import base, fingerprint, parallel, training
from robustjax.base import ModelFn

_SECONDS_BETWEEN_SAVES = 10.0


class Plan(NamedTuple):
    """What is trained, and how."""

    model: models.Model
    loss: base.Configured  # (params, model_state, key, x, y) -> (loss, (model_state, metrics))
    optimizer: Any  # of optax; a number is the rate of Adam, along a cosine to zero over the whole run
    num_epochs: int
    batch_size: int
    schedule_fn: Callable | None = None  # as for training.step
    num_replays: int = 1
    first_params: Callable = lambda params: params  # what the optimizer gets of the model's parameters
    score_fn: Callable | None = None  # TrainState -> held-out score; None keeps the last state as the best


class Trained(NamedTuple):
    """The states of a run."""

    last: training.TrainState
    best: training.TrainState  # of the largest held-out score
    scores: np.ndarray  # [num_epochs], NaN where not scored


def train(name: str, plan: Plan, x, y, settings: experiment.Settings, **about) -> Trained:
    """A run to its end, from its last checkpoint if there is one; its weights are left in `weights_file`.

    Args:
      name: of the run, and of its folder of checkpoints.
      x: [N, ...] or a pytree of such arrays. y: [N].
      **about: what else the run belongs to, so that a message says more than "another loss".

    Raises:
      OSError: nothing can be written in the folder.
      ValueError: it holds a run of another plan, start or data, and what differs is named; or no whole checkpoint.
      FloatingPointError: a loss that is not finite, with its step and the last good checkpoint.
    """
    training.check(plan.loss, x)
    plan = plan._replace(optimizer=_optimizer(plan.optimizer, y, plan.num_epochs, plan.batch_size))
    folder = pathlib.Path(settings.out) / "models" / name
    states = checkpoint.Checkpoints(folder)
    state = training.init(plan.first_params(plan.model.params), plan.model.model_state, plan.optimizer)
    about = about | {"dataset": settings.dataset, "seed": settings.seed, "quick": settings.quick} | identity(plan, state, x, y)
    like = {"last": state, "best": state, "scores": np.full(plan.num_epochs, np.nan)}
    done, kept = states.latest(like, **about)
    done = done or 0
    step_fn = training.step(plan.loss, plan.optimizer, plan.schedule_fn)
    step_fn = step_fn if plan.num_replays == 1 else training.replay(step_fn, plan.num_replays)
    key, mesh, saved = jax.random.key(settings.seed), experiment.mesh(), time.monotonic()
    state, best, x, y = parallel.replicate((kept["last"], kept["best"], x, y), mesh)
    scores, seconds = np.array(kept["scores"]), []
    with experiment.progress() as bar:
        task = bar.add_task(f"training {name}", total=plan.num_epochs, completed=done)
        for epoch in range(done, plan.num_epochs):
            start = time.perf_counter()
            state, metrics = _epoch(state, key, x, y, step_fn=step_fn, batch_size=plan.batch_size, mesh=mesh)
            _require_finite(name, metrics["loss"], epoch, done, folder)
            seconds.append(time.perf_counter() - start)
            if plan.score_fn is not None:
                scores[epoch] = float(plan.score_fn(state))
            if plan.score_fn is None or scores[epoch] >= np.nanmax(scores):
                best = state
            if epoch + 1 == plan.num_epochs or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                files.write(_seconds_file(settings.out, name), json.dumps(min(seconds[1:] or seconds)))
                states.save(epoch + 1, {"last": state, "best": best, "scores": scores}, **about)
                done, saved = epoch + 1, time.monotonic()
            bar.advance(task)
    states.close()
    trained = Trained(jax.tree.map(_freed, state), jax.tree.map(_freed, best), scores)
    models.write(weights_file(settings.out, name), _params(trained.best), trained.best.model_state)
    return trained


def _freed(leaf):
    # Of the mesh: results go where they are used.
    return files.typed(jnp.asarray(np.asarray(files.stored(leaf))), leaf)


def identity(plan: Plan, state: training.TrainState, x, y) -> dict:
    """What a run depends on: numbers to be read, and digests by which any two runs are told apart.

    Losses and optimizers are told by their programs, so that another version of JAX or of the library may make another run of them; how
    a run is scored is not among them.
    """
    params, model_state, opt_state, _ = state
    batch = jax.tree.map(lambda array: array[: plan.batch_size], (x, y))
    schedule_fn = None if plan.schedule_fn is None else base.bind(plan.schedule_fn)
    losses = base.bind(plan.loss), schedule_fn
    parts = {
        "loss": (losses[0], fingerprint.program(_scheduled, *losses, params, model_state, jax.random.key(0), *batch)),
        "schedule": schedule_fn,
        "optimizer": fingerprint.program(plan.optimizer.update, params, opt_state, params),
        "start": (params, model_state, opt_state),
        "x": x,
        "y": y,
    }
    numbers = {"num_epochs": plan.num_epochs, "batch_size": plan.batch_size, "num_replays": plan.num_replays}
    return numbers | {name: files.digest(part) for name, part in parts.items()}


def weights_file(out: str | pathlib.Path, name: str) -> pathlib.Path:
    """Where a finished run leaves its best weights, or its last if it keeps no score: for `models.read`."""
    return pathlib.Path(out) / "models" / f"{name}.npz"


def seconds_per_epoch(out: str | pathlib.Path, name: str) -> float:
    """Of a finished run: its fastest epoch, on the devices of that run; the first one, which compiles, only if there is no other."""
    remedy = f"Delete {weights_file(out, name).with_suffix('')}, and the run is timed anew."
    seconds = files.read_json(_seconds_file(out, name), remedy)
    if not isinstance(seconds, float):
        raise ValueError(f"{_seconds_file(out, name)} holds {str(seconds)[:40]}, expected seconds. {remedy}")
    return seconds


def fit(model: models.Model, loss, optimizer, x, y, *, seed: int, num_epochs: int, batch_size: int) -> ModelFn:
    """The model after a run that is too short to keep; `loss` needs no apply_fn."""
    optimizer = _optimizer(optimizer, y, num_epochs, batch_size)
    step_fn = training.step(base.bind(loss, apply_fn=model.apply_fn), optimizer)
    state = training.init(model.params, model.model_state, optimizer)
    state, _ = _whole(state, jax.random.key(seed), x, y, step_fn=step_fn, num_epochs=num_epochs, batch_size=batch_size)
    return training.classifier(model.apply_fn, state.params, state.model_state)


def classifier(name: str, plan: Plan, x, y, settings: experiment.Settings, **about) -> ModelFn:
    """The model that a run ends with; arguments as for `train`."""
    return model_fn(plan, train(name, plan, x, y, settings, **about).last)


def model_fn(plan: Plan, state: training.TrainState) -> ModelFn:
    """The model of a state, whatever wraps its parameters."""
    return training.classifier(plan.model.apply_fn, _params(state), state.model_state)


def continued(model: models.Model, trained: ModelFn) -> models.Model:
    """The model with the weights that a run of it has ended with."""
    return model._replace(params=trained.get("params"), model_state=trained.get("model_state"))


def held_out_accuracy(attack, model: models.Model, x, y, seed: int) -> Callable:
    """A `score_fn`: accuracy under an attack on data that is neither trained nor tested on."""
    key = jax.random.key(seed)

    def score(state):
        model_fn = training.classifier(model.apply_fn, state.params, state.model_state)
        return 1.0 - np.mean(evaluation.attacked(attack, key, model_fn, x, y).success)

    return score


def cosine_adam(learning_rate: float, num_examples: int, num_epochs: int, batch_size: int) -> optax.GradientTransformation:
    """Adam along a cosine to zero over the whole run."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_epochs * (num_examples // batch_size)))


def _optimizer(optimizer, y, num_epochs, batch_size):
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else cosine_adam(optimizer, len(y), num_epochs, batch_size)


def _scheduled(loss, schedule_fn, *args):
    return (loss if schedule_fn is None else schedule_fn(loss, jnp.int32(0)))(*args)


def _seconds_file(out, name):
    return pathlib.Path(out) / "models" / f"{name}.seconds.json"


def _params(state):
    return state.params.params if isinstance(state.params, training.FreeParams) else state.params


def _require_finite(name, losses, epoch, done, folder):
    broken = np.flatnonzero(~np.isfinite(losses))
    if len(broken):
        step = epoch * len(losses) + broken[0]
        kept = f"epoch {done} in {folder}" if done else "none yet"
        raise FloatingPointError(f"{name}: the loss is {losses[broken[0]]} at step {step} (epoch {epoch}); last good checkpoint: {kept}.")


def _fit(state, key, x, y, *, step_fn, batch_size, mesh):
    def place(batch):
        return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))

    place_fn = place if batch_size % mesh.size == 0 else None
    return training.fit(state, key, x, y, step_fn=step_fn, num_epochs=1, batch_size=batch_size, place_fn=place_fn)


_epoch = jax.jit(_fit, static_argnames=("batch_size", "mesh"))
_whole = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))
