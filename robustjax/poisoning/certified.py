"""Poisoning of certified defenses: training images that lower the certified radius of one class (Mehra et al., 2021)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import base, checks, prng
from robustjax.base import Array, Bilevel, Key
from robustjax.bilevel import _implicit, linear, problem
from robustjax.poisoning import arguments
from robustjax.poisoning._craft import PoisonResult
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _macer


class Victim(NamedTuple):
    """The victim that the attacker trains beside the poisons, and where its last linear system ended."""

    params: Any
    opt_state: Any
    linear: Any  # like params: warm start of the next system
    residual: Array  # of the last system, as in `bilevel.ImplicitInfo`: above 1 its hypergradient is worth nothing; inf before the first


def soft_radius(apply_fn: Callable, params, keys: Array, x: Array, y: Array, *, sigma, num_noise: int, beta=16.0, smoothing=1e-3) -> Array:
    """The mean soft certified radius of a batch: sigma / 2 (Phi^-1(a(p1)) - Phi^-1(a(p2))), 0 where the prediction is wrong.

    p is the mean over noise of softmax(beta * logits), and a(t) = (1 - 2 smoothing) t + smoothing keeps it away from 0 and 1.

    Raises:
      TypeError, ValueError: keys, images, labels, sigma or a num_noise of another kind.
    """
    arguments.images(x)
    checks.positive(sigma=sigma, beta=beta)
    checks.labels(y, len(x))
    problem.takes(apply_fn, "apply_fn(params, model_state, x, mode)", params, None, x, "train")
    if not jnp.ndim(smoothing) and not isinstance(smoothing, jax.core.Tracer) and not 0.0 <= smoothing < 0.5:
        raise ValueError(f"smoothing moves probabilities away from 0 and 1: expected it in [0, .5), got {smoothing}.")
    logits, _ = _gaussian.noisy_logits(apply_fn, params, None, prng.example_keys(keys, len(x)), x, sigma, num_noise)
    sigma, beta, smoothing = (jnp.asarray(number).astype(logits.dtype) for number in (sigma, beta, smoothing))
    probs = (1.0 - 2.0 * smoothing) * jnp.exp(_soft.log_mean_softmax(beta * logits)) + smoothing
    margin, counted = _macer.radius_margin(probs, y)
    return jnp.where(counted, 0.5 * sigma * margin, 0.0).mean()


def poison_certificates(
    key: Key,
    x: Array,
    y: Array,
    x_poison: Array,
    y_poison: Array,
    x_val: Array,
    y_val: Array,
    *,
    apply_fn: Callable,
    init_fn: Callable,
    training_loss: Callable,
    threat,
    sigma,
    num_noise: int,
    num_epochs: int,
    num_restart_epochs: int = 10,
    num_clean: int,
    num_poison: int,
    num_victim_steps: int = 10,
    num_linear_steps: int = 10,
    learning_rate=0.1,
    victim_rate=1e-3,
    linear_rate=1e-2,
    damping=1e-3,
    beta=16.0,
    smoothing=1e-3,
) -> PoisonResult:
    """min over poisons in the threat of the soft certified radius of the validation set, under a victim trained on both.

    For every batch: steps of the victim on clean and poisoned images together, steps of Adam on the linear system of its response
    (warm-started), one step of Adam on the batch's poisons, and the threat. `bilevel.implicit` gives the gradient.

    Args:
      key: of everything.
      x: clean images [N, ...] of the training set. y: [N].
      x_poison: the images that are perturbed [M, ...], all of the class that is attacked. y_poison: their labels, kept.
      x_val: images of that class [V, ...] whose radius falls. y_val: [V].
      apply_fn: (params, None, x, mode) -> (logits, None), of a network without statistics.
      init_fn: key -> params.
      training_loss: the victim's, (params, None, key, x, y) -> (loss, _): `training.gaussian`, `macer` or `smooth_adv`, bound.
      threat: around each image; linf .1 on MNIST, .03 on CIFAR-10 in the paper.
      sigma, num_noise, beta, smoothing: of the soft radius, see `soft_radius`.
      num_epochs: passes over the poisons.
      num_restart_epochs: after which the victim begins anew.
      num_clean, num_poison: images of each kind in a batch; 900 and 100.
      num_victim_steps, num_linear_steps: between two steps of the poisons.
      learning_rate: of Adam on the poisons, each with its own moments.
      victim_rate, linear_rate: of Adam on the victim and on the linear system.
      damping: of its Hessian.

    Returns:
      The poisons and, as state, the last `Victim`; losses are one per batch.

    Raises:
      TypeError: no key, no threat, numbers that are no integers, functions that cannot be called. ValueError: images, labels or targets of
        another shape, type or range; fewer clean images or poisons than a batch takes; numbers below 1; a sigma that is not above 0.

    Guarantee:
      feasibility only.
    Source: Mehra et al., CVPR 2021, Algorithm 1, arXiv:2012.01274. Differs: the noise is one draw for the whole of a step; every poison
      keeps its own moments of Adam, where the authors' are shared by the places of a batch.
    """
    problem.one_key(key)
    arguments.images(x_poison, threat, "x_poison")
    arguments.shaped_like(x, x_poison, "x")
    arguments.shaped_like(x_val, x_poison, "x_val")
    checks.counts(num_epochs=num_epochs, num_restart_epochs=num_restart_epochs, num_clean=num_clean, num_poison=num_poison)
    checks.counts(num_victim_steps=num_victim_steps, num_linear_steps=num_linear_steps)
    checks.positive(learning_rate=learning_rate, victim_rate=victim_rate, linear_rate=linear_rate)
    problem.takes(init_fn, "init_fn(key)", key)
    params = jax.eval_shape(init_fn, key)
    num_classes = arguments.classes(apply_fn, params, None, x_val, "train")
    for name, labels, images in (("y", y, x), ("y_poison", y_poison, x_poison), ("y_val", y_val, x_val)):
        arguments.labelled(labels, len(images), num_classes, name)
    problem.takes(training_loss, "training_loss(params, model_state, key, x, y)", params, None, key, x, y)
    x, y, x_poison, y_poison, x_val, y_val = map(jnp.asarray, (x, y, x_poison, y_poison, x_val, y_val))
    num_batches = len(x_poison) // num_poison
    if num_batches == 0 or len(x) < num_clean:
        raise ValueError(f"a batch takes {num_clean} clean images and {num_poison} poisons; got {len(x)} and {len(x_poison)}.")
    victim_optimizer, poison_optimizer = optax.adam(victim_rate), optax.scale_by_adam()

    def inner_loss(params, phi, batch):
        (key, _), x, y, y_phi = batch
        return training_loss(params, None, key, jnp.concatenate([x, phi]), jnp.concatenate([y, y_phi]))[0]

    def outer_loss(params, phi, batch):
        del phi
        keys = prng.example_keys(batch[0][1], len(x_val))
        return soft_radius(apply_fn, params, keys, x_val, y_val, sigma=sigma, num_noise=num_noise, beta=beta, smoothing=smoothing)

    def fresh(key):
        params = init_fn(key)
        linear = jax.tree.map(lambda leaf: jnp.zeros_like(problem.at_least_float32(leaf)), params)
        return Victim(params, victim_optimizer.init(params), linear, jnp.full_like(problem.norm(linear), jnp.inf))

    def train(victim, phi, batch):
        def step(carry, i):
            params, opt_state = carry
            grad = jax.grad(inner_loss)(params, phi, ((jax.random.fold_in(batch[0][0], i), None), *batch[1:]))
            updates, opt_state = victim_optimizer.update(grad, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, opt_state), _ = jax.lax.scan(step, (victim.params, victim.opt_state), jnp.arange(num_victim_steps))
        return victim._replace(params=params, opt_state=opt_state)

    def one_batch(carry, indices):
        poisons, moments, victim = carry
        index, places = indices
        key_batch = jax.random.fold_in(key, index)
        rows = jax.random.randint(jax.random.fold_in(key_batch, 2), (num_clean,), 0, len(x))
        keys = jax.random.fold_in(key_batch, 3), jax.random.fold_in(key_batch, 4)  # of training, and of the soft radius
        batch = (keys, x[rows], y[rows], y_poison[places])
        phi = poisons[places]
        victim = train(victim, phi, batch)
        found = _implicit.implicit(
            Bilevel(inner_loss, outer_loss), lambda phi, theta, batch: theta, phi, victim.params, batch, damping=damping,
            linear_fn=base.bind(linear.solve_by_adam, learning_rate=linear_rate, num_steps=num_linear_steps), linear_start=victim.linear,
        )  # fmt: skip
        mine = jax.tree.map(lambda leaf: leaf[places], moments)
        updates, mine = jax.vmap(poison_optimizer.update)(found.grad, mine)
        base_images = x_poison[places]
        delta = threat.project(phi - problem.times(learning_rate, updates) - base_images, base_images)
        poisons = poisons.at[places].set(threat.apply(base_images, delta))
        moments = jax.tree.map(lambda all, some: all.at[places].set(some), moments, mine)
        return (poisons, moments, victim._replace(linear=found.info.solution, residual=found.info.residual)), found.value

    def one_epoch(carry, epoch):
        poisons, moments, victim = carry
        key_epoch = jax.random.fold_in(jax.random.fold_in(key, 2**30), epoch)
        begins = epoch % num_restart_epochs == 0
        new = fresh(jax.random.fold_in(key_epoch, 0)), jax.vmap(poison_optimizer.init)(x_poison)
        victim, moments = jax.tree.map(lambda f, old: jnp.where(begins, f, old), new, (victim, moments))
        order = jax.random.permutation(jax.random.fold_in(key_epoch, 1), len(x_poison))[: num_batches * num_poison]
        indices = epoch * num_batches + jnp.arange(num_batches), order.reshape(num_batches, num_poison)
        return jax.lax.scan(one_batch, (poisons, moments, victim), indices)

    start = x_poison, jax.vmap(poison_optimizer.init)(x_poison), fresh(key)
    (poisons, _, victim), losses = jax.lax.scan(one_epoch, start, jnp.arange(num_epochs))
    losses = losses.reshape(-1)
    return PoisonResult(poisons, poisons - x_poison, losses[-1], losses, victim)
