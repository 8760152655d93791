"""Small networks of every kind that bounds are tried on: functions of a seed, which may be traced, of inputs [B, 6, 6, 2]; float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from robustjax import base


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


class _BatchNormed(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(4, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(36, 3, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.head(flat(nnx.relu(self.norm(self.conv(x)))))


def batch_normed(key):
    net = _BatchNormed(nnx.Rngs(jax.random.key(key)))
    mean, scale = weights(key, (1, 4), (1, 4))
    net.norm.mean.set_value(mean[0])
    net.norm.var.set_value(jnp.exp(scale[0]))
    net.eval()
    return net


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


_FUNCTIONS = (
    jnp.tanh, jax.nn.sigmoid, jax.nn.silu, jax.nn.gelu, jax.nn.elu, jax.nn.softplus, jax.nn.hard_tanh, jax.nn.relu6,
)  # fmt: skip
_MORE_FUNCTIONS = (
    jnp.abs, jnp.sin, jnp.arctan, jax.scipy.special.erf, jax.nn.leaky_relu, jax.nn.selu, jax.nn.celu, jax.nn.soft_sign, jax.nn.hard_sigmoid,
    jax.nn.hard_swish, jax.nn.log_sigmoid, jax.nn.mish, jax.nn.squareplus,
)  # fmt: skip
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
    **{function.__name__: functools.partial(unary, function=function) for function in _FUNCTIONS},
}
MORE = ZOO | {function.__name__: functools.partial(unary, function=function) for function in _MORE_FUNCTIONS}
