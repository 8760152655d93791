"""A rewritten function has the values and the derivatives of the function it was made from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from robustjax import base, graph, lowering, parallel


def _agree(actual, expected, tolerance=1e-5):
    def close(a, b):
        a, b = (np.asarray(value, np.float32) for value in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-3, np.abs(b).max(initial=0.0)))

    jax.tree.map(close, actual, expected)


def _normal(shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).normal(size=shape), np.float32)


def _case(x, w, padding="SAME", strides=None, lhs=None, rhs=None, groups=1, numbers=None):
    dim = len(x) - 2
    numbers = numbers or {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[dim]
    options = {
        "window_strides": strides or (1,) * dim,
        "padding": padding,
        "lhs_dilation": lhs,
        "rhs_dilation": rhs,
        "feature_group_count": groups,
        "dimension_numbers": numbers,
    }
    return x, w, options


_CASES = {
    "same, 1 channel, batch 1": _case((1, 6, 5, 1), (3, 3, 1, 2)),
    "same, 3 channels, batch 64 in blocks": _case((64, 5, 5, 3), (3, 3, 3, 4)),
    "same, 8 channels, batch 7": _case((7, 5, 4, 8), (3, 3, 8, 4)),
    "valid, strides, 8 channels, batch 64 in blocks": _case((64, 6, 5, 8), (3, 2, 8, 3), "VALID", (2, 1)),
    "valid, strides, 1 channel": _case((2, 8, 7, 1), (3, 2, 1, 3), "VALID", (3, 2)),
    "asymmetric padding": _case((2, 6, 5, 8), (3, 3, 8, 3), ((2, 0), (1, 3)), (2, 1)),
    "negative padding": _case((2, 7, 8, 8), (3, 3, 8, 3), ((-1, -1), (0, -2)), (2, 1)),
    "negative padding, 3 channels": _case((2, 7, 8, 3), (3, 3, 3, 3), ((-1, 0), (1, -2))),
    "window dilation": _case((2, 9, 8, 8), (3, 2, 8, 3), "SAME", (1, 2), rhs=(2, 3)),
    "window dilation, 1 channel": _case((2, 9, 8, 1), (3, 2, 1, 3), "SAME", (1, 2), rhs=(2, 3)),
    "transposed": _case((2, 4, 3, 8), (3, 3, 8, 3), ((2, 1), (1, 2)), lhs=(2, 3)),
    "transposed, 3 channels, strided": _case((2, 4, 3, 3), (3, 2, 3, 3), ((2, 1), (1, 2)), (2, 1), lhs=(3, 2), rhs=(1, 2)),
    "groups": _case((2, 5, 5, 8), (3, 3, 4, 6), "SAME", (2, 1), groups=2),
    "depthwise": _case((3, 5, 5, 8), (3, 3, 1, 16), "SAME", groups=8),
    "channels first": _case((2, 8, 5, 6), (4, 8, 3, 3), "VALID", (1, 2), numbers=("NCHW", "OIHW", "NCHW")),
    "channels first to last, 3 channels": _case((2, 3, 5, 6), (4, 3, 3, 3), "SAME", numbers=("NCHW", "OIHW", "NHWC")),
    "one dimension": _case((3, 9, 8), (4, 8, 3), "SAME", (2,)),
    "one dimension, channels first, 1 channel": _case((3, 1, 9), (4, 1, 3), "VALID", numbers=("NCW", "OIW", "NCW")),
    "three dimensions": _case((2, 4, 3, 5, 8), (2, 2, 3, 8, 2), "SAME", (2, 1, 1)),
    "1x1 window with stride": _case((2, 5, 5, 8), (1, 1, 8, 4), "VALID", (2, 2)),
    "window larger than the input": _case((2, 2, 3, 8), (5, 5, 8, 2), "SAME"),
    "many outputs": _case((2, 5, 6, 3), (3, 3, 3, 65), "SAME", (1, 2)),
    "many inputs, places that do not fill the last group": _case((2, 4, 7, 17), (3, 3, 17, 12), "VALID"),
    "few channels, wide stride, places beyond the input": _case((2, 5, 11, 2), (2, 2, 2, 5), ((0, 0), (1, 0)), (1, 4)),
    "empty batch": _case((0, 5, 5, 3), (3, 3, 3, 4)),
}
_ALL_DERIVATIVES = {"valid, strides, 1 channel", "transposed", "depthwise"}


def _derivatives(f, x, w, everything):
    dx, dw = jnp.cos(x) - 0.3, jnp.sin(3 * w)

    def loss(x, w):
        return jnp.sum(jnp.sin(f(x, w)))

    grad = jax.grad(loss, (0, 1))
    found = {"forward": jax.jvp(f, (x, w), (dx, dw)), "reverse, and forward of it": jax.jvp(grad, (x, w), (dx, dw))}
    if everything:
        xs, ws = jnp.stack([x, 2 * dx]), jnp.stack([w, 2 * dw])
        found["reverse of reverse"] = jax.grad(lambda x, w: jnp.vdot(grad(x, w)[0], dx) + jnp.vdot(grad(x, w)[1], dw), (0, 1))(x, w)
        found["batched over x"] = jax.vmap(grad, (0, None))(xs, w)
        found["batched over w"] = jax.vmap(grad, (None, 0))(x, ws)
        found["batched over both"] = jax.vmap(f)(xs, ws)
        found["batched over an inner axis"] = jax.vmap(f, (2, None), 1)(jnp.stack([x, dx], 2), w)
        found["steps"] = jax.lax.scan(lambda x, _: (x - 0.1 * grad(x, w)[0], None), x, None, length=2)[0]
    return found


@pytest.mark.parametrize("name", _CASES)
def test_convolutions_keep_their_values_and_derivatives(name):
    x_shape, w_shape, options = _CASES[name]
    convolve = functools.partial(jax.lax.conv_general_dilated, **options)
    rewritten = lowering.rewrite(convolve)
    x, w = _normal(x_shape), _normal(w_shape, 1, np.prod(w_shape[:-1]) ** -0.5)
    derivatives = jax.jit(_derivatives, static_argnums=3)
    everything = name in _ALL_DERIVATIVES
    _agree(derivatives(rewritten, x, w, everything), derivatives(Partial(convolve), x, w, everything))
    if x.size:
        assert _convolutions(rewritten, x, w) == {"robustjax_convolution"}


def _convolutions(f, *args):
    names = {eqn.primitive.name for eqn, _ in graph.walk(graph.program(f, *args))}
    return names & {"robustjax_convolution", "conv_general_dilated"}


@pytest.mark.parametrize("padding", [((-1, 1), (0, -2)), ((4, -1), (1, 1)), ((4, 1), (0, 0))])
@pytest.mark.parametrize("channels", [3, 8])
def test_padding_of_both_signs_reads_no_memory_out_of_bounds(padding, channels):
    # XLA:CPU does, in forward and gradient: the truth is the convolution of an input that was padded before.
    convolve = functools.partial(jax.lax.conv_general_dilated, **_case((2, 7, 8, 3), (3, 3, 3, 2), padding)[2])

    def padded(x, w):
        x = jax.lax.pad(x, 0.0, [(0, 0, 0), *((*sides, 0) for sides in padding), (0, 0, 0)])
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def values(f, x, w):
        return f(x, w), jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))(x, w)

    x, w = _normal((2, 7, 8, channels)), _normal((3, 3, channels, 2), 1, 0.2)
    _agree(jax.jit(values)(lowering.rewrite(convolve), x, w), jax.jit(values)(Partial(padded), x, w))


def test_a_convolution_is_bilinear_to_all_orders_of_its_derivatives():
    rewritten = lowering.rewrite(functools.partial(jax.lax.conv_general_dilated, **_case((1, 3, 3, 1), (2, 2, 1, 1))[2]))
    x, w = _normal((1, 3, 3, 1)), _normal((2, 2, 1, 1), 1)
    mixed = jax.jacfwd(jax.jacrev(rewritten, 0), 1)(x, w)
    np.testing.assert_allclose(jnp.einsum("...abcdefgh,abcd,efgh", mixed, x, w), rewritten(x, w), rtol=1e-4, atol=1e-5)
    assert not jax.jacfwd(jax.jacrev(rewritten, 0), 0)(x, w).any()


def test_convolutions_with_batch_groups_or_integers_stay_as_they_are():
    numbers = ("NHWC", "HWIO", "NHWC")
    grouped = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=numbers, batch_group_count=2
    )
    x, w = _normal((4, 4, 4, 3)), _normal((3, 3, 3, 4), 1)
    np.testing.assert_array_equal(lowering.rewrite(grouped)(x, w), grouped(x, w))
    counted = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=numbers, preferred_element_type=jnp.int32
    )
    x, w = (10 * x).astype(np.int8), (10 * w).astype(np.int8)
    np.testing.assert_array_equal(lowering.rewrite(counted)(x, w), counted(x, w))


@pytest.mark.parametrize("channels", [3, 8])
def test_bfloat16_keeps_its_type_and_agrees_to_its_precision(channels):
    convolve = functools.partial(jax.lax.conv_general_dilated, **_case((8, 5, 5, channels), (3, 3, channels, 4))[2])
    x, w = _normal((8, 5, 5, channels)).astype(jnp.bfloat16), _normal((3, 3, channels, 4), 1, 0.2).astype(jnp.bfloat16)

    @jax.jit
    def values(f, x, w):
        return f(x, w), jax.grad(lambda x, w: f(x, w).astype(float).sum(), (0, 1))(x, w)

    actual, expected = values(lowering.rewrite(convolve), x, w), values(Partial(convolve), x, w)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype(jnp.bfloat16)}
    _agree(actual, expected, 2e-2)


@pytest.mark.parametrize("channels", [3, 8])
def test_bfloat16_with_a_float32_accumulator_keeps_the_accumulator(channels):
    options = _case((1, 5, 5, channels), (3, 3, channels, 4))[2]
    convolve = Partial(functools.partial(jax.lax.conv_general_dilated, **options, preferred_element_type=jnp.float32))
    x, w = _normal((1, 5, 5, channels)).astype(jnp.bfloat16), _normal((3, 3, channels, 4), 1).astype(jnp.bfloat16)
    y = lowering.rewrite(convolve)(x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, convolve(x, w), rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda f, x, w: jnp.sum(jnp.sin(f(x, w))), (1, 2)))
    _agree(gradient(lowering.rewrite(convolve), x, w), gradient(convolve, x, w), 2e-2)


_POOLS = {
    "2x2 by 2": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "3x3 by 2, same": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "overlapping": ((1, 3, 2, 1), (1, 1, 1, 1), "VALID"),
    "explicit padding": ((1, 3, 3, 1), (1, 2, 3, 1), ((0, 0), (1, 2), (0, 1), (0, 0))),
    "channels first": ((1, 1, 2, 2), (1, 1, 2, 2), "VALID"),
}


@pytest.mark.parametrize("name", _POOLS)
def test_max_pools_keep_their_values_and_derivatives_also_at_ties(name):
    window, strides, padding = _POOLS[name]

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)

    def values(f, x, weight):
        y, back = jax.vjp(f, x)
        return y, back(weight)[0]

    def others(f, x):
        cubed = jax.jvp(jax.grad(lambda x: jnp.sum(f(x) ** 3)), (x,), (jnp.cos(x),))[1]
        return jax.jvp(f, (x,), (jnp.cos(x),))[1], cubed, jax.vmap(jax.grad(lambda a: jnp.sum(jnp.sin(f(a[None])))))(x)

    x = _normal((3, 7, 6, 5))
    weight = 1 + np.arange(np.prod(jax.eval_shape(pool, x).shape), dtype=np.float32).reshape(jax.eval_shape(pool, x).shape)
    tied = np.round(np.maximum(x, 0))
    assert (tied == 0).mean() > 0.5
    run, rewritten = jax.jit(values), lowering.rewrite(pool)
    for data in (x, tied, np.where(x > 0, -np.inf, x).astype(np.float32)):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6), run(rewritten, data, weight), run(Partial(pool), data, weight)
        )
    _agree(jax.jit(others)(rewritten, x), jax.jit(others)(Partial(pool), x))


def test_max_pools_of_bfloat16_and_integers():
    def pool(x, least):
        return jax.lax.reduce_window(x, jnp.asarray(least, x.dtype), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x = _normal((2, 4, 4, 1)).astype(jnp.bfloat16)
    pooled = lowering.rewrite(pool)(x, -jnp.inf)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, pool(x, -jnp.inf))
    counts = (10 * x).astype(np.int32)
    np.testing.assert_array_equal(lowering.rewrite(pool)(counts, -1000), pool(counts, -1000))


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.Conv(6, (3, 3))(x))
        x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3), strides=2)(x)))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(96, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.dense(self.dropout(x.reshape(x.shape[0], -1)))


@functools.cache
def _models():
    x = _normal((4, 8, 8, 1))
    net = _Linen()
    network = _Nnx(nnx.Rngs(0))
    network.eval()
    apply_fn = functools.partial(net.apply, train=False)
    return {"linen": Partial(apply_fn, net.init(jax.random.key(0), x)), "nnx": network}


def _logits_and_gradients(model_fn, x):
    def loss(model_fn, x):
        return jnp.sum(jnp.tanh(model_fn(x)))

    gradient = jax.grad(loss, (0, 1), allow_int=True)(model_fn, x)
    return model_fn(x), gradient[1], [leaf for leaf in jax.tree.leaves(gradient[0]) if jnp.issubdtype(leaf.dtype, jnp.floating)]


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_rewritten_network_is_a_pytree_with_the_same_logits_and_gradients(name):
    model_fn, x = _models()[name], _normal((4, 8, 8, 1), 2)
    rewritten = lowering.rewrite(model_fn)
    assert len(jax.tree.leaves(rewritten)) == len(jax.tree.leaves(model_fn))
    run = jax.jit(_logits_and_gradients)
    _agree(run(rewritten, x), run(model_fn, x))


def test_a_rewritten_model_with_new_parameters_does_not_retrace():
    traces = []

    @jax.jit
    def run(model_fn, x):
        traces.append(1)
        return model_fn(x)

    model_fn, x = _models()["linen"], _normal((4, 8, 8, 1), 2)
    first = run(lowering.rewrite(model_fn), x)
    second = run(lowering.rewrite(jax.tree.map(lambda leaf: 0.5 * leaf, model_fn)), x)
    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_a_training_loss_with_static_arguments_can_be_rewritten():
    net, x = _Linen(), _normal((4, 8, 8, 1))
    variables = net.init(jax.random.key(0), x)

    def apply_fn(params, state, x, mode):
        return net.apply({"params": params, **state}, x, train=mode == "train", mutable=["batch_stats"])

    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    for mode in ("train", "eval"):
        actual = lowering.rewrite(apply_fn)(params, state, x, mode)
        expected = apply_fn(params, state, x, mode)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        _agree(actual, expected)


def test_another_platform_gets_the_function_itself():
    assert lowering.rewrite(jnp.tanh, platform="tpu") is jnp.tanh
    assert lowering.rewrite(jnp.tanh, platform="gpu") is jnp.tanh
    assert lowering.rewrite(jnp.tanh, platform="cpu") is not jnp.tanh


@base.node
class _Noisy:
    w: jax.Array
    keys: jax.Array | None = None

    def __call__(self, x):
        noise = 0.0 if self.keys is None else jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(self.keys)
        return jax.lax.conv(x + noise, self.w, (1, 1), "SAME").mean((2, 3))

    def draw(self, keys):
        return _Noisy(self.w, keys)


def test_a_rewritten_randomised_model_stays_randomised():
    model_fn, x = _Noisy(_normal((3, 2, 3, 3), 1)), _normal((4, 2, 5, 5))
    rewritten = lowering.rewrite(model_fn)
    drawn = [base.draw(rewritten, jax.random.split(jax.random.key(seed), 4)) for seed in (0, 1)]
    _agree(drawn[0](x), model_fn.draw(jax.random.split(jax.random.key(0), 4))(x))
    assert not np.allclose(drawn[0](x), drawn[1](x))
    _agree(rewritten(x), model_fn(x))
    assert _convolutions(drawn[0], x) == {"robustjax_convolution"}


def _attack_gradient(model_fn, x):
    return jax.lax.scan(lambda x, _: (x + 0.1 * jax.grad(lambda x: jnp.tanh(model_fn(x)).sum())(x), None), x, None, length=2)[0]


def test_a_sharded_batch_gives_the_answer_of_one_device_and_stays_sharded():
    model_fn, x = lowering.rewrite(_models()["linen"]), _normal((8, 8, 8, 1), 3)
    mesh = parallel.data_mesh()
    run = jax.jit(lambda model_fn, x: (_attack_gradient(model_fn, x), *_logits_and_gradients(model_fn, x)))
    sharded = run(parallel.replicate(model_fn, mesh), parallel.shard_batch(x, mesh))
    _agree(sharded, run(model_fn, x))
    for output in sharded[:3]:
        assert output.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), output.ndim)


def test_a_rewritten_model_runs_inside_shard_map_and_sums_the_gradients_of_its_parameters():
    model_fn, x = lowering.rewrite(_models()["linen"]), _normal((8, 8, 8, 1), 3)
    data, whole = PartitionSpec("data"), PartitionSpec()

    def both(model_fn, x):
        return _attack_gradient(model_fn, x), jax.grad(lambda model_fn: jnp.tanh(model_fn(x)).sum())(model_fn)

    run = jax.jit(jax.shard_map(both, mesh=parallel.data_mesh(), in_specs=(whole, data), out_specs=(data, whole)))
    _agree(run(model_fn, x), jax.jit(both)(model_fn, x))
