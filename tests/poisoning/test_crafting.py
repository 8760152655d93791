"""Crafted poisons: feasible, better than random ones, and each objective's gradient by hand."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks, base, losses, poisoning, prng, smoothing, training
from robustjax.poisoning import certified
from robustjax.poisoning._metapoison import _Epoch
from robustjax.threats import L2, Linf

KEY = jax.random.key(0)
D, C, N = 6, 3, 48


def apply_fn(params, model_state, x, mode):
    del mode
    return jnp.tanh(x @ params["hidden"]) @ params["head"], model_state


def init_fn(key):
    key_hidden, key_head = jax.random.split(key)
    return {"hidden": jax.random.normal(key_hidden, (D, 8)), "head": 0.5 * jax.random.normal(key_head, (8, C))}


PARAMS = init_fn(jax.random.key(7))
X = jax.random.uniform(jax.random.key(1), (N, D), minval=0.2, maxval=0.8)
Y = jnp.argmax(X[:, :C], axis=1)
X_TARGET, Y_ADVERSARIAL = X[:1], (Y[:1] + 1) % C
FEATURES = jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w), PARAMS["hidden"])


def feasible(found, threat, bases):
    assert bool(threat.within(found.x - bases).all()) and float(found.x.min()) >= 0 and float(found.x.max()) <= 1


def task(x, y=None, rows=None, targets=X_TARGET, y_target=Y_ADVERSARIAL):
    """All of x is poisoned, or some rows of it."""
    rows = np.arange(len(x)) if rows is None else rows
    return poisoning.Task(x, jnp.zeros(len(x), int) if y is None else y, rows, targets, y_target)


def poison_certificates(x, y, rows, targets, y_target, *, training_loss, threat, num_noise, beta=16.0, victim, descent):
    return poisoning.poison_certificates(
        KEY, poisoning.Task(x, y, rows, targets, y_target), threat=threat,
        victim=poisoning.VictimTraining(apply_fn, init_fn, training_loss, **victim),
        certificate=poisoning.SoftCertificate(0.2, num_noise, beta), descent=poisoning.ResponseDescent(**descent),
    )  # fmt: skip


def test_crafting_solves_a_projection():
    # The nearest point to a goal within a ball: closed form.
    goal = jnp.full((4, D), 0.9)
    bases, threat = X[:4], L2(0.2)
    gradient_fn = poisoning.differentiated(lambda key, poisons: 0.5 * jnp.sum((poisons - goal) ** 2))
    run = functools.partial(poisoning.craft_poisons, KEY, bases, threat=threat, gradient_fn=gradient_fn, num_steps=100)
    found = jax.jit(lambda: run(optimizer=optax.sgd(0.3)))()
    gap = goal - bases
    np.testing.assert_allclose(found.delta, 0.2 * gap / jnp.linalg.norm(gap, axis=1, keepdims=True), atol=1e-4)
    assert found.losses.shape == (100,) and float(found.losses[-1]) < float(found.losses[0])
    feasible(found, threat, bases)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.15)])
def test_the_random_control_spends_the_whole_budget(threat):
    control = poisoning.random_control(KEY, X, threat)
    np.testing.assert_allclose(threat.norm(control - X), threat.eps, rtol=1e-4)
    assert len(np.unique(np.sign(np.asarray(control - X)[:, 0]))) == 2


def test_the_random_control_loses_nothing_to_the_box():
    dark = jnp.where(jax.random.uniform(KEY, X.shape) < 0.8, 0.0, X)
    for threat in (Linf(0.1), L2(0.15)):
        np.testing.assert_allclose(threat.norm(poisoning.random_control(KEY, dark, threat) - dark), threat.eps, rtol=1e-4)


def test_gradient_matching_aligns_the_gradients():
    bases, labels, threat = X[10:18], Y_ADVERSARIAL.repeat(8), Linf(0.2)
    run = functools.partial(
        poisoning.gradient_matching, KEY, task(bases, labels), params=PARAMS, apply_fn=apply_fn, threat=threat, num_steps=60,
    )  # fmt: skip
    found, best = jax.jit(lambda: (run(), run(num_restarts=4)))()
    feasible(found, threat, bases)

    def gradient(x, y):
        risk = lambda params: losses.cross_entropy(apply_fn(params, None, x, "eval")[0], y).mean()  # noqa: E731
        return np.asarray(jax.flatten_util.ravel_pytree(jax.grad(risk)(PARAMS))[0])

    def mismatch(x):
        a, b = gradient(x, labels), gradient(X_TARGET, Y_ADVERSARIAL)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    np.testing.assert_allclose(found.loss, mismatch(found.x), atol=0.02)  # of the last gradient, before its step
    control = min(mismatch(poisoning.random_control(jax.random.key(i), bases, threat)) for i in range(5))
    assert mismatch(found.x) < 0.8 * control and float(best.loss) <= float(found.loss) + 1e-6
    assert float(poisoning.cosine({"a": jnp.zeros(2)}, {"a": jnp.ones(2)})) == 0.0
    assert np.isnan(poisoning.cosine({"a": jnp.full(2, jnp.nan)}, {"a": jnp.ones(2)})), "a broken network is not orthogonal"
    assert np.isfinite(jax.grad(lambda a: poisoning.cosine(a, jnp.ones(2)))(jnp.zeros(2))).all()


def test_frogs_collide_with_the_target_and_stay_near_their_base():
    collide = functools.partial(poisoning.feature_collision, KEY, features_fn=FEATURES)
    run = jax.jit(functools.partial(collide, task(X[5:9]), num_steps=4000))
    found = run(step_size=0.02, beta=0.01)
    before = jnp.linalg.norm(FEATURES(X[5:9]) - FEATURES(X_TARGET), axis=1)
    assert (
        bool((found.state.distance < 0.2 * before).all())
        and found.losses.shape == (4000,)
        and float(found.x.min()) >= 0
        and float(found.x.max()) <= 1
    )
    near = run(step_size=0.02, beta=3.0)
    assert bool((near.state.change < found.state.change).all()) and bool((near.state.distance > found.state.distance).all())
    np.testing.assert_allclose(found.delta, found.x - X[5:9], atol=1e-6)
    np.testing.assert_allclose(found.state.distance, jnp.linalg.norm(FEATURES(found.x) - FEATURES(X_TARGET), axis=1), rtol=1e-4)
    # One step by hand: forward on the distance, backward to the base.
    one = collide(task(X[5:6]), step_size=0.1, beta=2.0, num_steps=1)
    grad = jax.grad(lambda x: jnp.linalg.norm(FEATURES(x) - FEATURES(X_TARGET)))(X[5:6])
    np.testing.assert_allclose(one.x, jnp.clip((X[5:6] - 0.1 * grad + 0.2 * X[5:6]) / 1.2, min=0, max=1), atol=1e-6)
    marked = collide(task(X[5:6]), step_size=0.0, beta=0.0, num_steps=1, watermark=0.3)
    np.testing.assert_allclose(marked.x, 0.7 * X[5:6] + 0.3 * X_TARGET, atol=1e-6)


def test_the_bullseye_puts_the_mean_of_the_poisons_on_the_target_in_every_network():
    other = jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w), init_fn(jax.random.key(9))["hidden"])
    threat, bases = Linf(0.3), X[5:10]
    found = poisoning.bullseye(KEY, task(bases), features_fns=(FEATURES, other), threat=threat, num_steps=200, learning_rate=0.02)
    feasible(found, threat, bases)
    for network in (FEATURES, other):
        gap = lambda x, network=network: float(jnp.linalg.norm(network(x).mean(axis=0) - network(X_TARGET)[0]))  # noqa: E731
        assert gap(found.x) < 0.35 * gap(bases)


def epoch(rows, num_unroll_steps):
    place = jnp.full(N, -1).at[rows].set(jnp.arange(len(rows)))
    return _Epoch(X, Y, place, X_TARGET, Y_ADVERSARIAL, apply_fn, init_fn, num_unroll_steps, 12, 0.3)


def test_metapoison_looks_ahead_in_the_order_of_the_authors():
    rows = jnp.array([3, 17, 30])
    poisons = X[rows] + 0.05
    for num_unroll_steps in (1, 2):
        one = epoch(rows, num_unroll_steps)
        loss, grad, after = jax.jit(one.poisoned)(KEY, poisons, PARAMS)
        order = np.asarray(one.order(KEY))
        assert sorted(order.ravel()) == list(range(N))

        def by_hand(poisons, order=order, num_unroll_steps=num_unroll_steps):
            params, total = PARAMS, 0.0
            poisoned = X.at[rows].set(poisons)
            for index in range(len(order)):
                copy = params
                for ahead in range(num_unroll_steps):
                    batch = order[(index + ahead) % len(order)]
                    copy = sgd(copy, (poisoned if ahead == 0 else X)[batch], Y[batch])
                    margin = losses.margin(apply_fn(copy, None, X_TARGET, "eval")[0], Y_ADVERSARIAL).mean()
                    total += margin / num_unroll_steps
                params = jax.lax.stop_gradient(sgd(params, X[order[index]], Y[order[index]]))
            return total, params

        (total, params), expected = jax.value_and_grad(by_hand, has_aux=True)(poisons)
        np.testing.assert_allclose(loss, total / len(order), rtol=1e-5)
        np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), after, params)


def sgd(params, x, y):
    grad = jax.grad(lambda params: losses.cross_entropy(apply_fn(params, None, x, "train")[0], y).mean())(params)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, grad)


def test_metapoison_lowers_the_margin_of_fresh_networks():
    rows = np.asarray(poisoning.choose(KEY, np.asarray(Y), 6, label=int(Y_ADVERSARIAL[0])))
    threat = Linf(0.3)
    found = jax.jit(
        lambda: poisoning.metapoison(
            KEY, task(X, Y, rows), apply_fn=apply_fn, init_fn=init_fn, threat=threat, optimizer=optax.adam(0.05),
            num_steps=20, num_surrogates=4, num_epochs=8, batch_size=12, step_size=0.3,
        )
    )()  # fmt: skip
    feasible(found, threat, X[rows])
    assert sorted(np.asarray(found.state.age).tolist()) == [0, 2, 4, 6]  # ages 0, 2, 4, 6 after 20 steps of a cycle of 8

    @jax.jit
    def margin(x):  # of fresh networks after training on x
        def one(key):
            step = lambda params, i: (sgd(params, x, Y), None)  # noqa: E731
            params = jax.lax.scan(step, init_fn(key), jnp.arange(100))[0]
            return losses.margin(apply_fn(params, None, X_TARGET, "eval")[0], Y_ADVERSARIAL)[0]

        return jax.vmap(one)(jax.random.split(jax.random.key(11), 8)).mean()

    control = poisoning.random_control(KEY, X[rows], threat)
    assert float(margin(X.at[rows].set(found.x))) < float(margin(X.at[rows].set(control))) - 0.2


def test_a_restart_that_breaks_down_is_not_chosen(monkeypatch):
    height = jax.vmap(jax.random.uniform)(jax.random.split(KEY, 5))

    def one(key, x, **_):
        mine = jax.random.uniform(key)
        return poisoning.PoisonResult(x + mine, mine, jnp.where(mine < jnp.sort(height)[1] + 1e-6, jnp.nan, mine), mine, None)

    monkeypatch.setattr(importlib.import_module("robustjax.poisoning._craft"), "craft_poisons", one)
    found = poisoning.gradient_matching(
        KEY, task(X[10:18], Y_ADVERSARIAL.repeat(8)), params=PARAMS, apply_fn=apply_fn, threat=Linf(0.2), num_steps=1, num_restarts=5
    )
    assert float(found.loss) == float(jnp.sort(height)[2]) == float(found.delta), "the best that is a number, and its poisons"


def test_no_noise_of_the_radius_is_also_noise_of_training(monkeypatch):
    seen = {"training": [], "radius": []}

    def note(what, keys):
        jax.debug.callback(lambda data: seen[what].extend(map(tuple, np.asarray(data).reshape(-1, 2))), jax.random.key_data(keys))

    def training_loss(params, model_state, key, x, y):
        note("training", prng.example_keys(key, len(x)))
        return training.gaussian(params, model_state, key, x, y, apply_fn=apply_fn, sigma=0.2)

    def noted(params, keys, x, y, **options):
        note("radius", keys)
        return soft_radius(params, keys, x, y, **options)

    soft_radius = certified.soft_radius
    monkeypatch.setattr(certified, "soft_radius", noted)
    found = poison_certificates(
        X, Y, np.arange(16), X[:16], Y[:16], training_loss=training_loss, threat=Linf(0.1), num_noise=2,
        victim={"num_clean": 24, "num_steps": 3}, descent={"num_epochs": 2, "num_poison": 8, "num_linear_steps": 1},
    )  # fmt: skip
    jax.block_until_ready(found.x)
    jax.effects_barrier()
    assert len(set(seen["radius"])) >= 2 * 2 * 16 and len(set(seen["training"])) >= 2 * 2 * 3 * 32
    assert not set(seen["radius"]) & set(seen["training"])


TRAINING = {
    "gaussian": base.bind(training.gaussian, apply_fn=apply_fn, sigma=0.2),
    "macer": base.bind(training.macer, apply_fn=apply_fn, sigma=0.2, num_noise=2, weight=1.0),
    "smooth_adv": base.bind(
        training.smooth_adv, apply_fn=apply_fn, sigma=0.2, num_noise=2,
        attack=base.bind(attacks.pgd, threat=L2(0.05), step_size=0.05, num_steps=1, delta=0.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_poisons_of_certified_defenses_lower_the_radius_of_retrained_victims(name):
    label = 1
    mine = np.flatnonzero(np.asarray(Y) == label)
    threat = Linf(0.15)
    found = jax.jit(
        lambda: poison_certificates(
            X, Y, mine, X[mine], Y[mine], training_loss=TRAINING[name], threat=threat, num_noise=8, beta=4.0,
            victim={"num_clean": 24, "num_steps": 8, "learning_rate": 0.03},
            descent={"num_epochs": 10, "num_poison": 8, "learning_rate": 0.05},
        )
    )()  # fmt: skip
    feasible(found, threat, X[mine])

    @jax.jit
    def radius(x):
        def one(key):
            optimizer = optax.adam(0.03)
            step = training.step(TRAINING[name], optimizer)
            take = lambda state, i: (step(state, jax.random.fold_in(key, i), x, Y)[0], None)  # noqa: E731
            state = jax.lax.scan(take, training.init(init_fn(key), None, optimizer), jnp.arange(100))[0]
            keys = jax.random.split(key, len(mine))
            certificate = poisoning.SoftCertificate(0.2, 100, 4.0)
            return poisoning.soft_radius(state.params, keys, X[mine], Y[mine], apply_fn=apply_fn, certificate=certificate)

        return jax.vmap(one)(jax.random.split(jax.random.key(5), 3)).mean()

    control = poisoning.random_control(KEY, X[mine], threat)
    clean, noisy, poisoned = (float(radius(X.at[mine].set(x))) for x in (X[mine], control, found.x))
    assert poisoned < 0.85 * noisy and poisoned < 0.85 * clean


def test_the_soft_radius_of_a_linear_classifier_is_its_margin():
    # Two classes, hardened: sigma / 2 (Phi^-1(p) - Phi^-1(1 - p)) = distance to the plane, up to sampling and smoothing.
    weight = jnp.zeros((D, 2)).at[0, 1].set(1.0)
    linear = lambda params, state, x, mode: ((x - 0.5) @ params, state)  # noqa: E731
    x = jnp.full((2, D), 0.5).at[:, 0].set(jnp.array([0.6, 0.3]))
    keys = jax.random.split(KEY, 2)
    certificate = poisoning.SoftCertificate(0.2, 20_000, beta=1e4, smoothing=1e-6)
    radius = poisoning.soft_radius(weight, keys[:1], x[:1], jnp.array([1]), apply_fn=linear, certificate=certificate)
    assert float(radius) == pytest.approx(0.1, abs=0.01)
    certificate = poisoning.SoftCertificate(0.2, 1000, beta=1e4)
    wrong = poisoning.soft_radius(weight, keys[:1], x[1:], jnp.array([1]), apply_fn=linear, certificate=certificate)
    assert float(wrong) == 0.0
    assert smoothing.radii.gaussian_l2(0.6914625, 0.2) == pytest.approx(0.1, abs=1e-5)


def test_poisoned_sets_name_what_would_make_them_meaningless():
    x, y = np.asarray(X), np.asarray(Y)
    rows = poisoning.choose(KEY, y, 3, label=2)
    assert (y[rows] == 2).all() and len(set(rows)) == 3
    threat = Linf(0.1)
    poisons = np.asarray(poisoning.random_control(KEY, X[rows], threat))
    new_x, new_y = poisoning.insert(x, y, rows, poisons, threat=threat)
    np.testing.assert_array_equal(new_x[rows], poisons)
    kept = np.setdiff1d(np.arange(N), rows)
    np.testing.assert_array_equal(new_x[kept], x[kept])
    np.testing.assert_array_equal(new_y, y)
    flipped = poisoning.insert(x, y, rows, poisons, np.zeros(3, int))[1]
    assert (flipped[rows] == 0).all()
    with pytest.raises(ValueError, match="cannot poison 99"):
        poisoning.choose(KEY, y, 99)
    with pytest.raises(ValueError, match="clean-label"):
        poisoning.insert(x, y, rows, poisons, np.zeros(3, int), threat=threat)
    with pytest.raises(ValueError, match="leave the box"):
        poisoning.insert(x, y, rows, poisons + 2, threat=threat)
    with pytest.raises(ValueError, match="leave Linf"):
        poisoning.insert(x, y, rows, np.clip(poisons + 0.15, 0, 1), threat=threat)
    for wrong, message in (
        ({"rows": rows[[0, 0, 1]]}, "different rows"),
        ({"rows": np.array([-1, 0, 1])}, rf"rows from 0 to {N - 1}, got -1 to 1"),
        ({"rows": np.array([0.0, 1.0, 2.5])}, "whole rows"),
        ({"rows": np.array([0, 1, N])}, f"got 0 to {N}"),
        ({"poisons": poisons + 2}, "leave the box"),
        ({"y": y[:-1]}, "one label y for each"),
        ({"labels": np.array([0, 1, 77])}, "labels among those of y"),
        ({"labels": np.array([0, 1, 0.5])}, "labels among those of y"),
        ({"labels": np.array([1])}, "expected 3 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            poisoning.insert(**({"x": x, "y": y, "rows": rows, "poisons": poisons} | wrong))
    assert poisoning.insert(x, y, rows, poisons + 2, box=(-np.inf, np.inf))[0].max() > 2
    with pytest.raises(ValueError, match="a batch takes 24"):
        poison_certificates(
            X[:13], Y[:13], np.arange(8), X[:8], Y[:8], training_loss=TRAINING["gaussian"], threat=threat, num_noise=2,
            victim={"num_clean": 24}, descent={"num_epochs": 1, "num_poison": 8},
        )  # fmt: skip


def test_directions_and_distances_hold_at_any_scale():
    a, b = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([0.5, 1.0])}
    for scale in (1e-25, 1e25):
        scaled = jax.tree.map(lambda leaf, scale=scale: scale * leaf, a)
        np.testing.assert_allclose(poisoning.cosine(scaled, scaled), 1.0, rtol=1e-5)
        np.testing.assert_allclose(poisoning.cosine(scaled, b), poisoning.cosine(a, b), rtol=1e-5)
    dark = jnp.zeros((1, D))
    found = poisoning.bullseye(
        KEY, task(X[:3], targets=dark), features_fns=[lambda x: x], threat=Linf(0.1), num_steps=3, learning_rate=0.05
    )
    assert np.isfinite(found.losses).all() and bool((found.x < X[:3]).all())


def test_a_gradient_that_is_not_finite_moves_nothing_and_marks_its_step():
    def broken(key, poisons, state):
        count = state + 1
        return poisons.sum(), jnp.where((count == 2) & (jnp.arange(3)[:, None] == 0), jnp.nan, jnp.ones_like(poisons)), count

    found = poisoning.craft_poisons(
        KEY, X[:3], threat=Linf(0.5, box=(-9.0, 9.0)), gradient_fn=broken, optimizer=optax.sgd(0.1), num_steps=3, state=jnp.int32(0)
    )
    assert np.isnan(found.losses).tolist() == [False, True, False]
    np.testing.assert_allclose(found.delta, -0.1 * np.array([[2.0], [3.0], [3.0]]) * np.ones((1, D)), rtol=1e-5)
