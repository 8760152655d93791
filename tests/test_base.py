"""Laws of `bind`, which makes a verb a pytree, and of `draw`."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import base, threats


def _verb(x, *, eps=0.0, num_steps=1, inner=None, **others):
    del others
    value = eps * x * num_steps
    return value if inner is None else inner(value)


def _scaled(x, *, scale, offset=0.0):
    return scale * x + offset


def test_arrays_and_numbers_are_leaves_and_the_rest_is_static():
    bound = base.bind(
        _verb,
        eps=0.5,
        steps=3,
        array=jnp.ones(2),
        numpy=np.ones(3, np.float32),
        scalar=np.float32(2.0),
        function=jnp.tanh,
        name="text",
        flag=True,
        nothing=None,
        num_steps=4,
        chunk_size=5,
        batch_size=6,
        patch_size=(7, 8),
    )
    assert sorted(np.size(leaf) for leaf in jax.tree.leaves(bound)) == [1, 1, 1, 2, 3]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, bound).hyper
    assert (doubled["eps"], doubled["steps"], float(doubled["scalar"])) == (1.0, 6, 4.0)
    np.testing.assert_array_equal(doubled["array"], 2.0)
    np.testing.assert_array_equal(doubled["numpy"], 2.0)
    unchanged = {
        name: doubled[name] for name in ("function", "name", "flag", "nothing", "num_steps", "chunk_size", "batch_size", "patch_size")
    }
    assert unchanged == {
        "function": jnp.tanh,
        "name": "text",
        "flag": True,
        "nothing": None,
        "num_steps": 4,
        "chunk_size": 5,
        "batch_size": 6,
        "patch_size": (7, 8),
    }


def test_calling_passes_the_bound_values_and_lets_a_call_override_them():
    bound = base.bind(_verb, eps=2.0, num_steps=3)
    assert bound(1.0) == 6.0
    assert bound(1.0, num_steps=1) == 2.0
    assert bound(1.0) == 6.0


def test_new_numbers_do_not_retrace_and_new_statics_do():
    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(bound, x):
        return bound(x)

    for eps in (0.1, 0.7, 3.0):
        np.testing.assert_allclose(run(base.bind(_verb, eps=eps, num_steps=2), 1.0), 2 * eps, rtol=1e-6)
    np.testing.assert_allclose(run(base.bind(_verb, eps=0.1, num_steps=5), 1.0), 0.5, rtol=1e-6)
    with pytest.raises(AssertionError, match="traced"):
        run(base.bind(_verb, eps=0.1, num_steps=6), 1.0)


def test_a_bound_loss_inside_a_bound_attack_keeps_its_arrays_traced_and_its_statics_static():
    traces = []

    @jax.jit
    def run(attack, x):
        traces.append(attack.hyper["inner"].hyper)
        return attack(x)

    for scale in (2.0, 3.0):
        inner = base.bind(_scaled, scale=jnp.array([scale, 0.0]), offset=1.0)
        np.testing.assert_allclose(run(base.bind(_verb, eps=0.5, inner=inner), jnp.ones(2)), [0.5 * scale + 1.0, 1.0])
    assert len(traces) == 1
    assert all(isinstance(value, jax.core.Tracer) for value in traces[0].values())
    nested = base.bind(_verb, inner=base.bind(_verb, num_steps=3, eps=1.0))
    assert jax.tree.map(lambda leaf: 10 * leaf, nested).hyper["inner"].hyper == {"num_steps": 3, "eps": 10.0}


def test_statics_inside_a_bound_function_stay_static_when_read_or_rebound():
    outer = base.bind(_verb, eps=2.0, inner=base.bind(_verb, eps=3.0, num_steps=4, inner=jnp.negative))
    for inner in (outer.hyper["inner"], base.bind(outer, eps=5.0).hyper["inner"], jax.tree.map(lambda leaf: leaf, outer).hyper["inner"]):
        assert jax.tree.leaves(inner) == [3.0]
        assert float(jax.jit(lambda f: f(1.0))(inner)) == -12.0
    assert sorted(jax.tree.leaves(base.bind(outer, eps=5.0))) == [3.0, 5.0]


def test_a_bound_model_keeps_its_parameters_traced():
    model_fn = Partial(lambda params, x: x @ params, jnp.eye(2))
    gradient = jax.grad(lambda bound: bound(jnp.ones((1, 2))).sum())(base.bind(_verb, eps=1.0, inner=model_fn))
    np.testing.assert_array_equal(gradient.hyper["inner"].args[0], 1.0)


def test_rebinding_adds_and_replaces_without_touching_the_first():
    first = base.bind(_verb, eps=1.0, num_steps=2)
    second = base.bind(first, eps=3.0, inner=jnp.negative)
    assert first(1.0) == 2.0
    assert second(1.0) == -6.0
    assert second.function is _verb
    assert second.hyper == {"eps": 3.0, "num_steps": 2, "inner": jnp.negative}


def test_a_bound_function_survives_flatten_and_vmap_over_a_leaf():
    bound = base.bind(_verb, eps=jnp.array([1.0, 2.0]), num_steps=2)
    rebuilt = jax.tree.unflatten(jax.tree.structure(bound), jax.tree.leaves(bound))
    np.testing.assert_array_equal(rebuilt(1.0), [2.0, 4.0])
    np.testing.assert_array_equal(jax.vmap(lambda b: b(jnp.float32(3.0)))(bound), [6.0, 12.0])
    assert jax.tree.structure(bound) == jax.tree.structure(base.bind(_verb, eps=jnp.zeros(2), num_steps=2))
    assert "eps" in repr(bound)


def test_an_optimizer_and_other_tuples_of_functions_are_static():
    bound = base.bind(_verb, optimizer=(jnp.sin, jnp.cos), box=(0.0, 1.0))
    assert jax.tree.leaves(bound) == [0.0, 1.0]
    assert bound.hyper["optimizer"] == (jnp.sin, jnp.cos)


@base.node
class _Plain:
    weight: jax.Array

    def __call__(self, x):
        return self.weight * x


@base.node
class _Doubled(_Plain):
    def __call__(self, x):
        return 2 * self.weight * x


def test_a_node_is_a_frozen_pytree_with_named_paths():
    value = _Plain(jnp.arange(3.0))
    assert jax.tree_util.tree_flatten_with_path(value)[0][0][0] == (jax.tree_util.GetAttrKey("weight"),)
    assert float(dataclasses.replace(value, weight=2.0)(3.0)) == 6.0
    with pytest.raises(AttributeError):
        value.weight = 1.0
    np.testing.assert_array_equal(jax.vmap(lambda v: v(1.0))(value), jnp.arange(3.0))


def test_jit_and_bind_tell_two_classes_with_equal_fields_apart():
    run = jax.jit(lambda f: f(1.0))
    assert [float(run(cls(3.0))) for cls in (_Plain, _Doubled)] == [3.0, 6.0]
    assert [float(run(base.bind(_verb, eps=1.0, inner=cls(3.0)))) for cls in (_Plain, _Doubled)] == [3.0, 6.0]


@base.node
class _Noisy:
    weight: jax.Array

    def __call__(self, x):
        return x * self.weight

    def draw(self, keys):
        return _Noisy(jax.vmap(jax.random.normal)(keys)[:, None])


def test_draw_is_the_identity_for_ordinary_models_and_draws_from_others():
    keys = jax.random.split(jax.random.key(0), 3)
    model_fn = Partial(jnp.multiply, 2.0)
    assert base.draw(model_fn, keys) is model_fn
    assert base.draw(jnp.tanh, keys) is jnp.tanh
    drawn = base.draw(_Noisy(jnp.ones(())), keys)
    np.testing.assert_array_equal(drawn(jnp.ones((3, 1)))[:, 0], jax.vmap(jax.random.normal)(keys))


def test_the_threat_protocol_is_recognised_by_its_methods():
    assert isinstance(threats.Linf(0.1), base.Threat)
    assert not isinstance(jnp.tanh, base.Threat)
