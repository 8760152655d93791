"""Regularization against poisoning: fixed strengths, and one learned in the game against the poisons (Carnerero-Cano et al., 2020)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, experiment, report, style
from robustjax import base, bilevel, poisoning
from robustjax.base import Array

CLASSES = (4, 9)
NONE, STRONG = -8.0, 0.0  # log strengths that stay fixed
RULES = (f"fixed, {NONE:g}", f"fixed, {STRONG:g}", "learned")
_START = -4.0  # of the learned one
_POISON_STEP, _STRENGTH_STEP = 1.0, 2.0  # in l2 of an image's pixels, and in the log strength for a gradient of one


class Size(NamedTuple):
    """How large a run is."""

    num_train: int = 100
    num_val: int = 400
    num_steps: int = 100  # of the game
    fractions: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)  # of poisons to clean training images
    num_seeds: int = 3


class Batch(NamedTuple):
    """What the losses take; labels are signs."""

    x: Array  # [N, D]
    y: Array  # [N]
    x_val: Array  # [V, D]
    y_val: Array  # [V]
    y_poison: Array  # [M]


class Ended(NamedTuple):
    """A game's end, judged on test images."""

    error: float  # in %
    log_strength: float
    norm: float  # |theta|


def run(settings: experiment.Settings) -> report.Section:
    """Test error and strength against the fraction of poisons."""
    size = settings.pick(Size(20, 40, 3, (0.0, 0.2), 1), Size(num_steps=70, fractions=(0.0, 0.1, 0.2, 0.3), num_seeds=2), Size())
    dataset = data.load(settings.dataset)
    x, y = (np.concatenate(part) for part in ((dataset.x_train, dataset.x_test), (dataset.y_train, dataset.y_test)))
    found = {
        (rule, fraction): [play(rule, fraction, x, y, size, settings.seed + seed) for seed in range(size.num_seeds)]
        for fraction in size.fractions
        for rule in RULES
    }
    text = (
        "A training set that may be poisoned needs a stronger regularizer than a clean one, and how strong depends on how much of it is "
        "poisoned. Here the strength is learned on trusted validation images while the poisons are learned against it: without "
        "poisons it lets the model fit as a weak one does, with more of them it holds the weights down as a strong one does."
    )
    more = "three splits in place of two, 5 % of poisons too, and a longer game."
    return report.Section("Regularization against poisons", text, [_plot(found, size), _table(found, size)], more=more)


def play(rule: str, fraction: float, x, y, size: Size, seed: int) -> Ended:
    """Poisons learned against a rule for the strength, and the victim trained on them with the strength that the rule ends with."""
    batch, poisons, x_test, y_test = _batch(x, y, round(fraction * size.num_train), size, seed)
    start = {RULES[0]: NONE, RULES[1]: STRONG, RULES[2]: _START}[rule]
    step = _STRENGTH_STEP if rule == RULES[2] else 0.0
    found = _game(batch, poisons, jnp.asarray(start), jnp.asarray(step), num_steps=size.num_steps)
    theta = np.asarray(_fit(batch, found.poisons, found.log_strength))
    error = 100.0 * np.mean(np.sign(x_test @ theta) != y_test)
    return Ended(float(error), float(found.log_strength), float(np.linalg.norm(theta)))


def _training_loss(theta, poisons, batch):
    x, y = jnp.concatenate([batch.x, poisons]), jnp.concatenate([batch.y, batch.y_poison])
    return jax.nn.softplus(-y * (x @ theta)).mean()


def _validation_loss(theta, batch):
    return jax.nn.softplus(-batch.y_val * (batch.x_val @ theta)).mean()


_PROBLEM = poisoning.penalized(_training_loss, _validation_loss)
_CURVATURE = 25.0  # of the training loss: a quarter of the largest mean squared norm of images in [0, 1]^784 that is met here


