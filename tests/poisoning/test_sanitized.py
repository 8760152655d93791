"""Attacks inside a feasible set: projections, a decoy that is learned exactly, poisons that pass and hurt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from robustjax import base, bilevel, poisoning
from robustjax.poisoning import sanitized

REG = 0.05


def data(num=200, seed=0):
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(num) < 0.5, 1, -1)
    x = rng.normal(size=(num, 3)) + y[:, None] * np.array([1.0, 0.6, 0.0])
    return x, y


def svm(x, y, reg=REG):
    from sklearn.svm import SVC

    machine = SVC(kernel="linear", C=1 / (reg * len(x)), tol=1e-8).fit(x, y)
    return np.append(machine.coef_[0], machine.intercept_[0])


X, Y = data()
SETS = tuple(sanitized.feasible(X, Y, label, percentile=90.0) for label in (1, -1))


def test_the_feasible_set_keeps_its_share_and_projects_to_the_nearest_point():
    for one, label in zip(SETS, (1, -1), strict=True):
        mine = jnp.asarray(X[label == Y], jnp.float32)
        assert 0.78 < float(one.holds(mine).mean()) < 0.93  # 90 % in each of two sets
        np.testing.assert_allclose(one.nearest(mine)[one.holds(mine, 0.0)], mine[one.holds(mine, 0.0)], atol=1e-5)
        far = mine[:5] * 4.0 + 3.0
        near = one.nearest(far)
        assert bool(one.holds(near, 1e-2).all())
        for start, found in zip(np.asarray(far), np.asarray(near), strict=True):
            centre, direction = (np.asarray(value, np.float64) for value in (one.centre, one.direction))
            radius, width, goal = float(one.radius), float(one.width), start.astype(np.float64)
            limits = [
                {"type": "ineq", "fun": lambda p, c=centre, r=radius: r**2 - np.sum((p - c) ** 2)},
                {"type": "ineq", "fun": lambda p, c=centre, d=direction, w=width: w - abs((p - c) @ d)},
            ]
            best = scipy.optimize.minimize(lambda p, goal=goal: np.sum((p - goal) ** 2), centre, constraints=limits)
            assert np.linalg.norm(found - start) == pytest.approx(np.sqrt(best.fun), rel=1e-2)


def test_a_kkt_attack_teaches_its_decoy_with_points_that_pass():
    clean = svm(X, Y)
    candidates = sanitized.decoys(X, Y, svm, quantiles=(0.2, 0.3), repeats=(1, 2))
    assert len(candidates) == 4
    share = 0.1
    x_test, y_test = data(2000, 1)
    loss = lambda theta: np.maximum(1 - y_test * (x_test @ theta[:-1] + theta[-1]), 0).mean()  # noqa: E731
    losses, gaps, residuals = [], [], []
    for decoy in candidates:
        plan = sanitized.kkt_attack(X, Y, decoy, SETS, share=share, weight_decay=REG, grid_step=0.02, num_steps=300)
        assert plan.shares.sum() == pytest.approx(share)
        assert all(bool(one.holds(jnp.asarray(plan.x[i : i + 1]), 1e-2).all()) for i, one in enumerate(SETS))
        copies = np.round(plan.shares * len(X)).astype(int)
        learned = svm(np.concatenate([X, np.repeat(plan.x, copies, axis=0)]), np.concatenate([Y, np.repeat([1, -1], copies)]))
        residuals.append(plan.residual)
        gaps.append(np.linalg.norm(learned - decoy) / np.linalg.norm(clean - decoy))
        losses.append(loss(learned))
    best = int(np.argmin(residuals))
    assert residuals[best] < 1e-6 and gaps[best] < 0.05
    assert max(losses) > loss(clean) + 0.01


def test_the_extreme_point_of_a_set_in_the_dimension_of_images():
    rng = np.random.default_rng(3)
    x = np.clip(rng.random((60, 100)) - 0.4, 0.0, 1.0)
    y = np.where(np.arange(60) < 30, 1, -1)
    one = sanitized.feasible(x, y, 1, percentile=80.0, box=(0.0, 1.0))
    direction = rng.normal(size=100)
    found = np.asarray(one.extreme(jnp.asarray(direction, jnp.float32)))[0]
    assert bool(one.holds(jnp.asarray(found[None]), 1e-2).all())
    centre, across = np.asarray(one.centre, np.float64), np.asarray(one.direction, np.float64)
    limits = [
        {"type": "ineq", "fun": lambda p: float(one.radius) ** 2 - np.sum((p - centre) ** 2), "jac": lambda p: -2 * (p - centre)},
        {"type": "ineq", "fun": lambda p: float(one.width) - (p - centre) @ across, "jac": lambda p: -across},
        {"type": "ineq", "fun": lambda p: float(one.width) + (p - centre) @ across, "jac": lambda p: across},
    ]
    best = scipy.optimize.minimize(
        lambda p: -p @ direction, centre, jac=lambda p: -direction, bounds=[(0, 1)] * 100, constraints=limits, method="SLSQP"
    )
    assert found @ direction == pytest.approx(-best.fun, rel=1e-2)


def test_a_decoy_that_no_feasible_point_can_teach_is_said_not_to_be_learned():
    rng = np.random.default_rng(0)
    y = np.where(np.arange(60) < 30, 1, -1)
    x = rng.normal(size=(60, 2)) * 0.3 + 4.0 * y[:, None] * np.array([1.0, 0.0])
    sets = tuple(sanitized.feasible(x, y, label) for label in (1, -1))
    plan = sanitized.kkt_attack(x, y, np.array([7.0, 0.0, 0.0]), sets, share=0.1, weight_decay=0.01, grid_step=0.05, num_steps=50)
    assert (np.array([1, -1]) * (plan.x @ np.array([7.0, 0.0])) > 10).all()  # far beyond the margin, wherever they are
    assert plan.residual == pytest.approx(1.1 * 0.01 * 7.0, rel=1e-4)  # nothing holds the decoy against its weight decay


def test_min_max_poisons_pass_and_raise_the_loss_more_than_repeated_clean_points():
    points, labels, bound = sanitized.min_max_attack(X, Y, SETS, share=0.1, weight_decay=REG, step_size=0.3, num_steps=400)
    assert points.shape == (20, 3) and all(
        bool(one.holds(jnp.asarray(points[labels == label]), 1e-2).all()) for one, label in zip(SETS, (1, -1), strict=True)
    )

    def loss(extra_x, extra_y):
        x, y = np.concatenate([X, extra_x]), np.concatenate([Y, extra_y])
        theta = svm(x, y)
        return np.maximum(1 - y * (x @ theta[:-1] + theta[-1]), 0).sum() / len(X) + REG / 2 * theta[:-1] @ theta[:-1]

    assert loss(X[:20], Y[:20]) < loss(points, labels) <= bound + 0.02


def test_the_influence_attack_moves_inside_the_feasible_set():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    y_poison = jnp.ones(10)

    def inner(theta, phi, batch):
        del batch
        margin = jnp.concatenate([y * (x @ theta[:-1] + theta[-1]), y_poison * (phi @ theta[:-1] + theta[-1])])
        return jnp.mean(jax.nn.softplus(8.0 * (1.0 - margin)) / 8.0) + 0.5 * REG * theta @ theta

    problem = base.Bilevel(inner, lambda theta, phi, batch: -jnp.mean(jax.nn.softplus(-y * (x @ theta[:-1] + theta[-1]))))
    solve = base.bind(bilevel.descend, inner_loss=inner, num_steps=60, step_size=0.3)
    gradient_fn = poisoning.response_gradient(problem, solve, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=4))
    bases = jnp.asarray(X[Y == 1][:10], jnp.float32)
    run = jax.jit(
        functools.partial(
            poisoning.craft_poisons, jax.random.key(0), bases, threat=SETS[0], gradient_fn=gradient_fn, num_steps=40,
            optimizer=optax.sgd(20.0), state=poisoning.Response(jnp.zeros(4), jnp.zeros(4)),
        )
    )  # fmt: skip
    found = run()
    assert bool(SETS[0].holds(found.x, 1e-2).all()) and float(found.losses[-1]) < float(found.losses[1]) - 0.005


def test_wrong_arguments_are_named_and_a_set_has_a_control():
    options = {"share": 0.1, "weight_decay": REG}
    for wrong, message in (
        ({"y": (Y + 1) // 2}, "labels -1 and 1"),
        ({"y": np.ones(len(Y))}, "labels -1 and 1"),
        ({"share": 0.0}, "share of poisons above 0"),
        ({"share": 5.0}, "share of poisons above 0"),
    ):
        changed = options | {"share": wrong.get("share", 0.1)}
        with pytest.raises(ValueError, match=message):
            sanitized.kkt_attack(X, wrong.get("y", Y), np.ones(X.shape[1] + 1), SETS, **changed)
        with pytest.raises(ValueError, match=message):
            sanitized.min_max_attack(X, wrong.get("y", Y), SETS, step_size=0.3, num_steps=400, **changed)
    with pytest.raises(ValueError, match="pass at least"):
        sanitized.min_max_attack(X, Y, SETS, step_size=0.3, num_steps=2, **options)
    with pytest.raises(ValueError, match="labels -1 and 1"):
        sanitized.feasible(X, np.ones(len(Y)), 1)
    control = poisoning.random_control(jax.random.key(0), jnp.asarray(X[:5]), SETS[0])
    assert SETS[0].holds(control).all() and np.abs(np.asarray(control) - X[:5]).max() > 0
