"""Laws of iterative solvers of bilevel problems: each is a pair of functions that scan, jit and vmap take as they are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel
from robustjax.base import Bilevel

PHI, THETA = np.array([0.4, -0.9], np.float32), np.array([0.1, 0.6], np.float32)
CURVES = np.array([1.0, 3.0], np.float32)
TARGET = np.ones(2, np.float32)
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
    batches = jnp.stack([TARGET, 2.0 * TARGET, 3.0 * TARGET])

    @jax.jit
    def run(batches):
        scanned = jax.lax.scan(algorithm.step, algorithm.init(PHI, THETA), batches)
        by_minimize = bilevel.minimize(algorithm, PHI, THETA, batches, num_steps=3, batch_fn=lambda batches, step: batches[step])
        return *scanned, by_minimize[0], algorithm.step(algorithm.init(PHI, THETA), batches[0])

    state, steps, again, (first, step) = run(batches)
    chex.assert_trees_all_close(state, again, rtol=1e-6)
    assert {leaf.shape for leaf in jax.tree.leaves(steps)} == {(3,)}, "infos are scalars: solutions and gradients are not kept"
    assert float(steps.info.stationarity[0]) > 0 and state.phi.shape == state.theta.shape == (2,)
    np.testing.assert_allclose(step.value, PROBLEM.outer_loss(first.theta, PHI, batches[0]), rtol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_crosses_jit_and_other_numbers_compile_nothing(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(algorithm, phi):
        return bilevel.minimize(algorithm, phi, THETA, TARGET, num_steps=2)[0].phi

    found = [run(ALGORITHMS[name](number), PHI) for number in (0.0, 0.5)]
    assert np.abs(np.subtract(*found)).max() > 1e-6
    eager, _ = bilevel.minimize(ALGORITHMS[name](0.5), PHI, THETA, TARGET, num_steps=2)
    np.testing.assert_allclose(found[1], eager.phi, rtol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_solves_a_regular_problem(name):
    state, _ = jax.jit(lambda algorithm: bilevel.minimize(algorithm, PHI, THETA, 2 * TARGET, num_steps=2000))(ALGORITHMS[name](0.0))
    np.testing.assert_allclose(state.phi, 2.0, atol=0.05)  # theta(phi) = phi, and the outer loss wants it at 2
    np.testing.assert_allclose(state.theta, 2.0, atol=0.05)


def test_approx_grad_starts_each_system_at_the_solution_of_the_last():
    # By hand, as the papers write it: theta, p and phi change in turn, none from the start again.
    phi, theta, p = PHI, THETA, 0 * THETA
    once = jax.jit(lambda phi, theta, p: bilevel.implicit(PROBLEM, SOLVE, phi, theta, TARGET, linear_fn=ADAM, linear_start=p))
    for _ in range(4):
        made = once(phi, theta, p)
        phi, theta, p = phi - 0.1 * made.grad, made.theta, made.info.solution
    state, steps = jax.jit(lambda: bilevel.minimize(ALGORITHMS["approx_grad"](0.0), PHI, THETA, TARGET, num_steps=4))()
    found = (state.phi, state.theta, state.linear, steps.info.residual[-1])
    chex.assert_trees_all_close(found, (phi, theta, p, made.info.residual), rtol=1e-5)
