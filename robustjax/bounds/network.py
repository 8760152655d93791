"""A model and the inputs that a threat reaches, one example at a time: what every method of this package walks over."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from robustjax import base, checks, graph, lowering, threats
from robustjax.base import Array, ModelFn, NormThreat
from robustjax.bounds import fusing

_CPU_BYTES, _DEVICE_BYTES = 2**24, 2**32  # of the largest array of a chunk
_MAX_UNROLL = 64  # steps of a scan that are walked one by one


class Bounds(NamedTuple):
    """What every value lies between, for every input that the threat reaches."""

    lower: Array  # [B, ...]
    upper: Array  # [B, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """One example's part of a verification problem.

    Attributes:
      program: of the model at one example [1, ...].
      x: the example [1, ...]; codes, if the threat is one of codes.
      threat: the norm ball of that example.
    """

    program: graph.Program
    x: Array
    threat: Any

    @property
    def output(self) -> graph.Variable:
        """The variable of the logits."""
        return self.program.outputs[0]

    def part(self, variable: graph.Variable) -> graph.Program:
        """The program that ends at a variable."""
        last = next((i for i, eqn in enumerate(self.program.equations) if variable in eqn.outputs), -1)
        equations = self.program.equations[: last + 1]
        return dataclasses.replace(self.program, equations=equations, outputs=(variable,), out_tree=jax.tree.structure(0))


def per_example(function: Callable[[Network], Any], model_fn: ModelFn, x: Array, threat: NormThreat, chunk_size: int | None = None) -> Any:
    """function(network) of every example, side by side; what it returns gets a leading axis [B].

    Args:
      function: (Network) -> pytree of arrays.
      model_fn: x [B, ...] -> [B, ...], the same for every example of a batch.
      x: inputs [B, ...].
      threat: a norm ball, or a `Latent` one, around x.
      chunk_size: how many examples are bounded at a time; None for as many as keep the largest array within 16 MB on CPU, where
        arrays that leave the cache take twice the time (measured), and within 4 GB elsewhere.
    """
    one, num_examples = _one_example(function, model_fn, x, threat), x.shape[0]
    if chunk_size is None:
        program, tree = _traced(one)
        one = lambda row: jax.tree.unflatten(tree, core.jaxpr_as_fun(program)(row))  # noqa: E731
        budget = _CPU_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
        chunk_size = max(1, budget // max(1, _largest(program)))
    checks.counts(chunk_size=chunk_size)
    rows = jnp.arange(num_examples, dtype=jnp.int32)
    return jax.vmap(one)(rows) if chunk_size >= num_examples else jax.lax.map(one, rows, batch_size=chunk_size)


def memory(bound_fn: Callable, model_fn: ModelFn, x: Array, threat: NormThreat) -> int:
    """The bytes of the largest array that bounds of one example need, before anything is compiled.

    A chunk of examples needs as many times that, and in all about three such arrays at once.

    Args:
      bound_fn: (model_fn, x, threat) -> Bounds, such as `crown`.
      model_fn, x, threat: as it takes them.
    """
    return _largest(jax.make_jaxpr(lambda x: bound_fn(*row_of(model_fn, x, threat, 0)))(x))


def row_of(model_fn: ModelFn, x: Array, threat: Any, row: Array | int) -> tuple[ModelFn, Array, Any]:
    """Model, input [1, ...] and threat of one example of a batch."""
    rows = jnp.asarray(row)[None]
    model = model_fn.take_rows(rows) if hasattr(model_fn, "take_rows") else model_fn
    return model, jnp.asarray(x)[row][None], threat.take_rows(rows, x.shape[0], x.ndim)


def _one_example(function, model_fn, x, threat):
    check(model_fn, x, threat)
    return lambda row: function(network(*row_of(model_fn, x, threat, row)))


def _traced(one):
    """The program of one example, and the structure of what it returns."""
    program, shape = jax.make_jaxpr(one, return_shape=True)(jnp.zeros((), jnp.int32))
    return program, jax.tree.structure(shape)


def _largest(program) -> int:
    """The bytes of the largest array that a program makes."""
    sizes = [var.aval.size * var.aval.dtype.itemsize for eqn in program.eqns for var in eqn.outvars if hasattr(var.aval, "size")]
    parts = [part for eqn in program.eqns for part in jax.tree.leaves([*eqn.params.values()], is_leaf=_is_program) if _is_program(part)]
    return max([0, *sizes, *map(_largest, parts)])


def _is_program(value):
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def network(model_fn: ModelFn, x: Array, threat: NormThreat) -> Network:
    """The problem of one example [1, ...].

    Raises:
      ValueError: the output does not depend on the input, or the model returns no single array.
    """
    model_fn = lowering.original(model_fn)  # the rules know the primitives that it is written in
    if isinstance(threat, threats.Latent):
        model_fn, threat = base.bind(_decoded, model_fn=model_fn, decoder=threat.decoder), threat.ball
    program = graph.program(model_fn, jax.ShapeDtypeStruct(x.shape, x.dtype), max_unroll=_MAX_UNROLL)
    if len(program.outputs) != 1:
        raise ValueError(f"expected a model that returns one array, got {len(program.outputs)}; return the logits alone.")
    if program.outputs[0] not in graph.depends(program, program.inputs):
        raise ValueError("the output of the model does not depend on its input: there is nothing to bound; pass model_fn(x) -> logits.")
    return Network(fusing.fuse(program), x, threat)


def squeezed(bounds: Bounds) -> Bounds:
    """Bounds [1, ...] of one example without their leading axis."""
    return jax.tree.map(lambda a: a[0], bounds)


def check(model_fn: ModelFn, x: Array, threat: Any) -> None:
    """Requires inputs, threat and model that fit each other.

    Raises:
      TypeError: the threat is no norm ball. ValueError: shapes do not fit, the ball is one point, or the model is in train mode.
    """
    checks.inputs(x)
    checks.model(model_fn, x)
    checks.threat(threat)
    missing = [name for name in ("support", "interval", "check_shapes") if not callable(getattr(threat, name, None))]
    if missing:
        raise TypeError(f"expected a norm ball such as Linf(eps), got {threat!r}, which has no {', '.join(missing)}.")
    threat.check_shapes(x.shape)
    low, high = threat.box
    known = [np.asarray(bound) for bound in (low, high) if not isinstance(bound, jax.core.Tracer)]
    if len(known) == 2 and (known[0] == known[1]).all():
        raise ValueError("the box of the threat is one point, so that no input can move; pass the range of valid inputs, such as (0., 1.).")
    mask = getattr(threat, "ball", threat).mask
    if mask is not None and not isinstance(mask, jax.core.Tracer) and not np.asarray(mask).any():
        raise ValueError("the mask of the threat is False everywhere, so that no input can move; mark where it may change with True.")


def _decoded(z, *, model_fn, decoder):
    return model_fn(decoder(z))
