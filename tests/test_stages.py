"""Attacks in stages: what is finished is not computed again, and leaving it out changes no result."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, evaluate, loops, parallel
from robustjax.attacks import kinds
from robustjax.evaluate import stages
from robustjax.threats import L2, Linf

N, D, C, NUM_STEPS = 40, 12, 5, 30
KEY = jax.random.key(0)
COUNT: collections.Counter = collections.Counter()


def _tally(what, x, traced):
    # Called once for every pass that is run; the traced number makes vmap call it for each of its passes.
    jax.debug.callback(lambda _: COUNT.update({what: x.shape[0]}), traced.ravel()[0])


def _network(weights, x):
    return ((x - 0.5) @ weights) ** 3  # the flatter the nearer: the farther an example is, the more steps it takes


@jax.custom_vjp
def _counted(weights, x):
    _tally("forward", x, x)
    return _network(weights, x)


def _backward(saved, cotangent):
    _tally("backward", saved[1], cotangent)
    return None, jax.vjp(lambda x: _network(saved[0], x), saved[1])[1](cotangent)[0]


_counted.defvjp(lambda weights, x: (_counted(weights, x), (weights, x)), _backward)


def _problem(network=_network):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(D, C)).astype(np.float32)
    x = rng.uniform(0.2, 0.8, size=(N, D)).astype(np.float32)
    return jax.tree_util.Partial(network, weights), x, np.asarray(_network(weights, x).argmax(axis=1))


def _reference():
    """The passes of DeepFool run example by example, as in the paper: a forward pass a step, and a backward pass for each class."""
    model_fn, x, y = _problem()
    values, jacobian = jax.jit(model_fn), jax.jit(jax.vmap(jax.jacrev(lambda x: model_fn(x[None])[0])))
    walk, forward, backward, rows = np.zeros_like(x), 0, 0, np.arange(N)
    for _ in range(NUM_STEPS):
        point = np.clip(x + 1.02 * walk, 0.0, 1.0)
        logits, gradients = np.array(values(point)), np.array(jacobian(point))
        forward += len(rows)
        rows = rows[logits[rows].argmax(axis=1) == y[rows]]
        backward += C * len(rows)
        for n in rows:
            value, normal = logits[n] - logits[n, y[n]], gradients[n] - gradients[n, y[n]]
            value[y[n]] = np.inf
            length = np.linalg.norm(normal, axis=1) + 1e-12
            k = np.argmin(np.abs(value) / length)
            walk[n] += (np.abs(value[k]) / length[k] + 1e-4) * normal[k] / length[k]
    return forward, backward


def _last(attack, **options):
    model_fn, x, y = _problem(options.pop("network", _network))
    *_, state = evaluate.evaluate(KEY, {"a": attack}, model_fn, x, y, rewritten=False, **({"batch_size": N} | options))
    return state


def test_deepfool_takes_at_most_1_3_of_the_passes_of_a_run_example_by_example():
    COUNT.clear()
    _last(base.bind(attacks.deepfool, threat=L2(jnp.inf), num_steps=NUM_STEPS), network=_counted)
    jax.effects_barrier()
    forward, backward = _reference()
    assert COUNT["backward"] <= 1.3 * backward
    assert COUNT["forward"] - N + COUNT["backward"] <= 1.3 * (forward + backward)  # the clean pass is not the attack's


@pytest.mark.parametrize("options", [{"batch_size": 16}, {"mesh": True}], ids=["three batches", "four devices"])
def test_what_is_left_out_of_a_stage_has_the_result_of_the_whole_run(options):
    model_fn, x, y = _problem()
    threat = Linf(np.linspace(0.01, 0.2, N, dtype=np.float32))  # a field of the examples, which must follow them
    attack = base.bind(attacks.deepfool, threat=threat, num_steps=NUM_STEPS)
    whole = jax.jit(attack)(KEY, model_fn, x, y)
    options = {"mesh": parallel.data_mesh(4)} if "mesh" in options else options
    state = _last(attack, **options)
    assert 0 < whole.success.sum() < N
    np.testing.assert_array_equal(state.success[0], whole.success)
    np.testing.assert_allclose(state.loss[0], whole.loss, rtol=1e-4)
    np.testing.assert_allclose(state.x[whole.success], whole.x[whole.success], atol=1e-6)


@pytest.mark.parametrize("attack", kinds.STOPS_ALONE, ids=lambda attack: attack.__name__)
def test_steps_after_an_example_is_done_change_nothing(attack):
    model_fn, x, y = _problem()
    attack = base.bind(attack, threat=L2(jnp.inf), num_steps=NUM_STEPS)
    scanned, stopped = (jax.jit(base.bind(attack, loop_fn=loop_fn))(KEY, model_fn, x, y) for loop_fn in (loops.scan, loops.while_))
    jax.tree.map(np.testing.assert_array_equal, scanned, stopped)


def test_a_loop_of_the_users_own_is_kept():
    attack = base.bind(attacks.deepfool, threat=L2(jnp.inf), num_steps=2)
    calls = []

    def loop_fn(step, carry, num_steps, done_fn):
        calls.append(num_steps)
        return loops.scan(step, carry, num_steps, done_fn)

    assert kinds.stops_alone(attack) and kinds.stops_alone(base.bind(attack, loop_fn=loops.while_))
    assert not any(kinds.stops_alone(base.bind(attack, loop_fn=own)) for own in (loop_fn, loops.host))
    _last(base.bind(attack, loop_fn=loop_fn))
    assert 2 in calls


def test_parts_fill_their_programs():
    for batch_size, num_devices in ((100, 1), (100, 2), (16, 2), (7, 1), (1, 1)):
        sizes = stages._sizes(-(-batch_size // num_devices) * num_devices, num_devices)
        assert len(sizes) <= 3 and all(size % num_devices == 0 for size in sizes)
        for num_rows in range(1, batch_size + 1):
            parts = stages._parts(num_rows, sizes)
            padded = sum(min(size for size in sizes if size >= part) for part in parts)
            assert sum(parts) == num_rows and padded <= max(1.25 * num_rows, num_rows + num_devices - 1)
