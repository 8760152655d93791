"""Laws of `bind`, which makes a verb a pytree, and of `draw`."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, lowering, smoothing, threats


def _verb(x, *, eps=0.0, num_steps=1, inner=None, **others):
    del others
    value = eps * x * num_steps
    return value if inner is None else inner(value)


def _scaled(x, *, scale, offset=0.0):
    return scale * x + offset


def test_arrays_and_floats_are_leaves_and_the_rest_is_static():
    bound = base.bind(
        _verb,
        eps=0.5,
        steps=3,
        marked=base.static(0.8),
        shape=(7, 8),
        array=jnp.ones(2),
        numpy=np.ones(3, np.float32),
        scalar=np.float32(2.0),
        function=jnp.tanh,
        name="text",
        flag=True,
        nothing=None,
    )
    assert sorted(np.size(leaf) for leaf in jax.tree.leaves(bound)) == [1, 1, 2, 3]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, bound).call_with(dict)
    assert (doubled["eps"], float(doubled["scalar"])) == (1.0, 4.0)
    np.testing.assert_array_equal(doubled["array"], 2.0)
    np.testing.assert_array_equal(doubled["numpy"], 2.0)
    unchanged = {name: doubled[name] for name in ("function", "name", "flag", "nothing", "steps", "marked", "shape")}
    assert unchanged == {
        "function": jnp.tanh,
        "name": "text",
        "flag": True,
        "nothing": None,
        "steps": 3,
        "marked": 0.8,
        "shape": (7, 8),
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
        traces.append(attack.get("inner").call_with(dict))
        return attack(x)

    for scale in (2.0, 3.0):
        inner = base.bind(_scaled, scale=jnp.array([scale, 0.0]), offset=1.0)
        np.testing.assert_allclose(run(base.bind(_verb, eps=0.5, inner=inner), jnp.ones(2)), [0.5 * scale + 1.0, 1.0])
    assert len(traces) == 1
    assert all(isinstance(value, jax.core.Tracer) for value in traces[0].values())
    nested = base.bind(_verb, inner=base.bind(_verb, num_steps=3, eps=1.0))
    assert jax.tree.map(lambda leaf: 10 * leaf, nested).get("inner").call_with(dict) == {"num_steps": 3, "eps": 10.0}


def test_statics_inside_a_bound_function_stay_static_when_read_or_rebound():
    outer = base.bind(_verb, eps=2.0, inner=base.bind(_verb, eps=3.0, num_steps=4, inner=jnp.negative))
    for inner in (outer.get("inner"), base.bind(outer, eps=5.0).get("inner"), jax.tree.map(lambda leaf: leaf, outer).get("inner")):
        assert jax.tree.leaves(inner) == [3.0]
        assert float(jax.jit(lambda f: f(1.0))(inner)) == -12.0
    assert sorted(jax.tree.leaves(base.bind(outer, eps=5.0))) == [3.0, 5.0]


def test_a_bound_model_keeps_its_parameters_traced():
    model_fn = Partial(lambda params, x: x @ params, jnp.eye(2))
    gradient = jax.grad(lambda bound: bound(jnp.ones((1, 2))).sum())(base.bind(_verb, eps=1.0, inner=model_fn))
    np.testing.assert_array_equal(gradient.get("inner").args[0], 1.0)


def test_rebinding_adds_and_replaces_without_touching_the_first():
    first = base.bind(_verb, eps=1.0, num_steps=2)
    second = base.bind(first, eps=3.0, inner=jnp.negative)
    assert first(1.0) == 2.0
    assert second(1.0) == -6.0
    assert second.function is _verb
    assert second.call_with(dict) == {"eps": 3.0, "num_steps": 2, "inner": jnp.negative}


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
    assert bound.get("optimizer") == (jnp.sin, jnp.cos)


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


def test_children_are_what_can_be_called_and_a_value_that_does_not_change_stays_static():
    bound = base.bind(_verb, inner=base.bind(_scaled, scale=2.0), pair=(jnp.sin, jnp.cos), sizes=(1, 2), fraction=base.static(0.5), eps=1.0)
    assert [getattr(child, "function", child) for child in bound.children()] == [_scaled, jnp.sin, jnp.cos]
    changed = bound.map_children(lambda child: jnp.tan if child is jnp.sin else child)
    assert changed.get("pair") == (jnp.tan, jnp.cos)
    assert changed.get("missing", 7) == 7
    assert sorted(jax.tree.leaves(changed)) == [1.0, 2.0]


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


@base.node
class _Random:
    """x + normal noise drawn for every example; undrawn it must not be called."""

    scale: jax.Array

    def __call__(self, x):
        raise ValueError("draw first")

    def draw(self, keys):
        return Partial(lambda s, noise, x: x + s * noise, self.scale, jax.vmap(jax.random.normal)(keys)[:, None])


@base.node
class _Around:
    """A random model around another one, which it does not draw."""

    inner: object

    def draw(self, keys):
        return Partial(lambda inner, noise, x: inner(x + noise), self.inner, jax.vmap(jax.random.normal)(keys)[:, None])


class _Opaque:
    """A random model that is no pytree."""

    def draw(self, keys):
        return _Random(1.0).draw(keys)


def _apply(x, *, model_fn):
    return model_fn(x)


def _nested():
    noisy = _Random(jnp.float32(1.0))
    return {
        "bound": base.bind(_apply, model_fn=noisy),
        "twice bound": base.bind(_apply, model_fn=base.bind(_apply, model_fn=noisy)),
        "partial": Partial(lambda model_fn, x: model_fn(x), noisy),
        "denoiser": smoothing.denoised(jnp.negative, noisy),
        "soft inside denoised": smoothing.denoised(smoothing.soft(jnp.negative, sigma=1.0, num_samples=2), jnp.tanh),
        "rewritten": lowering.rewrite(base.bind(_apply, model_fn=noisy), platform="cpu"),
        "inside a random model": _Around(base.bind(_apply, model_fn=noisy)),
        "no pytree": base.bind(_apply, model_fn=_Opaque()),
        "eot of it": attacks.eot(base.bind(_apply, model_fn=noisy), num_samples=2),
    }


@pytest.mark.parametrize("name", list(_nested()))
def test_randomness_anywhere_inside_a_model_is_drawn_afresh_from_each_keys(name):
    keys = jax.random.split(jax.random.key(1), 4)
    x = jnp.zeros((4, 3))
    run = jax.jit(lambda model_fn, keys: base.draw(model_fn, keys)(x)) if name != "no pytree" else lambda m, k: base.draw(m, k)(x)
    one, same, other = (run(_nested()[name], k) for k in (keys, keys, jax.vmap(jax.random.fold_in, (0, None))(keys, 7)))
    np.testing.assert_array_equal(one, same)
    assert (one[:, 0] != other[:, 0]).all(), "another key draws other noise"
    assert len(np.unique(np.asarray(one[:, 0]))) == 4, "every example has its own"


def test_two_random_parts_share_no_key():
    keys = jax.random.split(jax.random.key(1), 64)
    noise = jax.jit(lambda m: base.draw(m, keys)(jnp.zeros((64, 1))))
    pair = base.bind(lambda x, *, first, second: jnp.concatenate([first(x), second(x)], axis=1), first=_Random(1.0), second=_Random(1.0))
    first, second = noise(pair).T
    assert (first != second).all()
    outer = base.draw(_Around(_Random(0.0)), keys)(jnp.zeros((64, 1)))
    inner = base.draw(_Around(_Random(1.0)), keys)(jnp.zeros((64, 1))) - outer
    assert not np.isclose(inner, outer).any()


def test_the_threat_protocol_is_recognised_by_its_methods():
    assert isinstance(threats.Linf(0.1), base.Threat)
    assert not isinstance(jnp.tanh, base.Threat)


def _both(key, model_fn, x, y, *, members):
    first, *others = members.values() if isinstance(members, dict) else members
    result = first(key, model_fn, x, y)
    for other in others:
        result = other(key, model_fn, x, y)
    return result


def _loop(step, carry, num_steps, done_fn):
    del done_fn
    for i in range(num_steps):
        carry = step(i, carry)
    return carry


def test_a_users_combinator_and_loop_are_told_apart_whatever_their_arguments_are_called():
    pgd = base.bind(attacks.pgd, threat=threats.Linf(0.1), step_size=0.1, num_steps=1)
    for members in ((pgd, pgd), [pgd, pgd], {"u": pgd, "v": pgd}):
        combination = base.bind(_both, members=members)
        assert [part.function for part in attacks.parts(combination)] == [attacks.pgd, attacks.pgd]
        assert len(attacks.combinators.threats_of(combination)) == 2
        assert attacks.combinators.is_targeted(attacks.targeted(combination))
    looped = base.bind(pgd, loop_fn=_loop)
    assert attacks.parts(looped)[0].get("loop_fn") is _loop
    assert attacks.targeted(looped).get("loop_fn") is _loop


@base.node
class _Grid:
    scale: float
    size: int = base.static_field(default=3)


def test_a_static_field_is_part_of_the_structure_and_the_others_are_leaves():
    num_traces = 0

    @jax.jit
    def run(grid):
        nonlocal num_traces
        num_traces += 1
        return grid.scale * jnp.ones(grid.size)

    assert [run(_Grid(scale, size)).shape for scale, size in ((1.0, 3), (2.0, 3), (2.0, 4))] == [(3,), (3,), (4,)]
    assert num_traces == 2
    assert jax.tree.leaves(_Grid(1.0)) == [1.0]
    assert jax.vmap(lambda grid: grid.scale * grid.size)(_Grid(jnp.arange(2.0), 4)).tolist() == [0.0, 4.0]
