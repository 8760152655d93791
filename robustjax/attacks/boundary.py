"""Linearised decision boundaries: what FAB and DeepFool step toward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import arrays
from robustjax.attacks import objective
from robustjax.base import Array, Delta

BoundaryFn = Callable[[Array, Array], Array]  # (logits [B, C], y) -> [B, K], positive where that boundary is crossed, -inf: there is none


def linearize(problem: objective.Problem, delta: Delta, *, boundary_fn: BoundaryFn, candidates: Array | None = None):
    """The nearest linearised boundary of each example.

    Args:
      problem: model, inputs and a threat with a `dual_norm`; its loss is not used.
      delta: where to linearise.
      boundary_fn: (logits, y) -> [B, K], positive where that boundary is crossed, -inf where there is none.
      candidates: the boundaries to consider [B, k]; None for all. Their gradients are in memory at once.

    Returns:
      value [B] of that boundary at delta, its gradient [B, ...] in delta, its distance [B] in the threat's norm, and where all of it is
      known [B]: no value NaN, no gradient NaN or infinite. One forward pass and as many backward passes as boundaries.
    """

    def values(delta):
        boundaries = boundary_fn(objective.logits_at(problem, delta), problem.y)
        return boundaries if candidates is None else jnp.take_along_axis(boundaries, candidates, axis=1)

    value, pullback = jax.vjp(values, delta)
    num_boundaries = value.shape[1]
    unit = jnp.broadcast_to(jnp.eye(num_boundaries, dtype=value.dtype)[:, None], (num_boundaries, *value.shape))
    normal = jax.vmap(lambda cotangent: pullback(cotangent)[0])(unit)
    known = jnp.isfinite(normal).all(axis=(0, *range(2, normal.ndim))) & ~jnp.isnan(value).any(axis=1)
    normal = jnp.where(jnp.isfinite(normal), normal, 0.0)
    slope = jax.vmap(problem.threat.dual_norm)(normal).T
    exists = value > -jnp.inf
    distance = arrays.ratio(jnp.abs(jnp.where(exists, value, 0.0)), slope)
    nearest = jnp.argmin(jnp.where(exists & (slope > 0), distance, jnp.inf), axis=1)

    def pick(table):
        return jnp.take_along_axis(table, nearest[:, None], axis=1)[:, 0]

    return pick(value), normal[nearest, jnp.arange(value.shape[0])], pick(distance), known


def likeliest(boundaries: Array, num_candidates: int | None) -> Array:
    """The boundaries [B, k] of largest value, nearest to being crossed, of those that exist: all but the label's own for None.

    Args:
      boundaries: [B, K] values at the input. num_candidates: how many at most.
    """
    num_others = max(boundaries.shape[1] - 1, 1)
    return jax.lax.top_k(boundaries, min(num_candidates or num_others, num_others))[1]
