"""Laws of bounds: what they are where nothing moves, what a batch, a chunk and a gradient may not change, certificates, and mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from robustjax import attacks, base, bounds, threats

METHODS = {"interval": bounds.interval, "crown": bounds.crown, "alpha_crown": functools.partial(bounds.alpha_crown, num_steps=5)}
_KEYS = jax.random.split(jax.random.key(3), 6)
_W1, _W2 = (np.asarray(jax.random.normal(key, shape)) / 3.0 for key, shape in zip(_KEYS, [(6, 6), (6, 3)], strict=False))
_X = np.asarray(jax.random.uniform(_KEYS[2], (5, 6)), np.float32)
_THREAT = threats.Linf(0.1)


def net(x):
    return jax.nn.relu(x @ _W1) @ _W2


def same(found, expected, atol=2e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("name", METHODS)
def test_where_nothing_moves_the_bounds_are_the_logits(name):
    found = jax.jit(METHODS[name], static_argnums=0)(net, _X, threats.Linf(0.0))
    same(found, (net(_X), net(_X)))


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_and_chunks_change_nothing(name):
    """Bounds of each example alone, with a radius and a box of its own, are those in the batch, however it is cut."""
    threat = threats.Linf(jnp.array([0.0, 0.05, 0.1, 0.2, 0.3]), box=(jnp.zeros((5, 6)), jnp.ones((5, 6))), mask=_X > 0.2)
    method = jax.jit(METHODS[name], static_argnums=(0,), static_argnames="chunk_size")
    whole = method(net, _X, threat)
    same(method(net, _X, threat, chunk_size=2), whole)
    alone = [method(net, _X[i : i + 1], threat.take_rows(np.array([i]), 5, 2)) for i in range(5)]
    same([jnp.concatenate(ends) for ends in zip(*alone, strict=True)], whole)


def test_both_orders_of_a_product_and_both_kinds_of_module_give_equal_bounds():
    def transposed(x):
        return (_W2.T @ jax.nn.relu(_W1.T @ x.T)).T

    dense = linen.Sequential([linen.Dense(6, use_bias=False), linen.relu, linen.Dense(3, use_bias=False)])
    variables = {"params": {"layers_0": {"kernel": _W1}, "layers_2": {"kernel": _W2}}}
    first, last = (nnx.Linear(6, num, use_bias=False, rngs=nnx.Rngs(0)) for num in (6, 3))
    module = nnx.Sequential(first, nnx.relu, last)
    first.kernel.set_value(jnp.asarray(_W1))
    last.kernel.set_value(jnp.asarray(_W2))
    models = (transposed, jax.tree_util.Partial(dense.apply, variables), module)
    for method in METHODS.values():
        expected = jax.jit(method, static_argnums=0)(net, _X, _THREAT)
        for model_fn in models:
            same(jax.jit(lambda x, model_fn=model_fn, method=method: method(model_fn, x, _THREAT))(_X), expected)


def test_slopes_that_were_learnt_are_never_looser():
    crown, learnt = (jax.jit(METHODS[name], static_argnums=0)(net, _X, threats.Linf(0.4)) for name in ("crown", "alpha_crown"))
    assert (learnt.lower >= crown.lower - 1e-6).all() and (learnt.upper <= crown.upper + 1e-6).all()
    assert (learnt.upper - learnt.lower).mean() < (crown.upper - crown.lower).mean() - 1e-3


def test_bounds_have_the_derivative_of_finite_differences():
    with jax.enable_x64(True):
        x, direction = jnp.asarray(_X, jnp.float64), jax.random.normal(_KEYS[4], _W1.shape, jnp.float64)
        for method in (bounds.interval, bounds.crown, functools.partial(bounds.crown, slope="parallel")):

            def total(step, method=method):
                w1 = jnp.asarray(_W1, jnp.float64) + step * direction
                lower, upper = method(lambda x: jax.nn.relu(x @ w1) @ jnp.asarray(_W2, jnp.float64), x, threats.Linf(0.1 + step))
                return (upper - lower).sum()

            total = jax.jit(total)
            slope = jax.jit(jax.grad(total))(0.0)
            np.testing.assert_allclose(slope, (total(1e-6) - total(-1e-6)) / 2e-6, rtol=1e-6)


def test_margins_merge_into_the_last_layer():
    """Of one affine layer the margin is exact, and the difference of the bounds of two logits is not."""
    y = np.array([0, 1, 2, 0, 1])
    found = bounds.margins(lambda x: x @ _W2, _X, y, _THREAT, bounds.interval)
    loose = bounds.logit_margins(bounds.interval(lambda x: x @ _W2, _X, _THREAT), y)
    for k in range(3):
        normal = _W2[:, y].T - _W2[:, k]
        exact = np.sum(_X * normal, axis=1) - _THREAT.support(-normal, _X)
        np.testing.assert_allclose(found.lower[:, k], exact, atol=2e-6)
    assert (loose.lower <= found.lower + 1e-6).all() and (loose.lower < found.lower - 1e-2).any()
    assert (found.lower[np.arange(5), y] == 0).all()


def test_a_certificate_is_the_sign_of_the_worst_margin_and_holds_against_attacks():
    y = np.asarray(net(_X).argmax(axis=1))
    attack = base.bind(attacks.pgd, threat=_THREAT, step_size=0.02, num_steps=10)
    found = bounds.certify(net, _X, threat=_THREAT, bound_fn=bounds.crown, attack=attack, key=jax.random.key(0))
    expected = bounds.worst(bounds.margins(net, _X, y, _THREAT, bounds.crown), y) > 0
    np.testing.assert_array_equal(found.certified, expected)
    np.testing.assert_array_equal(found.prediction, y)
    np.testing.assert_array_equal(found.radius, np.where(expected, np.float32(0.1), 0.0))
    assert 0 < found.certified.sum() < 5


def test_a_certificate_that_an_attack_breaks_is_an_error():
    def wrong(model_fn, x, threat):  # the logits themselves, as if nothing moved
        return bounds.Bounds(model_fn(x), model_fn(x))

    attack = base.bind(attacks.pgd, threat=threats.Linf(0.5), step_size=0.1, num_steps=10)
    with pytest.raises(RuntimeError, match="an attack changes the class of"):
        bounds.certify(net, _X, threat=threats.Linf(0.5), bound_fn=wrong, attack=attack, key=jax.random.key(0))


def test_the_radius_of_an_affine_model_is_its_distance_to_the_boundary():
    """|margin| / |normal|_q, far from the box."""
    x, y = 0.5 + 0.01 * _X, np.zeros(5, int)
    model_fn = lambda x: (x - 0.5) @ _W2[:, :2] + jnp.array([[0.1, 0.0]])  # noqa: E731
    normal = _W2[:, 0] - _W2[:, 1]
    margin = (x - 0.5) @ normal + 0.1
    for threat, order in ((threats.Linf(0.4), 1), (threats.L2(0.4), 2)):
        found = bounds.radius(model_fn, x, y, threat=threat, bound_fn=bounds.crown, num_bisections=16)
        np.testing.assert_allclose(found, margin / np.linalg.norm(normal, order), atol=1e-5)


def test_a_larger_radius_never_tightens_intervals():
    widths = jax.jit(jax.vmap(lambda eps: jnp.subtract(*bounds.interval(net, _X, threats.Linf(eps))[::-1])))(jnp.linspace(0, 0.5, 9))
    assert (jnp.diff(widths, axis=0) >= -1e-6).all()


def test_codes_of_a_decoder_are_bounded_in_their_ball():
    decoder = jax.tree_util.Partial(lambda w, z: jnp.tanh(z @ w), _W2.T)
    z = np.asarray(jax.random.normal(_KEYS[5], (5, 3)))
    threat = threats.Latent(decoder, 0.2)
    lower, upper = jax.jit(lambda z: bounds.crown(net, z, threat))(z)
    for i in range(20):
        outputs = net(threat.apply(z, threat.init(jax.random.key(i), z)))
        assert (outputs >= lower - 1e-5).all() and (outputs <= upper + 1e-5).all()


def test_the_largest_array_is_known_before_anything_is_compiled():
    """Two rows for each of 50 units, from where they start: the widest layer but the output."""
    model_fn = lambda x: jax.nn.relu(jax.nn.relu(x @ jnp.ones((6, 40))) @ jnp.ones((40, 50))) @ jnp.ones((50, 2))  # noqa: E731
    assert bounds.memory(functools.partial(bounds.crown, chunk_size=1), model_fn, _X, _THREAT) == 4 * 2 * 50 * 50


MISTAKES = {
    "a primitive without a rule": (lambda: bounds.crown(lambda x: jnp.sort(x, axis=1), _X, _THREAT), "no rule for the primitive 'sort'"),
    "another primitive": (lambda: bounds.interval(lambda x: jnp.argsort(x, axis=1) + x, _X, _THREAT), "no rule for the primitive"),
    "an output that does not depend": (lambda: bounds.crown(lambda x: jnp.ones((1, 3)), _X, _THREAT), "does not depend on its input"),
    "a box of one point": (lambda: bounds.crown(net, _X, threats.Linf(0.1, box=(_X, _X))), "the box of the threat is one point"),
    "a mask without freedom": (lambda: bounds.crown(net, _X, threats.Linf(0.1, mask=_X > 2)), "mask of the threat is False everywhere"),
    "train mode": (lambda: bounds.crown(nnx.Sequential(nnx.BatchNorm(6, rngs=nnx.Rngs(0))), _X, _THREAT), "train mode"),
    "a slope of no name": (lambda: bounds.crown(net, _X, _THREAT, slope="steep"), "expected slope as one of"),
    "several outputs": (lambda: bounds.crown(lambda x: (net(x), x), _X, _THREAT), "returns one array"),
    "integers": (lambda: bounds.crown(net, _X.astype(int), _THREAT), "floating type"),
    "an attack without a key": (
        lambda: bounds.certify(net, _X, threat=_THREAT, bound_fn=bounds.crown, attack=lambda *a: a),
        "attack and key together",
    ),
    "a label that is none": (
        lambda: bounds.certify(net, _X, np.array([0, 1, 2, 3, 0]), threat=_THREAT, bound_fn=bounds.crown),
        "expected labels y in",
    ),
    "a radius without end": (
        lambda: bounds.radius(net, _X, np.zeros(5, int), threat=threats.Linf(float("inf")), bound_fn=bounds.crown),
        "eps must be positive and finite",
    ),
    "logits that are NaN": (
        lambda: bounds.certify(lambda x: net(x) * jnp.nan, _X, threat=_THREAT, bound_fn=bounds.interval),
        "logits at x are not finite",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_no_norm_ball_is_told():
    with pytest.raises(TypeError, match="has no support"):
        bounds.crown(net, _X, threats.Recolor(0.1, grid_points=3))
