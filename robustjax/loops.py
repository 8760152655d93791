"""Ways to run a step: `loop_fn(step, carry, num_steps, done_fn)`, with `step(i, carry) -> carry`.

`scan` is the default and differentiable in reverse mode; `checkpointed` is the same in less memory; `while_` stops early, `between` runs
some of its steps; `host` calls a jitted step from Python. Every leaf of the carry has B as its first axis. `done_fn(carry) -> [B]` says
which examples need no further step: the loops that stop early freeze them one by one and end when all are frozen, so that an example's
result never depends on its neighbours. A number keeps the type that it has at the start, so that neither wider constants nor narrower
logits change the carry.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax import arrays, base, configured

__all__ = ["between", "checkpointed", "host", "scan", "while_"]

StepFn = Callable[[Any, Any], Any]  # (i, carry) -> carry
DoneFn = Callable[[Any], jax.Array]  # carry -> [B] bool


def scan(step: StepFn, carry: Any, num_steps: int, done_fn: DoneFn | None = None) -> Any:
    """All the steps in one `lax.scan`; `done_fn` is not used. Differentiable in both modes.

    Args:
      step: (i, carry) -> carry, one step.
      carry: a pytree whose leaves have B as their first axis.
      num_steps: number of steps.
      done_fn: carry -> which examples need no further step [B]; not used here.

    Returns:
      The carry after the last step.

    Example:
      >>> loops.scan(lambda i, carry: carry + i, jnp.array([0, 10]), 4).tolist()
      [6, 16]
    """
    del done_fn
    return jax.lax.scan(lambda carry, i: (_of_same_types(step)(i, carry), None), carry, jnp.arange(num_steps))[0]


def checkpointed(step: StepFn, carry: Any, num_steps: int, done_fn: DoneFn | None = None) -> Any:
    """`scan` that recomputes each step in the backward pass: memory of one step and the carries, at the cost of one more forward pass."""
    return scan(jax.checkpoint(step, prevent_cse=False), carry, num_steps, done_fn)


def while_(step: StepFn, carry: Any, num_steps: int, done_fn: DoneFn | None = None) -> Any:
    """Stops when every example is done. Not differentiable in reverse mode (`lax.while_loop`); forward mode works.

    Example:
      >>> loops.while_(lambda i, carry: carry + 1, jnp.array([0, 8]), 10, done_fn=lambda carry: carry >= 9).tolist()
      [9, 9]
    """
    if done_fn is None:
        return jax.lax.fori_loop(0, num_steps, _of_same_types(step), carry)
    return between(step, carry, 0, num_steps, done_fn)[1]


def between(step: StepFn, carry: Any, first: jax.Array | int, num_steps: jax.Array | int, done_fn: DoneFn) -> tuple[jax.Array, Any]:
    """`while_` from a later step on, so that a driver can run the steps in parts, and leave out of the next part what is done.

    Args:
      step, carry, done_fn: as for `while_`.
      first, num_steps: the step to begin with, and the one before which to stop; both may be traced.

    Returns:
      The next step and the carry.

    Example:
      >>> i, carry = loops.between(lambda i, carry: carry + 1, jnp.array([0, 8]), 2, 5, lambda carry: carry >= 9)
      >>> int(i), carry.tolist()
      (5, [3, 9])
    """
    return jax.lax.while_loop(
        lambda state: (state[0] < num_steps) & ~jnp.all(done_fn(state[1])),
        lambda state: (state[0] + 1, _frozen(step, done_fn, state[0], state[1])),
        (jnp.int32(first), carry),
    )


def host(
    step: StepFn,
    carry: Any,
    num_steps: int,
    done_fn: DoneFn | None = None,
    *,
    early_stopped: bool = False,
    progress_fn: Callable[[int, int], None] | None = None,
) -> Any:
    """A Python loop over one jitted step: fastest where XLA's loops are slow (CPU convolutions), with progress and early exit.

    The step is a callable pytree, such as `base.bind` returns: it is compiled once per shape, and its numbers are arguments.

    Args:
      step: (i, carry) -> carry, one step, a callable pytree.
      carry, num_steps: first carry and number of steps, as for `scan`.
      done_fn: carry -> which examples need no further step [B].
      early_stopped: whether to freeze and stop as `while_` does; otherwise every step is taken, as by `scan`.
      progress_fn: called with (steps done, num_steps) after each step.

    Raises:
      ValueError: inside a jit, vmap or grad, where a Python loop would be unrolled.

    Example:
      >>> step = base.bind(lambda i, carry: carry + i)
      >>> loops.host(step, jnp.array([0, 10]), 2, progress_fn=lambda done, total: print(done, "of", total)).tolist()
      1 of 2
      2 of 2
      [1, 11]
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((step, carry))):
        raise ValueError("loops.host drives a jitted step from Python and got traced values; use loops.scan inside jit, vmap or grad.")
    stop_fn = done_fn if early_stopped else None
    for i in range(num_steps):
        if stop_fn is not None and bool(jnp.all(stop_fn(carry))):
            break
        carry = _compiled_step(step, stop_fn, i, carry)
        if progress_fn is not None:
            progress_fn(i + 1, num_steps)
    return carry


def is_host(function: Callable) -> bool:
    """Whether a configured function contains a `host` loop, and so must not be wrapped in jit."""
    return any(part is host for part in configured.walk(function))


def without_host(function: Callable) -> Callable:
    """The same function with every `host` loop in it replaced by `scan`."""
    if isinstance(function, base.Configured):
        return function.map_children(without_host)
    return scan if is_host(function) else function


@functools.partial(jax.jit, static_argnums=1)
def _compiled_step(step, done_fn, i, carry):
    return _of_same_types(step)(i, carry) if done_fn is None else _frozen(step, done_fn, i, carry)


def _frozen(step, done_fn, i, carry):
    done = done_fn(carry)

    def frozen(old, new):
        own = (
            done if old.shape[:1] == done.shape else done.all(keepdims=True)
        )  # what the examples of a batch share is frozen when all are done
        return arrays.where_example(own, old, new)

    return jax.tree.map(frozen, carry, _of_same_types(step)(i, carry))


def _of_same_types(step):
    def typed(old, new):
        old, new = jnp.asarray(old), jnp.asarray(new)
        is_cast = old.dtype != new.dtype and any(
            jnp.issubdtype(old.dtype, kind) and jnp.issubdtype(new.dtype, kind) for kind in (jnp.floating, jnp.integer)
        )
        return new.astype(old.dtype) if is_cast else new

    return lambda i, carry: jax.tree.map(typed, carry, step(i, carry))
