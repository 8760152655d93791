"""Evaluations told from their traced programs, without running anything: what an attack costs, and what tells two evaluations apart."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import base, configured, fingerprint, graph, loops, prng
from robustjax.attacks import combinators
from robustjax.base import Array, Attack, Key, ModelFn


class Passes(NamedTuple):
    """Cost of an attack, in model evaluations per example."""

    forward: float
    backward: float
    bounded: bool  # False where a while loop may stop earlier: then each loop is counted once


def cost(attack: Attack, model_fn: ModelFn, x: Array, y: Array) -> Passes:
    """Forward and backward passes of an attack per example, counted in its traced program without running it.

    Args:
      attack: a bound attack of any kind.
      model_fn: the model (only its shapes matter).
      x: a batch [B, ...]. y: [B].
    """
    attack = loops.without_host(attack)
    x, y = jnp.asarray(x), jnp.asarray(y)
    logits = jax.eval_shape(base.draw(model_fn, prng.example_keys(jax.random.key(0), x.shape[0])), x)
    stand_in = _stand_in_of(logits)
    counts, bounded = {"_forward": 0.0, "_backward": 0.0}, True
    program = graph.program(lambda key, x, y: attack(key, stand_in, x, y), jax.random.key(0), x, y, keep=counts)
    for eqn, times in graph.walk(program):
        if eqn.function in counts:
            bounded &= times is not None
            # A vmapped pass has a larger batch: the result of a forward pass is logits, of a backward pass an input.
            unit = logits.size if eqn.function == "_forward" else x.size
            counts[eqn.function] += (times or 1) * eqn.outputs[0].aval.size / unit
    return Passes(counts["_forward"], counts["_backward"], bounded)


def identity(
    key: Key, attacks: Mapping[str, Attack], model_fn: ModelFn, x: np.ndarray, y: np.ndarray, targets: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What an evaluation depends on, as a fingerprint: of the key, each attack, the model and the data.

    Models are told by their arrays and their programs, and so are attacks with parts that are not of this package, whose closures may hold
    anything: another version of JAX may make other programs of them.

    Args:
      key, attacks, model_fn, x, y, targets: as for `evaluate`.
    """
    keys, row = prng.example_keys(jax.random.key(0), 1), jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    model_fn = base.bind(model_fn)
    parts: dict[str, object] = {
        f"attack {name}": (attack, _own_parts(attack, model_fn, keys, row, y, len(x))) for name, attack in attacks.items()
    }
    parts |= {"x": x, "y": y} | ({} if targets is None else {"targets": targets})
    return fingerprint.of(key=key, attacks=tuple(attacks), model=(model_fn, fingerprint.program(_logits, keys, model_fn, row)), **parts)


def _own_parts(attack, model_fn, keys, row, y, num_examples):
    if not any(callable(part) and not getattr(part, "__module__", "").startswith("robustjax.") for part in configured.statics(attack)):
        return ()
    # The program is that of a stand-in for the model, so that another model does not look like another attack.
    stand_in = _stand_in_of(jax.eval_shape(_logits, keys, model_fn, row))
    attack = combinators.take_rows(loops.without_host(attack), jnp.zeros(1, int), num_examples, len(row.shape))
    return fingerprint.program(attack, keys, stand_in, jnp.zeros(row.shape, row.dtype), y[:1])


def _logits(keys, model_fn, x):
    return base.draw(model_fn, keys)(x)


def _stand_in_of(logits):
    return base.bind(_stand_in, logits=jnp.zeros(logits.shape, logits.dtype))


@jax.jit
def _forward(x, logits):
    return logits + 0.0 * x.sum()


@jax.jit
def _backward(x, cotangent):
    return 0.0 * x + cotangent.sum()


@jax.custom_vjp
def _counted(x, logits):
    return _forward(x, logits)


_counted.defvjp(lambda x, logits: (_forward(x, logits), (x, logits)), lambda saved, ct: (_backward(saved[0], ct), 0.0 * saved[1]))


def _stand_in(x, *, logits):
    return _counted(x, jnp.broadcast_to(logits[:1], (x.shape[0], logits.shape[1])))
