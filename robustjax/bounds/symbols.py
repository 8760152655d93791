"""Values as affine functions of symbols, carried forward: what zonotopes and linear programs are made of.

A zonotope's symbols are noises in [-1, 1], those of a linear program are its variables.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import graph
from robustjax.base import Array
from robustjax.bounds import operations
from robustjax.bounds.network import Bounds


class Affine(NamedTuple):
    """centre + sum of symbol i times generators[i], up to +- radius."""

    centre: Array  # in the shape of the variable
    generators: Array  # [G, ...]; symbols beyond the last one do not matter
    radius: Array | None = None  # of what no symbol stands for; None for zero


def fresh(value: Affine, size: Array, num_symbols: int) -> Affine:
    """The value plus a new symbol at every place, times a size.

    Args:
      value: its shape is that of size.
      size: what each new symbol is multiplied with.
      num_symbols: there are already; the new ones come after them.
    """
    new = jnp.diag(size.reshape(-1)).reshape(-1, *size.shape)
    return value._replace(generators=jnp.concatenate([_padded(value.generators, num_symbols), new]))


def aligned(values: Sequence[Affine]) -> list[Array]:
    """Generators of one number of symbols."""
    num_symbols = max(value.generators.shape[0] for value in values)
    return [_padded(value.generators, num_symbols) for value in values]


def linear_image(function: Callable[..., Any], zeros: Sequence[Array], generators: Sequence[Array]) -> Any:
    """What the linear part of an affine function makes of generators.

    Args:
      function: of arrays like zeros. generators: [G, ...] for each.
    """
    return jax.vmap(lambda *row: jax.jvp(function, tuple(zeros), row)[1])(*generators)


def through_affine(eqn: graph.Equation, values: Sequence) -> list[Affine]:
    """What an affine equation makes of `Affine` values and of numbers, without any loss."""
    inputs = [value for value in values if isinstance(value, Affine)]
    function, zeros = operations.affine(eqn, values), operations.zeros(eqn, values)
    centres = function(*(value.centre for value in inputs))
    generators = linear_image(function, zeros, aligned(inputs))
    radii: Sequence[Array | None] = [None] * len(centres)
    if any(value.radius is not None for value in inputs):
        spread = [zero if value.radius is None else value.radius for value, zero in zip(inputs, zeros, strict=True)]
        radii = operations.absolute(eqn, values)(*spread)
    return [Affine(*parts) for parts in zip(centres, generators, radii, strict=True)]


def intersect(one: Bounds, other: Bounds) -> Bounds:
    """What lies between both bounds of the same values; ends that rounding turned around are met in one."""
    lower = jnp.maximum(one.lower, other.lower)
    return Bounds(lower, jnp.maximum(lower, jnp.minimum(one.upper, other.upper)))


def _padded(generators, num_symbols):
    missing = num_symbols - generators.shape[0]
    return jnp.pad(generators, [(0, missing)] + [(0, 0)] * (generators.ndim - 1)) if missing else generators
