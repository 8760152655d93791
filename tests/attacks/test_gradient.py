"""Differentiating through an attack equals finite differences, in eps and in the model's parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, base, loops, losses
from robustjax.threats import L2


def forward(weights, x):
    return jax.nn.softplus(x @ weights["hidden"]) @ weights["head"]


def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    weights = {"hidden": jax.random.normal(keys[0], (6, 8)), "head": jax.random.normal(keys[1], (8, 3))}
    return weights, jax.random.uniform(keys[2], (4, 6), minval=0.3, maxval=0.7), jnp.array([0, 1, 2, 0])


def attacked_loss(weights, eps, x, y, loop_fn=loops.scan):
    attack = base.bind(attacks.pgd, threat=L2(eps, box=(-1e3, 1e3)), step_size=eps / 2, num_steps=3, delta=0.0, keep_fn=attacks.keep_last)
    model_fn = jax.tree_util.Partial(forward, weights)
    x_adv = base.bind(attack, loop_fn=loop_fn)(jax.random.key(1), model_fn, x, y).x
    return losses.cross_entropy(model_fn(x_adv), y).sum()


def test_gradient_in_eps():
    weights, x, y = problem()
    grad = jax.grad(attacked_loss, argnums=1)(weights, 0.3, x, y)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (weights, x))
        at = lambda eps: attacked_loss(wide[0], jnp.float64(eps), wide[1], y)  # noqa: E731
        expected = float(at(0.3 + 1e-5) - at(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(grad, expected, rtol=1e-3)


def test_gradient_in_parameters_and_under_checkpointing():
    weights, x, y = problem()
    grad = jax.grad(attacked_loss)(weights, 0.3, x, y)
    remat = jax.grad(attacked_loss)(weights, 0.3, x, y, loops.checkpointed)
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), weights)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(jnp.sum(g * d)), grad, direction)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (weights, direction, x))
        at = lambda t: attacked_loss(jax.tree.map(lambda w, d: w + t * d, *wide[:2]), jnp.float64(0.3), wide[2], y)  # noqa: E731
        expected = float(at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grad, remat)


def test_best_so_far_is_differentiable_too():
    weights, x, y = problem()
    attack = base.bind(attacks.apgd, threat=L2(0.2), num_steps=5)
    loss = lambda w: attack(jax.random.key(0), jax.tree_util.Partial(forward, w), x, y).loss.sum()  # noqa: E731
    assert all(bool(jnp.isfinite(leaf).all() & (leaf != 0).any()) for leaf in jax.tree.leaves(jax.grad(loss)(weights)))