def _solver(num_steps):
    def solve(phi, theta0, batch):
        step_size = 1.0 / (_CURVATURE + jnp.exp(phi[1]))
        return bilevel.descend(phi, theta0, batch, inner_loss=_PROBLEM.inner_loss, step_size=step_size, num_steps=num_steps)

    return solve


@functools.partial(jax.jit, static_argnames="num_steps")
def _game(batch, poisons, start, step, *, num_steps):
    method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=20), damping=1e-3)
    theta0 = jnp.zeros(batch.x.shape[1])
    return poisoning.learn_regularization(
        _PROBLEM, method, _solver(50), poisons, start, theta0, batch, poison_step=_POISON_STEP, strength_step=step, num_steps=num_steps
    )


@jax.jit
def _fit(batch, poisons, log_strength):
    # From zero, as long as it takes the weakest regularizer here.
    return _solver(3000)((poisons, log_strength), jnp.zeros(batch.x.shape[1]), batch)


def _batch(x, y, num_poisons, size, seed):
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(np.isin(y, CLASSES)))
    x = x[rows].reshape(len(rows), -1)
    y = np.where(y[rows] == CLASSES[0], -1.0, 1.0).astype(np.float32)
    train, val, test = np.split(np.arange(len(x)), [size.num_train, size.num_train + size.num_val])
    start = rng.choice(train, num_poisons, replace=False)  # copies with the other label
    batch = Batch(*(jnp.asarray(part) for part in (x[train], y[train], x[val], y[val], -y[start])))
    return batch, jnp.asarray(x[start]), x[test], y[test]


def _plot(found, size):
    plot, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    percent = 100 * np.array(size.fractions)
    for rule in RULES:
        ends = [found[rule, fraction] for fraction in size.fractions]
        _curve(left, percent, [[end.error for end in seeds] for seeds in ends], style.of(rule), f"log strength {rule}")
    ends = [found[RULES[2], fraction] for fraction in size.fractions]
    _curve(right, percent, [[end.log_strength for end in seeds] for seeds in ends], style.of(RULES[2]), "learned log strength")
    left.set(xlabel="poisons, % of the clean training images", ylabel="test error in %", ylim=(0, None))
    right.set(xlabel="poisons, % of the clean training images", ylabel="log strength")
    for axis in (left, right):
        axis.grid()
        axis.legend()
    caption = (
        f"Logistic regression of digits {CLASSES[0]} and {CLASSES[1]} on {size.num_train} clean images and poisons with wrong labels, "
        f"whose pixels are learned against each rule in {size.num_steps} steps of the game; {size.num_val} trusted validation images; mean "
        f"and range of {size.num_seeds} splits. The regularizer is exp(log strength) / 2 times the squared weights; every victim is "
        "trained again from zero."
    )
    errors = ", ".join(f"{np.mean([end.error for end in found[rule, size.fractions[-1]]]):.0f} % for {rule}" for rule in RULES)
    alt = (
        f"Left: test error grows with the share of poisons, to {errors} at {percent[-1]:.0f} %. Right: the learned log strength, from "
        f"{np.mean([end.log_strength for end in found[RULES[2], size.fractions[0]]]):.1f} without poisons to "
        f"{np.mean([end.log_strength for end in ends[-1]]):.1f}."
    )
    return report.figure("Test error and strength against the fraction of poisons", caption, plot, alt)


def _table(found, size):
    def cell(values):
        return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    rows = []
    for fraction in size.fractions:
        errors = [cell([end.error for end in found[rule, fraction]]) for rule in RULES]
        rows.append([f"{100 * fraction:.0f} %", *errors, cell([end.log_strength for end in found[RULES[2], fraction]])])
    caption = f"Test error in % by the rule of the log strength, and what was learned: mean and range of {size.num_seeds} splits."
    return report.Table("Test error and strength", caption, ["poisons", *RULES, "learned log strength"], rows)


def _curve(axis, x, values, color, label):
    values = np.array(values)
    axis.plot(x, values.mean(axis=1), "o-", color=color, label=label)
    axis.fill_between(x, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2)
