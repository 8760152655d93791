"""Traced only: what has the type of phi and theta keeps it, in 64-bit mode, with numpy's hyper-parameters, and under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel


def inner(theta, phi, batch):
    return 0.5 * jnp.sum(batch * jnp.square(theta["w"] - phi)) + 0.5 * jnp.square(theta["b"])


def outer(theta, phi, batch):
    del batch
    return jnp.sum(jnp.square(theta["w"])) + jnp.sum(phi * theta["w"])


PROBLEM = Bilevel(inner, outer)


def _solver(number, **options):
    return base.bind(bilevel.descend, inner_loss=inner, num_steps=3, **({"step_size": number(0.1)} | options))


def _sampled(key, p):
    return jax.tree.map(lambda leaf: leaf * jax.random.uniform(key, (), leaf.dtype), p)


LINEAR = {
    "cg": lambda number: base.bind(bilevel.conjugate_gradient, num_steps=3, tolerance=number(1e-6)),
    "neumann": lambda number: base.bind(bilevel.neumann, step_size=number(0.1), num_steps=3),
    "dense": lambda number: bilevel.dense,
    "adam": lambda number: base.bind(bilevel.solve_by_adam, learning_rate=number(0.1), num_steps=3),
    "lissa": lambda number: base.bind(bilevel.lissa, key=jax.random.key(0), sampled_fn=_sampled, num_steps=3, num_probes=2),
    "lissa, scaled": lambda number: base.bind(
        bilevel.lissa, key=jax.random.key(0), sampled_fn=_sampled, scale=number(4.0), damping=number(0.1), num_steps=3
    ),
}
METHODS = {
    **{
        name: lambda number, make=make: base.bind(bilevel.implicit, linear_fn=make(number), damping=number(0.1))
        for name, make in LINEAR.items()
    },
    "unrolled": lambda number: bilevel.unrolled,
    "forward": lambda number: bilevel.forward,
    "truncated": lambda number: base.bind(bilevel.truncated, tail=_solver(number)),
    "back_gradient": lambda number: bilevel.back_gradient,
    "stored": lambda number: base.bind(bilevel.back_gradient, stored=True),
    "value_function": lambda number: base.bind(bilevel.value_function, weight=number(10.0)),
    "first_order": lambda number: bilevel.first_order,
}


def _start(dtype):
    phi, batch, b = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((3,), (3,), ()))
    return phi, {"w": phi, "b": b}, batch


def _of_type(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def _check(name, dtype, number):
    phi, theta, batch = _start(dtype)
    method = METHODS[name](number)
    found = jax.eval_shape(lambda phi, theta, batch: method(PROBLEM, _solver(number), phi, theta, batch), phi, theta, batch)
    assert _of_type((found.grad, found.theta, found.value)) == {jnp.dtype(dtype)}
    wide = jnp.promote_types(dtype, jnp.float32)
    assert _of_type(found.info) == {wide}
    made = jax.eval_shape(
        lambda phi, theta, batch: bilevel.minimize(
            bilevel.hypergradient_descent(PROBLEM, method, _solver(number), optimizer=optax.sgd(number(0.1))),
            phi, theta, batch, num_steps=2,
        ),
        phi, theta, batch,
    )  # fmt: skip
    state, steps = made
    assert _of_type((state.phi, state.theta, steps.value)) == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", METHODS)
def test_hypergradients_have_the_types_of_their_variables(name):
    for dtype in (jnp.float32, jnp.bfloat16):
        _check(name, dtype, float)
    with jax.enable_x64(True):
        for number in (float, np.float64, lambda value: jnp.asarray(value)):
            _check(name, jnp.float32, number)
        _check(name, jnp.float64, np.float64)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "adam"])  # optax's own does not
def test_hypergradients_pass_strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        _check(name, jnp.float32, float)


def test_solutions_and_penalties_keep_their_types():
    def run(phi, theta, batch, number):
        solved = bilevel.solution(inner, _solver(number), linear_fn=LINEAR["cg"](number), damping=number(0.1))
        by_sgd = optax.sgd(number(0.1))
        algorithm = bilevel.penalty_method(
            PROBLEM, rho=number(10.0), weight=number(1.0), optimizer_phi=by_sgd, optimizer_theta=by_sgd, num_inner_steps=2
        )
        once, _ = algorithm.step(algorithm.init(phi, theta), batch)
        twice, _ = bilevel.minimize(algorithm, phi, theta, batch, num_steps=2)
        slope = jax.grad(lambda phi: outer(solved(phi, theta, batch), phi, batch))(phi)
        return solved(phi, theta, batch), slope, (once.phi, once.theta), (twice.phi, twice.theta)

    def check(dtype, number):
        assert _of_type(jax.eval_shape(lambda *args: run(*args, number), *_start(dtype))) == {jnp.dtype(dtype)}

    check(jnp.float32, float)
    with jax.enable_x64(True):
        for dtype, number in ((jnp.float32, float), (jnp.float32, np.float64), (jnp.float64, np.float64)):
            check(dtype, number)
    with jax.numpy_dtype_promotion("strict"):
        check(jnp.float32, float)
