"""What the ways to differentiate share: the two partial derivatives, products with Hessians, and the check that phi matters at all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core

from robustjax.base import Bilevel


def inner(a, b):
    """<a, b> over pytrees, in float32 at least."""
    products = jax.tree.map(lambda x, y: jnp.vdot(wide(x), wide(y)), a, b)
    return jax.tree.reduce(jnp.add, products)


def norm(a):
    """|a|_2 over a pytree; its gradient at zero is zero."""
    squared = inner(a, a)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def wide(leaf):
    """The leaf in float32 at least: where sums and linear systems are kept."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def like(tree, model):
    """The tree with the types of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, model)


def hessian(inner_loss: Callable, theta, phi, batch, damping=0.0) -> Callable:
    """p -> (d^2 inner_loss / d theta^2 + damping) p: linearised once, so that each product costs about one gradient."""
    linear = jax.linearize(lambda theta: jax.grad(inner_loss)(theta, phi, batch), theta)[1]

    def product(p):
        return jax.tree.map(lambda h, p: wide(h) + damping * p, linear(like(p, theta)), p)

    return product


def response(inner_loss: Callable, theta, phi, batch, p):
    """(d^2 inner_loss / d phi d theta) p, like phi."""
    return jax.grad(lambda phi: inner(jax.grad(inner_loss)(theta, phi, batch), p))(phi)


def check(problem: Bilevel, phi, theta, batch) -> None:
    """Phi has an effect on the outer loss, directly or through theta; looked at in the traced program, so also under jit.

    Raises:
      ValueError: it has none, so that every hypergradient would be zero.
    """

    def gradients(theta, phi, batch, p):
        return jax.grad(problem.outer_loss, argnums=1)(theta, phi, batch), response(problem.inner_loss, theta, phi, batch, p)

    program = jax.make_jaxpr(gradients)(theta, phi, batch, theta)
    jaxpr = program.jaxpr
    moving = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(isinstance(atom, core.Var) and atom in moving for atom in eqn.invars):
            moving |= set(eqn.outvars)
    if any(isinstance(atom, core.Var) and atom in moving for atom in jaxpr.outvars):
        return
    with jax.ensure_compile_time_eval():  # what depends on no input is known
        zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in jaxpr.invars if not jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key)]
        constant = len(zeros) == len(jaxpr.invars) and all(bool((value == 0).all()) for value in core.jaxpr_as_fun(program)(*zeros))
    if constant:
        raise ValueError(
            "phi has no effect: neither the outer loss nor the gradient of the inner loss in theta depends on it, so the hypergradient is "
            "zero; expected phi (poisons, weights, ...) inside inner_loss, not behind a stop_gradient or rounding."
        )
