"""MetaPoison: poisons that steer an ensemble of networks in training, looked ahead by a few unrolled steps (Huang et al., 2020)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import checks, losses
from robustjax.base import ApplyFn, Array, Key, Numeric, Threat
from robustjax.bilevel import problem
from robustjax.poisoning import _craft, arguments
from robustjax.poisoning import task as tasks
from robustjax.poisoning._craft import PoisonResult
from robustjax.poisoning.task import Task

_LEAST_LOSS = -100.0  # the attacker gains nothing beyond this margin


class Surrogates(NamedTuple):
    """Networks at different times of their training, S of them."""

    params: Any  # leaves [S, ...]
    age: Array  # [S] epochs since each began; those that reach num_epochs begin anew


def metapoison(
    key: Key,
    task: Task,
    *,
    apply_fn: ApplyFn,
    init_fn: Callable[[Key], Any],
    threat: Threat,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    num_surrogates: int,
    num_epochs: int,
    num_unroll_steps: int = 2,
    batch_size: int,
    step_size: Numeric,
) -> PoisonResult:
    """min over poisons in the threat of the mean margin against y_target that networks show at the targets after a poisoned batch.

    In each crafting step every surrogate trains for one epoch on clean data; at each of its batches a copy takes K steps, the first on the
    batch with its poisons in it, the next on the batches that follow, and the target is looked at after each.

    Args:
      key: of starts, initial weights and the order of batches.
      task: the training set, its poisoned rows, and the targets with what they are to be read as.
      apply_fn: (params, None, x, mode) -> (logits, None), of a network without statistics.
      init_fn: key -> params.
      threat: around each poisoned image.
      optimizer: of the poisons; `optax.adam` with a rate of some eps.
      num_steps: crafting steps; 60 in the paper.
      num_surrogates: S; 24 in the paper. They begin with ages spread over num_epochs.
      num_epochs: after which a surrogate begins anew.
      num_unroll_steps: K.
      batch_size: of the surrogates.
      step_size: of their gradient descent.

    Returns:
      The poisons and, as state, the `Surrogates`.

    Raises:
      TypeError: no key, no threat, no optimizer, numbers that are no integers, functions that cannot be called. ValueError: images, labels
        or targets of another shape, type or range; rows that repeat or lie beyond the set, as far as they are known at trace time; numbers
        below 1; batches larger than the set.

    Guarantee:
      feasibility only.
    Source: Huang et al., NeurIPS 2020, Algorithm 1, arXiv:2004.00225. Differs: the largest of the other logits, where the authors' code
      masks with 0; the target is looked at alone, not inside a batch.
    """
    problem.one_key(key)
    tasks.check(task, threat)
    checks.counts(num_steps=num_steps, num_surrogates=num_surrogates, num_epochs=num_epochs)
    checks.counts(num_unroll_steps=num_unroll_steps, batch_size=batch_size)
    checks.positive(step_size=step_size)
    if batch_size > len(task.x):
        raise ValueError(f"expected batches of at most {len(task.x)} images, got batch_size={batch_size}.")
    problem.takes(init_fn, "init_fn(key)", key)
    tasks.check_labels(task, arguments.classes(apply_fn, jax.eval_shape(init_fn, key), None, task.x_target))
    x, y, rows, x_target, y_target = map(jnp.asarray, task)
    place = jnp.full(len(x), -1).at[rows].set(jnp.arange(len(rows)))
    key_init, key_warm, key_craft = jax.random.split(key, 3)
    epoch = _Epoch(x, y, place, x_target, y_target, apply_fn, init_fn, num_unroll_steps, batch_size, step_size)
    params = jax.vmap(init_fn)(jax.random.split(key_init, num_surrogates))
    age = jnp.arange(num_surrogates) * num_epochs // num_surrogates
    surrogates = Surrogates(_warmed(epoch, key_warm, params, age, num_epochs), age)

    def gradient_fn(key, poisons, surrogates):
        key_fresh, key_order = jax.random.split(key)
        keys = jax.random.split(key_order, num_surrogates)
        loss, grad, params = jax.vmap(epoch.poisoned, (0, None, 0))(keys, poisons, surrogates.params)
        age = surrogates.age + 1
        fresh = jax.vmap(init_fn)(jax.random.split(key_fresh, num_surrogates))
        params = jax.tree.map(lambda f, p: jnp.where((age == num_epochs).reshape((-1,) + (1,) * (p.ndim - 1)), f, p), fresh, params)
        return loss.mean(), grad.mean(axis=0), Surrogates(params, age % num_epochs)

    return _craft.craft_poisons(
        key_craft, x[rows], threat=threat, gradient_fn=gradient_fn, optimizer=optimizer, num_steps=num_steps, delta=None, state=surrogates
    )


class _Epoch(NamedTuple):
    """One epoch of a surrogate, on clean batches, and what its copies on poisoned ones say."""

    x: Array
    y: Array
    place: Array  # [N] which poison stands in a row, -1 for none
    x_target: Array
    y_target: Array
    apply_fn: Callable
    init_fn: Callable
    num_unroll_steps: int
    batch_size: int
    step_size: Any

    def order(self, key):
        """Rows of shuffled batches [num_batches, B]."""
        num_batches = len(self.x) // self.batch_size
        return jax.random.permutation(key, len(self.x))[: num_batches * self.batch_size].reshape(num_batches, self.batch_size)

    def step(self, params, x, y):
        """One step of gradient descent."""
        grad = jax.grad(lambda params: losses.cross_entropy(self.apply_fn(params, None, x, "train")[0], y).mean())(params)
        return jax.tree.map(jnp.subtract, params, problem.times(self.step_size, grad))

    def clean(self, key, params):
        """The parameters after an epoch."""
        return jax.lax.scan(lambda params, rows: (self.step(params, self.x[rows], self.y[rows]), None), params, self.order(key))[0]

    def poisoned(self, key, poisons, params):
        """The attacker's mean loss over batches, its gradient in the poisons summed over them, and the parameters after the clean epoch."""
        order = self.order(key)

        def one_batch(carry, index):
            params, total, grad = carry
            loss, change = jax.value_and_grad(self._ahead)(poisons, params, order, index)
            rows = order[index]
            return (self.step(params, self.x[rows], self.y[rows]), total + loss, grad + change), None

        start = (params, jnp.zeros((), poisons.dtype), jnp.zeros_like(poisons))
        (params, total, grad), _ = jax.lax.scan(one_batch, start, jnp.arange(len(order)))
        return total / len(order), grad, params

    def _ahead(self, poisons, params, order, index):
        total = jnp.zeros((), poisons.dtype)
        for ahead in range(self.num_unroll_steps):
            rows = order[(index + ahead) % len(order)]
            x = self.x[rows]
            if ahead == 0:  # poisons enter the first batch alone
                place = self.place[rows]
                stands = (place >= 0).reshape((-1,) + (1,) * (x.ndim - 1))
                x = jnp.where(stands, poisons[jnp.maximum(place, 0)], x)
            params = self.step(params, x, self.y[rows])
            logits = self.apply_fn(params, None, self.x_target, "eval")[0]
            total += jnp.maximum(losses.margin(logits, self.y_target), _LEAST_LOSS).mean()
        return total / self.num_unroll_steps


def _warmed(epoch, key, params, age, num_epochs):
    # Every surrogate trained to its age: all take the steps of the oldest, and stop counting at their own.
    def one(params, i):
        keys = jax.random.split(jax.random.fold_in(key, i), len(age))
        trained = jax.vmap(epoch.clean)(keys, params)
        young = i < age
        return jax.tree.map(lambda t, p: jnp.where(young.reshape((-1,) + (1,) * (p.ndim - 1)), t, p), trained, params), None

    return jax.lax.scan(one, params, jnp.arange(num_epochs))[0]
