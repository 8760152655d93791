"""Differentiating through an attack equals finite differences, in eps and in the model's parameters."""

import functools

import jax
import numpy as np

from robustjax import attacks, base, loops, losses
from robustjax.threats import L2


def forward(weights, x):
    return jax.nn.softplus(x @ weights["hidden"]) @ weights["head"]


def problem():
    rng = np.random.default_rng(0)
    weights = {"hidden": rng.normal(size=(6, 8)).astype(np.float32), "head": rng.normal(size=(8, 3)).astype(np.float32)}
    return weights, rng.uniform(0.3, 0.7, size=(4, 6)).astype(np.float32), np.array([0, 1, 2, 0])


def wide(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), tree)


@functools.partial(jax.jit, static_argnames="loop_fn")
def attacked_loss(weights, eps, x, y, loop_fn=loops.scan):
    attack = base.bind(attacks.pgd, threat=L2(eps, box=(-1e3, 1e3)), step_size=eps / 2, num_steps=3, delta=0.0, keep_fn=attacks.keep_last)
    model_fn = jax.tree_util.Partial(forward, weights)
    x_adv = base.bind(attack, loop_fn=loop_fn)(jax.random.key(1), model_fn, x, y).x
    return losses.cross_entropy(model_fn(x_adv), y).sum()


gradients = jax.jit(jax.grad(attacked_loss, argnums=(0, 1)), static_argnums=4)


def test_gradient_in_eps():
    weights, x, y = problem()
    grad = gradients(weights, 0.3, x, y)[1]
    with jax.enable_x64(True):
        at = lambda eps: attacked_loss(wide(weights), np.float64(eps), wide(x), y)  # noqa: E731
        expected = float(at(0.3 + 1e-5) - at(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(grad, expected, rtol=1e-3)


def test_gradient_in_parameters_and_under_checkpointing():
    weights, x, y = problem()
    grad, remat = gradients(weights, 0.3, x, y)[0], gradients(weights, 0.3, x, y, loops.checkpointed)[0]
    direction = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), weights)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grad, direction)))
    with jax.enable_x64(True):
        at = lambda t: attacked_loss(jax.tree.map(lambda w, d: w + t * d, wide(weights), direction), np.float64(0.3), wide(x), y)  # noqa: E731
        expected = float(at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grad, remat)


def test_best_so_far_is_differentiable_too():
    weights, x, y = problem()
    attack = base.bind(attacks.apgd, threat=L2(0.2), num_steps=5)
    loss = lambda w: attack(jax.random.key(0), jax.tree_util.Partial(forward, w), x, y).loss.sum()  # noqa: E731
    leaves = map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(loss))(weights)))
    assert all(np.isfinite(leaf).all() and (leaf != 0).any() for leaf in leaves)
