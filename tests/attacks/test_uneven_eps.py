"""eps per coordinate: a linear model with two classes, margin <normal, delta> - gap, far from every side of its box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, losses
from robustjax.threats import L1, L2, Linf

KEY = jax.random.key(0)
# The largest of |normal| eps, eps and |normal| are of three coordinates, so that no other metric than that of the ball will do.
_NORMAL = np.array([0.3, -0.5, 2.0, 1.0, -1.5], np.float32)
_GAP = 0.12
_UNEVEN = np.array([[0.5, 0.05, 0.1, 0.0, 0.2]], np.float32)
_DUAL = {Linf: 1, L2: 2, L1: np.inf}
_X, _Y = np.full((4, 5), 0.5, np.float32), np.zeros(4, np.int32)


def _linear(normal, x):
    return jnp.stack([jnp.zeros(len(x)), (x - 0.5) @ normal - _GAP], axis=1)


_MODEL = Partial(_linear, _NORMAL)
_within = jax.jit(lambda ball, delta: ball.within(delta))


SMALLEST = {
    "carlini_wagner": (base.bind(attacks.carlini_wagner, num_binary_search_steps=9, num_steps=150, learning_rate=0.01), L2, 1.02),
    "lbfgs": (base.bind(attacks.lbfgs, num_binary_search_steps=12, num_steps=30), L2, 1.02),
    "ddn": (base.bind(attacks.ddn, num_steps=200), L2, 1.1),
    "alma-l2": (base.bind(attacks.alma, num_steps=500, loss_fn=losses.margin, init_distance=0.1), L2, 1.03),
    "alma-l1": (base.bind(attacks.alma, num_steps=500, loss_fn=losses.margin, init_distance=0.1), L1, 1.05),
    "fmn-l2": (base.bind(attacks.fmn, num_steps=200), L2, 1.02),
    "fmn-l1": (base.bind(attacks.fmn, num_steps=200), L1, 1.02),
    "fmn-linf": (base.bind(attacks.fmn, num_steps=200), Linf, 1.02),
    "ead-l1": (base.bind(attacks.ead, num_binary_search_steps=12, num_steps=300, learning_rate=0.05), L1, 1.1),
    "ead-l2": (base.bind(attacks.ead, num_binary_search_steps=12, num_steps=300, learning_rate=0.05, shrinkage=0.0), L2, 1.05),
    "carlini_wagner_linf": (base.bind(attacks.carlini_wagner_linf, num_rounds=60, num_steps=60, learning_rate=0.01), Linf, 1.25),
    "deepfool-l2": (base.bind(attacks.deepfool, num_steps=5), L2, 1.03),
    "deepfool-linf": (base.bind(attacks.deepfool, num_steps=5), Linf, 1.03),
    "fab-l2": (base.bind(attacks.fab, num_steps=30), L2, 1.01),
    "fab-linf": (base.bind(attacks.fab, num_steps=30), Linf, 1.01),
    "fab-l1": (base.bind(attacks.fab, num_steps=30), L1, 1.06),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_norms_are_those_of_uneven_balls(name):
    attack, threat, bar = SMALLEST[name]
    result = jax.jit(base.bind(attack, threat=threat(_UNEVEN)))(KEY, _MODEL, _X, _Y)
    best = _GAP / np.linalg.norm(_NORMAL * _UNEVEN[0], ord=_DUAL[threat])
    ratio = np.asarray(result.info.norm) / best
    assert np.all(result.success)
    np.testing.assert_array_equal(np.asarray(result.delta)[:, 3], 0.0)
    assert (ratio >= 1 - 1e-4).all() and (ratio <= bar).all(), ratio


LARGEST = {
    "pgd": (base.bind(attacks.pgd, step_size=0.1, num_steps=80, loss_fn=losses.margin), (Linf, L2)),
    "apgd": (base.bind(attacks.apgd, num_steps=60, loss_fn=losses.margin), (Linf, L2, L1)),
    "fgsm": (base.bind(attacks.fgsm, loss_fn=losses.margin), (Linf, L2, L1)),
    "square": (base.bind(attacks.square, num_queries=400, success_fn=losses.never), (Linf,)),
}


@pytest.mark.parametrize(("name", "threat"), [(name, threat) for name, (_, kinds) in LARGEST.items() for threat in kinds])
def test_largest_losses_are_those_of_uneven_balls(name, threat):
    ball = threat(_UNEVEN, top_fraction=0.2) if threat is L1 else threat(_UNEVEN)
    result = jax.jit(base.bind(LARGEST[name][0], threat=ball))(KEY, _MODEL, _X, _Y)
    np.testing.assert_allclose(result.loss, np.linalg.norm(_NORMAL * _UNEVEN[0], ord=_DUAL[threat]) - _GAP, atol=2e-3)
    assert np.all(_within(ball, result.delta))
    np.testing.assert_array_equal(np.asarray(result.delta)[:, 3], 0.0)


@pytest.mark.parametrize("threat", [Linf, L2, L1])
def test_every_point_of_square_and_of_a_projection_is_in_the_uneven_ball(threat):
    rng = np.random.default_rng(4)
    x, anywhere = rng.uniform(size=(64, 5)).astype(np.float32), rng.normal(size=(64, 5)).astype(np.float32)
    ball = threat(_UNEVEN)
    for delta in jax.jit(lambda x: (ball.project(anywhere, x), ball.init(KEY, x)))(x):
        assert np.all(_within(ball, delta))
        np.testing.assert_array_equal(np.asarray(delta)[:, 3], 0.0)
    beside = np.zeros((64, 5), np.float32)
    beside[:, 3] = 1e-6
    assert not np.any(_within(ball, beside))
    found = jax.jit(base.bind(attacks.square, threat=ball, num_queries=50))(KEY, _MODEL, x, np.zeros(64, int))
    assert np.all(_within(ball, found.delta))
