"""Untargeted poisoning through the training set: images with wrong labels, learned so that the retrained model fails (Mehra & Hamm, 2021).

`python -m experiments.untargeted_poisoning` makes the figure of the report on embedded digits;
`ROBUSTJAX_DATA=DIR python -m experiments.untargeted_poisoning --dataset mnist --table docs/results/untargeted_poisoning.md` the table on
MNIST's test images, cell by cell: finished cells are kept under `--out`, so that it goes on where it was stopped.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.optimize

from experiments.lib import data, experiment, report
from robustjax import base, bilevel, losses
from robustjax.base import Array, Bilevel

NUM_CLASSES = 10
_REGULARISATION = 0.0025  # of |W|^2, as the authors'
_CHUNK = 50  # updates in one compiled program


class Batch(NamedTuple):
    """What the two losses take."""

    x: Array  # [N, D] clean training images
    y: Array  # [N]
    x_val: Array  # [V, D]
    y_val: Array  # [V]
    y_poison: Array  # [M] wrong labels of the poisons, which are phi [M, D]


class Split(NamedTuple):
    """The images of one seed."""

    train: tuple[Array, Array]
    val: tuple[Array, Array]
    test: tuple[Array, Array]


class Method(NamedTuple):
    """How poisons are learned: `init(phi, theta) -> state`, `step(state, batch, i) -> state`; state.phi are the poisons."""

    init: Callable
    step: Callable
    num_updates: int


def inner_loss(theta, phi, batch):
    """Cross-entropy of a linear softmax without bias on clean images and poisons, with weight decay."""
    x, y = jnp.concatenate([batch.x, phi]), jnp.concatenate([batch.y, batch.y_poison])
    return losses.cross_entropy(x @ theta, y).mean() + _REGULARISATION * jnp.sum(theta**2)


def outer_loss(theta, phi, batch):
    """Minus the validation loss: what the adversary minimises."""
    del phi
    return -losses.cross_entropy(batch.x_val @ theta, batch.y_val).mean()


PROBLEM = Bilevel(inner_loss, outer_loss)


# --- methods ---------------------------------------------------------------------------------------------------------------------


def _box(phi):
    return jnp.clip(phi, 0.0, 1.0)


def penalty(num_updates: int) -> Method:
    """The penalty method with the authors' constants."""
    constants = bilevel.PenaltyMethod(optax.adam(0.1), optax.adam(1e-3), num_inner_steps=20, project_fn=_box)

    def init(phi, theta):
        return bilevel.penalty_init(constants, phi, theta, rho=10.0, weight=100.0)

    def step(state, batch, i):
        del i
        return bilevel.penalty_step(PROBLEM, constants, state, batch)

    return Method(init, step, num_updates)


class ApproxState(NamedTuple):
    """What ApproxGrad carries on: both variables, the solution of the linear system, and Adam's moments for phi."""

    phi: Array
    theta: Array
    p: Array
    opt_phi: optax.OptState


def approximate(num_updates: int) -> Method:
    """ApproxGrad with the authors' constants: steps of theta, ten steps of Adam on the warm-started linear system, a step of phi.

    Rates are halved five times in all. Adam's moments for theta and p start afresh in each update.
    """
    optimizer = optax.adam(1e-2)
    linear_fn = base.bind(bilevel.adam, learning_rate=1e-2, num_steps=10)

    def init(phi, theta):
        return ApproxState(phi, theta, jnp.zeros_like(theta), optimizer.init(phi))

    def step(state, batch, i):
        rate = 0.5 ** jnp.floor(5 * i / num_updates)
        solve = base.bind(bilevel.descend, inner_loss=inner_loss, optimizer=optax.adam(1e-3 * rate), num_steps=20)
        made = bilevel.implicit(PROBLEM, solve, state.phi, state.theta, batch, linear_fn=linear_fn, damping=1e-3, linear_start=state.p)
        updates, opt_phi = optimizer.update(made.grad, state.opt_phi)
        return ApproxState(_box(state.phi + rate * updates), made.theta, made.info.solution, opt_phi)

    return Method(init, step, num_updates)


class BackState(NamedTuple):
    """Back-gradient trains from scratch each time."""

    phi: Array
    opt_phi: optax.OptState


