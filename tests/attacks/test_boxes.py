"""Boxes with constant and unbounded features, starts in infinite balls, the last pixel, and what a step may cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base
from robustjax.threats import L0, L1, L2, Linf

KEY = jax.random.key(0)
D = 6


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
    weight = jnp.array([[2.0, -2.0], [-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]])
    x = jnp.array([[0.8, 0.2, start, 0.5], [0.9, 0.3, start, 0.4]])
    box = (jnp.array([[0.0, 0.0, low, 0.0]]), jnp.array([[1.0, 1.0, high, 1.0]]))
    run = jax.jit(lambda attack, weight, x: attack(KEY, Partial(lambda w, x: x @ w, weight), x, jnp.zeros(2, int)))
    others = np.array([0, 1, 3])
    alone = run(base.bind(attack, threat=threat(jnp.inf)), weight[others], x[:, others])
    whole = run(base.bind(attack, threat=threat(jnp.inf, box=box)), weight, x)
    assert whole.success.all() and alone.success.all()
    np.testing.assert_allclose(whole.loss, alone.loss, rtol=0.05)
    assert np.isfinite(whole.x).all()


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-jnp.inf, jnp.inf)], ids=["box", "no box"])
def test_a_random_start_in_an_infinite_ball_is_finite(threat, box):
    x = jnp.full((8, 5), 0.5)
    delta = threat(jnp.inf, box=box).init(KEY, x)
    assert np.isfinite(delta).all() and (jnp.abs(delta) > 0).any()


def test_square_draws_windows_up_to_the_last_row_column_and_coordinate():
    x = jnp.full((64, 4, 4, 1), 0.5)
    for place in ((0, 0), (3, 3), (0, 3), (3, 0)):
        model_fn = Partial(lambda s, x, p=place: jnp.stack([0 * x[:, 0, 0, 0], s * (x[:, p[0], p[1], 0] - 0.55)], axis=1), 1.0)
        result = attacks.square(KEY, model_fn, x, jnp.zeros(64, int), threat=Linf(0.1), num_queries=200)
        assert result.success.all(), place


def test_alma_first_step_is_as_long_as_asked_where_the_box_blocks_half_of_it():
    x = jnp.asarray(np.random.default_rng(0).choice([0.0, 1.0], size=(8, 40)), jnp.float32)  # black and white
    model_fn = Partial(lambda w, x: (x - 0.5) @ w, jax.random.normal(KEY, (40, 3)))
    y = model_fn(x).argmax(axis=1)
    for threat, distance in ((L2(jnp.inf), 0.1), (L1(jnp.inf), 0.5)):
        seen = []

        def loop(step, carry, num_steps, done_fn=None, seen=seen):
            seen.append(step(0, carry).delta)
            return carry

        attacks.alma(KEY, model_fn, x, y, threat=threat, num_steps=3, init_distance=distance, loop_fn=loop)
        np.testing.assert_allclose(threat.norm(seen[0]), distance, rtol=1e-2)


def test_fab_differentiates_no_more_classes_than_asked_and_never_the_label():
    def model_fn(x):
        return x @ jnp.ones((D, 50)) * jnp.arange(50.0)[None] / 50

    x, y = jnp.full((2, D), 0.5), jnp.full(2, 49)
    result = attacks.fab(KEY, model_fn, x, y, threat=L2(jnp.inf), num_steps=3, num_candidates=4)
    assert np.isfinite(result.delta).all()
    program = jax.make_jaxpr(lambda x: attacks.fab(KEY, model_fn, x, y, threat=L2(jnp.inf), num_steps=3, num_candidates=4).x)(x)
    assert f"[50,2,{D}]" not in str(program).replace(" ", "") and f"[4,2,{D}]" in str(program).replace(" ", "")


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-np.inf, np.inf)], ids=["box", "no box"])
def test_every_attack_in_an_infinite_ball_is_finite_and_finds_something(threat, box):
    weight = jnp.array([[2.0, -2.0], [0.0, 0.0], [-1.0, 1.0], [1.0, -1.0]])  # the second feature has no gradient
    model_fn = Partial(lambda w, x: (x - 0.5) @ w, weight)
    x = jnp.array([[0.6, 0.2, 0.4, 0.5], [0.7, 0.3, 0.5, 0.6]])
    ball = threat(jnp.inf, box=box)
    plans = {
        "fgsm": base.bind(attacks.fgsm),
        "rs_fgsm": base.bind(attacks.rs_fgsm),
        "n_fgsm": base.bind(attacks.n_fgsm),
        "r_fgsm": base.bind(attacks.r_fgsm, alpha=0.01),
        "apgd": base.bind(attacks.apgd, num_steps=10),
        "square": base.bind(attacks.square, num_queries=60),
    }
    for name, attack in plans.items():
        result = jax.jit(base.bind(attack, threat=ball))(KEY, model_fn, x, jnp.zeros(2, int))
        assert np.isfinite(result.x).all(), name
        assert result.success.all() or name == "n_fgsm", name  # whose noise is twice as long as its step
