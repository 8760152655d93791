"""Random weights, inputs and radii against bounds: every output that is reached must lie between them, in float64."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import bounds, threats

METHODS: Mapping[str, Callable] = {
    "interval": bounds.interval,
    "CROWN": bounds.crown,
    "Fast-Lin": functools.partial(bounds.crown, slope="parallel"),
    "CROWN-IBP": bounds.crown_ibp,
    "alpha-CROWN": functools.partial(bounds.alpha_crown, num_steps=3),
    "DeepZ": bounds.zonotope,
    "hybrid zonotope": functools.partial(bounds.zonotope, kind="hybrid"),
}
BALLS: Mapping[str, tuple[Callable, float]] = {
    "linf": (threats.Linf, 0.3),
    "l2": (threats.L2, 1.0),
    "l1": (threats.L1, 2.0),
}  # largest radii
_NUM_SAMPLES = 40
_TOLERANCE = 1e-9  # of rounding in float64, relative to the largest output


class Case(NamedTuple):
    """One set of weights, one input and one radius, under one method."""

    method: str
    seed: int
    slack: float  # the least distance between a bound and an output that was reached, over the largest output
    is_violation: bool


def cases(build: Callable, ball: str, seeds: Iterable[int], methods: Mapping[str, Callable] = METHODS) -> Iterator[Case]:
    """Every method for every seed, with one compilation.

    Args:
      build: seed -> model of inputs [B, 6, 6, 2]; the seed is traced.
      ball: of `BALLS`.
      seeds: each gives weights, an input and a radius.
      methods: (model_fn, x, threat) -> Bounds, by name.
    """
    measured = jax.jit(functools.partial(_slacks, build, ball, methods))
    for seed in seeds:
        with jax.enable_x64(True):
            found = {name: float(slack) for name, slack in measured(jnp.asarray(seed)).items()}
        # A bound that is no number compares as a violation.
        yield from (Case(name, seed, slack, not slack >= -_TOLERANCE) for name, slack in found.items())


def _slacks(build, ball, methods, seed):
    key_x, key_radius, key_corners, key_inside = jax.random.split(jax.random.fold_in(jax.random.key(17), seed), 4)
    kind, largest = BALLS[ball]
    model_fn, x = build(seed), jax.random.uniform(key_x, (1, 6, 6, 2), jnp.float64)
    threat = kind(largest * 10.0 ** jax.random.uniform(key_radius, (), jnp.float64, -3.0, 0.0))  # three decades
    outputs = jax.vmap(lambda point: model_fn(point[None])[0])(_points(model_fn, threat, x, key_corners, key_inside))
    scale = 1.0 + jnp.abs(outputs).max()

    def slack(found):
        return jnp.minimum((outputs.min(axis=0) - found.lower[0]).min(), (found.upper[0] - outputs.max(axis=0)).min()) / scale

    return {name: slack(method(model_fn, x, threat)) for name, method in methods.items()}


def _points(model_fn, threat, x, key_corners, key_inside):
    """The input, random points and corners, and the corners to which gradients of the outputs point."""
    gradients = jax.jacrev(lambda point: model_fn(point[None])[0])(x[0])
    corners = jax.random.normal(key_corners, (_NUM_SAMPLES, *x.shape[1:]), x.dtype)
    directions = 100.0 * jnp.concatenate([jnp.sign(corners), corners, *(sign * jnp.sign(gradients) for sign in (1.0, -1.0))])
    inside = jax.vmap(lambda key: threat.init(key, x)[0])(jax.random.split(key_inside, _NUM_SAMPLES))
    deltas = jax.vmap(lambda delta: threat.apply(x, threat.project(delta[None], x))[0])(jnp.concatenate([directions, inside]))
    return jnp.concatenate([x, deltas])


def worst(found: Iterable[Case]) -> float:
    """The least slack of all cases."""
    return float(np.min([case.slack for case in found]))