def backward(num_updates: int) -> Method:
    """Back-gradient through 100 steps from zero, all poisons at once."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, num_updates))
    solve = base.bind(bilevel.descend, inner_loss=inner_loss, step_size=0.05, num_steps=100)

    def init(phi, theta):
        del theta
        return BackState(phi, optimizer.init(phi))

    def step(state, batch, i):
        del i
        theta0 = jnp.zeros((state.phi.shape[1], NUM_CLASSES))
        made = bilevel.back_gradient(PROBLEM, solve, state.phi, theta0, batch)
        updates, opt_phi = optimizer.update(made.grad, state.opt_phi)
        return BackState(_box(state.phi + updates), opt_phi)

    return Method(init, step, num_updates)


# --- attack and judge ------------------------------------------------------------------------------------------------------------


def split(dataset: data.Dataset, seed: int, num_train: int = 1000, num_val: int = 1000) -> Split:
    """Training, validation and test images of a seed, none twice; embedded digits are pooled first, of MNIST only the test set is used."""
    images, labels = dataset.x_test, dataset.y_test
    if dataset.name == "digits":
        images, labels = np.concatenate([dataset.x_train, images]), np.concatenate([dataset.y_train, labels])
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = jnp.asarray(images[order].reshape(len(images), -1)), jnp.asarray(labels[order])
    ends = (slice(num_train), slice(num_train, num_train + num_val), slice(num_train + num_val, None))
    return Split(*((x[rows], y[rows]) for rows in ends))


def flip(images: Split, num_poisons: int, seed: int) -> tuple[Array, Batch]:
    """Copies of the first training images with random wrong labels: the first poisons, and the random control."""
    (x, y), (x_val, y_val) = images.train, images.val
    shift = np.random.default_rng(seed).integers(1, NUM_CLASSES, num_poisons)
    return x[:num_poisons], Batch(x, y, x_val, y_val, (y[:num_poisons] + shift) % NUM_CLASSES)


def attack(method: Method, images: Split, num_poisons: int, seed: int) -> Array:
    """The poisons that a method makes of flips."""
    phi, batch = flip(images, num_poisons, seed)
    clean = fit(phi[:0], batch._replace(y_poison=batch.y_poison[:0]))
    state = method.init(phi, clean)
    run_chunk = jax.jit(functools.partial(_chunk, method.step))
    with experiment.progress() as bar:
        task = bar.add_task(f"{num_poisons} poisons", total=method.num_updates)
        for first in range(0, method.num_updates, _CHUNK):
            state = jax.block_until_ready(run_chunk(state, batch, first + jnp.arange(min(_CHUNK, method.num_updates - first))))
            bar.advance(task, _CHUNK)
    return state.phi


def _chunk(step, state, batch, numbers):
    return jax.lax.scan(lambda state, i: (step(state, batch, i), None), state, numbers)[0]


def fit(phi, batch) -> Array:
    """The victim, from scratch: the one minimum of its strictly convex loss, by L-BFGS."""
    shape = (batch.x.shape[1], NUM_CLASSES)

    def value_and_grad(flat):
        value, grad = _inner(jnp.asarray(flat.reshape(shape), jnp.float32), phi, batch)
        return float(value), np.asarray(grad, np.float64).ravel()

    found = scipy.optimize.minimize(value_and_grad, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return jnp.asarray(found.x.reshape(shape), jnp.float32)


_inner = jax.jit(jax.value_and_grad(inner_loss))


def judge(phi, batch, images: Split) -> float:
    """Test accuracy in % of a victim that is trained on the poisons from scratch."""
    x, y = images.test
    return 100.0 * float(jnp.mean((x @ fit(phi, batch)).argmax(axis=1) == y))


def accuracies(methods: dict[str, Method | None], images: Split, num_poisons: int, seed: int, keep_fn=lambda name, make: make()):
    """Test accuracy in % by name, "clean" and "random flips" (None) among them."""
    phi, batch = flip(images, num_poisons, seed)
    makers = {"clean": lambda: judge(phi[:0], batch._replace(y_poison=batch.y_poison[:0]), images)}
    for name, method in methods.items():
        make = lambda method=method: phi if method is None else attack(method, images, num_poisons, seed)  # noqa: E731
        makers[name] = lambda make=make: judge(make(), batch, images)
    return {name: keep_fn(name, make) for name, make in makers.items()}


# --- report and table ------------------------------------------------------------------------------------------------------------


def run(settings: experiment.Settings) -> report.Section:
    """Accuracy against the number of poisons."""
    images = split(data.load(settings.dataset), settings.seed, *((100, 100) if settings.quick else (1000, 1000)))
    num_updates, num_backward = (2, 2) if settings.quick else (200, 30)
    methods = {
        "random flips": None,
        "back-gradient": backward(num_backward),
        "ApproxGrad": approximate(num_updates),
        "penalty": penalty(num_updates),
    }
    counts = (0, 5) if settings.quick else (0, 20, 60)
    curves: dict[str, list[float]] = {name: [] for name in methods}
    for count in counts:
        row = accuracies(methods if count else {}, images, count, settings.seed)
        for name, curve in curves.items():
            curve.append(row.get(name, row["clean"]))
    plot, axis = plt.subplots(figsize=(5.5, 4.0))
    for name, curve in curves.items():
        axis.plot(counts, curve, "o-", label=name)
    axis.set_xlabel(f"poisons among {len(images.train[0])} training images")
    axis.set_ylabel("test accuracy in %")
    axis.legend()
    caption = (
        f"A linear softmax, retrained from scratch on its training images and the poisons, on {len(images.test[0])} test images. Poisons "
        f"start as copies of training images with a random wrong label (random flips), and learn their pixels in [0, 1]: ApproxGrad and "
        f"the penalty method in {num_updates} updates, back-gradient in {num_backward}."
    )
    text = (
        "A few percent of the training set is enough, if it is chosen: labels flipped at random cost little, the same number of images "
        "learned through the victim's training costs far more. The victim is judged after training from scratch."
    )
    return report.Section("Poisons against accuracy", text, [report.figure("Accuracy against the number of poisons", caption, plot)])


def table(settings: experiment.Settings, path: pathlib.Path, command: str, counts, num_seeds: int, num_updates: int) -> None:
    """Writes the table of the full-length attacks, after every cell."""
    store = pathlib.Path(settings.out) / "untargeted_poisoning.json"
    cells = json.loads(store.read_text()) if store.exists() else {}
    methods = {
        "random flips": None,
        "ApproxGrad": approximate(num_updates),
        "penalty": penalty(num_updates),
        "back-gradient": backward(num_updates // 10),
    }
    dataset = data.load(settings.dataset)
    for seed in range(settings.seed, settings.seed + num_seeds):
        images = split(dataset, seed)
        for count in counts:

            def keep(name, make, seed=seed, count=count):
                cell = f"{settings.dataset} {num_updates} {seed} {0 if name == 'clean' else count} {name}"
                if cell not in cells:
                    start = time.perf_counter()
                    cells[cell] = [make(), time.perf_counter() - start]
                    store.parent.mkdir(parents=True, exist_ok=True)
                    store.write_text(json.dumps(cells, indent=1))
                    print(cell, cells[cell], flush=True)
                    _write(path, command, settings.dataset, num_updates, cells, ("clean", *methods))
                return cells[cell][0]

            accuracies(methods, images, count, seed, keep)
    _write(path, command, settings.dataset, num_updates, cells, ("clean", *methods))


_PUBLISHED = {"clean": {}, "random flips": {"30": "84.9", "60": "84.6"}, "ApproxGrad": {"30": "74.4", "60": "67.0"}}
_PUBLISHED |= {"penalty": {"30": "75.1", "60": "67.6"}, "back-gradient": {"30": "82 (RMD)", "60": "79 (RMD)"}}
_BARS = {"random flips": (">=", 85.0), "ApproxGrad": ("<=", 70.0), "penalty": ("<=", 70.0)}  # at 60 poisons


def _write(path, command, dataset, num_updates, cells, names):
    lines = []
    for name in names:
        found: dict[str, list] = {}
        for cell, value in cells.items():
            of, updates, _, count, method = cell.split(" ", 4)
            if (of, int(updates), method) == (dataset, num_updates, name):
                found.setdefault(count, []).append(value)
        for count, values in sorted(found.items(), key=lambda item: int(item[0])):
            accuracy = np.array([value[0] for value in values])
            sign, bound = _BARS.get(name, ("", 0.0)) if count == "60" else ("", 0.0)
            met = bool(accuracy.mean() >= bound if sign == ">=" else accuracy.mean() <= bound)
            bar = f"{sign} {bound:g} | {'met' if met else 'MISSED'}" if sign else " | "
            seeds = ", ".join(f"{a:.1f}" for a in accuracy)
            seconds = np.mean([value[1] for value in values])
            lines.append(
                f"| {name} | {count} | {accuracy.mean():.1f} | {seeds} | {_PUBLISHED[name].get(count, '')} | {bar} | {seconds:.0f} |"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.format(command=command, rows="\n".join(lines), updates=num_updates, back=num_updates // 10))


_PAGE = """\
# Untargeted poisoning

    ROBUSTJAX_DATA=DIR {command}

