"""What a training step costs beyond its gradients: PGD-7 and free-8 against input and parameter gradients of the same run.

`python -m experiments benchmark_training --out docs/results/benchmark_training.md`. Every row runs once per round; ratios are taken
within a round, and their median is shown.
"""

import argparse
import functools
import importlib.metadata
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import bench, data, experiment, files, models
from experiments.lib import training as runs
from robustjax import base, losses, training
from robustjax.threats import Linf

_EPS = 0.3
_NUM_STEPS, _NUM_REPLAYS = 7, 8
_PGD, _FREE = f"PGD-{_NUM_STEPS} step", f"free-{_NUM_REPLAYS} step"
_REPEATS = 10  # of a step or a gradient in one timing


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=experiment.output, help="where to write the table, as Markdown")
    options = parser.parse_args(arguments)
    digits = data.load("digits")
    x, y = jnp.asarray(digits.x_train[: options.batch_size]), jnp.asarray(digits.y_train[: options.batch_size])
    times = bench.measure(rows(x, y), options.rounds)
    input_gradient, parameter_gradient = times["input gradient"].cpu, times["parameter gradient"].cpu
    pgd = float(np.median(times[_PGD].cpu / (_NUM_STEPS * input_gradient + parameter_gradient)))
    free = float(np.median(times[_FREE].cpu / (_NUM_REPLAYS * parameter_gradient)))
    bars = [
        bench.Bar(f"{_PGD} to {_NUM_STEPS} input gradients and one parameter gradient", pgd, 1.15),
        bench.Bar(f"{_FREE} to {_NUM_REPLAYS} parameter gradients", free, 1.1),
        bench.Bar("compilations of a run of three epochs with a ramp of eps", count_compilations(digits), 1),
    ]
    text = _PAGE.format(
        command=" ".join(["python -m experiments benchmark_training", *(sys.argv[1:] if arguments is None else arguments)]),
        options=options,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")),
        cores=os.cpu_count(),
        load=os.getloadavg()[2],
        rows="\n".join(f"| {name} | {1e3 * np.median(t.wall):.1f} | {1e3 * np.median(t.cpu):.1f} |" for name, t in times.items()),
        bars="\n".join(bar.row for bar in bars),
    )
    print(text)
    if options.out:
        files.write(options.out, text)


def rows(x, y) -> dict[str, bench.Run]:
    """The bare gradients, and whole training steps with Adam, on one device."""
    model = models.build("convnet")
    optimizer = optax.adam(1e-3)
    attack = runs.inner_pgd(Linf(_EPS), _NUM_STEPS)
    pgd_step = training.step(base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack), optimizer)
    free_optimizer = training.free_optimizer(optimizer, Linf(_EPS), _EPS)
    free_step = training.replay(
        training.step(base.bind(training.free, apply_fn=model.apply_fn, threat=Linf(_EPS)), free_optimizer), _NUM_REPLAYS
    )
    plain = training.init(model.params, model.model_state, optimizer)
    free = training.init(training.FreeParams(model.params, jnp.zeros_like(x)), model.model_state, free_optimizer)
    return {
        "input gradient": bench.Run(functools.partial(_input_gradients, model, x, y), _REPEATS),
        "parameter gradient": bench.Run(functools.partial(_parameter_gradients, model, x, y), _REPEATS),
        _PGD: bench.Run(functools.partial(_steps, pgd_step, plain, x, y), _REPEATS),
        _FREE: bench.Run(functools.partial(_steps, free_step, free, x, y), _REPEATS),
    }


def count_compilations(digits) -> int:
    """Programs that `fit` compiles over three calls whose eps grows."""
    model = models.build("convnet")
    optimizer = optax.adam(1e-3)
    attack = runs.inner_pgd(Linf(_EPS), 1)
    loss = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack)
    step_fn = training.step(loss, optimizer, base.bind(training.eps_ramp, num_ramp_steps=8))
    fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))
    state = training.init(model.params, model.model_state, optimizer)
    for _ in range(3):
        data = digits.x_train[:200], digits.y_train[:200]
        state, _ = fit(state, jax.random.key(0), *data, step_fn=step_fn, num_epochs=1, batch_size=50)
    return fit._cache_size()


def _loss(params, x, model, y):
    logits, _ = model.apply_fn(params, model.model_state, x, "train")
    return losses.cross_entropy(logits, y).mean()


def _input_gradients(model, x, y):
    # The chain makes each gradient wait for the one before.
    for _ in range(_REPEATS):
        x = _moved_input(model.params, x, y)
    jax.block_until_ready(x)


def _parameter_gradients(model, x, y):
    params = model.params
    for _ in range(_REPEATS):
        params = _moved_params(params, x, y)
    jax.block_until_ready(params)


def _steps(step_fn, state, x, y):
    for _ in range(_REPEATS):
        state, _ = _step(step_fn, state, x, y)
    jax.block_until_ready(state)


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


_PAGE = """\
# The cost of a training step

    {command}

ConvNet, batch {options.batch_size}, float32, one CPU device of {cores} cores; {versions}. Medians of {options.rounds} rounds; load
average at the end: {load:.1f}. Ratios are of CPU time within a round; the steps include Adam, the gradients a plain update.

| row | wall ms | CPU ms |
|---|---|---|
{rows}

| bar | measured | bound | |
|---|---|---|---|
{bars}
"""
