"""Influence against exact leave-one-out, and the training-set attack against the closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.datasets

from robustjax import base, bilevel, poisoning
from robustjax.threats import Linf

REG = 0.05


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5))
    y = np.where(x @ np.array([1.0, -1.0, 0.5, 0.0, 2.0]) + rng.normal(size=80) > 0, 1.0, -1.0)
    return jnp.asarray(x), jnp.asarray(y)


def one_loss(params, x, y):
    return jax.nn.softplus(-y * (x @ params["w"] + params["b"]))


def penalty(params):
    return 0.5 * REG * (params["w"] @ params["w"] + params["b"] ** 2)


def fitted(x, y):
    def step(params, _):
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        risk = lambda flat: jax.vmap(one_loss, (None, 0, 0))(unravel(flat), x, y).mean() + penalty(unravel(flat))  # noqa: E731
        return unravel(flat - jnp.linalg.solve(jax.hessian(risk)(flat), jax.grad(risk)(flat))), None

    return jax.lax.scan(step, {"w": jnp.zeros(5), "b": jnp.zeros(())}, length=15)[0]


def test_influence_predicts_leaving_one_out():
    with jax.enable_x64(True):
        x, y = data()
        params = fitted(x, y)
        x_test, y_test = jnp.ones(5) * 0.3, -1.0
        test_loss = lambda params: one_loss(params, x_test, y_test)  # noqa: E731
        found = jax.jit(
            lambda params: poisoning.influence(
                params, x, y, loss_fn=one_loss, test_loss_fn=test_loss, regularizer_fn=penalty,
                linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=6),
            )
        )(params)  # fmt: skip
        assert float(found.residual) < 1e-8 and float(found.stationarity) < 1e-10
        keep = jnp.array([np.delete(np.arange(80), row) for row in range(80)])
        refitted = jax.jit(jax.vmap(lambda rows: test_loss(fitted(x[rows], y[rows]))))(keep)
        exact = np.asarray(refitted - test_loss(params))
        assert np.corrcoef(exact, found.removal)[0, 1] > 0.98
        slope = np.polyfit(np.asarray(found.removal), exact, 1)[0]
        assert 0.9 < slope < 1.3


@pytest.mark.parametrize("linear_fn", [bilevel.dense, base.bind(bilevel.conjugate_gradient, num_steps=6)])
def test_leaving_one_out_of_ridge_regression_is_exact_whatever_the_leverage(linear_fn):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(12, 5))
        x[0] *= 20.0
        y, x_test, y_test = rng.normal(size=12), rng.normal(size=(7, 5)), rng.normal(size=7)

        def fit(rows):
            return np.linalg.solve(x[rows].T @ x[rows] / len(rows) + REG * np.eye(5), x[rows].T @ y[rows] / len(rows))

        theta = fit(np.arange(12))
        test_loss = lambda theta: jnp.mean((x_test @ theta - y_test) ** 2)  # noqa: E731
        found = poisoning.influence(
            jnp.asarray(theta), jnp.asarray(x), jnp.asarray(y), loss_fn=lambda theta, x, y: 0.5 * (x @ theta - y) ** 2,
            test_loss_fn=test_loss, regularizer_fn=lambda theta: 0.5 * REG * theta @ theta, linear_fn=linear_fn,
        )  # fmt: skip
        exact = [float(test_loss(fit(np.delete(np.arange(12), row))) - test_loss(theta)) for row in range(12)]
        np.testing.assert_allclose(found.removal, exact, rtol=1e-9)
        hat = np.einsum("nd,de,ne->n", x, np.linalg.inv(x.T @ x + 11 * REG * np.eye(5)), x)
        np.testing.assert_allclose(found.leverage, hat, rtol=1e-9)
        assert hat[0] > 0.97 and float(found.remaining.max()) < 1e-7 and float(found.residual) < 1e-9


def logistic_regression(x, y, theta, reg, num_steps):
    for _ in range(num_steps):  # of Newton's
        p = scipy.special.expit(-y * (x @ theta))
        hessian = (x.T * (p * (1 - p))) @ x / len(x) + reg * np.eye(len(theta))
        theta = theta - np.linalg.solve(hessian, reg * theta - (y * p) @ x / len(x))
    return theta


def test_removal_ranks_the_points_that_first_order_does_not_and_says_which_to_train_again_without():
    bunch = sklearn.datasets.load_breast_cancer()
    scaled = (bunch.data - bunch.data.mean(axis=0)) / bunch.data.std(axis=0)
    order = np.random.default_rng(0).permutation(len(scaled))
    x, y = np.column_stack([scaled, np.ones(len(scaled))])[order], np.where(bunch.target == 1, 1.0, -1.0)[order]
    (x, x_test), (y, y_test) = np.split(x, [200]), np.split(y, [200])
    theta = np.zeros(31)
    for reg in (1.0, 0.1, 0.01, 0.001):
        theta = logistic_regression(x, y, theta, reg, 10)
    test_loss = lambda theta: np.logaddexp(0.0, -y_test * (x_test @ theta)).mean()  # noqa: E731
    refitted = [logistic_regression(np.delete(x, row, 0), np.delete(y, row), theta, 0.001, 10) for row in range(200)]
    exact = np.array(list(map(test_loss, refitted))) - test_loss(theta)
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.float32):
            new_x, new_y = jnp.asarray(x_test, dtype), jnp.asarray(y_test, dtype)
            run = jax.jit(
                lambda *args, x=new_x, y=new_y: poisoning.influence(
                    *args, loss_fn=lambda theta, x, y: jax.nn.softplus(-y * (x @ theta)), linear_fn=bilevel.dense,
                    test_loss_fn=lambda theta: jax.nn.softplus(-y * (x @ theta)).mean(),
                    regularizer_fn=lambda theta: 0.0005 * theta @ theta,
                )
            )  # fmt: skip
            found = run(*(jnp.asarray(value, dtype) for value in (theta, x, y)))
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))
            removal, remaining = np.asarray(found.removal), np.asarray(found.remaining)
            pearson = lambda predicted: np.corrcoef(predicted, exact)[0, 1]  # noqa: E731
            assert pearson(found.first_order) < 0.45 and pearson(removal) > 0.99
            for least, most, bound in ((0.0, 0.01, 0.02), (0.01, 0.1, 0.1), (0.1, 0.3, 0.2)):
                rows = (remaining >= least) & (remaining < most)
                assert rows.any() and np.linalg.norm(removal[rows] - exact[rows]) < bound * np.linalg.norm(exact[rows])


def test_a_test_loss_that_no_image_moves_has_no_influence_and_no_residual():
    x, y = data()
    params = {"w": jnp.ones(5), "b": jnp.zeros(())}
    for linear_fn in (bilevel.conjugate_gradient, base.bind(bilevel.neumann, step_size=0.1)):
        found = poisoning.influence(
            params, x, y, loss_fn=one_loss, test_loss_fn=lambda params: 3.0 + 0.0 * params["b"], regularizer_fn=penalty,
            linear_fn=base.bind(linear_fn, num_steps=3), corrected=False,
        )  # fmt: skip
        np.testing.assert_array_equal(found.removal, 0.0)
        assert float(found.residual) == 0.0 and found.leverage is None and found.remaining is None


def test_the_training_set_attack_follows_the_gradient_of_the_refitted_victim():
    with jax.enable_x64(True):
        x, y = data()
        rows = jnp.arange(3)
        x_test, y_test = x[10:20], y[10:20]

        def inner(theta, phi, batch):
            del batch
            all_x = x.at[rows].set(phi)
            return jax.vmap(one_loss, (None, 0, 0))(theta, all_x, y).mean() + penalty(theta)

        problem = base.Bilevel(inner, lambda theta, phi, batch: -jax.vmap(one_loss, (None, 0, 0))(theta, x_test, y_test).mean())
        theta = fitted(x, y)
        gradient_fn = poisoning.response_gradient(
            problem, lambda phi, theta, batch: fitted(x.at[rows].set(phi), y), linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=6)
        )
        zeros = jax.tree.map(jnp.zeros_like, theta)
        value, grad, state = gradient_fn(None, x[rows], poisoning.Response(theta, zeros))
        attacked = lambda phi: problem.outer_loss(fitted(x.at[rows].set(phi), y), phi, None)  # noqa: E731
        np.testing.assert_allclose(grad, jax.grad(attacked)(x[rows]), atol=1e-8)
        assert float(state.residual) < 1e-8
        solve = base.bind(bilevel.descend, inner_loss=inner, num_steps=300, step_size=0.5)
        for method in (base.bind(bilevel.unrolled), base.bind(bilevel.back_gradient, stored=True)):
            retrained = poisoning.method_gradient(problem, method, solve, jax.tree.map(jnp.zeros_like, theta))
            found = jax.jit(lambda retrained=retrained: poisoning.craft_poisons(
                jax.random.key(0), x[rows], threat=Linf(0.5, box=(-9.0, 9.0)), gradient_fn=retrained, optimizer=optax.sgd(0.0), num_steps=1
            ))()  # fmt: skip
            np.testing.assert_allclose(found.state.grad, grad, atol=1e-6)
            assert float(found.state.info.stationarity) < 1e-3
        threat = Linf(0.5, box=(-9.0, 9.0))
        optimizer = poisoning.signed(optax.sgd(0.1))
        run = jax.jit(lambda: poisoning.craft_poisons(
            jax.random.key(0), x[rows], threat=threat, gradient_fn=gradient_fn, optimizer=optimizer, num_steps=10,
            state=poisoning.Response(theta, zeros),
        ))  # fmt: skip
        found = run()
        assert float(attacked(found.x)) < float(value) - 0.005 and bool(threat.within(found.delta).all())
        control = poisoning.random_control(jax.random.key(1), x[rows], threat)
        assert float(attacked(found.x)) < float(attacked(control))
