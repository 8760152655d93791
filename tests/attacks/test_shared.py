"""One perturbation for a whole batch: the closed form, feasibility, and independence of the order of the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, evaluate, loops, losses
from robustjax.threats import L1, L2, Latent, Linf, Shared

KEY = jax.random.key(0)
_W = jax.random.normal(jax.random.key(1), (5, 2))
_MODEL = Partial(lambda w, x: (x - 0.5) @ w, _W)
_X = 0.5 + 0.01 * jax.random.normal(jax.random.key(2), (6, 5))
_Y = jnp.array([0, 0, 0, 0, 1, 0])
_PGD = base.bind(attacks.pgd, step_size=0.02, num_steps=40, loss_fn=losses.margin)


@pytest.mark.parametrize(("ball", "dual"), [(Linf(0.1), 1), (L2(0.2), 2), (L1(0.3, top_fraction=0.1), np.inf)])
def test_the_mean_margin_of_a_linear_model_reaches_its_closed_form(ball, dual):
    sign = np.where(np.asarray(_Y) == 0, 1.0, -1.0)
    normal = np.mean(sign[:, None] * np.asarray(_W[:, 1] - _W[:, 0]), axis=0)
    best = np.mean(losses.margin(_MODEL(_X), _Y)) + np.asarray(ball.eps) * np.linalg.norm(normal, ord=dual)
    result = jax.jit(base.bind(_PGD, threat=Shared(ball)))(KEY, _MODEL, _X, _Y)
    np.testing.assert_allclose(result.loss.mean(), best, rtol=2e-3)
    assert jax.tree.leaves(result.delta)[0].shape == (1, 5)
    assert result.loss.shape == result.success.shape == (6,)


def test_inputs_stay_in_the_box_and_the_order_of_the_examples_does_not_matter():
    x = jnp.round(jax.random.uniform(jax.random.key(3), (6, 5)))  # black and white: every step leaves the box somewhere
    attack = jax.jit(base.bind(_PGD, threat=Shared(Linf(0.1)), delta=0.0))
    result, turned = attack(KEY, _MODEL, x, _Y), attack(KEY, _MODEL, x[::-1], _Y[::-1])
    assert (result.x >= 0).all()
    assert (result.x <= 1).all()
    assert jnp.abs(result.delta).max() <= 0.1 * (1 + 1e-5)
    np.testing.assert_allclose(result.delta, turned.delta, atol=1e-5)
    np.testing.assert_allclose(result.loss, losses.margin(_MODEL(result.x), _Y), rtol=1e-5)


def test_early_loops_and_restarts_keep_one_perturbation():
    for attack in (
        base.bind(_PGD, threat=Shared(Linf(0.3)), loop_fn=loops.while_),
        attacks.restarts(base.bind(_PGD, threat=Shared(L2(0.2))), 2),
    ):
        result = jax.jit(attack)(KEY, _MODEL, _X, _Y)
        assert result.delta.shape == (1, 5)
        np.testing.assert_allclose(result.loss, losses.margin(_MODEL(result.x), _Y), rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="expected a ball to share"):
        Shared(0.1)
    with pytest.raises(TypeError, match="expected a ball to share"):
        Shared(Latent(_MODEL, 0.1))
    with pytest.raises(ValueError, match="one eps"):
        Shared(Linf(jnp.full(6, 0.1)))
    with pytest.raises(ValueError, match="every example by itself"):
        next(evaluate.evaluate(KEY, {"a": base.bind(_PGD, threat=Shared(Linf(0.1)))}, _MODEL, np.asarray(_X), np.asarray(_Y), batch_size=6))
    with pytest.raises(ValueError, match="Shared"):
        attacks.apgd(KEY, _MODEL, _X, _Y, threat=Shared(Linf(0.1)), num_steps=3)
