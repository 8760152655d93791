"""CROWN-IBP: one linear walk over intervals, mixed with the intervals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import base, bounds, threats

X = np.random.default_rng(0).uniform(size=(3, 5))
THREAT = threats.Linf(0.1)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def mlp(*sizes):
    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(a, b)) / np.sqrt(a), 0.1 * rng.normal(size=(1, b))) for a, b in itertools.pairwise(sizes)]

    def model(x):
        for w, b in layers[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ layers[-1][0] + layers[-1][1]

    return model


def close(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)


def test_the_first_layer_of_crown_is_an_interval_so_that_one_hidden_layer_gives_its_bounds():
    close(jax.jit(lambda x: bounds.crown_ibp(mlp(5, 8, 3), x, THREAT))(X), jax.jit(lambda x: bounds.crown(mlp(5, 8, 3), x, THREAT))(X))


def test_the_mix_goes_from_intervals_to_linear_bounds_that_hold():
    model_fn, x = mlp(5, 8, 8, 8, 3), jnp.asarray(X)
    mixed = jax.jit(lambda beta: bounds.crown_ibp(model_fn, x, THREAT, beta=beta))
    boxes, tighter = (
        jax.jit(lambda x, bound_fn=bound_fn: bound_fn(model_fn, x, THREAT))(x) for bound_fn in (bounds.interval, bounds.crown)
    )
    linear, half = mixed(1.0), mixed(0.5)
    close(mixed(0.0), boxes)
    close(half, jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, boxes, linear))
    width = lambda found: float((found.upper - found.lower).mean())  # noqa: E731
    assert width(tighter) < 0.95 * width(linear) < 0.95 * width(boxes), "the walk from the output alone, then from every layer"
    rng = np.random.default_rng(2)
    points = X[None] + rng.uniform(-0.1, 0.1, (1000, 1, 1)) * rng.choice([-1.0, 1.0], (1000, 3, 5))
    outputs = jax.jit(jax.vmap(model_fn))(jnp.clip(points, 0.0, 1.0))
    for found in (linear, half):
        assert (outputs >= found.lower[None]).all() and (outputs <= found.upper[None]).all()


def test_bounds_are_differentiated_in_beta():
    model_fn, x = mlp(5, 8, 8, 3), jnp.asarray(X)
    gap = jax.jit(jax.value_and_grad(lambda beta: bounds.crown_ibp(model_fn, x, THREAT, beta=beta).lower.sum()))
    np.testing.assert_allclose(gap(0.3)[1], gap(1.0)[0] - gap(0.0)[0], rtol=1e-8)
    assert base.bind(bounds.crown_ibp, beta=0.5).get("beta") == 0.5
