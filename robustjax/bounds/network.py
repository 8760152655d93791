"""A model and the inputs that a threat reaches, one example at a time: what every method of this package walks over."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import base, checks, graph, threats
from robustjax.base import Array, ModelFn, NormThreat
from robustjax.bounds import fusing

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
      chunk_size: how many examples share the memory at a time; None for all.
    """
    check(model_fn, x, threat)
    num_examples, ball = x.shape[0], cast(Any, threat)

    def one(row):
        rows = row[None]
        model = model_fn.take_rows(rows) if hasattr(model_fn, "take_rows") else model_fn
        inside = ball.take_rows(rows, num_examples, x.ndim)
        return function(network(model, x[rows], inside))

    if chunk_size is None:
        return jax.vmap(one)(jnp.arange(num_examples))
    checks.counts(chunk_size=chunk_size)
    return jax.lax.map(one, jnp.arange(num_examples), batch_size=min(chunk_size, num_examples))


def network(model_fn: ModelFn, x: Array, threat: NormThreat) -> Network:
    """The problem of one example [1, ...].

    Raises:
      ValueError: the output does not depend on the input, or the model returns no single array.
    """
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
