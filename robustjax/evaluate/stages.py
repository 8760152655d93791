"""Attacks that leave finished examples as they are run in stages of a few steps, and what is finished takes no part in the next."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import base, drivers, loops, parallel, prng
from robustjax.attacks import combinators
from robustjax.base import Array, Attack, AttackResult, Key


def run(runner: parallel.RowRunner, key: Key, attack: Attack, index: int, rows: np.ndarray, y: np.ndarray) -> AttackResult:
    """The result of an attack on some rows of a data set, the same as of one call.

    A stage is the whole attack with another loop, which goes on from the carry of the stage before. What the attack computes before its
    loop is computed again; keys belong to examples and steps.

    Args:
      runner: of the data set. key: of the evaluation.
      attack: a plain attack that `kinds.stops_alone`. index: its place in the evaluation.
      rows: places in the data set [B]. y: [B].
    """
    sizes = _sizes(runner.batch_size, 1 if runner.mesh is None else runner.mesh.size)
    bound = functools.partial(_bound, runner, attack, key, np.int32(index))
    shapes = jax.eval_shape(bound(_call, rows[:1], 0, 0), runner.model_fn, rows[:1], runner.x[rows[:1]], y[:1], None)
    known = jax.tree.map(lambda shape: np.zeros((len(rows), *shape.shape[1:]), shape.dtype), shapes)
    left, first = np.arange(len(rows)), 0
    while len(left):
        end = first + 1 + first // 4  # stages grow with the steps taken: an example waits for a fourth of its own steps at most
        for part in np.split(left, np.cumsum(_parts(len(left), sizes))[:-1]):
            num_rows = min(size for size in sizes if size >= len(part))
            stage = bound(_compiled, parallel.pad_to(rows[part], num_rows), first, end)
            carry = jax.tree.map(lambda values, part=part: values[part], known.carry)
            jax.tree.map(functools.partial(_put, part), known, runner(stage, rows[part], y[part], carry, num_rows=num_rows))
        left, first = left[~known.done[left]], end
    return known.result


class _Stage(NamedTuple):
    """What is known after a stage."""

    result: AttackResult
    carry: Any  # of the attack's loop, leaves [B, ...]
    done: Array  # [B] bool, the result is that of the whole run


def _sizes(batch_size, num_devices):
    """The sizes of compiled programs, few because each is compiled: the batch's, an eighth of it and so on, and one row a device."""
    sizes = [batch_size]
    while sizes[-1] > num_devices:
        sizes.append(-(-sizes[-1] // (8 * num_devices)) * num_devices if sizes[-1] >= 16 * num_devices else num_devices)
    return sizes


def _parts(num_rows, sizes):
    """How many rows each program gets: all of them are full but for a fourth of the rows, and the last."""
    spare, parts = num_rows // 4, []
    for size in sizes:
        while num_rows and size - num_rows <= spare:
            parts.append(min(size, num_rows))
            spare -= size - parts[-1]
            num_rows -= parts[-1]
    return [*parts, num_rows] if num_rows else parts


def _put(rows, old, new):
    old[rows] = new


def _bound(runner, attack, key, index, function, rows, first, end):
    attack = combinators.take_rows(attack, rows, len(runner.x), runner.x.ndim)
    return functools.partial(function, attack, key, index, np.int32(first), np.int32(end))


def _call(attack, key, index, first, end, model_fn, rows, x, y, carry):
    stages = []

    def loop_fn(step, start, num_steps, done_fn):
        start = start if carry is None else jax.tree.map(functools.partial(jnp.where, first == 0), start, carry)
        next_step, last = loops.between(step, start, first, jnp.minimum(end, num_steps), done_fn)
        stages.append((last, done_fn(last) | (next_step == num_steps)))
        return last

    keys = prng.fold_in(prng.row_keys(key, rows), index)
    result = base.bind(attack, loop_fn=loop_fn)(keys, model_fn, x, y)
    return _Stage(result, *stages[0])


_compiled = drivers.jit(_call)
