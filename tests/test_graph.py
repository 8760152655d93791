"""Rewriting with no rule changes nothing, and a rule reaches every place a function can hide in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import graph


@jax.custom_jvp
def _straight_through(x):
    return jnp.round(x)


_straight_through.defjvp(lambda primals, tangents: (_straight_through(*primals), *tangents))


@jax.custom_vjp
def _tripled_gradient(x, y):
    return jnp.sin(x) * y


_tripled_gradient.defvjp(
    lambda x, y: (_tripled_gradient(x, y), (x, y)), lambda saved, g: (3 * g * jnp.cos(saved[0]) * saved[1], g * jnp.sin(saved[0]))
)


@jax.custom_jvp
def _pair(x):
    return jnp.sin(x), jnp.cos(x)


_pair.defjvp(lambda primals, tangents: (_pair(*primals), (5 * tangents[0], 7 * tangents[0])))


def _jit(x):
    return jax.jit(lambda a, b: jnp.sin(a) * b)(x, 2.0)


def _scan(x):
    carry, ys = jax.lax.scan(lambda c, a: (jnp.sin(c) + a, c * a), x[0], x, reverse=True)
    return carry + ys.sum() + x


def _scan_of_nothing_with_consts(x):
    return jax.lax.scan(lambda c, _: (c + jnp.sin(x), None), 0.0 * x, None, length=3)[0]


def _while(x):
    return jax.lax.while_loop(lambda c: jnp.sin(c[0]) * 0.0 + c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1]) + x), (0.0, x))[1]


def _fori(x):
    return jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + i, x)


def _cond(x):
    return jax.lax.cond(x[0] > 0, lambda a: jnp.sin(a), lambda a: 2 * a, x) + jax.lax.switch(2, [jnp.negative, jnp.cos, jnp.sin], x)


def _checkpoint(x):
    return jax.checkpoint(lambda a: jnp.sin(a) * a, policy=jax.checkpoint_policies.dots_saveable)(x)


def _relu_and_round(x):
    return jax.nn.relu(x) + _straight_through(3 * x)


def _custom_vjp(x):
    return _tripled_gradient(x, x) + _tripled_gradient(x, 2.0 * jnp.ones_like(x))


def _one_of_two(x):
    return _pair(x)[1]


def _nested(x):
    return jax.jit(jax.checkpoint(lambda a: _scan(_cond(a)) * _relu_and_round(a)))(x)


def _duplicates_and_literals(x):
    return jnp.where(x > 0, x * x + 1.0, x - x) + jnp.power(x, 2) + jnp.full_like(x, 3)


_FUNCTIONS = (
    _jit,
    _scan,
    _scan_of_nothing_with_consts,
    _while,
    _fori,
    _cond,
    _checkpoint,
    _relu_and_round,
    _custom_vjp,
    _one_of_two,
    _nested,
    _duplicates_and_literals,
)
_X = jnp.array([0.0, 0.4, -1.3])


@pytest.mark.parametrize("function", _FUNCTIONS, ids=lambda f: f.__name__)
def test_an_empty_table_is_the_identity_in_values_and_gradients(function):
    rewritten = graph.rewrite(function, {})
    transform = jax.jvp if function is _while else jax.vjp

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x):
        if transform is jax.jvp:
            return jax.jvp(f, (x,), (jnp.cos(x) + 2,))
        y, back = jax.vjp(f, x)
        return y, back(jnp.cos(y) + 2)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), both(rewritten, _X), both(function, _X))


def test_the_gradient_of_relu_at_zero_stays_zero_and_straight_through_stays():
    gradient = jax.grad(lambda x: graph.rewrite(_relu_and_round, {})(x).sum())(_X)
    np.testing.assert_array_equal(gradient, [3.0, 4.0, 3.0])


def test_eager_and_batched_evaluation_agree():
    rewritten = graph.rewrite(_nested, {})
    x = jnp.stack([_X, -_X, 2 * _X])
    np.testing.assert_allclose(jax.vmap(rewritten)(x), jnp.stack([_nested(row) for row in x]), rtol=1e-6)


_COSINE = {"sin": lambda context, eqn, x: [jax.lax.cos(x)]}


@pytest.mark.parametrize(
    "function", [_jit, _scan, _scan_of_nothing_with_consts, _while, _fori, _cond, _checkpoint, _nested], ids=lambda f: f.__name__
)
def test_a_rule_replaces_its_primitive_inside_every_structure(function, monkeypatch):
    rewritten = graph.rewrite(function, _COSINE)(_X)
    names = {eqn.primitive.name for eqn, _ in graph.walk(graph.program(graph.rewrite(function, _COSINE), _X))}
    assert "sin" not in names
    monkeypatch.setattr(jnp, "sin", jnp.cos)
    expected = function(_X)
    np.testing.assert_allclose(rewritten, expected, rtol=1e-6)
    assert not np.allclose(rewritten, graph.rewrite(function, {"cos": lambda context, eqn, x: [jax.lax.sin(x)]})(_X))


def test_a_rule_leaves_the_bodies_of_custom_derivatives_alone():
    for function in (_custom_vjp, _one_of_two):
        np.testing.assert_array_equal(graph.rewrite(function, _COSINE)(_X), function(_X))


def test_a_rule_sees_the_equation_and_its_values():
    def doubled(context, eqn, x, y):
        assert eqn.primitive.name == "mul"
        return [2 * x * y]

    np.testing.assert_allclose(graph.rewrite(lambda x: x * x + 3.0 * x, {"mul": doubled})(_X), 2 * (_X**2 + 3 * _X), rtol=1e-6)


def test_pytrees_keywords_constants_and_static_arguments_pass_through():
    table = jnp.arange(3.0)

    def function(tree, y=1.0, *, scale, train, name="relu"):
        out = tree["a"] * scale + table + y if train else tree["a"]
        return {"out": out, "input": tree["b"], "constant": 2.0, "nothing": None}, (jnp.float32(1.0), getattr(jax.nn, name)(out))

    tree = {"a": _X, "b": np.arange(2)}
    expected = function(tree, scale=2.0, train=True)
    actual = graph.rewrite(function, {})(tree, scale=2.0, train=True)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    np.testing.assert_array_equal(graph.rewrite(function, {})(tree, scale=2.0, train=False)[0]["out"], _X)


def test_typed_keys_and_random_draws_survive():
    def function(key, x):
        return x + jax.random.normal(jax.random.fold_in(key, 1), x.shape)

    np.testing.assert_array_equal(graph.rewrite(function, {})(jax.random.key(0), _X), function(jax.random.key(0), _X))


def test_the_walk_counts_the_runs_inside_loops():
    def function(x):
        x = jax.lax.scan(lambda c, _: (jax.lax.scan(lambda d, _: (jnp.sin(d), None), c, None, length=3)[0], None), x, None, length=4)[0]
        return jnp.cos(jax.lax.while_loop(lambda c: c[0] < 1, jnp.tanh, x))

    times = {eqn.primitive.name: n for eqn, n in graph.walk(graph.program(function, _X))}
    assert (times["sin"], times["cos"], times["tanh"]) == (12, 1, None)
