"""What a training step costs beyond its gradients: PGD-7 and free-8 against input and parameter gradients of the same run.

`python -m experiments benchmark_training --page docs/results/benchmark_training.md`. Every row runs once per round; ratios are taken
within a round, and their median is shown.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import bench, data, experiment, gates, models, pages
from robustjax import base, losses, training
from robustjax.threats import Linf

_EPS = 0.3
_NUM_STEPS, _NUM_REPLAYS = 7, 8
_PGD, _FREE = f"PGD-{_NUM_STEPS} step", f"free-{_NUM_REPLAYS} step"
_REPEATS = 10  # of a step or a gradient in one timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How often, and of how many images."""

    rounds: int = 7
    batch_size: int = 256


def run(settings: Settings) -> None:
    """Times, ratios and their gates."""
    if settings.quick:
        settings = dataclasses.replace(settings, rounds=1, batch_size=4)
    start, digits = time.perf_counter(), data.load("digits")
    x, y = jnp.asarray(digits.x_train[: settings.batch_size]), jnp.asarray(digits.y_train[: settings.batch_size])
    times = bench.measure(rows(x, y), settings.rounds)
    input_gradient, parameter_gradient = times["input gradient"].cpu, times["parameter gradient"].cpu
    pgd = float(np.median(times[_PGD].cpu / (_NUM_STEPS * input_gradient + parameter_gradient)))
    free = float(np.median(times[_FREE].cpu / (_NUM_REPLAYS * parameter_gradient)))
    found = [
        gates.Gate(f"{_PGD} to {_NUM_STEPS} input gradients and one parameter gradient", pgd, high=1.15),
        gates.Gate(f"{_FREE} to {_NUM_REPLAYS} parameter gradients", free, high=1.1),
        gates.Gate("compilations of a run of three epochs with a ramp of eps", count_compilations(digits), high=1),
    ]
    lines = [[name, f"{1e3 * np.median(row.wall):.1f}", f"{1e3 * np.median(row.cpu):.1f}"] for name, row in times.items()]
    about = (
        f"ConvNet, batch {settings.batch_size}, float32, one CPU device. Medians of {settings.rounds} rounds. Ratios are of CPU time in a "
        "round; the steps include Adam, the gradients a plain update."
    )
    blocks = [pages.text(about), pages.table(["row", "wall ms", "CPU ms"], lines), pages.gates_of(found)]
    experiment.publish("benchmark_training", settings, _PAGE, "", blocks, start)


def rows(x, y) -> dict[str, bench.Run]:
    """The bare gradients, and whole training steps with Adam, on one device."""
    model = models.build("convnet")
    optimizer = optax.adam(1e-3)
    attack = training.inner_pgd(Linf(_EPS), num_steps=_NUM_STEPS)
    pgd_step = training.step(base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack), optimizer)
    free_optimizer = training.free_optimizer(optimizer, Linf(_EPS), _EPS)
    free_step = training.replay(
        training.step(base.bind(training.free, apply_fn=model.apply_fn, threat=Linf(_EPS)), free_optimizer), _NUM_REPLAYS
    )
    plain = training.init(model.params, model.model_state, optimizer)
    free = training.init(training.FreeParams(model.params, jnp.zeros_like(x)), model.model_state, free_optimizer)
    return {
        "input gradient": bench.run(_REPEATS, _input_gradients, model, x, y),
        "parameter gradient": bench.run(_REPEATS, _parameter_gradients, model, x, y),
        _PGD: bench.run(_REPEATS, _steps, pgd_step, plain, x, y),
        _FREE: bench.run(_REPEATS, _steps, free_step, free, x, y),
    }


def count_compilations(digits) -> int:
    """Programs that `fit` compiles over three calls whose eps grows."""
    model = models.build("convnet")
    optimizer = optax.adam(1e-3)
    attack = training.inner_pgd(Linf(_EPS), num_steps=1)
    loss = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack)
    step_fn = training.step(loss, optimizer, base.bind(training.eps_ramp, num_ramp_steps=8))

    @jax.jit  # of a function of its own: programs of `jax.jit(training.fit)` elsewhere in the process would count too
    def epoch(state, key, x, y, step_fn):
        return training.fit(state, key, x, y, step_fn=step_fn, num_epochs=1, batch_size=50)

    state = training.init(model.params, model.model_state, optimizer)
    for _ in range(3):
        state, _ = epoch(state, jax.random.key(0), digits.x_train[:200], digits.y_train[:200], step_fn)
    return epoch._cache_size()


def _loss(params, x, model, y):
    logits, _ = model.apply_fn(params, model.model_state, x, "train")
    return losses.cross_entropy(logits, y).mean()


def _input_gradients(model, x, y):
    # The chain makes each gradient wait for the one before.
    for _ in range(_REPEATS):
        x = _moved_input(model.params, x, y)
    return x


def _parameter_gradients(model, x, y):
    params = model.params
    for _ in range(_REPEATS):
        params = _moved_params(params, x, y)
    return params


def _steps(step_fn, state, x, y):
    for _ in range(_REPEATS):
        state, _ = _step(step_fn, state, x, y)
    return state


@jax.jit
def _moved_input(params, x, y):
    return x + 1e-3 * jax.grad(_loss, argnums=1)(params, x, models.build("convnet"), y)


@jax.jit
def _moved_params(params, x, y):
    grad = jax.grad(_loss)(params, x, models.build("convnet"), y)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)


@jax.jit
def _step(step_fn, state, x, y):
    return step_fn(state, jax.random.key(0), x, y)


_PAGE = pages.Page("The cost of a training step")
