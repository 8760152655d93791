"""Poisons that are learned through the training of a linear softmax, and the victim that is retrained on them (Mehra & Hamm, 2021)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
    """How poisons are learned; phi are the poisons, theta is the victim."""

    algorithm: bilevel.Algorithm
    num_updates: int
    batch_fn: Callable = lambda batch, i: batch  # (batch, update) -> what the algorithm gets as batch


class Paced(NamedTuple):
    """A batch, and the factor of the learning rates in an update."""

    batch: Any
    rate: Array


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
    algorithm = bilevel.penalty_method(
        problem, rho=10.0, weight=weight, optimizer_phi=optax.adam(0.1), optimizer_theta=optax.adam(1e-3), project_fn=project_fn
    )
    return Method(algorithm, num_updates)


def approximate(num_updates: int, problem: Bilevel = UNTARGETED, project_fn: Callable = box) -> Method:
    """ApproxGrad with the authors' constants: steps of theta, ten steps of Adam on the warm-started linear system, a step of phi.

    Rates are halved five times in all. Adam's moments for theta and p start afresh in each update.
    """

    def rate(i):
        return 0.5 ** jnp.floor(5 * i / num_updates)

    def solve(phi, theta0, paced):
        optimizer = optax.adam(1e-3 * paced.rate)
        return bilevel.descend(phi, theta0, paced.batch, inner_loss=problem.inner_loss, optimizer=optimizer, num_steps=20)

    algorithm = bilevel.approx_grad(
        Bilevel(*(_of_batch(loss) for loss in problem)), solve,
        linear_fn=base.bind(bilevel.solve_by_adam, learning_rate=1e-2, num_steps=10), damping=1e-3,
        optimizer=optax.chain(optax.adam(1e-2), optax.scale_by_schedule(rate)), project_fn=project_fn,
    )  # fmt: skip
    return Method(algorithm, num_updates, lambda batch, i: Paced(batch, rate(i)))


def _of_batch(loss):
    return lambda theta, phi, paced: loss(theta, phi, paced.batch)


def backward(num_updates: int, problem: Bilevel = UNTARGETED, project_fn: Callable = box) -> Method:
    """Back-gradient through 100 steps from zero, all poisons at once."""
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.05, num_steps=100)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, num_updates))
    return Method(bilevel.hypergradient_descent(problem, _from_zero, solve, optimizer=optimizer, project_fn=project_fn), num_updates)


def _from_zero(problem, solve, phi, theta0, batch):
    return bilevel.back_gradient(problem, solve, phi, jnp.zeros_like(theta0), batch)


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
    return _run(_step(method), method.algorithm.init(phi, theta), batch, method.num_updates)


def attack_each(method: Method, phi: Array, theta: Array, batch: Batch, counts: tuple[int, ...]) -> list[Array]:
    """The same for the first poisons alone, by how many; all numbers at once, which share the products with the images."""
    labels = jnp.where(jnp.arange(len(phi))[None] < jnp.array(counts)[:, None], batch.y_poison[None], -1)
    state = jax.vmap(method.algorithm.init, in_axes=None, axis_size=len(counts))(phi, theta)
    made = _run(_for_each(_step(method)), state, batch._replace(y_poison=labels), method.num_updates)
    return [poisons[:count] for poisons, count in zip(made, counts, strict=True)]


@functools.cache  # one function, so that one program serves all seeds
def _step(method):
    return lambda state, batch, i: method.algorithm.step(state, method.batch_fn(batch, i))[0]


@functools.cache
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
