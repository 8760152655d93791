"""Every way to differentiate against the closed form of ridge regression, and against each other on logistic regression."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel, loops
from robustjax.base import Bilevel

N, M, D = 60, 8, 6  # clean rows, poisons, features
REG = 0.1


def data(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    x, x_val, x_poison = (rng.normal(size=(n, D)) for n in (N, N, M))
    w = rng.normal(size=D)
    y, y_val, y_poison = (x @ w + 0.3 * rng.normal(size=len(x)) for x in (x, x_val, x_poison))
    return jax.tree.map(lambda a: a.astype(dtype), (x, y, x_val, y_val, x_poison, y_poison))


def ridge_inner(theta, phi, batch):
    x, y, _, _, y_poison = batch
    errors = jnp.concatenate([x @ theta["w"] + theta["b"] - y, phi @ theta["w"] + theta["b"] - y_poison])
    return 0.5 * jnp.mean(errors**2) + 0.5 * REG * (jnp.sum(theta["w"] ** 2) + theta["b"] ** 2)


def ridge_outer(theta, phi, batch):
    del phi
    return -jnp.mean((batch[2] @ theta["w"] + theta["b"] - batch[3]) ** 2)


RIDGE = Bilevel(ridge_inner, ridge_outer)


def logistic_inner(theta, phi, batch):
    x, y, _, _, y_poison = batch
    margins = jnp.concatenate([jnp.sign(y) * (x @ theta["w"] + theta["b"]), jnp.sign(y_poison) * (phi @ theta["w"] + theta["b"])])
    return jnp.mean(jax.nn.softplus(-margins)) + 0.5 * REG * (jnp.sum(theta["w"] ** 2) + theta["b"] ** 2)


LOGISTIC = Bilevel(logistic_inner, lambda theta, phi, batch: -jnp.mean(jax.nn.softplus(-jnp.sign(batch[3]) * (batch[2] @ theta["w"]))))


def setting(dtype=jnp.float64):
    x, y, x_val, y_val, x_poison, y_poison = data(dtype)
    theta0 = {"w": np.zeros(D, dtype), "b": np.zeros((), dtype)}
    return x_poison, theta0, (x, y, x_val, y_val, y_poison)


def ridge_solution(phi, theta0, batch):
    del theta0
    x, y, _, _, y_poison = batch
    a = jnp.concatenate([jnp.concatenate([x, phi]), jnp.ones((N + M, 1), x.dtype)], axis=1)
    w = jnp.linalg.solve(a.T @ a / (N + M) + REG * jnp.eye(D + 1, dtype=x.dtype), a.T @ jnp.concatenate([y, y_poison]) / (N + M))
    return {"w": w[:-1], "b": w[-1]}


solution = jax.jit(ridge_solution)


@jax.jit
def exact(phi, theta0, batch):
    return jax.value_and_grad(lambda phi: ridge_outer(ridge_solution(phi, theta0, batch), phi, batch))(phi)


def error(grad, truth):
    return np.linalg.norm(np.asarray(grad) - np.asarray(truth)) / np.linalg.norm(truth)


def descent(inner_loss, num_steps, **options):
    return base.bind(bilevel.descend, inner_loss=inner_loss, num_steps=num_steps, **({"step_size": 0.3} | options))


LONG = descent(ridge_inner, 1500)
METHODS = {
    "cg": (base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=8)), 1e-9),
    "dense": (base.bind(bilevel.implicit, linear_fn=bilevel.dense), 1e-9),
    "neumann": (base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.neumann, step_size=0.3, num_steps=1000)), 1e-9),
    "adam": (base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.solve_by_adam, learning_rate=0.003, num_steps=3000)), 0.05),
    "unrolled": (base.bind(bilevel.unrolled), 1e-9),
    "checkpointed": (base.bind(bilevel.unrolled), 1e-9),
    "forward": (base.bind(bilevel.forward), 1e-9),
    "truncated": (base.bind(bilevel.truncated, tail=descent(ridge_inner, 400)), 1e-9),
    "back_gradient": (base.bind(bilevel.back_gradient, stored=True), 1e-9),
    "value_function": (base.bind(bilevel.value_function, weight=1e5), 1e-3),
}


def test_a_short_tail_leaves_out_what_came_before_it():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        truth = exact(phi, theta0, batch)[1]
        errors = []
        for num_last in (1, 10, 60):
            method = base.bind(bilevel.truncated, tail=descent(ridge_inner, num_last))
            errors.append(error(jax.jit(functools.partial(method, RIDGE, LONG))(phi, theta0, batch).grad, truth))
        assert errors[0] > 0.2 and errors[0] > errors[1] > 2 * errors[2] > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_gradient_of_the_closed_form(name):
    method, tolerance = METHODS[name]
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        solve = base.bind(LONG, loop_fn=loops.checkpointed) if name == "checkpointed" else LONG
        result = jax.jit(functools.partial(method, RIDGE, solve))(phi, theta0, batch)
        value, truth = exact(phi, theta0, batch)
        assert error(result.grad, truth) < tolerance
        np.testing.assert_allclose(result.value, value, rtol=1e-9)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), result.theta, solution(phi, theta0, batch))
        assert float(result.info.stationarity) < (1e-7 if name != "value_function" else 1e-6)
        together = jax.jit(jax.vmap(functools.partial(method, RIDGE, solve), (0, None, None)))(np.stack([2 * phi, phi]), theta0, batch)
        assert error(together.grad[1], result.grad) < 1e-8
        assert error(together.grad[0], exact(2 * phi, theta0, batch)[1]) < 2 * tolerance


@pytest.mark.parametrize("name", ["cg", "unrolled"])
def test_a_method_needs_no_jit(name):
    method = METHODS[name][0]
    with jax.enable_x64(True):
        short = functools.partial(method, RIDGE, base.bind(LONG, num_steps=3))
        assert error(short(*setting()).grad, jax.jit(short)(*setting()).grad) < 1e-8


def test_residuals_tell_an_unsolved_system():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        _, truth = exact(phi, theta0, batch)
        errors, residuals = [], []
        for num_steps in (1, 3, 5, 8):
            method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=num_steps))
            result = jax.jit(functools.partial(method, RIDGE, LONG))(phi, theta0, batch)
            errors.append(error(result.grad, truth))
            residuals.append(float(result.info.residual))
        assert errors[0] > errors[1] > errors[2] > errors[3] and residuals[0] > residuals[1] > residuals[2] > residuals[3]
        assert residuals[0] > 0.05 and residuals[3] < 1e-9


def test_the_reversal_of_descent_is_named_untrustworthy_by_its_residual():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        slow, fast = descent(ridge_inner, 50, step_size=0.01), descent(ridge_inner, 200, step_size=0.5)
        reversed_, stored, unrolled = (
            jax.jit(lambda solve, *args, method=method: method(RIDGE, solve, *args))
            for method in (bilevel.back_gradient, base.bind(bilevel.back_gradient, stored=True), bilevel.unrolled)
        )
        good, bad = reversed_(slow, phi, theta0, batch), reversed_(fast, phi, theta0, batch)
        assert error(good.grad, unrolled(slow, phi, theta0, batch).grad) < 0.03 and float(good.info.residual) < 0.03
        assert float(bad.info.residual) > 1e3
        kept = stored(fast, phi, theta0, batch)
        assert error(kept.grad, unrolled(fast, phi, theta0, batch).grad) < 1e-12 and float(kept.info.residual) == 0


def test_methods_agree_on_logistic_regression_and_with_finite_differences():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        solve = descent(logistic_inner, 1500, step_size=1.0)
        cg = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=8))
        implicit, unrolled = (jax.jit(functools.partial(method, LOGISTIC, solve))(phi, theta0, batch) for method in (cg, bilevel.unrolled))
        assert error(implicit.grad, unrolled.grad) < 1e-8
        direction = np.random.default_rng(1).normal(size=phi.shape)
        value = jax.jit(lambda phi: LOGISTIC.outer_loss(solve(phi, theta0, batch), phi, batch))
        slope = (value(phi + 1e-5 * direction) - value(phi - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.vdot(implicit.grad, direction), slope, rtol=1e-6)


def test_the_implicit_solution_differentiates_twice_and_in_both_modes():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        cg = base.bind(bilevel.conjugate_gradient, num_steps=20)
        solved = bilevel.solution(ridge_inner, LONG, linear_fn=cg)
        outer = lambda solve, s: ridge_outer(solve(s * phi, theta0, batch), phi, batch)  # noqa: E731
        ours, truth = (functools.partial(outer, solve) for solve in (solved, ridge_solution))
        for derivative in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.grad(f)), lambda f: jax.jacfwd(jax.grad(f))):
            np.testing.assert_allclose(jax.jit(derivative(ours))(1.3), jax.jit(derivative(truth))(1.3), rtol=1e-6)


def test_the_implicit_solution_differentiates_where_phi_moves_some_leaves_of_theta_only():
    loss = lambda theta, phi, batch: 0.5 * jnp.sum((theta["w"] - phi) ** 2) + 0.5 * (theta["b"] - 1.0) ** 2  # noqa: E731
    solve, start = descent(loss, 60, step_size=0.5), {"w": jnp.zeros(3), "b": jnp.zeros(())}
    solved = bilevel.solution(loss, solve, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=5))
    grad = jax.jit(jax.grad(lambda phi: jnp.sum(solved(phi, start)["w"] ** 2) * solved(phi, start)["b"]))(np.arange(3.0, dtype=np.float32))
    np.testing.assert_allclose(grad, 2.0 * np.arange(3.0), rtol=1e-5)


def test_vmap_over_phi_equals_a_loop():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=8))
        run = lambda phi: method(RIDGE, LONG, phi, theta0, batch)  # noqa: E731
        many, one = jax.jit(jax.vmap(run))(np.stack([phi, 2 * phi])), jax.jit(run)
        for index, scale in enumerate((1, 2)):
            assert error(many.grad[index], one(scale * phi).grad) < 1e-9


def test_bfloat16_keeps_its_type_and_solves_in_float32():
    phi, theta0, batch = setting(jnp.bfloat16)
    method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=8))
    result = jax.jit(functools.partial(method, RIDGE, descent(ridge_inner, 100, step_size=jnp.bfloat16(0.3))))(phi, theta0, batch)
    assert result.grad.dtype == jnp.bfloat16 and result.info.solution["w"].dtype == jnp.float32
    with jax.enable_x64(True):
        _, truth = exact(*setting())
    assert error(np.asarray(result.grad, np.float32), truth) < 0.1


@pytest.mark.parametrize("scale", [4.0, None])
def test_lissa_solves_in_the_mean_over_samples(scale):
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        theta = solution(phi, theta0, batch)
        rows = np.concatenate([np.concatenate([batch[0], phi]), np.ones((N + M, 1))], axis=1)

        def sampled(key, p):
            some = jnp.asarray(rows)[jax.random.choice(key, N + M, (30,), replace=False)]
            flat = jnp.append(p["w"], p["b"])
            h = some.T @ (some @ flat) / 30 + REG * flat
            return {"w": h[:-1], "b": h[-1]}

        lissa = base.bind(bilevel.lissa, key=jax.random.key(0), sampled_fn=sampled, scale=scale, num_steps=400, num_repeats=10)
        method = base.bind(bilevel.implicit, linear_fn=lissa)
        result = jax.jit(functools.partial(method, RIDGE, lambda phi, theta0, batch: theta))(phi, theta0, batch)
        assert error(result.grad, exact(phi, theta0, batch)[1]) < 0.05 and float(result.info.residual) < 0.1


def test_lissa_finds_its_scale_and_its_damping_by_itself():
    diagonal, v = np.array([2.0, 1.0, 30.0, -0.5], np.float32), np.ones(4, np.float32)
    jitter = lambda key: jax.random.uniform(key, (4,), minval=0.8, maxval=1.2)  # noqa: E731
    sampled = lambda key, p: diagonal * jitter(key) * p  # noqa: E731
    lissa = base.bind(bilevel.lissa, key=jax.random.key(0), sampled_fn=sampled, num_steps=4000, num_repeats=4)

    def run(**options):
        return np.asarray(jax.jit(lambda v: base.bind(lissa, **options)(lambda p: diagonal * p, v, jnp.zeros(4)))(v))

    damped = v / (diagonal + 0.55)  # 1.1 times the most negative eigenvalue
    np.testing.assert_allclose(run()[:3], damped[:3], rtol=0.1)
    for diverging in ({"damping": 0.0}, {"scale": 10.0}):
        assert not np.abs(run(**diverging)).max() < 1e6


def test_the_largest_eigenvalue():
    largest = jax.jit(lambda matrix: bilevel.largest_eigenvalue(lambda p: matrix @ p, jnp.zeros(3)))
    np.testing.assert_allclose(largest(np.diag(np.array([0.5, 3.0, -1.0], np.float32))), 3.0, rtol=1e-5)


def test_warm_starts_reach_the_solution_that_a_cold_one_does_not():
    with jax.enable_x64(True):
        phi, theta0, batch = setting()
        method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=2))
        run = jax.jit(lambda start: method(RIDGE, LONG, phi, theta0, batch, linear_start=start))
        start, residuals = None, []
        for _ in range(8):
            result = run(start)
            start = result.info.solution
            residuals.append(float(result.info.residual))
        assert residuals[-1] < 1e-2 * residuals[0]


def test_what_a_user_can_get_wrong_is_named():
    phi, theta0, batch = setting(jnp.float32)
    blind = Bilevel(lambda theta, phi, batch: ridge_inner(theta, jax.lax.stop_gradient(phi), batch), ridge_outer)
    cg = base.bind(bilevel.conjugate_gradient, num_steps=2)
    for method in (base.bind(bilevel.implicit, linear_fn=cg), base.bind(bilevel.unrolled), base.bind(bilevel.forward)):
        with pytest.raises(ValueError, match="phi has no effect"):
            jax.jit(functools.partial(method, blind, descent(ridge_inner, 2)))(phi, theta0, batch)
    direct = Bilevel(lambda theta, phi, batch: theta["b"] ** 2, lambda theta, phi, batch: phi.sum() + theta["b"])
    bilevel.check(direct, phi, theta0, batch)  # constant, but not zero
    with pytest.raises(ValueError, match="reverses plain gradient descent"):
        bilevel.back_gradient(RIDGE, ridge_solution, phi, theta0, batch)
    with pytest.raises(ValueError, match="solves a second problem"):
        bilevel.value_function(RIDGE, ridge_solution, phi, theta0, batch, weight=10.0)
    with pytest.raises(ValueError, match="either step_size"):
        bilevel.descend(phi, theta0, batch, inner_loss=ridge_inner, num_steps=2)


def test_the_outer_loop_can_change_its_batch():
    phi, theta0, batch = setting(jnp.float32)
    solve = descent(ridge_inner, 60, step_size=0.3)
    method = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.conjugate_gradient, num_steps=8))
    part = lambda batch, step: jax.tree.map(lambda leaf: jnp.roll(leaf, step, axis=0)[: N // 2], batch)  # noqa: E731
    descend = bilevel.hypergradient_descent(RIDGE, method, solve, optimizer=optax.sgd(0.1))
    state, steps = jax.jit(lambda: bilevel.minimize(descend, phi, theta0, batch, batch_fn=part, num_steps=3))()
    theta, one = theta0, jax.jit(lambda phi, theta, i: method(RIDGE, solve, phi, theta, part(batch, i)))
    for i in range(3):
        result = one(phi, theta, i)
        np.testing.assert_allclose(steps.value[i], result.value, rtol=1e-5)
        phi, theta = phi - 0.1 * result.grad, result.theta
    np.testing.assert_allclose(state.phi, phi, rtol=1e-4, atol=1e-6)
