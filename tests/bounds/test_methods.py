"""Interval and linear bounds: exact where they must be, sound on every architecture, equal where theory says so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.bounded_models import ZOO, weights
from robustjax import bounds, threats

METHODS = {
    "interval": bounds.interval,
    "crown": bounds.crown,
    "fast_lin": functools.partial(bounds.crown, slope="parallel"),
    "crown, zero": functools.partial(bounds.crown, slope="zero"),
    "deepz": bounds.zonotope,
    "hybrid": functools.partial(bounds.zonotope, kind="hybrid"),
}
BALLS = {"linf": threats.Linf(0.1), "l2": threats.L2(0.4), "l1": threats.L1(0.6), "l0": threats.L0(2)}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames=("model_fn", "num"))
def extremes(model_fn, threat, x, num):
    """The least and the greatest output over random points and corners of the threat."""

    def one(key):
        inside = threat.project(threat.init(key, x), x)
        corner = threat.project(100.0 * jnp.sign(jax.random.normal(key, x.shape, x.dtype)), x)
        return jnp.stack([model_fn(threat.apply(x, delta)) for delta in (inside, corner)])

    outputs = jax.vmap(one)(jax.random.split(jax.random.key(0), num))
    return outputs.min(axis=(0, 1)), outputs.max(axis=(0, 1))


@pytest.mark.parametrize("name", BALLS)
def test_crown_is_exact_on_an_affine_model(name):
    """min and max of <w, x'> are <w, x> -+ support(-+w)."""
    threat = BALLS[name]
    x = jax.random.uniform(jax.random.key(0), (3, 5), jnp.float64)
    (w,) = weights(1, (5, 4))
    found = bounds.crown(lambda x: (2.0 * x - 0.5) @ w, x, threat)
    for i in range(4):
        normal = jnp.broadcast_to(2.0 * w[:, i], x.shape)
        middle = (2.0 * x - 0.5) @ w[:, i]
        np.testing.assert_allclose(found.upper[:, i], middle + threat.support(normal, x), rtol=1e-12)
        np.testing.assert_allclose(found.lower[:, i], middle - threat.support(-normal, x), rtol=1e-12)


def test_intervals_are_exact_on_one_layer_of_the_maximum_norm():
    x = jax.random.uniform(jax.random.key(0), (3, 5), jnp.float64)
    (w,) = weights(1, (5, 4))
    exact = bounds.crown(lambda x: x @ w, x, BALLS["linf"])
    for found, expected in zip(bounds.interval(lambda x: x @ w, x, BALLS["linf"]), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


_LOOSE = {"attention", "slices, pads, exp, abs, logsumexp, clip"}  # lines over several curved functions may be looser than intervals


_WHOLE = {"mlp", "residual"}  # all methods and both balls; the others, whose compilation takes longer, three methods and one ball


@pytest.mark.parametrize("model", ZOO)
def test_bounds_hold_every_sample(model):
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 2), jnp.float64)
    model_fn = ZOO[model](7)
    methods = METHODS if model in _WHOLE else {name: METHODS[name] for name in ("interval", "crown", "hybrid")}
    for ball in ("linf", "l2") if model in _WHOLE else ("linf",):
        threat = BALLS[ball].replace(eps=0.03 if ball == "linf" else 0.2)
        low, high = extremes(model_fn, threat, x, 100)
        found = jax.jit(lambda x, threat: {name: method(model_fn, x, threat) for name, method in methods.items()})(x, threat)
        for name, (lower, upper) in found.items():
            assert (lower <= low + 1e-9).all(), (name, ball)
            assert (upper >= high - 1e-9).all(), (name, ball)
            assert jnp.isfinite(upper - lower).all(), (name, ball)
        widths = {name: (upper - lower).mean() for name, (lower, upper) in found.items()}
        assert widths["crown"] <= 1.001 * widths["interval"] or model in _LOOSE
