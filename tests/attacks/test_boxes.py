"""Boxes with constant and unbounded features, starts in infinite balls, the last pixel, and what a step may cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base
from robustjax.threats import L0, L1, L2, Linf

KEY = jax.random.key(0)
D = 6
_attacked = jax.jit(lambda attack, model_fn, x, y: attack(KEY, model_fn, x, y))


def _linear(weight, x):
    return x @ weight


def _centred(weight, x):
    return (x - 0.5) @ weight


@pytest.mark.parametrize(
    ("low", "high", "start"),
    [(3.0, 3.0, 3.0), (-jnp.inf, jnp.inf, 7.0), (0.0, jnp.inf, 2.0), (-jnp.inf, 5.0, 4.0)],
    ids=["constant", "unbounded", "bounded below", "bounded above"],
)
@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (base.bind(attacks.carlini_wagner, num_binary_search_steps=6, num_steps=60, learning_rate=0.05), L2),
        (base.bind(attacks.carlini_wagner_linf, num_rounds=30, num_steps=20, learning_rate=0.05), Linf),
        (base.bind(attacks.carlini_wagner_l0, num_rounds=14, num_steps=40, learning_rate=0.3), L0),
    ],
    ids=["l2", "linf", "l0"],
)
def test_a_feature_without_two_bounds_changes_nothing_for_the_others(attack, threat, low, high, start):
    # The model does not look at the third feature: what is found without it is found with it.
    weight = np.array([[2.0, -2.0], [-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]], np.float32)
    x = np.array([[0.8, 0.2, start, 0.5], [0.9, 0.3, start, 0.4]], np.float32)
    box = (np.array([[0.0, 0.0, low, 0.0]], np.float32), np.array([[1.0, 1.0, high, 1.0]], np.float32))
    others, y = np.array([0, 1, 3]), np.zeros(2, int)
    alone = _attacked(base.bind(attack, threat=threat(jnp.inf)), Partial(_linear, weight[others]), x[:, others], y)
    whole = _attacked(base.bind(attack, threat=threat(jnp.inf, box=box)), Partial(_linear, weight), x, y)
    assert whole.success.all() and alone.success.all()
    np.testing.assert_allclose(whole.loss, alone.loss, rtol=0.05)
    assert np.isfinite(whole.x).all()


_start = jax.jit(lambda threat, x: threat.init(KEY, x))


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-np.inf, np.inf)], ids=["box", "no box"])
def test_a_random_start_in_an_infinite_ball_is_finite(threat, box):
    delta = np.asarray(_start(threat(np.inf, box=box), np.full((8, 5), 0.5, np.float32)))
    assert np.isfinite(delta).all() and (delta != 0).any()


def _one_pixel(place, x):
    return jnp.stack([0 * x[:, 0, 0, 0], x[:, place[0], place[1], 0] - 0.55], axis=1)


def test_square_draws_windows_up_to_the_last_row_column_and_coordinate():
    x, attack = np.full((64, 4, 4, 1), 0.5, np.float32), base.bind(attacks.square, threat=Linf(0.1), num_queries=200)
    for place in ((0, 0), (3, 3), (0, 3), (3, 0)):
        result = _attacked(attack, Partial(_one_pixel, np.array(place)), x, np.zeros(64, int))
        assert result.success.all(), place


def test_alma_first_step_is_as_long_as_asked_where_the_box_blocks_half_of_it():
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, 1.0], size=(8, 40)).astype(np.float32)  # black and white
    weight = rng.normal(size=(40, 3)).astype(np.float32)
    y = ((x - 0.5) @ weight).argmax(axis=1)

    @functools.partial(jax.jit, static_argnums=0)
    def first_step(threat, distance):
        seen = []

        def loop(step, carry, num_steps, done_fn=None):
            seen.append(step(0, carry).delta)
            return carry

        attacks.alma(KEY, Partial(_centred, weight), x, y, threat=threat(jnp.inf), num_steps=3, init_distance=distance, loop_fn=loop)
        return threat(jnp.inf).norm(seen[0])

    for threat, distance in ((L2, 0.1), (L1, 0.5)):
        np.testing.assert_allclose(first_step(threat, distance), distance, rtol=1e-2)


def test_fab_differentiates_no_more_classes_than_asked_and_never_the_label():
    def model_fn(x):
        return x @ jnp.ones((D, 50)) * jnp.arange(50.0)[None] / 50

    x, y = np.full((2, D), 0.5, np.float32), np.full(2, 49)
    traced = jax.jit(base.bind(attacks.fab, threat=L2(jnp.inf), num_steps=3, num_candidates=4)).trace(KEY, Partial(model_fn), x, y)
    assert np.isfinite(traced.lower().compile()(KEY, Partial(model_fn), x, y).delta).all()
    program = str(traced.jaxpr).replace(" ", "")
    assert f"[50,2,{D}]" not in program and f"[4,2,{D}]" in program


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-np.inf, np.inf)], ids=["box", "no box"])
def test_every_attack_in_an_infinite_ball_is_finite_and_finds_something(threat, box):
    weight = np.array([[2.0, -2.0], [0.0, 0.0], [-1.0, 1.0], [1.0, -1.0]], np.float32)  # the second feature has no gradient
    model_fn = Partial(_centred, weight)
    x = np.array([[0.6, 0.2, 0.4, 0.5], [0.7, 0.3, 0.5, 0.6]], np.float32)
    ball = threat(np.inf, box=box)
    plans = {
        "fgsm": base.bind(attacks.fgsm),
        "rs_fgsm": base.bind(attacks.rs_fgsm),
        "n_fgsm": base.bind(attacks.n_fgsm),
        "r_fgsm": base.bind(attacks.r_fgsm, alpha=0.01),
        "apgd": base.bind(attacks.apgd, num_steps=10),
        "square": base.bind(attacks.square, num_queries=60),
    }
    for name, attack in plans.items():
        result = _attacked(base.bind(attack, threat=ball), model_fn, x, np.zeros(2, int))
        assert np.isfinite(result.x).all(), name
        assert result.success.all() or name == "n_fgsm", name  # whose noise is twice as long as its step
