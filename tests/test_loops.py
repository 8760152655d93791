"""The loops run the same steps, and the early ones freeze one example at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import base, loops

_LOOPS = {
    "scan": loops.scan,
    "checkpointed": loops.checkpointed,
    "while_": loops.while_,
    "host": loops.host,
    "early host": functools.partial(loops.host, early_stopped=True),
}


def _step(i, carry, *, rate):
    x, count = carry
    return x + rate * jnp.sin(x + i), count + 1


def _start(rows=(0.1, 0.5, 2.0, -1.0)):
    x = jnp.array(rows, jnp.float32)
    return jnp.stack([x, 2 * x], axis=1), jnp.zeros(len(rows), int)


@pytest.mark.parametrize("name", _LOOPS)
@pytest.mark.parametrize("num_steps", [0, 5])
def test_every_loop_takes_the_steps_of_a_python_loop(name, num_steps):
    step = base.bind(_step, rate=0.3)
    expected = _start()
    for i in range(num_steps):
        expected = step(i, expected)
    x, count = _LOOPS[name](step, _start(), num_steps)
    np.testing.assert_allclose(x, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(count, num_steps)


def _far(carry):
    return jnp.abs(carry[0]).max(axis=1) > 2.5


@pytest.mark.parametrize("name", ["while_", "early host"])
def test_early_exit_freezes_each_example_where_it_is_done_whatever_its_companions(name):
    loop_fn, step = _LOOPS[name], base.bind(_step, rate=0.3)
    rows = (0.1, 0.5, 2.0, -1.0)
    x, count = loop_fn(step, _start(rows), 6, _far)
    for row, value in enumerate(rows):
        alone_x, alone_count = loop_fn(step, _start((value,)), 6, _far)
        np.testing.assert_allclose(x[row], alone_x[0], rtol=1e-5, atol=1e-6)
        expected = _start((value,))
        for i in range(6):
            if not _far(expected)[0]:
                expected = step(i, expected)
        assert count[row] == alone_count[0] == expected[1][0]
        np.testing.assert_allclose(x[row], expected[0][0], rtol=1e-5, atol=1e-6)
    assert len(set(np.asarray(count).tolist())) >= 3
    assert count[2] == 0


@pytest.mark.parametrize("name", ["scan", "checkpointed", "host"])
def test_the_full_loops_take_every_step_although_all_are_done(name):
    _, count = _LOOPS[name](base.bind(_step, rate=0.3), _start(), 3, lambda carry: jnp.ones(4, bool))
    np.testing.assert_array_equal(count, 3)


def test_the_early_loops_stop_when_all_are_done():
    calls = []
    loop_fn = functools.partial(loops.host, early_stopped=True, progress_fn=lambda done, total: calls.append((done, total)))
    _, count = loop_fn(base.bind(_step, rate=0.3), _start(), 9, lambda carry: carry[1] >= 2)
    np.testing.assert_array_equal(count, 2)
    assert calls == [(1, 9), (2, 9)]
    _, count = loops.while_(base.bind(_step, rate=0.3), _start(), 9, lambda carry: carry[1] >= 2)
    np.testing.assert_array_equal(count, 2)


def test_host_reports_progress_after_each_step():
    calls = []
    loops.host(base.bind(_step, rate=0.3), _start(), 3, progress_fn=lambda *args: calls.append(args))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())])
def test_host_under_a_transformation_raises(transform):
    with pytest.raises(ValueError, match=r"loops\.scan"):
        transform(lambda x: loops.host(lambda i, x: x + i, x, 3))(jnp.ones(3))
    with pytest.raises(ValueError, match=r"loops\.scan"):
        transform(lambda rate: loops.host(base.bind(_step, rate=rate), _start(), 3)[0])(jnp.ones(1))


def test_host_compiles_once_for_other_numbers_and_other_steps():
    traces = []

    def step(i, x, *, rate):
        traces.append(i)
        return x + rate

    for rate in (0.1, 0.7):
        np.testing.assert_allclose(loops.host(base.bind(step, rate=rate), jnp.zeros(2), 4), 4 * rate, rtol=1e-6)
    assert len(traces) == 1


def _attack(x, *, loop_fn):
    return loop_fn(lambda i, x: x + i, x, 2)


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        (loops.host, True),
        (loops.scan, False),
        (functools.partial(loops.host, early_stopped=True), True),
        (functools.partial(functools.partial(loops.host), early_stopped=True), True),
        (functools.partial(loops.while_), False),
        (base.bind(_attack, loop_fn=loops.host), True),
        (base.bind(_attack, loop_fn=functools.partial(loops.host, early_stopped=True)), True),
        (base.bind(_attack, loop_fn=base.bind(loops.host, early_stopped=True)), True),
        (base.bind(_attack, loop_fn=loops.scan), False),
        (base.bind(_attack, attack=base.bind(_attack, loop_fn=loops.host)), True),
        (base.bind(_attack, attacks=(base.bind(_attack, loop_fn=loops.scan), base.bind(_attack, loop_fn=loops.host))), True),
        (functools.partial(_attack, loop_fn=loops.host), True),
        (functools.partial(base.bind(_attack, loop_fn=loops.host)), True),
        (base.bind(_attack, attack=functools.partial(_attack, loop_fn=loops.host)), True),
        (functools.partial(_attack, loop_fn=loops.scan), False),
    ],
)
def test_is_host_finds_a_host_loop_wherever_it_is_bound(verb, expected):
    assert loops.is_host(verb) is expected


def test_gradients_through_scan_and_checkpointed_are_those_of_the_unrolled_steps():
    def final(loop_fn, rate, x):
        return jnp.sum(loop_fn(base.bind(_step, rate=rate), (x, jnp.zeros(4, int)), 5)[0] ** 2)

    def unrolled(step, carry, num_steps, done_fn=None):
        for i in range(num_steps):
            carry = step(i, carry)
        return carry

    x = _start()[0]
    expected = jax.grad(final, (1, 2))(unrolled, 0.3, x)
    for loop_fn in (loops.scan, loops.checkpointed):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), jax.grad(final, (1, 2))(loop_fn, 0.3, x), expected)
    forward = jax.jvp(lambda rate: final(functools.partial(loops.while_, done_fn=lambda c: c[1] >= 5), rate, x), (0.3,), (1.0,))[1]
    np.testing.assert_allclose(forward, expected[0], rtol=1e-5)


def test_a_loop_run_in_parts_comes_to_the_same_end():
    step, first, carry = base.bind(_step, rate=0.3), 0, _start()
    for end in (1, 4, 4, 6):
        first, carry = loops.between(step, carry, first, end, _far)
        assert first == end
    jax.tree.map(np.testing.assert_array_equal, carry, loops.while_(step, _start(), 6, _far))
    assert loops.between(step, carry, 2, 6, lambda carry: jnp.ones(len(carry[1]), bool))[0] == 2  # all are done
