"""The attack of adversarial training reaches the vertex of the ball on a linear model, and returns its last iterate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, losses, threats, training

WEIGHT = jax.random.normal(jax.random.key(0), (6, 2))
LINEAR = jax.tree_util.Partial(lambda weight, x: (x - 0.5) @ weight, WEIGHT)
X = 0.5 + 0.1 * jax.random.normal(jax.random.key(1), (8, 6))
Y = LINEAR(X).argmax(axis=1)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_vertex_of_a_linear_model_is_reached_from_anywhere_in_the_ball(num_steps):
    attack = training.inner_pgd(threats.Linf(0.05), num_steps=num_steps)
    result = jax.jit(lambda key: attack(key, LINEAR, X, Y))(jax.random.key(2))
    slope = jnp.abs(WEIGHT[:, 1] - WEIGHT[:, 0]).sum()
    np.testing.assert_allclose(losses.margin(LINEAR(X + result.delta), Y), losses.margin(LINEAR(X), Y) + 0.05 * slope, rtol=1e-5)


def test_steps_are_a_share_of_eps_and_the_last_iterate_counts():
    attack = training.inner_pgd(threats.Linf(jnp.array([0.1, 0.2])), num_steps=5, delta=attacks.small_noise)
    np.testing.assert_allclose(attack.get("step_size"), [0.05, 0.1])
    assert attack.get("keep_fn") is attacks.keep_last and attack.get("delta") is attacks.small_noise
    with pytest.raises(ValueError, match="num_steps=0 does nothing"):
        training.inner_pgd(threats.Linf(0.1), num_steps=0)
