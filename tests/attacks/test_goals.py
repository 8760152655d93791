"""Targets, custom losses, worst cases, expectations, checks: what attacks are composed of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from robustjax import attacks, base, loops, losses
from robustjax.threats import L0, L2, Linf

B, D, C = 6, 20, 5
KEY = jax.random.key(0)


def forward(weights, x):
    return x @ weights


def problem():
    rng = np.random.default_rng(1)
    weights, x = rng.normal(size=(D, C)).astype(np.float32), rng.uniform(0.3, 0.7, size=(B, D)).astype(np.float32)
    return jax.tree_util.Partial(forward, weights), x, (x @ weights).argmax(axis=1)


TARGETED = {
    "pgd": base.bind(attacks.pgd, threat=Linf(0.5), step_size=0.1, num_steps=40),
    "apgd": base.bind(attacks.apgd, threat=Linf(0.5), num_steps=40),
    "fgsm": base.bind(attacks.fgsm, threat=Linf(0.5)),
    "carlini_wagner": base.bind(attacks.carlini_wagner, threat=L2(jnp.inf), num_binary_search_steps=6, num_steps=60, learning_rate=0.05),
    "lbfgs": base.bind(attacks.lbfgs, threat=L2(jnp.inf), num_binary_search_steps=6, num_steps=30),
    "ddn": base.bind(attacks.ddn, threat=L2(jnp.inf), num_steps=60),
    "fmn": base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=100),
    "alma": base.bind(attacks.alma, threat=L2(jnp.inf), num_steps=200),
    "deepfool": base.bind(attacks.deepfool, threat=L2(jnp.inf), num_steps=30),
    "fab": base.bind(attacks.fab, threat=L2(jnp.inf), num_steps=30),
    "square": base.bind(attacks.square, threat=Linf(0.5), num_queries=400),
    "ead": base.bind(attacks.ead, threat=L2(jnp.inf), num_binary_search_steps=6, num_steps=60, learning_rate=0.05),
}


@pytest.mark.parametrize("name", TARGETED)
def test_targeted_attacks_reach_their_target(name):
    model_fn, x, y = problem()
    target = (y + 2) % C
    result = jax.jit(attacks.targeted(TARGETED[name]))(KEY, model_fn, x, target)
    np.testing.assert_array_equal(result.success, (np.asarray(result.x) @ model_fn.args[0]).argmax(axis=1) == target)
    assert np.mean(result.success) >= (0.5 if name == "fgsm" else 1.0)


def test_confidence_is_part_of_carlini_wagners_success():
    model_fn, x, y = problem()
    attack = base.bind(TARGETED["carlini_wagner"], confidence=0.5)
    result = jax.jit(attack)(KEY, model_fn, x, y)
    assert np.all(result.success)
    assert np.all(jax.jit(losses.margin)(np.asarray(result.x) @ model_fn.args[0], y) >= 0.5)


def test_regression_is_attacked_with_its_own_loss():
    weights = np.arange(1.0, 4.0, dtype=np.float32)
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, weights)

    def squared(prediction, y):
        return jnp.square(prediction - y)

    def off_by_one(prediction, y):
        return jnp.abs(prediction - y) > 1.0

    x = np.full((2, 3), 0.5, np.float32)
    attack = base.bind(attacks.pgd, threat=Linf(0.2), step_size=0.05, num_steps=10, loss_fn=squared, success_fn=off_by_one)
    result = jax.jit(attack)(KEY, model_fn, x, x @ weights)
    np.testing.assert_allclose(result.loss, (0.2 * 6.0) ** 2, rtol=1e-5)
    assert np.all(result.success)


def test_worst_case_prefers_success_then_the_earlier_attack():
    def fixed(loss, success):
        def attack(key, model_fn, x, y):
            return base.AttackResult(x + loss, x * 0 + loss, jnp.full(len(x), loss), jnp.asarray(success))

        return attack

    x, y = np.zeros((3, 1), np.float32), np.zeros(3, np.int32)
    first, second = fixed(1.0, [False, True, False]), fixed(9.0, [True, True, False])
    result = jax.jit(attacks.worst_case(first, second))(KEY, None, x, y)
    np.testing.assert_array_equal(result.loss, [9.0, 1.0, 1.0])
    np.testing.assert_array_equal(result.success, [True, True, False])


def test_over_targets_visits_every_wrong_class_but_the_label():
    model_fn, x, y = problem()
    seen = []

    def spy(key, model_fn, x, y, *, loss_fn, loop_fn):
        seen.append(loss_fn.get("target"))
        return base.AttackResult(x, x, -jnp.ones(len(x)), jnp.zeros(len(x), bool))

    attacks.over_targets(base.bind(spy, loop_fn=loops.host), 9)(KEY, model_fn, x, y)  # run one by one, not scanned
    targets = np.sort(np.stack(seen), axis=0)
    for column, label in zip(targets.T, np.asarray(y), strict=True):
        np.testing.assert_array_equal(column, [c for c in range(C) if c != label])


class Noisy:
    """A model whose logits are hidden behind noise that a fixed draw lets an attack fit."""

    def draw(self, keys):
        return base.bind(_noisy, keys=keys)


def _noisy(x, *, keys):
    noise = jax.vmap(lambda k: jax.random.normal(k, (D,)))(keys)
    return jnp.stack([jnp.zeros(len(x)), jnp.sum(x * (1.0 + 10.0 * noise), axis=1)], axis=1)


def test_eot_gradient_is_the_mean_gradient_and_draws_are_fresh():
    keys, others = jax.random.split(KEY, 2), jax.random.split(jax.random.key(9), 2)
    x = np.ones((2, D), np.float32)
    grad = jax.jit(jax.grad(lambda x: attacks.eot(Noisy(), num_samples=4000).draw(keys)(x)[:, 1].sum()))(x)
    # 10 / sqrt(4000) = .16 is one standard error; six of them over 40 coordinates: false alarm below 1e-7.
    np.testing.assert_allclose(grad, 1.0, atol=0.95)
    drawn = jax.jit(lambda keys: attacks.eot(Noisy(), num_samples=2).draw(keys)(x))
    assert not np.allclose(drawn(others), drawn(keys))
    with pytest.raises(ValueError, match="draw"):
        attacks.eot(Noisy(), num_samples=2)(x)


def test_every_step_sees_a_fresh_draw():
    seen = []

    class Spy:
        def draw(self, keys):
            seen.append(jax.random.key_data(keys))
            return lambda x: jnp.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)

    x = jnp.full((2, D), 0.5)
    step = lambda loop: attacks.pgd(  # noqa: E731
        KEY, Spy(), x, jnp.zeros(2, jnp.int32), threat=Linf(0.1), step_size=0.1, num_steps=3, loop_fn=loop
    )
    step(lambda body, carry, num_steps, done_fn=None: [carry := body(i, carry) for i in range(num_steps)][-1])
    assert len({data.tobytes() for data in map(np.asarray, seen)}) == 4


def test_transform_is_drawn_per_example():
    flip = lambda key, x: jnp.where(jax.random.bernoulli(key), x, -x)  # noqa: E731
    model_fn = attacks.eot(lambda x: x[:, :2], num_samples=1, transform_fn=flip)
    drawn = jax.jit(lambda keys: model_fn.draw(keys)(jnp.ones((64, 2))))(jax.random.split(KEY, 64))
    signs = np.sign(np.asarray(drawn))[:, 0]
    assert 10 < (signs > 0).sum() < 54  # binomial(64, 1/2) leaves this interval with probability below 1e-7


@jax.jit
@checkify.checkify
def _run_checked(eps, model_fn, x, y):
    return attacks.checked(base.bind(attacks.pgd, threat=Linf(eps), step_size=0.1, num_steps=1))(KEY, model_fn, x, y)


def _checked(**changes):
    model_fn, x, y = problem()
    return _run_checked(**({"eps": 0.1, "model_fn": model_fn, "x": x, "y": y} | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(B, C)}, "labels outside"),
        ({"x": np.full((B, D), 1.5, np.float32)}, "outside the threat's box"),
        ({"eps": -0.1}, "eps must be at least 0"),
        ({"model_fn": jax.tree_util.Partial(forward, np.full((D, C), np.nan, np.float32))}, "not finite"),
    ],
)
def test_checked_names_what_is_wrong(change, message):
    error, _ = _checked(**change)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_checked_is_silent_on_good_input():
    error, result = _checked()
    error.throw()
    attack = base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.1, num_steps=1)
    np.testing.assert_allclose(result.x, jax.jit(attack)(KEY, *problem()).x, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((3, 4), np.float32), np.zeros(2, np.int32)),
        (np.zeros((3, 4), np.uint8), np.zeros(3, np.int32)),
        (np.zeros(3, np.float32), np.zeros(3, np.int32)),
    ],
)
def test_wrong_shapes_and_types_are_named(x, y):
    with pytest.raises(ValueError, match=r"expected (inputs )?x"):
        attacks.pgd(KEY, lambda x: x, x, y, threat=Linf(0.1), step_size=0.1, num_steps=1)


def test_wrong_settings_are_named():
    model_fn, x, y = problem()
    with pytest.raises(ValueError, match="unknown version"):
        attacks.ensemble(Linf(0.1), "best")
    with pytest.raises(ValueError, match="images"):
        attacks.square(KEY, model_fn, x[:, None], y, threat=Linf(0.1), num_queries=1)
    for attack in (attacks.fab, attacks.apgd, attacks.ddn):
        with pytest.raises(ValueError, match="got L0"):
            attack(KEY, model_fn, x, y, threat=L0(3.0), num_steps=1)
    with pytest.raises(ValueError, match="eps must be at least 0"):
        Linf(np.float32(-0.1))


def test_targets_reach_inside_combinations():
    model_fn, x, y = problem()
    attack = attacks.restarts(attacks.worst_case(TARGETED["fgsm"], TARGETED["pgd"]), 2)
    result = jax.jit(attacks.targeted(attack))(KEY, model_fn, x, (y + 2) % C)
    assert np.all(result.success)
    assert [part.function for part in attacks.parts(attack)] == [attacks.fgsm, attacks.pgd]


def test_fgsm_steps_by_eps_also_per_coordinate():
    model_fn, x, y = problem()
    run = jax.jit(lambda threat: attacks.fgsm(KEY, model_fn, x, y, threat=threat).delta)
    for eps in (np.linspace(0.01, 0.2, D, dtype=np.float32)[None], 0.1):
        np.testing.assert_allclose(np.abs(run(Linf(eps))), np.broadcast_to(eps, x.shape), rtol=1e-5)
