"""The bilevel experiments: a few steps of each, and what the synthetic problems are there to show, in small."""

import jax
import matplotlib
import numpy as np
import pytest

from experiments.lib import data, experiment, learned_poisons, oracles
from experiments.reproductions import synthetic_bilevel, targeted_poisoning
from experiments.tutorial.part4 import untargeted_poisoning

matplotlib.use("agg")


def test_targeted_poisons_aim(tmp_path):
    made = targeted_poisoning.run(experiment.Settings(out=str(tmp_path), quick=True))
    assert [len(table.rows) for table in made.items] == [2, 1] and all(len(row) == 5 for table in made.items for row in table.rows)
    size = targeted_poisoning.Size(200, 200, 12, 250)
    table = targeted_poisoning.swapped_labels(learned_poisons.split(data.load("digits"), 0, size.num_train, size.num_val), size)
    clean, control, approximate, penalty = (float(cell.split()[0]) for cell in table.rows[0][1:])
    assert approximate > control + 5 and penalty > control + 5 and control > clean


@pytest.mark.parametrize("name", oracles.CONDITIONS)
def test_the_oracle_is_the_derivative_of_the_solved_problem(name):
    with jax.enable_x64(True):
        o = oracles.build(name, 60, 6, 5)
        np.testing.assert_allclose(o.condition, oracles.CONDITIONS[name], rtol=1e-6)
        inner, outer = o.problem

        def newton(theta, phi):
            return theta - jax.numpy.linalg.solve(jax.hessian(inner)(theta, phi, o.batch), jax.grad(inner)(theta, phi, o.batch))

        @jax.jit
        def value(phi):
            theta = jax.lax.scan(lambda theta, _: (newton(theta, phi), None), o.theta, length=8)[0]
            return outer(theta, phi, o.batch)

        direction = np.random.default_rng(1).normal(size=o.phi.shape)
        slope = (value(o.phi + 1e-5 * direction) - value(o.phi - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.vdot(o.grad, direction), slope, rtol=1e-6)


def test_synthetic_problems_in_small():
    def distance(name, method, num_updates):
        made = synthetic_bilevel.METHODS[method]
        return synthetic_bilevel.distances(name, made, num_updates=num_updates, num_trials=2, size=4).max()

    assert distance("SMD20", "ApproxGrad", 3000) < 0.05
    assert distance("SMD23", "penalty", 3000) < synthetic_bilevel.BAR
    assert not distance("SMD23", "implicit, CG", 1500) <= 1.0  # NaN neither: the system is singular, and rounding decides where it goes


@pytest.mark.parametrize("method", [learned_poisons.approximate(3), learned_poisons.penalty(3), learned_poisons.backward(2)])
def test_poisons_of_several_numbers_at_once_are_those_of_each_alone(method):
    images = learned_poisons.split(data.load("digits"), 0, 100, 100)
    phi, batch = untargeted_poisoning.flip(images, 5, 0)
    clean = learned_poisons.fit_clean(batch)
    for count, made in zip((2, 5), learned_poisons.attack_each(method, phi, clean, batch, (2, 5)), strict=True):
        alone = learned_poisons.attack(method, phi[:count], clean, batch._replace(y_poison=batch.y_poison[:count]))
        assert made.shape == alone.shape and float(abs(alone - phi[:count]).max()) > 1e-3
        assert np.mean(abs(made - alone) > 2e-4) < 0.01  # Adam turns the rounding of a gradient near zero into a step


def test_flips_are_wrong_and_no_image_is_in_two_parts():
    images = learned_poisons.split(data.load("digits"), 0)
    phi, batch = untargeted_poisoning.flip(images, 60, 0)
    assert phi.shape == (60, 784) and (batch.y_poison != batch.y[:60]).all() and set(map(int, batch.y_poison)) <= set(range(10))
    rows = np.concatenate([np.asarray(part[0]) for part in images])
    assert len(rows) == 5000 and len(images.test[0]) == 3000
