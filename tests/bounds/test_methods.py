"""Interval and linear bounds: exact where they must be, sound on every architecture, equal where theory says so."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from robustjax import base, bounds, threats

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


def weights(key, *shapes):
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return [jax.random.normal(k, shape, jnp.float64) / np.sqrt(np.prod(shape[:-1])) for k, shape in zip(keys, shapes, strict=True)]


def mlp(key, *sizes, activation=jax.nn.relu):
    ws = weights(key, *itertools.pairwise(sizes))
    bs = weights(key + 1, *((1, size) for size in sizes[1:]))

    def model(x):
        x = x.reshape(x.shape[0], -1)
        for w, b in zip(ws[:-1], bs[:-1], strict=True):
            x = activation(x @ w + b)
        return x @ ws[-1] + bs[-1]

    return model


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


def conv(x, w, strides=1, padding="SAME", layout="NHWC", **options):
    numbers = (layout, "HWIO", layout)
    return jax.lax.conv_general_dilated(x, w, (strides, strides), padding, dimension_numbers=numbers, **options)


def flat(x):
    return x.reshape(x.shape[0], -1)


def residual(key):
    w1, w2, w3, w4 = weights(key, (3, 3, 2, 4), (3, 3, 4, 4), (1, 1, 4, 4), (36, 3))

    def model(x):
        x = jax.nn.relu(conv(x, w1, 2))
        x = jax.nn.relu(conv(jax.nn.relu(conv(x, w2)), w2) + conv(x, w3))
        return flat(x) @ w4

    return model


def pooled(key):
    w1, w2, w3 = weights(key, (3, 3, 2, 3), (3, 3, 3, 3), (3, 3))

    def model(x):
        x = linen.max_pool(jax.nn.relu(conv(x, w1)), (2, 2), (2, 2))
        x = linen.avg_pool(jnp.tanh(conv(x, w2)), (2, 2), (1, 1), padding="SAME")
        return x.mean(axis=(1, 2)) @ w3

    return model


def channels_first(key):
    w1, w2, w3 = weights(key, (3, 3, 1, 4), (2, 2, 4, 4), (4 * 9, 3))

    def model(x):
        x = jnp.transpose(x, (0, 3, 1, 2))
        x = jax.nn.leaky_relu(conv(x, w1, 1, [(1, 1), (1, 1)], "NCHW", feature_group_count=2), 0.1)
        x = jax.nn.relu(conv(x, w2, 2, [(1, 0), (0, 1)], "NCHW", rhs_dilation=(1, 1)))
        return flat(x) @ w3

    return model


def attention(key):
    w_in, w_q, w_k, w_v, w_out = weights(key, (2, 4), (4, 4), (4, 4), (4, 4), (4, 3))

    def model(x):
        tokens = x.reshape(x.shape[0], -1, 2)[:, :6] @ w_in
        scores = jnp.einsum("bik,bjk->bij", tokens @ w_q, tokens @ w_k) / 2.0
        return (jax.nn.softmax(scores, axis=2) @ (tokens @ w_v)).mean(axis=1) @ w_out

    return model


def normalised(key, kind):
    w1, w2 = weights(key, (72, 8), (8, 3))
    layer = {"layer": linen.LayerNorm(), "group": linen.GroupNorm(num_groups=2)}[kind]
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 8)))
    return lambda x: jax.nn.relu(layer.apply(variables, flat(x) @ w1)) @ w2


class BatchNormed(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(4, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(36, 3, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.head(flat(nnx.relu(self.norm(self.conv(x)))))


def batch_normed(key):
    net = BatchNormed(nnx.Rngs(key))
    net(jax.random.normal(jax.random.key(key), (16, 6, 6, 2), jnp.float64))  # statistics that are not 0 and 1
    return net.eval() or net


def odds_and_ends(key):
    w1, w2 = weights(key, (24, 8), (20, 3))

    def model(x):
        a, b = jnp.split(flat(x)[:, ::3], 2, axis=1)
        x = jnp.concatenate([a[:, ::-1], jnp.pad(b, ((0, 0), (2, 2)))[:, 2:-2]], axis=1) @ w1
        x = jnp.concatenate([jnp.maximum(x, 0.3 * x[:, jnp.array([1, 0, 3, 2, 5, 4, 7, 6])]), jnp.exp(-jnp.abs(x))], axis=1)
        x = jnp.concatenate([x, jax.nn.logsumexp(x, axis=1, keepdims=True), jnp.clip(x[:, :3], -0.2, 0.4)], axis=1)
        return x @ w2

    return model


def unary(key, function):
    return mlp(key, 72, 8, 6, 3, activation=function)


def prelu(key):
    return unary(key, lambda x: jnp.where(x >= 0, x, jnp.asarray(0.3) * x))


def detached(key):
    """Values count, derivatives do not: a part that is detached, and one whose derivative is that of another function."""
    w1, w2 = weights(key, (72, 6), (6, 3))
    rounded = base.straight_through(lambda x: 0.5 * jnp.abs(x), lambda x: x)

    def model(x):
        x = flat(x) @ w1
        return (rounded(x) - jax.lax.stop_gradient(2.0 * x)) @ w2

    return model


ZOO = {
    "detached": detached,
    "mlp": lambda key: mlp(key, 72, 10, 10, 3),
    "residual": residual,
    "pools": pooled,
    "channels first, groups, leaky ReLU": channels_first,
    "attention": attention,
    "layer norm": functools.partial(normalised, kind="layer"),
    "group norm": functools.partial(normalised, kind="group"),
    "batch norm": batch_normed,
    "slices, pads, exp, abs, logsumexp, clip": odds_and_ends,
    "prelu": prelu,
    **{
        function.__name__: functools.partial(unary, function=function)
        for function in (jnp.tanh, jax.nn.sigmoid, jax.nn.silu, jax.nn.gelu, jax.nn.elu, jax.nn.softplus, jax.nn.hard_tanh, jax.nn.relu6)
    },
}


_LOOSE = {"attention", "slices, pads, exp, abs, logsumexp, clip"}  # lines over several curved functions may be looser than intervals


@pytest.mark.parametrize("model", ZOO)
def test_bounds_hold_every_sample(model):
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 2), jnp.float64)
    model_fn = ZOO[model](7)
    for ball in ("linf", "l2"):
        threat = BALLS[ball].replace(eps=0.03 if ball == "linf" else 0.2)
        low, high = extremes(model_fn, threat, x, 100)
        found = jax.jit(lambda x, threat: {name: method(model_fn, x, threat) for name, method in METHODS.items()})(x, threat)
        for name, (lower, upper) in found.items():
            assert (lower <= low + 1e-9).all(), (name, ball)
            assert (upper >= high - 1e-9).all(), (name, ball)
            assert jnp.isfinite(upper - lower).all(), (name, ball)
        widths = {name: (upper - lower).mean() for name, (lower, upper) in found.items()}
        assert widths["crown"] <= 1.001 * widths["interval"] or model in _LOOSE
