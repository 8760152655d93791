"""The penalty method: its schedule by hand, closed forms that it converges to, and the singular problem that it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel

RHO, WEIGHT, TOLERANCE, RATE_PHI, RATE_THETA = 2.0, 0.7, 5.0, 0.1, 0.02
# g = |theta - a phi|^2 / 2, f = |theta - 1|^2 / 2 + c phi: both gradients can be written down.
A, C = 0.5, 0.3
SCALAR = Bilevel(
    lambda theta, phi, batch: 0.5 * jnp.sum((theta - A * phi) ** 2),
    lambda theta, phi, batch: 0.5 * jnp.sum((theta - 1) ** 2) + C * jnp.sum(phi),
)
METHOD = functools.partial(
    bilevel.penalty_method, optimizer_phi=optax.sgd(RATE_PHI), optimizer_theta=optax.sgd(RATE_THETA), num_inner_steps=3
)


def by_hand(state, tolerance, num_updates):
    """The same schedule in numpy, written from the paper's algorithm: (phi, theta, nu, rho, weight, tolerance, rate, raised)."""
    phi, theta, nu, rho, weight, rate, raised = *state, 1.0, 0

    def slope_phi():  # of f + nu g_v + rho / 2 g_v^2, in phi
        return C - A * nu - A * rho * (theta - A * phi)

    def slope_theta():
        return (theta - 1) + nu + rho * (theta - A * phi) + weight * (theta - A * phi)

    for _ in range(num_updates):
        for _ in range(3):
            theta = theta - rate * RATE_THETA * slope_theta()
        phi = np.clip(phi - rate * RATE_PHI * slope_phi(), -1, 1)
        if np.sum(slope_phi() ** 2) ** 2 + np.sum(slope_theta() ** 2) ** 2 < tolerance**2:
            rho = 1.1 * rho
            weight, tolerance, rate, raised = 0.9 * weight, 0.9 * tolerance, 0.9 * rate, raised + 1
            nu = nu + rho * (theta - A * phi)
    return phi, theta, nu, rho, weight, tolerance, rate, raised


def by_adam(problem, rate_phi, rate_theta, **options):
    return bilevel.penalty_method(problem, optimizer_phi=optax.adam(rate_phi), optimizer_theta=optax.adam(rate_theta), **options)


def run(algorithm, state, batch, num_updates):
    return jax.lax.scan(lambda state, _: algorithm.step(state, batch), state, length=num_updates)[0]


def test_the_schedule_is_the_one_by_hand():
    with jax.enable_x64(True):
        phi, theta, nu = np.array([0.4, -0.9]), np.array([-0.2, 0.6]), np.array([0.1, -0.3])
        raised = []
        for tolerance in (0.5, 5.0):
            algorithm = METHOD(SCALAR, rho=RHO, weight=WEIGHT, tolerance=tolerance, project_fn=lambda phi: jnp.clip(phi, -1, 1))
            state = algorithm.init(jnp.asarray(phi), jnp.asarray(theta))._replace(multiplier=jnp.asarray(nu))
            many = jax.jit(functools.partial(run, algorithm), static_argnums=2)
            for num_updates in (1, 2, 30):
                ours = many(state, None, num_updates)
                theirs = by_hand((phi, theta, nu, RHO, WEIGHT), tolerance, num_updates)
                names = ("phi", "theta", "multiplier", "rho", "weight", "tolerance", "rate", "num_raised")
                for name, expected in zip(names, theirs, strict=True):
                    np.testing.assert_allclose(getattr(ours, name), expected, rtol=1e-10, err_msg=f"{name} {tolerance} {num_updates}")
                raised.append(theirs[-1])
        assert 0 in raised and len(set(raised)) > 2  # stages that stay and stages that end


def test_the_weight_acts_on_theta_alone():
    algorithm = METHOD(SCALAR, rho=RHO, weight=0.0, tolerance=0.0, num_inner_steps=0)
    state, step = algorithm.init(jnp.ones(1), jnp.zeros(1)), jax.jit(algorithm.step)
    plain, _ = step(state)
    weighted, _ = step(state._replace(weight=jnp.float32(100.0)))
    np.testing.assert_array_equal(plain.phi, weighted.phi)
    assert float(plain.num_raised) == 0


