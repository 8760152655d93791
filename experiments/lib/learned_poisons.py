"""Poisons that are learned through the training of a linear softmax, and the victim that is retrained on them (Mehra & Hamm, 2021)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from experiments.lib import data, experiment
from robustjax import base, bilevel, losses
from robustjax.base import Array, Bilevel

NUM_CLASSES = 10
_REGULARISATION = 0.0025  # of |W|^2, as the authors'
_CHUNK = 50  # updates in one compiled program


class Split(NamedTuple):
    """The images of one seed, flat."""

    train: tuple[Array, Array]
    val: tuple[Array, Array]
    test: tuple[Array, Array]


class Batch(NamedTuple):
    """What the two losses take."""

    x: Array  # [N, D] clean training images
    y: Array  # [N]
    x_val: Array  # [V, D]
    y_val: Array  # [V]
    y_poison: Array  # [M] labels of the poisons, which are phi [M, D]; -1 leaves one out


class Method(NamedTuple):
    """How poisons are learned: `init(phi, theta) -> state`, `step(state, batch, i) -> state`; state.phi are the poisons."""

    init: Callable
    step: Callable
    num_updates: int


def inner_loss(theta, phi, batch):
    """Cross-entropy of a linear softmax without bias on clean images and poisons, with weight decay."""
    logits = jnp.concatenate([batch.x @ theta, phi @ theta])  # apart: under vmap over poisons all share one product with the images
    y = jnp.concatenate([batch.y, batch.y_poison])
    is_there = y >= 0
    total = jnp.where(is_there, losses.cross_entropy(logits, jnp.maximum(y, 0)), 0.0).sum()
    return total / is_there.sum() + _REGULARISATION * jnp.sum(theta**2)


def val_loss(theta, phi, batch):
    """Cross-entropy on the validation images."""
    del phi
    return losses.cross_entropy(batch.x_val @ theta, batch.y_val).mean()


UNTARGETED = Bilevel(inner_loss, lambda theta, phi, batch: -val_loss(theta, phi, batch))
TARGETED = Bilevel(inner_loss, val_loss)  # validation images carry the labels that the adversary wants


def box(phi):
    """The images in [0, 1]."""
    return jnp.clip(phi, 0.0, 1.0)


# --- methods ---------------------------------------------------------------------------------------------------------------------


def penalty(num_updates: int, problem: Bilevel = UNTARGETED, project_fn: Callable = box, weight: float = 100.0) -> Method:
    """The penalty method with the authors' constants; `weight` is the first lambda."""
    constants = bilevel.PenaltyMethod(optax.adam(0.1), optax.adam(1e-3), num_inner_steps=20, project_fn=project_fn)

    def init(phi, theta):
        return bilevel.penalty_init(constants, phi, theta, rho=10.0, weight=weight)

    def step(state, batch, i):
        del i
        return bilevel.penalty_step(problem, constants, state, batch)

    return Method(init, step, num_updates)


class ApproxState(NamedTuple):
    """What ApproxGrad carries on: both variables, the solution of the linear system, and Adam's moments for phi."""

    phi: Array
    theta: Array
    p: Array
    opt_phi: optax.OptState


def approximate(num_updates: int, problem: Bilevel = UNTARGETED, project_fn: Callable = box) -> Method:
    """ApproxGrad with the authors' constants: steps of theta, ten steps of Adam on the warm-started linear system, a step of phi.

    Rates are halved five times in all. Adam's moments for theta and p start afresh in each update.
    """
    optimizer = optax.adam(1e-2)
    linear_fn = base.bind(bilevel.solve_by_adam, learning_rate=1e-2, num_steps=10)

    def init(phi, theta):
        return ApproxState(phi, theta, jnp.zeros_like(theta), optimizer.init(phi))

    def step(state, batch, i):
        rate = 0.5 ** jnp.floor(5 * i / num_updates)
        solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, optimizer=optax.adam(1e-3 * rate), num_steps=20)
        made = bilevel.implicit(problem, solve, state.phi, state.theta, batch, linear_fn=linear_fn, damping=1e-3, linear_start=state.p)
        updates, opt_phi = optimizer.update(made.grad, state.opt_phi)
        return ApproxState(project_fn(state.phi + rate * updates), made.theta, made.info.solution, opt_phi)

    return Method(init, step, num_updates)


class BackState(NamedTuple):
    """Back-gradient trains from scratch each time."""

    phi: Array
    opt_phi: optax.OptState


def backward(num_updates: int, problem: Bilevel = UNTARGETED, project_fn: Callable = box) -> Method:
    """Back-gradient through 100 steps from zero, all poisons at once."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, num_updates))
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.05, num_steps=100)

    def init(phi, theta):
        del theta
        return BackState(phi, optimizer.init(phi))

    def step(state, batch, i):
        del i
        theta0 = jnp.zeros((state.phi.shape[1], NUM_CLASSES))
        made = bilevel.back_gradient(problem, solve, state.phi, theta0, batch)
        updates, opt_phi = optimizer.update(made.grad, state.opt_phi)
        return BackState(project_fn(state.phi + updates), opt_phi)

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


def attack(method: Method, phi: Array, theta: Array, batch) -> Array:
    """The poisons that a method makes of those it starts with, beside a victim that starts at theta."""
    return _run(method.step, method.init(phi, theta), batch, method.num_updates)


def attack_each(method: Method, phi: Array, theta: Array, batch: Batch, counts: tuple[int, ...]) -> list[Array]:
    """The same for the first poisons alone, by how many; all numbers at once, which share the products with the images."""
    labels = jnp.where(jnp.arange(len(phi))[None] < jnp.array(counts)[:, None], batch.y_poison[None], -1)
    step = _for_each(method.step)
    state = jax.vmap(method.init, in_axes=None, axis_size=len(counts))(phi, theta)
    made = _run(step, state, batch._replace(y_poison=labels), method.num_updates)
    return [poisons[:count] for poisons, count in zip(made, counts, strict=True)]


@functools.cache  # one function, so that one program serves all seeds
def _for_each(step):
    return jax.vmap(step, in_axes=(0, Batch(None, None, None, None, 0), None))


def _run(step, state, batch, num_updates):
    with experiment.progress() as bar:
        task = bar.add_task("updates of poisons", total=num_updates)
        for first in range(0, num_updates, _CHUNK):
            numbers = first + jnp.arange(min(_CHUNK, num_updates - first))
            state = jax.block_until_ready(_chunk(step, state, batch, numbers))
            bar.advance(task, len(numbers))
    return state.phi


@functools.partial(jax.jit, static_argnums=0)
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


def fit_clean(batch: Batch) -> Array:
    """The victim without poisons."""
    return fit(batch.x[:0], batch._replace(y_poison=batch.y_poison[:0]))


_inner = jax.jit(jax.value_and_grad(inner_loss))


def accuracy(theta: Array, x: Array, y: Array) -> float:
    """In %."""
    return 100.0 * float(jnp.mean((x @ theta).argmax(axis=1) == y))
