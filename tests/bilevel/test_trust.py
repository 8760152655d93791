"""What is reported is true: residuals, checks, and errors where a hypergradient would be wrong without a sign."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel

_CG = base.bind(bilevel.conjugate_gradient, num_steps=10)
_FLAT = Bilevel(lambda theta, phi, batch: jnp.sum((theta[:1] - phi) ** 2), lambda theta, phi, batch: jnp.sum(theta**2))  # in theta[1]
_QUADRATIC = Bilevel(
    lambda theta, phi, batch: 0.5 * jnp.sum(batch * (theta - phi) ** 2), lambda theta, phi, batch: 0.5 * jnp.sum((theta - 2.0) ** 2)
)
_CURVES = np.array([1.0, 0.3, 0.05], np.float32)
_X, _Y = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), np.array([0, 1, 2, 1])
_ONES, _ZEROS = np.ones(3, np.float32), np.zeros(3, np.float32)


def at(theta):
    return lambda phi, theta0, batch: jnp.asarray(theta)


def compiled(method, *static):
    """The method with its problem and its solver, as one program."""
    return jax.jit(functools.partial(method, *static))


def descent(num_steps, **options):
    return base.bind(bilevel.descend, num_steps=num_steps, **({"inner_loss": _QUADRATIC.inner_loss, "step_size": 1.0} | options))


@pytest.mark.parametrize("linear_fn", [bilevel.dense, _CG])
def test_a_singular_hessian_is_not_called_solved(linear_fn):
    run = jax.jit(lambda damping: bilevel.implicit(_FLAT, at([1.0, 1.0]), _ONES[:1], _ZEROS[:2], linear_fn=linear_fn, damping=damping))
    assert not float(run(0.0).info.residual) < 0.1
    assert float(run(1e-3).info.residual) > 0.5


def test_a_solver_that_broke_down_is_not_called_stationary():
    result = bilevel.implicit(_FLAT, at([jnp.nan, 1.0]), jnp.ones(1), jnp.zeros(2), linear_fn=_CG)
    assert np.isnan(result.info.stationarity) and np.isnan(result.info.residual)


def test_damping_counts_in_the_residual():
    method = functools.partial(bilevel.implicit, _QUADRATIC, at(_ONES), _ONES, _ZEROS, _CURVES, linear_fn=bilevel.dense)
    run = jax.jit(lambda damping: method(damping=damping))
    for damping in (0.0, 0.1, 1.0):
        missing = np.linalg.norm(damping / (_CURVES + damping)) / np.sqrt(3.0)  # v = -1, p = v / (curve + damping)
        np.testing.assert_allclose(run(damping).info.residual, missing, atol=1e-6)


def test_conjugate_gradients_go_past_convergence_and_solve_for_nothing():
    matrix = (1e-3 * np.diag([1.0, 0.3, 0.03]) + 1e-4).astype(np.float32)
    v = np.array([0.1, -0.1, 0.6], np.float32)
    solve = jax.jit(
        lambda rhs, start, num_steps: bilevel.conjugate_gradient(lambda p: matrix @ p, rhs, start, num_steps=num_steps), static_argnums=2
    )
    for rhs, start in ((v, _ZEROS), (v, v), (_ZEROS, v)):
        for num_steps in (10, 50, 500):
            np.testing.assert_allclose(solve(rhs, start, num_steps), np.linalg.solve(matrix, rhs), rtol=1e-3)


def test_the_value_function_reports_the_worse_of_its_two_solutions():
    result = compiled(base.bind(bilevel.value_function, weight=1e6), _QUADRATIC, descent(60))(_ONES, _ZEROS, _CURVES)
    first = np.linalg.norm(jax.jit(jax.grad(_QUADRATIC.inner_loss))(result.theta, _ONES, _CURVES))
    assert first > 1e-4 and float(result.info.stationarity) >= first


def ridge(condition, seed, dtype):
    """A ridge regression of 60 rows and 8 poisons, its batch and its hypergradients for both signs of the outer loss, in closed form."""
    rng = np.random.default_rng(seed)
    values, reg = np.geomspace(1.0, 1.0 / condition, 6), 0.1 / condition
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    rows = np.sqrt(68) * np.linalg.qr(rng.normal(size=(68, 6)))[0] * np.sqrt(values - reg) @ rotation.T
    x_val, w = rng.normal(size=(60, 6)) * np.sqrt(values) @ rotation.T, rng.normal(size=6)
    y, y_val = (x @ w + 0.5 * rng.normal(size=len(x)) for x in (rows, x_val))
    hessian = rows.T @ rows / 68 + reg * np.eye(6)
    theta = np.linalg.solve(hessian, rows.T @ y / 68)
    p = np.linalg.solve(hessian, x_val.T @ (x_val @ theta - y_val) / 60)
    grad = -((rows[60:] @ theta - y[60:])[:, None] * p + (rows[60:] @ p)[:, None] * theta) / 68
    phi, *batch = (jnp.asarray(a, dtype) for a in (rows[60:], rows[:60], y, x_val, y_val, reg))
    return phi, tuple(batch), grad


def ridge_loss(theta, phi, batch):
    x, y, *_, reg = batch
    return 0.5 * jnp.mean((jnp.concatenate([x, phi]) @ theta - y) ** 2) + 0.5 * reg * theta @ theta


def descend(phi, theta, batch, *, inner_loss, steps):
    return jax.lax.fori_loop(0, steps, lambda i, theta: theta - jax.grad(inner_loss)(theta, phi, batch), theta)


def test_the_residual_of_the_value_function_tells_wrong_gradients_from_right_ones():
    def run(phi, batch, sign, weight, steps):
        problem = Bilevel(ridge_loss, lambda theta, phi, batch: sign * 0.5 * jnp.mean((batch[2] @ theta - batch[3]) ** 2))
        solve = base.bind(descend, inner_loss=ridge_loss, steps=steps)
        found = bilevel.value_function(problem, solve, phi, jnp.zeros(6, phi.dtype), batch, weight=weight)
        return found.grad, found.info.residual

    many = jax.jit(jax.vmap(run, (None, None, 0, 0, 0)))
    errors, residuals = [], []
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            settings = np.meshgrid([-1.0, 1.0], 10.0 ** np.arange(-1, 9), [3, 10, 100, 1000, 10_000])
            signs, weights, steps = (jnp.asarray(values.ravel(), kind) for values, kind in zip(settings, (dtype, dtype, int), strict=True))
            for condition in (10, 100, 1000):
                phi, batch, truth = ridge(condition, 0, dtype)
                grad, residual = many(phi, batch, signs, weights, steps)
                with np.errstate(over="ignore"):
                    wrong = np.linalg.norm(np.asarray(grad, np.float64) - np.multiply.outer(signs, truth), axis=(1, 2))
                errors.append(wrong / np.linalg.norm(truth))
                residuals.append(residual)
    error, residual = np.concatenate(errors), np.concatenate(residuals)
    for bound, most, least in ((0.01, 0.1, 50), (0.1, 1.0, 100), (1.0, 10.0, 150)):
        assert (residual < bound).sum() > least and (error[residual < bound] < most).all()
    assert not (error[~(residual < 1.0)] < 0.3).any(), "no false alarm"
    assert np.nanmax(error) > 1e5


@pytest.mark.parametrize("weight", [1e3, 1e5, 1e6, 1e8])
def test_the_stationarity_of_the_value_function_tells_what_its_weight_does_to_rounding(weight):
    # 0-d and converged, with |d theta / d phi| = .76: what is wrong is the bias, below 3 / weight, and what the weight makes of rounding.
    scalar = Bilevel(lambda theta, phi, batch: 0.5 * (theta - jnp.sin(phi)) ** 2, lambda theta, phi, batch: 0.5 * (theta - 2.0) ** 2)
    solve = base.bind(bilevel.descend, inner_loss=scalar.inner_loss, step_size=0.3, num_steps=100)
    result = compiled(base.bind(bilevel.value_function, weight=weight), scalar, solve)(np.float32(0.7), np.float32(0.1))
    wrong = abs(float(result.grad) - (np.sin(0.7) - 2.0) * np.cos(0.7))
    assert wrong <= 3 / weight + 4 * weight * max(float(result.info.stationarity), float(jnp.finfo(jnp.float32).eps))


def test_a_gradient_at_a_detached_solution_refuses_to_be_differentiated():
    direct = _QUADRATIC._replace(outer_loss=lambda theta, phi, batch: jnp.sum(theta * phi))
    for method in (
        base.bind(bilevel.implicit, linear_fn=_CG),
        base.bind(bilevel.value_function, weight=1e3),
        base.bind(bilevel.truncated, tail=descent(1)),
        bilevel.first_order,
    ):

        def of_value(phi, method=method):
            return method(direct, descent(20), phi, _ZEROS, _CURVES).value

        with pytest.raises(ValueError, match="no derivatives of its own"):
            jax.jit(jax.grad(of_value)).trace(_ONES)
        jax.jit(jax.grad(lambda phi, of_value=of_value: phi.sum() + of_value(jax.lax.stop_gradient(phi)))).trace(_ONES)  # as a monitor


def softmax_loss(theta, x, y):
    return -jnp.mean(jax.nn.log_softmax(x @ theta.reshape(2, 3))[jnp.arange(len(y)), y])


def accuracy(theta):
    return jnp.mean((_X @ theta.reshape(2, 3)).argmax(axis=1) == _Y)


@pytest.mark.parametrize(
    ("changed_fn", "outer", "message"),
    [
        (lambda phi: phi, accuracy, "accuracy"),
        (jnp.round, lambda theta: softmax_loss(theta, _X, _Y), "gradient of the inner loss"),
        (lambda phi: phi, lambda theta: softmax_loss(jax.lax.stop_gradient(theta), _X, _Y), "stop_gradient"),
    ],
)
def test_a_way_through_theta_must_be_open_at_both_ends(changed_fn, outer, message):
    problem = Bilevel(
        lambda theta, phi, batch: softmax_loss(theta, changed_fn(phi), _Y) + 0.1 * jnp.sum(theta**2), lambda theta, phi, batch: outer(theta)
    )
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.5, num_steps=3)
    for method in (base.bind(bilevel.implicit, linear_fn=_CG), bilevel.unrolled, bilevel.back_gradient, bilevel.forward):
        with pytest.raises(ValueError, match=f"phi has no effect.*{message}"):
            compiled(method, problem, solve)(_X, np.zeros(6, np.float32))


def test_first_order_refuses_what_it_would_call_zero():
    with pytest.raises(ValueError, match="through theta alone"):
        bilevel.first_order(_QUADRATIC, descent(3), _ONES, _ZEROS, _CURVES)
    direct = _QUADRATIC._replace(outer_loss=lambda theta, phi, batch: jnp.sum(theta * phi))
    result = compiled(bilevel.first_order, direct, descent(3))(_ONES, _ZEROS, _CURVES)
    np.testing.assert_allclose(result.grad, result.theta)


def test_an_effect_is_looked_for_through_theta_keys_and_closures():
    phi, theta, key = jnp.ones(3), jnp.zeros(3), jax.random.key(0)

    def sees(theta, phi, batch):
        return jnp.sum((theta - phi) ** 2)

    def blind(theta, phi, batch):
        return jnp.sum(theta**2)

    for inner, outer, batch in ((blind, blind, key), (sees, lambda theta, phi, batch: jnp.float32(3.0), None)):
        with pytest.raises(ValueError, match="phi has no effect"):
            bilevel.check(Bilevel(inner, outer), phi, theta, batch)
    linear = Bilevel(lambda theta, phi, batch: theta @ phi + jnp.sum(theta**2), lambda theta, phi, batch: theta.sum())
    bilevel.check(linear, phi, theta, None)  # a constant effect through theta alone

    def closed(factor):
        bilevel.check(Bilevel(blind, lambda theta, phi, batch: jnp.sum(phi * factor)), phi, theta, None)
        return factor

    jax.jit(closed)(jnp.ones(3))


def test_a_step_size_of_another_type_keeps_the_type_of_theta():
    phi, theta0, curves = (a.astype(jnp.bfloat16) for a in (_ONES, _ZEROS, _CURVES))
    solve = descent(3, step_size=np.float32(0.5))
    assert jax.eval_shape(solve, phi, theta0, curves).dtype == jnp.bfloat16
    for stored in (True, False):
        method = functools.partial(bilevel.back_gradient, _QUADRATIC, solve, stored=stored)
        assert jax.eval_shape(method, phi, theta0, curves).grad.dtype == jnp.bfloat16


def test_back_gradient_reverses_the_solver_that_it_was_given():
    with jax.enable_x64(True):
        given = np.ones(3), np.zeros(3), _CURVES.astype(float)

        def other(theta, phi, batch):
            return _QUADRATIC.inner_loss(theta, phi, batch) + jnp.sum(theta**2 * phi)

        solve = descent(5, inner_loss=other, step_size=0.2)
        ours = compiled(base.bind(bilevel.back_gradient, stored=True), _QUADRATIC, solve)(*given)
        np.testing.assert_allclose(ours.grad, compiled(bilevel.unrolled, _QUADRATIC, solve)(*given).grad, rtol=1e-12)


@pytest.mark.parametrize(
    "spectrum",
    [[3.0, 0.5, -1.0], [2.0] * 5, [0.0] * 4, np.linspace(-0.01, 1.0, 40), np.append(np.geomspace(1e-3, 1.0, 60), -1e-3)],
    ids=["indefinite", "multiple", "zero", "dense", "slight"],
)
def test_extreme_eigenvalues(spectrum):
    spectrum = np.asarray(spectrum, np.float32)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(len(spectrum),) * 2))[0]
    matrix = ((basis * spectrum) @ basis.T).astype(np.float32)

    @jax.jit
    def found(matrix, like):
        multiply = lambda p: matrix @ p  # noqa: E731
        return bilevel.extreme_eigenvalues(multiply, like), bilevel.linear.lowest_eigenvector(multiply, like)

    extremes, direction = found(matrix, np.zeros(len(spectrum), np.float32))
    np.testing.assert_allclose(extremes, [spectrum.min(), spectrum.max()], atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(direction), 1.0, rtol=1e-5)
    np.testing.assert_allclose(direction @ matrix @ direction, spectrum.min(), atol=2e-4)


def test_the_extreme_eigenvalues_of_a_number_are_itself():
    scalar = jax.jit(lambda like: bilevel.extreme_eigenvalues(lambda p: -2 * p, like))(np.float32(0))
    np.testing.assert_allclose(scalar, (-2.0, -2.0), rtol=1e-6)


@pytest.mark.parametrize(
    "linear_fn", [bilevel.dense, _CG, base.bind(bilevel.neumann, step_size=1.0, num_steps=300)], ids=["dense", "cg", "neumann"]
)
def test_the_scale_of_the_outer_loss_scales_the_hypergradient_and_no_residual(linear_fn):
    phi = np.array([1.0, -2.0, 0.5], np.float32)

    @jax.jit
    def run(scale):
        problem = _QUADRATIC._replace(outer_loss=lambda theta, phi, batch: scale * 0.5 * jnp.sum((theta - 2.0) ** 2))
        return bilevel.implicit(problem, lambda phi, theta0, batch: phi, phi, _ZEROS, _CURVES, linear_fn=linear_fn)

    for scale in (1e-25, 1.0, 1e25):
        found = run(scale)
        np.testing.assert_allclose(found.grad / scale, phi - 2.0, rtol=1e-3)
        assert float(found.info.residual) < 1e-4