def test_it_finds_the_ridge_parameter_of_the_closed_form():
    # inner: |X w - y|^2 / 2n + exp(phi) |w|^2 / 2, outer: validation error; the best phi by a search over the closed form.
    rng = np.random.default_rng(0)
    x, x_val, w = rng.normal(size=(8, 6)), rng.normal(size=(40, 6)), rng.normal(size=6)
    y, y_val = x @ w + 4.0 * rng.normal(size=8), x_val @ w
    with jax.enable_x64(True):
        batch = tuple(map(jnp.asarray, (x, y, x_val, y_val)))
        ridge = Bilevel(
            lambda w, phi, batch: 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2) + 0.5 * jnp.exp(phi) * jnp.sum(w**2),
            lambda w, phi, batch: 0.5 * jnp.mean((batch[2] @ w - batch[3]) ** 2),
        )

        def solved(phi):
            return jnp.linalg.solve(x.T @ x / len(x) + jnp.exp(phi) * jnp.eye(6), x.T @ y / len(x))

        grid = np.linspace(-4, 3, 701)
        values = jax.jit(jax.vmap(lambda phi: ridge.outer_loss(solved(phi), phi, batch)))(grid)
        best = float(grid[values.argmin()])
        assert -3.5 < best < 2.5
        algorithm = by_adam(ridge, 0.02, 0.02, rho=1.0, weight=1.0, tolerance=1e-5, num_inner_steps=10)
        start = algorithm.init(jnp.zeros(()), solved(0.0))
        state = jax.jit(functools.partial(run, algorithm), static_argnums=2)(start, batch, 2000)
        assert abs(float(state.phi) - best) < 0.02
        np.testing.assert_allclose(state.theta, solved(state.phi), atol=1e-2)


def test_it_finds_the_poison_of_the_closed_form():
    # One label of least squares moves the model to a target: dy = (target - theta) / row, as in Mei & Zhu's closed form.
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=10), rng.normal(size=10)
    least_squares = Bilevel(
        lambda theta, phi, batch: 0.5 * jnp.mean((batch[0] * theta - batch[1].at[0].add(phi)) ** 2),
        lambda theta, phi, batch: (theta - 0.8) ** 2,
    )
    effort = (0.8 - x @ y / (x @ x)) / (x[0] / (x @ x))
    with jax.enable_x64(True):
        batch = (jnp.asarray(x), jnp.asarray(y))
        algorithm = by_adam(least_squares, 0.1, 0.02, rho=10.0, weight=1.0, tolerance=1e-4, num_inner_steps=10)
        start = algorithm.init(jnp.zeros(()), jnp.asarray(x @ y / (x @ x)))
        state = jax.jit(functools.partial(run, algorithm), static_argnums=2)(start, batch, 3000)
        np.testing.assert_allclose(state.phi, effort, rtol=1e-2)


def test_only_the_penalty_method_chooses_among_the_minima_of_a_singular_inner_problem():
    # theta[1] is free for the inner loss, and the outer loss wants it at 0; phi itself is best at 0 too.
    singular = Bilevel(
        lambda theta, phi, batch: jnp.sum((theta[:1] - phi) ** 2),
        lambda theta, phi, batch: jnp.sum(theta**2) - jnp.sum((theta[:1] - phi) ** 2),
    )
    phi, theta = jnp.full(1, 2.0), jnp.array([-1.0, 3.0])
    algorithm = by_adam(singular, 0.02, 0.02, rho=10.0, weight=1.0, tolerance=1e-3, num_inner_steps=5)
    state = jax.jit(functools.partial(run, algorithm), static_argnums=2)(algorithm.init(phi, theta), None, 1500)
    assert float(jnp.linalg.norm(state.theta)) < 0.05 and abs(float(state.phi[0])) < 0.05

    solve = base.bind(bilevel.descend, inner_loss=singular.inner_loss, step_size=0.4, num_steps=20)
    approx_grad = bilevel.approx_grad(
        singular, solve, linear_fn=base.bind(bilevel.solve_by_adam, learning_rate=0.01, num_steps=100), optimizer=optax.sgd(0.1)
    )
    cold = base.bind(bilevel.implicit, linear_fn=base.bind(bilevel.solve_by_adam, learning_rate=0.01, num_steps=100))
    for algorithm in (approx_grad, bilevel.hypergradient_descent(singular, cold, solve, optimizer=optax.sgd(0.1))):
        state, steps = bilevel.minimize(algorithm, phi, theta, num_steps=300)
        assert float(jnp.linalg.norm(state.theta)) >= 2.9  # theta[1] stays where it began
        assert float(jnp.min(steps.info.residual)) >= 0.5  # and the residual says that the system has no solution


def test_the_check_names_a_small_rho_and_passes_a_large_one():
    curves = jnp.array([1.0, 1 / 54, 0.3])  # of the inner loss; the outer is minus it at 0: bounded for rho > 54
    problem = Bilevel(
        lambda theta, phi, batch: 0.5 * jnp.sum(curves * (theta - phi) ** 2), lambda theta, phi, batch: -0.5 * jnp.sum(curves * theta**2)
    )
    start = lambda **options: METHOD(problem, **options).init(jnp.ones(3), jnp.ones(3))  # noqa: E731
    for rho in (1.0, 10.0, 30.0, 50.0):
        with pytest.raises(ValueError, match=f"at rho={rho:g} and weight=0 the penalised inner problem still falls"):
            bilevel.penalty_check(problem, start(rho=rho, weight=0.0))
    for rho, weight in ((60.0, 0.0), (1e4, 0.0), (10.0, 1.0)):  # a weight of 1 holds the attack in balance
        bilevel.penalty_check(problem, start(rho=rho, weight=weight))
    with pytest.raises(ValueError, match="is not finite"):
        bilevel.penalty_check(problem, start(rho=10.0, weight=0.0)._replace(rho=jnp.float32(jnp.nan)))


