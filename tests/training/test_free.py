"""Free adversarial training: one gradient for both, perturbations that stay with their place, replays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, losses, training
from robustjax.threats import L2, Linf

B, D, C, EPS = 8, 5, 3, 0.1
KEY = jax.random.key(0)


def apply_fn(params, model_state, x, mode):
    del mode
    return jnp.tanh(x @ params["hidden"]) @ params["head"], model_state


def problem():
    keys = jax.random.split(jax.random.key(1), 3)
    params = {"hidden": jax.random.normal(keys[0], (D, 8)), "head": jax.random.normal(keys[1], (8, C))}
    return params, jax.random.uniform(keys[2], (4 * B, D), minval=0.2, maxval=0.8), jnp.arange(4 * B) % C


@pytest.mark.parametrize("threat", [Linf(EPS), L2(EPS)], ids=["linf", "l2"])
def test_one_step_descends_in_the_parameters_and_ascends_in_delta(threat):
    params, x, y = problem()
    x, y = x[:B], y[:B]
    delta = threat.init(KEY, x)
    optimizer = training.free_optimizer(optax.sgd(0.5), threat, EPS)
    loss = base.bind(training.free, apply_fn=apply_fn, threat=threat)
    state = training.init(training.FreeParams(params, delta), None, optimizer)
    after, _ = training.step(loss, optimizer)(state, KEY, x, y)

    def at(params, delta):
        return losses.cross_entropy(apply_fn(params, None, x + delta, "train")[0], y).mean()

    grad_params, grad_delta = jax.grad(at, argnums=(0, 1))(params, delta)  # both before either moves
    jax.tree.map(lambda a, w, g: np.testing.assert_allclose(a, w - 0.5 * g, atol=1e-6), after.params.params, params, grad_params)
    free_space = threat.replace(box=(-jnp.inf, jnp.inf))
    expected = free_space.project(delta + EPS * free_space.steepest(grad_delta, x, delta), x)
    np.testing.assert_allclose(after.params.delta, expected, atol=1e-6)


def test_replays_keep_delta_across_batches_and_count_once():
    params, x, y = problem()
    threat = Linf(EPS)
    optimizer = training.free_optimizer(optax.sgd(0.1), threat, EPS)
    step_fn = training.step(base.bind(training.free, apply_fn=apply_fn, threat=threat), optimizer)
    start = training.init(training.FreeParams(params, jnp.zeros((B, D))), None, optimizer)
    replayed, _ = training.replay(step_fn, 3)(start, KEY, x[:B], y[:B])
    by_hand = start
    for _ in range(3):
        by_hand, _ = step_fn(by_hand, KEY, x[:B], y[:B])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), replayed.params, by_hand.params)
    assert int(replayed.num_steps) == 1
    fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))
    end, metrics = fit(start, KEY, x, y, step_fn=training.replay(step_fn, 3), num_epochs=2, batch_size=B)
    assert metrics["loss"].shape == (8,) and int(end.num_steps) == 8
    assert 0 < float(jnp.abs(end.params.delta).max()) <= EPS * (1 + 1e-5)


def test_a_batch_that_does_not_fit_the_replays_is_named_when_traced():
    params, x, y = problem()
    threat = Linf(EPS)
    optimizer = training.free_optimizer(optax.sgd(0.1), threat, EPS)
    step_fn = training.step(base.bind(training.free, apply_fn=apply_fn, threat=threat), optimizer)
    start = training.init(training.FreeParams(params, jnp.zeros((B, D))), None, optimizer)
    expected = r"expected a batch of shape \(8, 5\), got \(16, 5\); pass batch_size=8, or start with .*zeros\(\(16, 5\)\)"
    run = functools.partial(training.fit, step_fn=training.replay(step_fn, 3), num_epochs=1, batch_size=2 * B)
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(run, start, KEY, x, y)
    with pytest.raises(ValueError, match="expected num_replays of at least 1, got 0; pass 1"):
        training.replay(step_fn, 0)
