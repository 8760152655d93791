"""What the ways to differentiate share: the two partial derivatives, products with Hessians, and the check that phi matters at all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core

from robustjax import arrays
from robustjax.base import Bilevel


def inner(a, b):
    """<a, b> over pytrees, in float32 at least."""
    products = jax.tree.map(lambda x, y: jnp.vdot(wide(x), wide(y)), a, b)
    return jax.tree.reduce(jnp.add, products)


def norm(a):
    """|a|_2 over a pytree, in float32 at least; no square under- or overflows, its gradient at zero is zero, and NaN stays NaN."""
    leaves = [arrays.norm(wide(leaf).reshape(1, -1), 2) for leaf in jax.tree.leaves(a)]
    return arrays.norm(jnp.concatenate(leaves)[None], 2)[0]


def mismatch(a, b):
    """|a - b| / |b| over pytrees, and |a| where b is zero."""
    size = norm(b)
    miss = norm(jax.tree.map(jnp.subtract, a, b))
    return arrays.ratio(miss, size, miss)


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


def once(result, remedy: str):
    """The result, whose further derivatives raise: theta was detached, so that they would be wrong without a sign."""

    @jax.custom_jvp
    def same(result):
        return result

    @same.defjvp
    def _(primals, tangents):
        raise ValueError(f"this hypergradient was made at a detached theta and has no derivatives of its own; {remedy}")

    return same(result)


def check(problem: Bilevel, phi, theta, batch, is_direct: bool = False) -> None:
    """Phi has an effect on the outer loss, directly or through theta; looked at in the traced program, so also under jit.

    Args:
      is_direct: only a direct effect counts.

    Raises:
      ValueError: it has none, so that every hypergradient would be zero.
    """

    def of_outer(argnums):
        return lambda theta, phi, batch: jax.grad(problem.outer_loss, argnums=argnums)(theta, phi, batch)

    if not _is_zero(of_outer(1), theta, phi, batch):
        return
    if _is_zero(of_outer(0), theta, phi, batch):
        missing = "theta does not move the outer loss (is it an accuracy, or behind a rounding or a stop_gradient?)"
    elif _is_zero(lambda theta, phi, batch, p: response(problem.inner_loss, theta, phi, batch, p), theta, phi, batch, theta):
        missing = "phi does not move the gradient of the inner loss (is it behind a rounding or a stop_gradient?)"
    elif is_direct:
        raise ValueError(
            "phi acts on the outer loss through theta alone, and this way leaves that out: the gradient would be zero; use `implicit` or "
            "another way that follows theta."
        )
    else:
        return
    raise ValueError(
        f"phi has no effect: it is not in the outer loss, and through theta there is none either, since {missing}. The hypergradient "
        "would be zero; expected phi (poisons, weights, ...) inside inner_loss, and theta inside a smooth outer_loss."
    )


def _is_zero(gradients: Callable, *args) -> bool:
    """Whether the traced function gives zeros whatever its arguments are, as differentiation does where there is nothing to find."""
    program = jax.make_jaxpr(gradients)(*args)
    jaxpr = program.jaxpr
    closed_over = [var for var, value in zip(jaxpr.constvars, program.consts, strict=True) if isinstance(value, jax.core.Tracer)]
    moving = {*jaxpr.invars, *closed_over}
    for eqn in jaxpr.eqns:
        if any(isinstance(atom, core.Var) and atom in moving for atom in eqn.invars):
            moving |= set(eqn.outvars)
    if any(isinstance(atom, core.Var) and atom in moving for atom in jaxpr.outvars):
        return False
    with jax.ensure_compile_time_eval():  # what depends on no input is known
        zeros = [jax.lax.full(v.aval.shape, 0, v.aval.dtype) for v in jaxpr.invars]
        consts = [jnp.zeros_like(value) if isinstance(value, jax.core.Tracer) else value for value in program.consts]
        values = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*zeros)
        return all(bool((value == 0).all()) for value in values)
