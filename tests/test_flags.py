"""Planted flaws with a known truth: each flag is raised by its flaw and silent on a plain model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, flags, losses
from robustjax.threats import L2, Linf

B, D, C = 40, 49, 10
KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (D, C))


def plain(weights, x):
    return jax.nn.relu(x.reshape(x.shape[0], -1)) @ weights


def probabilities(weights, x):
    return jax.nn.softmax(plain(weights, x))


def quantised(weights, x):
    return plain(weights, jnp.round(4 * x) / 4)


def steep(weights, x):
    return 1e3 * plain(weights, x)


def detached(weights, x):
    return plain(weights, jax.lax.stop_gradient(x) + 0.0 * x)


def broken_gradient(weights, x):
    return plain(weights, x) + jnp.sqrt(jnp.abs(x[:, :1] - x[:, :1]))


class Random:
    def draw(self, keys):
        noise = jax.vmap(lambda k: jax.random.normal(k, (D,)))(keys)
        return lambda x: plain(WEIGHTS, x + noise)


def raised(function):
    model_fn = jax.tree_util.Partial(function, WEIGHTS) if callable(function) else function
    x = jax.random.uniform(jax.random.key(2), (B, D))
    y = plain(WEIGHTS, x).argmax(axis=1)
    return {flag.name for flag in flags.inspect_model(KEY, model_fn, x, y) if flag.raised}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (plain, set()),
        (probabilities, {"softmax_output"}),
        (quantised, {"zero_gradient", "blocked_gradient"}),
        (steep, {"saturated_loss"}),
        (detached, {"zero_gradient", "blocked_gradient"}),
        (broken_gradient, {"non_finite_gradient"}),
        (Random(), {"randomized"}),
    ],
)
def test_each_flaw_raises_its_flag_and_no_other(model, expected):
    assert raised(model) == expected


def late(weights, x):
    # The input reaches the rounding in the second step of the loop.
    def step(carry, _):
        last, total = carry
        return (x, total + jnp.round(4 * last)), None

    return plain(weights, x) + plain(weights, jax.lax.scan(step, (jnp.zeros_like(x), x), None, length=2)[0][1])


def unused(weights, x):
    jnp.argmax(x, axis=1)
    return plain(weights, x)


def beside(weights, x):
    # Rounds the other number of a pair that is computed together.
    return plain(weights, jax.jit(lambda x, y: (x, jnp.round(y)))(x, 4 * weights[:, 0])[0])


def branches(weights, x):
    return plain(weights, jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: jnp.floor(x), x))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (late, "round"),
        (unused, "nothing"),
        (beside, "nothing"),
        (branches, "convert_element_type, floor"),
        (quantised, "round"),
        (probabilities, "nothing"),
    ],
)
def test_what_blocks_the_gradient_is_found_where_it_is_on_the_path_and_only_there(model, names):
    x = jax.random.uniform(jax.random.key(2), (2, D))
    assert f"holds {names}:" in flags.blocked_gradient(jax.tree_util.Partial(model, WEIGHTS), x).advice


def test_few_classes():
    flag = flags.few_classes(jax.tree_util.Partial(plain, WEIGHTS[:, :3]), jnp.zeros((1, D)))
    assert flag.raised and flag.value == 3


def problem(function=plain):
    x = jax.random.uniform(jax.random.key(3), (B, D), minval=0.3, maxval=0.7)
    return jax.tree_util.Partial(function, WEIGHTS), x, plain(WEIGHTS, x).argmax(axis=1)


def test_survives_everything_only_where_gradients_are_masked():
    attack = base.bind(attacks.apgd, threat=Linf(0.05), num_steps=20)
    assert not flags.survives_everything(KEY, attack, *problem()).raised
    assert flags.survives_everything(KEY, base.bind(attack, delta=0.0), *problem(quantised)).raised


def test_unconverged_sees_an_attack_that_is_too_short():
    attack = base.bind(attacks.pgd, threat=L2(0.3), step_size=0.01, delta=0.0)
    assert flags.unconverged(KEY, base.bind(attack, num_steps=8), *problem()).raised
    assert not flags.unconverged(KEY, base.bind(attack, num_steps=64), *problem()).raised


def test_binarization_finds_the_planted_example_unless_gradients_are_masked():
    _, x, _ = problem()
    attack = base.bind(attacks.pgd, threat=Linf(0.05), step_size=0.01, num_steps=20, loss_fn=losses.margin)
    assert not flags.binarization(KEY, jax.tree_util.Partial(plain, WEIGHTS), x, attack=attack).raised
    assert flags.binarization(KEY, jax.tree_util.Partial(quantised, WEIGHTS), x, attack=attack).raised


def test_comparisons():
    assert flags.black_box_wins(0.5, 0.4).raised and not flags.black_box_wins(0.5, 0.499).raised
    assert flags.transfer_wins(0.5, 0.4).raised and not flags.transfer_wins(0.4, 0.5).raised
    assert flags.non_monotone([0.9, 0.5, 0.6]).raised and not flags.non_monotone([0.9, 0.5, 0.5]).raised
    x = np.zeros((3, 2))
    success, correct = np.array([True, True, False]), np.array([True, False, True])
    assert flags.unchanged(x, x, success, correct).value == 1
    assert not flags.unchanged(x, x + 0.1, success, correct).raised
