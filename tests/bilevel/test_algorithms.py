"""Laws of iterative solvers of bilevel problems: each is a pair of functions that scan, jit and vmap take as they are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel

PHI, THETA = jnp.array([0.4, -0.9]), jnp.array([0.1, 0.6])
CURVES = jnp.array([1.0, 3.0])
PROBLEM = Bilevel(
    lambda theta, phi, batch: 0.5 * jnp.sum(CURVES * (theta - phi) ** 2), lambda theta, phi, batch: jnp.sum((theta - batch) ** 2)
)
SOLVE = base.bind(bilevel.descend, inner_loss=PROBLEM.inner_loss, step_size=0.2, num_steps=3)
ADAM = base.bind(bilevel.solve_by_adam, learning_rate=0.05, num_steps=2)


SGD, BY_ADAM = optax.sgd(0.1), {"optimizer_phi": optax.adam(0.05), "optimizer_theta": optax.adam(0.05)}
ALGORITHMS = {
    "hypergradient_descent": lambda number: bilevel.hypergradient_descent(
        PROBLEM, base.bind(bilevel.implicit, linear_fn=bilevel.dense, damping=number), SOLVE, optimizer=SGD
    ),
    "approx_grad": lambda number: bilevel.approx_grad(PROBLEM, SOLVE, linear_fn=ADAM, damping=number, optimizer=SGD),
    "penalty_method": lambda number: bilevel.penalty_method(
        PROBLEM, rho=10.0 + number, weight=1.0, tolerance=1e-3, num_inner_steps=3, **BY_ADAM
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_is_what_scan_takes_and_minimize_writes_that_loop(name):
    algorithm = ALGORITHMS[name](0.0)
    batches = jnp.stack([jnp.ones(2), 2.0 * jnp.ones(2), 3.0 * jnp.ones(2)])
    state, steps = jax.lax.scan(algorithm.step, algorithm.init(PHI, THETA), batches)
    again, _ = bilevel.minimize(algorithm, PHI, THETA, batches, num_steps=3, batch_fn=lambda batches, step: batches[step])
    chex.assert_trees_all_close(state, again, rtol=1e-6)
    assert {leaf.shape for leaf in jax.tree.leaves(steps)} == {(3,)}, "infos are scalars: solutions and gradients are not kept"
    assert float(steps.info.stationarity[0]) > 0 and state.phi.shape == state.theta.shape == (2,)
    first, step = algorithm.step(algorithm.init(PHI, THETA), batches[0])
    np.testing.assert_allclose(step.value, PROBLEM.outer_loss(first.theta, PHI, batches[0]), rtol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_crosses_jit_and_other_numbers_compile_nothing(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(algorithm, phi):
        return bilevel.minimize(algorithm, phi, THETA, jnp.ones(2), num_steps=2)[0].phi

    found = [run(ALGORITHMS[name](number), PHI) for number in (0.0, 0.5)]
    assert float(jnp.abs(found[0] - found[1]).max()) > 1e-6
    np.testing.assert_allclose(found[1], bilevel.minimize(ALGORITHMS[name](0.5), PHI, THETA, jnp.ones(2), num_steps=2)[0].phi, rtol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_solves_a_regular_problem(name):
    state, _ = jax.jit(lambda algorithm: bilevel.minimize(algorithm, PHI, THETA, 2.0 * jnp.ones(2), num_steps=2000))(ALGORITHMS[name](0.0))
    np.testing.assert_allclose(state.phi, 2.0, atol=0.05)  # theta(phi) = phi, and the outer loss wants it at 2
    np.testing.assert_allclose(state.theta, 2.0, atol=0.05)


def test_approx_grad_starts_each_system_at_the_solution_of_the_last():
    # By hand, as the papers write it: theta, p and phi change in turn, none from the start again.
    phi, theta, p = PHI, THETA, jnp.zeros(2)
    target = jnp.ones(2)
    for _ in range(4):
        made = bilevel.implicit(PROBLEM, SOLVE, phi, theta, target, linear_fn=ADAM, linear_start=p)
        phi, theta, p = phi - 0.1 * made.grad, made.theta, made.info.solution
    state, steps = bilevel.minimize(ALGORITHMS["approx_grad"](0.0), PHI, THETA, target, num_steps=4)
    found = (state.phi, state.theta, state.linear, steps.info.residual[-1])
    chex.assert_trees_all_close(found, (phi, theta, p, made.info.residual), rtol=1e-5)
