"""Learned weights find the wrong labels; learned regularization rises with the poisons; recolouring interpolates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks, base, bilevel, poisoning
from robustjax.threats import Recolor

CG = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=6))


def loss_fn(theta, x, y):
    return jax.nn.softplus(-y * (x @ theta))


def data(num, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 4))
    y = np.where(x @ np.array([2.0, -1.0, 0.5, 0.0]) > 0, 1.0, -1.0)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def test_learned_weights_find_the_wrong_labels():
    x, y = data(80, 0)
    wrong = jnp.arange(80) < 24
    noisy = jnp.where(wrong, -y, y)
    problem = poisoning.weighted_examples(loss_fn, lambda theta: 0.01 * theta @ theta)
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, num_steps=100, step_size=0.5)
    run = jax.jit(
        lambda batch: bilevel.minimize(
            bilevel.hypergradient_descent(problem, CG, solve, optimizer=optax.adam(0.3)), jnp.zeros(80), jnp.zeros(4), batch, num_steps=40
        )
    )
    state, steps = run((x, noisy, *data(80, 1)))
    trust = poisoning.example_weights(state.phi)
    assert float(trust[wrong].mean()) < 0.2 and float(trust[~wrong].mean()) > 0.5
    assert float(steps.value[-1]) < 0.7 * float(steps.value[0]) and steps.info.residual.shape == (40,)
    assert float(steps.info.residual.max()) < 0.05


def ridge_game(num_poisons):
    x, y = data(40, 2)
    x_val, y_val = data(200, 3)
    y_poison = -jnp.ones(num_poisons)

    def training_loss(theta, poisons, batch):
        del batch
        errors = jnp.concatenate([x @ theta - y, poisons @ theta - y_poison])
        return 0.5 * jnp.mean(jnp.square(errors))

    problem = poisoning.penalized(training_loss, lambda theta, batch: 0.5 * jnp.mean(jnp.square(x_val @ theta - y_val)))
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, num_steps=150, step_size=0.03)
    return jax.jit(
        lambda: poisoning.learn_regularization(
            problem, CG, solve, jnp.ones((num_poisons, 4)), -4.0, jnp.zeros(4), poison_step=0.3, strength_step=3.0, num_steps=60,
            box=(-3.0, 3.0),
        )
    )(), problem  # fmt: skip


def test_learned_regularization_rises_with_the_fraction_of_poisons_and_poisons_stay_in_the_box():
    strengths = []
    for num_poisons in (1, 8, 20):
        found, problem = ridge_game(num_poisons)
        strengths.append(float(found.log_strength))
        assert float(jnp.abs(found.poisons).max()) <= 3.0 and bool(jnp.isfinite(found.values).all())
    assert strengths[0] < strengths[1] < strengths[2]
    theta, poisons = jnp.ones(4), jnp.ones((20, 4))
    value = problem.inner_loss(theta, (poisons, jnp.log(2.0)), None) - problem.inner_loss(theta, (poisons, -jnp.inf), None)
    np.testing.assert_allclose(value, 0.5 * 2.0 * 4.0, rtol=1e-5)


def test_recolouring_interpolates_and_moves_equal_colours_equally():
    threat = Recolor(0.1, 5)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    x = x.at[:, 0, 0].set(x[:, 3, 3])
    delta = threat.init(jax.random.key(1), x)
    assert delta.shape == (2, 5, 5, 5, 3) and float(jnp.abs(delta).max()) <= 0.1 and float(threat.norm(delta).min()) > 0.09
    moved = threat.apply(x, delta)
    np.testing.assert_allclose(moved[:, 0, 0], moved[:, 3, 3], atol=1e-6)
    assert float(jnp.abs(moved - x).max()) <= 0.1 + 1e-6
    # An affine map on the grid is reproduced exactly, grid points included.
    axis = jnp.linspace(0, 1, 5)
    cube = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    affine = lambda c: 0.05 * c - 0.03 * jnp.roll(c, 1, axis=-1) + 0.01  # noqa: E731
    moved = threat.apply(x, jnp.stack([affine(cube)] * 2))
    np.testing.assert_allclose(moved, jnp.clip(x + affine(x), min=0, max=1), atol=1e-6)
    assert float(threat.roughness(jnp.ones((1, 5, 5, 5, 3)))[0]) == 0.0
    with pytest.raises(ValueError, match="Recolor moves colours"):
        threat.init(jax.random.key(0), x[..., :1])


def test_any_attack_recolours():
    weight = jax.random.normal(jax.random.key(3), (48, 3))
    model_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weight)
    x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3), minval=0.2, maxval=0.8)
    y = model_fn(x).argmax(axis=1)
    attack = functools.partial(attacks.pgd, threat=Recolor(0.2, 4), step_size=0.05, num_steps=10)
    result = jax.jit(attack)(jax.random.key(1), model_fn, x, y)
    start = jax.jit(functools.partial(attack, num_steps=1, step_size=0.0))(jax.random.key(1), model_fn, x, y)
    assert bool((result.loss > start.loss).all()) and bool((threat_norm := jnp.abs(result.delta).max()) <= 0.2 + 1e-6), threat_norm
