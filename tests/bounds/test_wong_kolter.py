"""Random projections: near to what they estimate, and no certificate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import base, bounds, threats, training
from robustjax.bounds import _wong_kolter, network

KEY = jax.random.key(0)
THREAT = threats.Linf(0.05)


def model(*sizes):
    rng = np.random.default_rng(1)
    layers = [jnp.asarray(rng.normal(size=pair) / np.sqrt(pair[0]), jnp.float32) for pair in itertools.pairwise(sizes)]

    def model_fn(x):
        for w in layers[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ layers[-1]

    return model_fn


X = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 20)), jnp.float32)


def test_the_estimate_comes_near_to_the_dual_as_projections_grow():
    model_fn = model(20, 40, 40, 3)
    exact = jax.jit(lambda x: bounds.crown(model_fn, x, THREAT, slope="parallel"))(X)
    width = np.asarray(exact.upper - exact.lower)
    errors = []
    for num in (10, 1000):
        estimate = jax.jit(lambda x, num=num: bounds.wong_kolter_estimate(model_fn, x, THREAT, num_projections=num, key=KEY))
        errors.append(float(np.mean(np.abs(np.asarray(estimate(X).lower - exact.lower)) / width)))
    assert errors[1] < 0.05 and errors[1] < 0.2 * errors[0], "a tenth, as the error falls with the root of the number; found .024 and .33"


def test_with_one_hidden_layer_the_sum_is_the_median_of_cauchy_projections():
    """By hand, from the same draws: the bounds of the hidden layer are centre +- median |r (radius * w)|, then the exact walk."""
    model_fn, num = model(20, 8, 3), 7
    low, high = jnp.clip(X[:1] - 0.05, 0.0, 1.0), jnp.clip(X[:1] + 0.05, 0.0, 1.0)
    noise = jax.random.cauchy(jax.random.fold_in(KEY, 0), (num, 1, 20), jnp.float32)
    w = np.asarray(jax.jacobian(model(20, 8))(X[0]))  # [8, 20]
    reach = np.median(np.abs(np.asarray(noise * (0.5 * (high - low))[None])[:, 0] @ w.T), axis=0)
    centre = np.asarray(0.5 * (low + high))[0] @ w.T
    (found,) = _wong_kolter._inside(network.network(model_fn, X[:1], THREAT), num, KEY).values()
    np.testing.assert_allclose(found.lower[0], centre - reach, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.upper[0], centre + reach, rtol=1e-4, atol=1e-5)


def test_estimates_train_and_certify_nothing():
    estimate = base.bind(bounds.wong_kolter_estimate, num_projections=5, key=KEY)
    apply_fn = lambda params, model_state, x, mode: (jax.nn.relu(x @ params) @ params[:3].T, model_state)  # noqa: E731
    loss = base.bind(training.certified, apply_fn=apply_fn, threat=THREAT, bound_fn=estimate, kappa=0.0)
    params = 0.1 * jax.random.normal(KEY, (20, 20))
    grad = jax.jit(jax.grad(lambda params: loss(params, None, KEY, X, jnp.array([0, 1, 2, 0]))[0]))(params)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0
    with pytest.raises(TypeError, match="certify nothing"):
        bounds.certify(model(20, 8, 3), X, threat=THREAT, bound_fn=estimate)
    with pytest.raises(ValueError, match=r"bounds\.crown"):
        bounds.wong_kolter_estimate(lambda x: (x * x[:, ::-1]) @ params, X, THREAT, num_projections=5, key=KEY)
    with pytest.raises(ValueError, match="num_projections"):
        functools.partial(bounds.wong_kolter_estimate, num_projections=0, key=KEY)(model(20, 3), X, THREAT)
