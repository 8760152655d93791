"""Targets: their order by distance in closed form, and the loss by probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, losses
from robustjax.attacks import combinators, goals
from robustjax.threats import L1, L2, Linf, Recolor

B, D, C = 6, 8, 5
KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (D, C)) * jnp.asarray([[1.0, 3.0, 0.2, 1.0, 5.0]])
MODEL = jax.tree_util.Partial(lambda w, x: x @ w, WEIGHTS)
X = jax.random.uniform(jax.random.key(2), (B, D), minval=0.3, maxval=0.7)
Y = MODEL(X).argmax(axis=1)
DUAL = {Linf: 1, L2: 2, L1: np.inf}


@pytest.mark.parametrize("ball", DUAL)
def test_malt_orders_the_classes_of_a_linear_model_by_their_distance(ball):
    pgd = base.bind(attacks.pgd, threat=ball(0.1), step_size=0.1, num_steps=1)
    order, num_classes = goals._targets(KEY, MODEL, X, Y, attack=pgd, num_targets=3, order="malt")
    logits, weights = np.asarray(MODEL(X)), np.asarray(WEIGHTS)
    for row, label in enumerate(np.asarray(Y)):
        others = [c for c in range(C) if c != label]
        gaps = {c: logits[row, label] - logits[row, c] for c in others}
        distances = {c: gaps[c] / np.linalg.norm(weights[:, label] - weights[:, c], ord=DUAL[ball]) for c in others}
        assert order[row].tolist() == sorted(others, key=distances.get)[:3]
    assert num_classes == C
    by_logits = goals._targets(KEY, MODEL, X, Y, attack=pgd, num_targets=3, order="logits")[0]
    assert (np.asarray(by_logits) != np.asarray(order)).any()


@pytest.mark.parametrize("order", goals.ORDERS)
def test_rounds_are_the_runs_of_the_whole_attack(order):
    apgd = base.bind(attacks.apgd, threat=Linf(0.15), num_steps=4)
    whole = attacks.restarts(attacks.over_targets(apgd, 9, order), 2)
    runs = combinators.rounds(whole, C)
    assert len(runs) == 2 * (C - 1) and len({jax.tree.structure(run) for run in runs}) == 1  # one program for all of them
    best = jax.jit(whole)(KEY, MODEL, X, Y)
    once = jax.jit(lambda run: run(KEY, MODEL, X, Y))
    results = [once(run) for run in runs]
    np.testing.assert_array_equal(best.success, np.any([r.success for r in results], axis=0))
    robust = ~np.asarray(best.success)
    assert 0 < robust.sum() < B
    np.testing.assert_allclose(best.loss[robust], np.max([r.loss for r in results], axis=0)[robust], rtol=1e-6)


def test_what_has_no_order_is_named():
    with pytest.raises(ValueError, match=r"unknown order 'near'.*choose one of"):
        attacks.over_targets(base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.1, num_steps=1), 2, "near")
    recolored = base.bind(attacks.pgd, threat=Recolor(0.1, 3), step_size=0.1, num_steps=1)
    with pytest.raises(TypeError, match=r"Recolor has no dual_norm.*order='logits'"):
        attacks.over_targets(recolored, 2, "malt")(KEY, lambda x: x.reshape(B, -1)[:, :C], jnp.ones((B, 4, 4, 3)), Y)


def test_the_probability_margin_is_the_difference_of_two_probabilities():
    logits = jnp.asarray([[2.0, 0.0, 1.0], [-300.0, 0.0, -jnp.inf], [3.0, 3.0, 0.0]])
    y = jnp.asarray([0, 0, 1])
    p = np.exp(np.asarray(logits) - np.asarray(logits).max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = [p[0, 2] - p[0, 0], p[1, 1] - p[1, 0], p[2, 0] - p[2, 1]]
    np.testing.assert_allclose(losses.probability_margin(logits, y), expected, atol=1e-6)
    grad = jax.grad(lambda z: losses.probability_margin(z, y).sum())(logits)
    assert bool(jnp.isfinite(grad).all())
