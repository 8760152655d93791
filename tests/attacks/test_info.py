"""What attacks say besides their result: the norm that was found, and the outputs that were asked for."""

import jax
import numpy as np
from jax.tree_util import Partial

from robustjax import attacks, base, loops
from robustjax.threats import L2, Linf

KEY = jax.random.key(0)
_W = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]], np.float32)
_MODEL = Partial(lambda w, x: (x - 0.5) @ w, _W)
_X = np.array([[0.6, 0.5, 0.5], [0.9, 0.9, 0.1], [0.5, 0.5, 0.9]], np.float32)
_Y = np.array([0, 0, 0])  # the last one is misclassified as it is


def test_minimum_norm_attacks_say_how_far_away_they_found_something():
    result = jax.jit(base.bind(attacks.ddn, threat=L2(0.01), num_steps=100))(KEY, _MODEL, _X, _Y)
    margin, normal = (_X - 0.5) @ (_W[:, 0] - _W[:, 1]), np.linalg.norm(_W[:, 0] - _W[:, 1])
    np.testing.assert_allclose(np.asarray(result.info.norm)[:1], (margin / normal)[:1], rtol=0.05)
    np.testing.assert_allclose(result.info.norm, np.linalg.norm(result.delta, axis=1), rtol=1e-5)
    assert not np.asarray(result.success)[0], "outside eps, and found all the same"
    unfooled = base.bind(attacks.fmn, threat=L2(0.1, mask=np.zeros((1, 3), bool)), num_steps=3)
    assert np.isinf(jax.jit(unfooled)(KEY, _MODEL, _X, _Y).info.norm[0]), "nothing may move"


def test_square_counts_the_outputs_that_it_asked_for():
    attack = base.bind(attacks.square, threat=Linf(0.3), num_queries=40)
    result = jax.jit(attack)(KEY, _MODEL, _X, _Y)
    spent = np.asarray(result.info.num_queries)
    assert spent[2] == 2, "x itself and the start"
    success = np.asarray(result.success)
    assert (spent[success] <= 42).all() and (spent[~success] == 42).all()
    early = jax.jit(base.bind(attack, loop_fn=loops.while_))(KEY, _MODEL, _X, _Y)
    np.testing.assert_array_equal(early.info.num_queries, spent)
    # It stops counting at the query that succeeds: with one query less there is no success yet.
    first = int(spent[success & (spent > 2)].min(initial=42))
    if first > 3:
        shorter = jax.jit(base.bind(attack, num_queries=first - 3))(KEY, _MODEL, _X, _Y)
        assert not np.asarray(shorter.success)[spent == first].any()


def test_restarts_add_their_queries_up():
    attack = base.bind(attacks.square, threat=Linf(0.001), num_queries=5)
    result = jax.jit(attacks.restarts(attack, 3))(KEY, _MODEL, _X[1:2], _Y[1:2])
    np.testing.assert_array_equal(result.info.num_queries, [21])
    worst = attacks.worst_case(attack, base.bind(attacks.ddn, threat=L2(0.001), num_steps=2))
    assert jax.jit(worst)(KEY, _MODEL, _X, _Y).info == base.AttackInfo()
