"""The value of one function, the derivative of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import base, losses

_X = jnp.array([[0.2, 0.7], [1.4, -0.6]])


def _scaled(weight, x):
    return weight * x


def test_the_value_is_of_the_first_and_the_derivative_of_the_second_in_both_modes():
    rounded = base.straight_through(jnp.round, lambda x: 3.0 * x)
    np.testing.assert_array_equal(rounded(_X), jnp.round(_X))
    np.testing.assert_array_equal(jax.grad(lambda x: rounded(x).sum())(_X), 3.0)
    np.testing.assert_array_equal(jax.jvp(rounded, (_X,), (jnp.ones_like(_X),))[1], 3.0)
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x: rounded(x).sum()))(_X), 3.0)


def test_parameters_of_the_second_are_differentiated_and_those_of_the_first_are_not():
    def loss(first, second):
        return base.straight_through(Partial(_scaled, first), Partial(_scaled, second))(_X).sum()

    value, grads = jax.value_and_grad(loss, (0, 1))(2.0, 5.0)
    np.testing.assert_allclose((value, *grads), (2.0 * _X.sum(), 0.0, _X.sum()), rtol=1e-6)


def test_it_crosses_jit_as_an_argument_and_a_model_that_contains_it_can_be_attacked():
    model_fn = base.straight_through(lambda x: jnp.round(4 * x) / 4, lambda x: x)
    gradient = jax.jit(lambda model_fn, x: jax.grad(lambda x: losses.margin(model_fn(x), jnp.zeros(2, jnp.int32)).sum())(x))
    np.testing.assert_array_equal(gradient(model_fn, _X), [[-1.0, 1.0]] * 2)


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match="shapes of forward_fn"):
        base.straight_through(lambda x: x, lambda x: x.sum())(_X)