def test_the_check_passes_what_curves_down_only_near_its_start():
    # Logistic regression with weight decay: |d inner / d theta|^2 grows like a square and the outer loss like a line, so that every rho > 0
    # is enough; but far from the inner minimum the third derivative makes the Hessian indefinite, the more the larger rho is.
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(30, 5))), jnp.asarray(rng.integers(0, 2, 30))

    def cross_entropy(theta, x, y):
        return jnp.mean(jax.nn.softplus(jnp.where(y == 1, -1.0, 1.0) * (x @ theta)))

    problem = Bilevel(
        lambda theta, phi, batch: cross_entropy(theta, x + phi, y) + 0.01 * jnp.sum(theta**2),
        lambda theta, phi, batch: -cross_entropy(theta, x, 1 - y),
    )

    @jax.jit
    @jax.hessian
    def curvature(theta, rho):
        return problem.outer_loss(theta, 0.0, None) + rho / 2 * jnp.sum(jax.grad(problem.inner_loss)(theta, 0.0, None) ** 2)

    for rho in (10.0, 1e3, 1e5):
        state = METHOD(problem, rho=rho, weight=0.0).init(jnp.zeros((30, 5)), 4.0 * jnp.ones(5))
        assert np.linalg.eigvalsh(curvature(state.theta, rho)).min() < 0
        bilevel.penalty_check(problem, state)


def test_the_check_passes_sums_of_squares_whose_hessian_is_singular():
    for seed in range(4):  # 8 weights and 4 rows: rounding makes some of the zero eigenvalues negative
        rng = np.random.default_rng(seed)
        x, y, x_val, y_val = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8), 4, (4, 8), 4))
        problem = Bilevel(
            lambda theta, phi, batch, x=x, y=y: jnp.mean((x @ theta - y - phi) ** 2),
            lambda theta, phi, batch, x=x_val, y=y_val: jnp.mean((x @ theta - y) ** 2),
        )
        bilevel.penalty_check(problem, METHOD(problem, rho=10.0, weight=1.0).init(jnp.zeros(4), jnp.ones(8)))


def test_the_check_names_values_that_are_not_finite_and_falls_without_end():
    start = METHOD(SCALAR, rho=10.0, weight=1.0).init(jnp.zeros(1), jnp.zeros(1))
    for outer, message in (
        (lambda theta, phi, batch: theta.sum() + jnp.inf, "is not finite: value inf"),
        (lambda theta, phi, batch: -jnp.sum(jnp.exp(theta)), "still falls"),
    ):
        with pytest.raises(ValueError, match=message):
            bilevel.penalty_check(SCALAR._replace(outer_loss=outer), start)


def test_a_start_that_falls_without_curvature_is_named():
    # The inner loss is a Huber function: beyond 1 its gradient is constant, so that the penalty no longer grows; the attack's gain does.
    huber = lambda theta, phi, batch: jnp.where(jnp.abs(theta - phi) < 1, 0.5 * (theta - phi) ** 2, jnp.abs(theta - phi) - 0.5).sum()  # noqa: E731
    problem = Bilevel(huber, lambda theta, phi, batch: -0.7 * theta.sum())
    zero = jnp.zeros(1)
    state = lambda weight: METHOD(problem, rho=10.0, weight=weight).init(zero, zero)  # noqa: E731
    with pytest.raises(ValueError, match="still falls"):
        bilevel.penalty_check(problem, state(0.5))
    bilevel.penalty_check(problem, state(0.8))  # the inner loss itself outweighs the gain


def test_jit_and_vmap_give_the_eager_steps_and_stages_end_once_an_update_at_most():
    starts = np.array([[0.4], [-0.9], [0.1]], np.float32)
    algorithm = METHOD(SCALAR, rho=RHO, weight=WEIGHT, tolerance=TOLERANCE)

    def whole(phi):
        return run(algorithm, algorithm.init(phi, 2 * phi), None, 12)

    many, step = jax.jit(jax.vmap(whole))(starts), jax.jit(algorithm.step)
    eager, _ = algorithm.step(algorithm.init(starts[0], 2 * starts[0]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), eager, step(algorithm.init(starts[0], 2 * starts[0]))[0])
    for index, phi in enumerate(starts):
        state = algorithm.init(phi, 2 * phi)
        for _ in range(12):
            state, _ = step(state)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), many, state)
    assert ((many.num_raised >= 1) & (many.num_raised <= 12)).all()
    np.testing.assert_allclose(many.rho, RHO * 1.1**many.num_raised, rtol=1e-5)
    np.testing.assert_allclose(many.rate, 0.9**many.num_raised, rtol=1e-5)


def test_types_are_kept_and_the_multiplier_is_wide():
    phi, theta = jnp.ones(1, jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
    algorithm = METHOD(SCALAR, rho=RHO, weight=WEIGHT, tolerance=100.0)
    after, _ = jax.jit(algorithm.step)(algorithm.init(phi, theta))
    assert after.phi.dtype == after.theta.dtype == jnp.bfloat16 and after.multiplier.dtype == jnp.float32
    assert int(after.num_raised) == 1 and float(jnp.abs(after.multiplier).max()) > 0
