"""Poisoning of certified defenses: training images that lower the certified radius of one class (Mehra et al., 2021)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import base, checks, prng
from robustjax.base import ApplyFn, Array, Bilevel, Key, Numeric, Threat
from robustjax.bilevel import _implicit, linear, problem
from robustjax.poisoning import arguments
from robustjax.poisoning import task as tasks
from robustjax.poisoning._craft import PoisonResult
from robustjax.poisoning.task import Task
from robustjax.smoothing import _soft
from robustjax.training import _gaussian, _macer


@base.node
class VictimTraining:
    """How the victim is trained that the attacker trains beside the poisons.

    Attributes:
      apply_fn: (params, None, x, mode) -> (logits, None), of a network without statistics.
      init_fn: key -> params.
      training_loss: (params, None, key, x, y) -> (loss, _): `training.gaussian`, `macer` or `smooth_adv`, bound.
      num_clean: clean images in a batch; 900 in the paper.
      num_steps: of Adam, between two steps of the poisons.
      learning_rate: of Adam.
      num_restart_epochs: passes over the poisons after which the victim begins anew.

    Raises:
      TypeError, ValueError: numbers that are no integers, or below 1; a rate that is not above 0.
    """

    apply_fn: ApplyFn
    init_fn: Callable[[Key], Any]
    training_loss: Callable
    num_clean: int = base.static_field()
    num_steps: int = base.static_field(default=10)
    learning_rate: Numeric = 1e-3
    num_restart_epochs: int = base.static_field(default=10)

    def __post_init__(self):
        checks.counts(num_clean=self.num_clean, num_steps=self.num_steps, num_restart_epochs=self.num_restart_epochs)
        checks.positive(learning_rate=self.learning_rate)


@base.node
class SoftCertificate:
    """The differentiable radius that stands in for a certificate by randomized smoothing.

    Attributes:
      sigma: of the noise.
      num_noise: draws for each image; 20 in the paper.
      beta: factor of the logits, which hardens the votes.
      smoothing: moves probabilities away from 0 and 1, where the radius has no derivative.

    Raises:
      TypeError, ValueError: a num_noise that is no integer, or below 1; a sigma or beta that is not above 0; a smoothing outside [0, .5).
    """

    sigma: Numeric
    num_noise: int = base.static_field()
    beta: Numeric = 16.0
    smoothing: Numeric = 1e-3

    def __post_init__(self):
        checks.counts(num_noise=self.num_noise)
        checks.positive(sigma=self.sigma, beta=self.beta)
        smoothing = self.smoothing
        if not jnp.ndim(smoothing) and not isinstance(smoothing, jax.core.Tracer) and not 0.0 <= smoothing < 0.5:
            raise ValueError(f"smoothing moves probabilities away from 0 and 1: expected it in [0, .5), got {smoothing}.")


@base.node
class ResponseDescent:
    """How poisons descend along the response of the victim.

    Attributes:
      num_epochs: passes over the poisons.
      num_poison: poisons in a batch; 100 in the paper.
      learning_rate: of Adam on the poisons, each with its own moments.
      num_linear_steps: of Adam on the linear system of the response, warm-started, between two steps of the poisons.
      linear_rate: of that Adam.
      damping: of the victim's Hessian.

    Raises:
      TypeError, ValueError: numbers that are no integers, or below 1; rates that are not above 0; damping below 0.
    """

    num_epochs: int = base.static_field()
    num_poison: int = base.static_field()
    learning_rate: Numeric = 0.1
    num_linear_steps: int = base.static_field(default=10)
    linear_rate: Numeric = 1e-2
    damping: Numeric = 1e-3

    def __post_init__(self):
        checks.counts(num_epochs=self.num_epochs, num_poison=self.num_poison, num_linear_steps=self.num_linear_steps)
        checks.positive(learning_rate=self.learning_rate, linear_rate=self.linear_rate)
        problem.not_negative(damping=self.damping)


class VictimState(NamedTuple):
    """The victim that the attacker trains beside the poisons, and where its last linear system ended."""

    params: Any
    opt_state: Any
    linear: Any  # like params: warm start of the next system
    residual: Array  # of the last system, as in `bilevel.ImplicitInfo`: above 1 its hypergradient is worth nothing; inf before the first


def soft_radius(params: Any, keys: Array, x: Array, y: Array, *, apply_fn: ApplyFn, certificate: SoftCertificate) -> Array:
    """The mean soft certified radius of a batch: sigma / 2 (Phi^-1(a(p1)) - Phi^-1(a(p2))), 0 where the prediction is wrong.

    p is the mean over noise of softmax(beta * logits), and a(t) = (1 - 2 smoothing) t + smoothing keeps it away from 0 and 1.

    Args:
      params: of the network.
      keys: of the noise, one or one for each image [B].
      x: images [B, ...]. y: their labels [B].
      apply_fn: (params, None, x, mode) -> (logits, None).
      certificate: the noise, and how soft the radius is.

    Raises:
      TypeError, ValueError: keys, images, labels or a certificate of another kind.
    """
    arguments.images(x)
    checks.labels(y, len(x))
    problem.takes(apply_fn, "apply_fn(params, model_state, x, mode)", params, None, x, "train")
    _check_nouns(certificate=(certificate, SoftCertificate))
    sigma, num_noise = certificate.sigma, certificate.num_noise
    logits, _ = _gaussian.noisy_logits(apply_fn, params, None, prng.example_keys(keys, len(x)), x, sigma, num_noise)
    numbers = (sigma, certificate.beta, certificate.smoothing)
    sigma, beta, smoothing = (jnp.asarray(number).astype(logits.dtype) for number in numbers)
    probs = (1.0 - 2.0 * smoothing) * jnp.exp(_soft.log_mean_softmax(beta * logits)) + smoothing
    margin, counted = _macer.radius_margin(probs, y)
    return jnp.where(counted, 0.5 * sigma * margin, 0.0).mean()


def poison_certificates(
    key: Key,
    task: Task,
    *,
    threat: Threat,
    victim: VictimTraining,
    certificate: SoftCertificate,
    descent: ResponseDescent,
) -> PoisonResult:
    """min over poisons in the threat of the soft certified radius of the targets, under a victim trained on the poisoned set.

    For every batch: steps of the victim on clean and poisoned images together, steps of Adam on the linear system of its response
    (warm-started), one step of Adam on the batch's poisons, and the threat. `bilevel.implicit` gives the gradient.

    Args:
      key: of everything.
      task: the training set, the rows of the class that is attacked, all other rows staying clean, and images of that class that are not in
        the set (x_target), with its label (y_target): their radius falls.
      threat: around each image; linf .1 on MNIST, .03 on CIFAR-10 in the paper.
      victim: how it is trained.
      certificate: the soft radius.
      descent: of the poisons.

    Returns:
      The poisons and, as state, the last `VictimState`; losses are one per batch.

    Raises:
      TypeError: no key, no task, no threat, settings of another type, functions that cannot be called. ValueError: images, labels or
        targets of another shape, type or range; fewer clean images or poisons than a batch takes.

    Guarantee:
      feasibility only.
    Source: PACD, Mehra et al., CVPR 2021, Algorithm 1, arXiv:2012.01274. Differs: the noise is one draw for the whole of a step; every
      poison keeps its own moments of Adam, where the authors' are shared by the places of a batch.
    """
    problem.one_key(key)
    tasks.check(task, threat)
    _check_nouns(victim=(victim, VictimTraining), certificate=(certificate, SoftCertificate), descent=(descent, ResponseDescent))
    apply_fn, init_fn, training_loss, num_poison = victim.apply_fn, victim.init_fn, victim.training_loss, descent.num_poison
    problem.takes(init_fn, "init_fn(key)", key)
    params = jax.eval_shape(init_fn, key)
    tasks.check_labels(task, arguments.classes(apply_fn, params, None, task.x_target, "train"))
    problem.takes(training_loss, "training_loss(params, model_state, key, x, y)", params, None, key, task.x, task.y)
    x, y, _, x_target, y_target = map(jnp.asarray, task)
    x_poison, y_poison = task.x_base, task.y_base
    num_others, num_batches = len(x) - len(x_poison), len(x_poison) // num_poison
    if num_batches == 0 or num_others < victim.num_clean:
        raise ValueError(f"a batch takes {victim.num_clean} clean images and {num_poison} poisons; got {num_others} and {len(x_poison)}.")
    others = jnp.nonzero(jnp.ones(len(x), bool).at[task.rows].set(False), size=num_others)[0]
    victim_optimizer, poison_optimizer = optax.adam(victim.learning_rate), optax.scale_by_adam()

    def inner_loss(params, phi, batch):
        (key, _), x, y, y_phi = batch
        return training_loss(params, None, key, jnp.concatenate([x, phi]), jnp.concatenate([y, y_phi]))[0]

    def outer_loss(params, phi, batch):
        del phi
        keys = prng.example_keys(batch[0][1], len(x_target))
        return soft_radius(params, keys, x_target, y_target, apply_fn=apply_fn, certificate=certificate)

    def fresh(key):
        params = init_fn(key)
        linear = jax.tree.map(lambda leaf: jnp.zeros_like(problem.at_least_float32(leaf)), params)
        return VictimState(params, victim_optimizer.init(params), linear, jnp.full_like(problem.norm(linear), jnp.inf))

    def train(state, phi, batch):
        def step(carry, i):
            params, opt_state = carry
            grad = jax.grad(inner_loss)(params, phi, ((jax.random.fold_in(batch[0][0], i), None), *batch[1:]))
            updates, opt_state = victim_optimizer.update(grad, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, opt_state), _ = jax.lax.scan(step, (state.params, state.opt_state), jnp.arange(victim.num_steps))
        return state._replace(params=params, opt_state=opt_state)

    def one_batch(carry, indices):
        poisons, moments, state = carry
        index, places = indices
        key_batch = jax.random.fold_in(key, index)
        rows = others[jax.random.randint(jax.random.fold_in(key_batch, 2), (victim.num_clean,), 0, num_others)]
        keys = jax.random.fold_in(key_batch, 3), jax.random.fold_in(key_batch, 4)  # of training, and of the soft radius
        batch = (keys, x[rows], y[rows], y_poison[places])
        phi = poisons[places]
        state = train(state, phi, batch)
        found = _implicit.implicit(
            Bilevel(inner_loss, outer_loss), lambda phi, theta, batch: theta, phi, state.params, batch,
            linear_fn=base.bind(linear.solve_by_adam, learning_rate=descent.linear_rate, num_steps=descent.num_linear_steps),
            damping=descent.damping, linear_start=state.linear,
        )  # fmt: skip
        mine = jax.tree.map(lambda leaf: leaf[places], moments)
        updates, mine = jax.vmap(poison_optimizer.update)(found.grad, mine)
        base_images = x_poison[places]
        delta = threat.project(phi - problem.times(descent.learning_rate, updates) - base_images, base_images)
        poisons = poisons.at[places].set(threat.apply(base_images, delta))
        moments = jax.tree.map(lambda all, some: all.at[places].set(some), moments, mine)
        return (poisons, moments, state._replace(linear=found.info.solution, residual=found.info.residual)), found.value

    def one_epoch(carry, epoch):
        poisons, moments, state = carry
        key_epoch = jax.random.fold_in(jax.random.fold_in(key, 2**30), epoch)
        begins = epoch % victim.num_restart_epochs == 0
        new = fresh(jax.random.fold_in(key_epoch, 0)), jax.vmap(poison_optimizer.init)(x_poison)
        state, moments = jax.tree.map(lambda f, old: jnp.where(begins, f, old), new, (state, moments))
        order = jax.random.permutation(jax.random.fold_in(key_epoch, 1), len(x_poison))[: num_batches * num_poison]
        indices = epoch * num_batches + jnp.arange(num_batches), order.reshape(num_batches, num_poison)
        return jax.lax.scan(one_batch, (poisons, moments, state), indices)

    start = x_poison, jax.vmap(poison_optimizer.init)(x_poison), fresh(key)
    (poisons, _, state), losses = jax.lax.scan(one_epoch, start, jnp.arange(descent.num_epochs))
    losses = losses.reshape(-1)
    return PoisonResult(poisons, poisons - x_poison, losses[-1], losses, state)


def _check_nouns(**nouns):
    for name, (value, kind) in nouns.items():
        if not isinstance(value, kind):
            raise TypeError(f"expected {name}=poisoning.{kind.__name__}(...), got a {type(value).__name__}.")
