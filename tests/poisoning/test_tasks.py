"""Laws of all crafting methods: with its settings bound each is a function (key, task) -> PoisonResult, and an argument of jit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, poisoning, training
from robustjax.threats import Linf

D, C, N = 4, 2, 8
X, Y = jnp.linspace(0.1, 0.9, N * D).reshape(N, D), jnp.arange(N) % C
TASK = poisoning.Task(X, Y, jnp.array([6, 1, 3]), 1.0 - X[:1], jnp.array([1]))
ADAM = optax.adam(0.05)


def apply_fn(params, model_state, x, mode):
    del mode
    return jnp.tanh(x @ params), model_state


def init_fn(key):
    return jax.random.normal(key, (D, C))


def certified(eps):
    loss = base.bind(training.gaussian, apply_fn=apply_fn, sigma=0.1)
    return base.bind(
        poisoning.poison_certificates,
        threat=Linf(eps),
        victim=poisoning.VictimTraining(apply_fn, init_fn, loss, num_clean=3, num_steps=1),
        certificate=poisoning.SoftCertificate(0.1, num_noise=2),
        descent=poisoning.ResponseDescent(num_epochs=1, num_poison=2, num_linear_steps=1),
    )


METHODS = {
    "metapoison": lambda eps: base.bind(
        poisoning.metapoison, apply_fn=apply_fn, init_fn=init_fn, threat=Linf(eps), optimizer=ADAM, num_steps=1, num_surrogates=1,
        num_epochs=1, num_unroll_steps=1, batch_size=4, step_size=0.1,
    ),
    "gradient_matching": lambda eps: base.bind(
        poisoning.gradient_matching, params=jnp.eye(D, C), apply_fn=apply_fn, threat=Linf(eps), num_steps=2
    ),
    "feature_collision": lambda eps: base.bind(poisoning.feature_collision, features_fn=jnp.tanh, step_size=eps, beta=0.1, num_steps=2),
    "bullseye": lambda eps: base.bind(
        poisoning.bullseye, features_fns=(jnp.tanh,), threat=Linf(eps), num_steps=2, learning_rate=0.5 * eps
    ),
    "poison_certificates": certified,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_and_its_task_cross_jit_and_other_numbers_compile_nothing(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(attack, key, task):
        return attack(key, task)

    found = {eps: run(METHODS[name](eps), jax.random.key(0), TASK) for eps in (0.05, 0.2)}
    for made in found.values():
        assert isinstance(made, poisoning.PoisonResult) and made.x.shape == made.delta.shape == (3, D)
        np.testing.assert_allclose(made.x, TASK.x_base + made.delta, atol=1e-6)
        assert made.loss == made.losses[-1] or np.isnan(made.loss), "the loss is that of the last gradient"
    assert float(jnp.abs(found[0.05].x - found[0.2].x).max()) > 1e-4
    if name != "feature_collision":  # whose budget is beta
        assert float(jnp.abs(found[0.05].delta).max()) <= 0.05 + 1e-6


def test_base_images_are_those_of_the_rows_in_their_order():
    np.testing.assert_array_equal(TASK.x_base, X[np.array([6, 1, 3])])
    np.testing.assert_array_equal(jax.jit(lambda rows: TASK._replace(x=np.asarray(X), rows=rows).x_base)(TASK.rows), TASK.x_base)
    assert TASK.y_base.tolist() == [0, 1, 1]


def test_clean_images_of_a_batch_are_never_poisoned_ones():
    seen = []

    def loss(params, model_state, key, x, y):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return training.gaussian(params, model_state, key, x, y, apply_fn=apply_fn, sigma=0.1)

    options = certified(0.05)
    victim = poisoning.VictimTraining(apply_fn, init_fn, loss, num_clean=3, num_steps=4)
    jax.block_until_ready(base.bind(options, victim=victim)(jax.random.key(0), TASK).x)
    jax.effects_barrier()
    clean = np.concatenate([x[:3] for x in seen])
    others = np.delete(np.asarray(X), np.asarray(TASK.rows), axis=0)
    gaps = np.abs(clean[:, None] - others).max(axis=2).min(axis=1)
    assert len(clean) > 10 and gaps.max() < 1e-6