MNIST's 10,000 test images, permuted by the seed: 1,000 for training, 1,000 for validation, 8,000 for testing. The victim is a linear
softmax without bias (weight decay .0025 |W|^2), retrained from scratch on training images and poisons. Poisons start as copies of the
first training images with a random wrong label (that is the row of random flips); the attacks learn their pixels in [0, 1]. Penalty and
ApproxGrad have the authors' constants ({updates} updates); back-gradient goes back through 100 steps from zero, {back} times, with all
poisons at once. Published: means of 5 runs as reported by Mehra & Hamm (2021), whose row for back-gradient is reverse mode through
warm-started steps (RMD).

| poisons | number | accuracy in % | seeds | published | bar | | s |
|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", type=pathlib.Path, help="write the table of full-length attacks here, as Markdown")
    parser.add_argument("--counts", nargs="+", type=int, default=[60], help="of poisons, in the table")
    parser.add_argument("--seeds", type=int, default=1, help="in the table")
    parser.add_argument("--updates", type=int, default=5000, help="in the table")
    settings, options = experiment.parse(parser)
    if options.table is None:
        from experiments import untargeted_poisoning

        experiment.section(untargeted_poisoning.run, settings)
        return
    command = " ".join(["python -m experiments.untargeted_poisoning", *sys.argv[1:]])
    table(settings, options.table, command, options.counts, options.seeds, options.updates)


if __name__ == "__main__":
    main()
