"""What the ways to differentiate share: the two partial derivatives, products with Hessians, and checks of what a user hands in."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, graph, prng
from robustjax.base import Array, Bilevel, HyperGradient, Key, Numeric, SolveFn

MethodFn = Callable[..., HyperGradient]  # (problem, solve, phi, theta0, batch) -> HyperGradient, its own arguments bound
ProductFn = Callable[[Any], Any]  # p -> H p, both like theta
LinearFn = Callable[[ProductFn, Any, Any], Any]  # (product, v, start) -> p with H p = v, its own arguments bound


def inner(a: Any, b: Any) -> Array:
    """<a, b> over pytrees, in float32 at least."""
    products = jax.tree.map(lambda x, y: jnp.vdot(at_least_float32(x), at_least_float32(y)), a, b)
    return jax.tree.reduce(jnp.add, products)


def norm(a: Any) -> Array:
    """|a|_2 over a pytree, in float32 at least; no square under- or overflows, its gradient at zero is zero, and NaN stays NaN."""
    leaves = [arrays.norm(at_least_float32(leaf).reshape(1, -1), 2) for leaf in jax.tree.leaves(a)]
    return arrays.norm(jnp.concatenate(leaves)[None], 2)[0]


def mismatch(a: Any, b: Any) -> Array:
    """|a - b| / |b| over pytrees, and |a| where b is zero."""
    size = norm(b)
    miss = norm(jax.tree.map(jnp.subtract, a, b))
    return arrays.ratio(miss, size, miss)


def times(number: Numeric, tree: Any) -> Any:
    """number * tree, in the types of the tree, whatever that of the number is."""
    return jax.tree.map(lambda leaf: jnp.asarray(number).astype(leaf.dtype) * leaf, tree)


def at_least_float32(leaf: Array) -> Array:
    """The leaf in float32 at least: where sums and linear systems are kept."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def cast_like(tree: Any, model: Any) -> Any:
    """The tree with the types of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, model)


def hessian(inner_loss: Callable, theta: Any, phi: Any, batch: Any, damping: Numeric = 0.0) -> ProductFn:
    """p -> (d^2 inner_loss / d theta^2 + damping) p: linearised once, so that each product costs about one gradient."""
    linear = jax.linearize(lambda theta: jax.grad(inner_loss)(theta, phi, batch), theta)[1]
    return lambda p: jax.tree.map(lambda h, p: at_least_float32(h).astype(p.dtype) + p, linear(cast_like(p, theta)), times(damping, p))


def response(inner_loss: Callable, theta: Any, phi: Any, batch: Any, p: Any) -> Any:
    """(d^2 inner_loss / d phi d theta) p, like phi."""
    return jax.grad(lambda phi: inner(jax.grad(inner_loss)(theta, phi, batch), p))(phi)


def refuse_second_derivative(result: HyperGradient, remedy: str) -> HyperGradient:
    """The result, whose further derivatives raise: theta was detached, so that they would be wrong without a sign."""

    @jax.custom_jvp
    def same(result):
        return result

    @same.defjvp
    def _(primals, tangents):
        raise ValueError(f"this hypergradient was made at a detached theta and has no derivatives of its own; {remedy}")

    return same(result)


def check(problem: Bilevel, phi: Any, theta: Any, batch: Any, is_direct: bool = False) -> None:
    """The losses are scalars of (theta, phi, batch), and phi has an effect on the outer one, directly or through theta.

    The traced program is looked at, so that this works under jit too.

    Args:
      problem: inner and outer loss.
      phi: what the outer problem is solved for. theta: the inner variable.
      batch: what the losses take as their third argument.
      is_direct: whether only a direct effect counts.

    Raises:
      TypeError: no `Bilevel`; a loss that does not take (theta, phi, batch); integers or no arrays in phi or theta. ValueError: a loss that
        is no scalar; nothing in phi or theta; or phi has no effect, so that every hypergradient would be zero.
    """
    if not isinstance(problem, Bilevel):
        raise TypeError(f"expected base.Bilevel(inner_loss, outer_loss), got a {type(problem).__name__}.")
    variables(phi=phi, theta0=theta)
    for name, loss in zip(problem._fields, problem, strict=True):
        takes(loss, f"{name}(theta, phi, batch)", theta, phi, batch)
        scalar(name, jax.eval_shape(loss, theta, phi, batch))

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
    program = graph.program(gradients, *args)
    closed_over = [variable for variable, value in graph.constants(program).items() if isinstance(value, jax.core.Tracer)]
    if not graph.depends(program, [*program.inputs, *closed_over]).isdisjoint(program.outputs):
        return False
    with jax.ensure_compile_time_eval():  # what depends on no input is known
        zeros = {v: jax.lax.full(v.aval.shape, 0, v.aval.dtype) for v in (*program.inputs, *closed_over) if v.aval is not None}
        known = dataclasses.replace(program, constants={**program.constants, **zeros})
        made = graph.forward(known, {}, *jax.tree.unflatten(program.in_tree, map(zeros.get, program.inputs)), default=graph.bind)
        return all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(made))


def variables(**trees) -> None:
    """Each named pytree holds arrays of real numbers, one at least: what can be differentiated.

    Raises:
      TypeError: something else is in it. ValueError: nothing is.
    """
    for name, tree in trees.items():
        if not jax.tree.leaves(tree):
            raise ValueError(f"{name} holds no array, got {tree!r}; expected a pytree of float arrays.")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
                got = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else f"{leaf!r} of type {type(leaf).__name__}"
                raise TypeError(
                    f"{name}{jax.tree_util.keystr(path)} is differentiated: expected an array of real numbers, got {got}; pass "
                    "jnp.asarray(..., float), or move it into the batch."
                )


def is_function(function: Any, form: str) -> None:
    """It can be called.

    Raises:
      TypeError: it cannot.
    """
    if not callable(function):
        raise TypeError(f"expected a function {form}, got {function!r} of type {type(function).__name__}.")


def takes(function: Any, form: str, *args) -> None:
    """A function can be called as `form` says, such as "solve(phi, theta0, batch)".

    Raises:
      TypeError: it is none, or other arguments are missing or too many.
    """
    is_function(function, form)
    inner, call = function, lambda function: function()
    if isinstance(function, base.Configured):
        inner, call = function.function, function.call_with
    try:
        signature = inspect.signature(inner)
    except ValueError:  # written in C
        return
    try:
        call(lambda **bound: signature.bind(*args, **bound))
    except TypeError as error:
        name = getattr(inner, "__name__", type(inner).__name__)
        raise TypeError(f"expected a function {form}, but {name}{signature} has {error}; bind the rest: base.bind({name}, ...).") from None


def scalar(name: str, made: Any) -> None:
    """What a loss gave is one real number.

    Raises:
      ValueError: it is not.
    """
    if not hasattr(made, "shape") or made.shape or not jnp.issubdtype(made.dtype, jnp.floating):
        got = f"{made.dtype}{list(made.shape)}" if hasattr(made, "shape") else f"a {type(made).__name__}"
        raise ValueError(
            f"expected {name} to return one real number, got {got}; take the mean over examples, and return nothing beside it."
        )


def alike(name: str, made: Any, like: Any, as_what: str) -> None:
    """A pytree has the structure and the shapes of another.

    Raises:
      ValueError: it has not.
    """
    got, expected = (jax.tree.map(jnp.shape, tree) for tree in (made, like))
    are_same = str(jax.tree.structure(made)) == str(jax.tree.structure(like))
    if not are_same or list(map(jnp.shape, jax.tree.leaves(made))) != list(map(jnp.shape, jax.tree.leaves(like))):
        raise ValueError(f"expected {name} like {as_what}, shapes {expected}, got {got}.")


def is_hypergradient(found: Any) -> None:
    """What a method returned is a `HyperGradient`.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(found, HyperGradient):
        raise TypeError(f"expected the method to return a HyperGradient, got a {type(found).__name__}; pass e.g. bilevel.unrolled.")


def optimizes(name: str, optimizer: Any) -> None:
    """An optax transformation.

    Raises:
      TypeError: something else, such as `optax.adam` without its learning rate.
    """
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise TypeError(f"expected {name} as an optax transformation, such as optax.adam(0.01), got {optimizer!r}.")


def one_key(key: Key) -> None:
    """One key, typed or raw.

    Raises:
      TypeError: a number. ValueError: several keys.
    """
    prng.example_keys(key, 1)


def not_negative(**numbers) -> None:
    """Each named number is finite and at least 0, as far as its value is known at trace time.

    Raises:
      ValueError: it is not.
    """
    for name, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and not np.all((np.asarray(number) >= 0) & np.isfinite(np.asarray(number, float))):
            raise ValueError(f"{name} is not finite or below 0: expected a number of at least 0, got {number}.")


def solved(solve: SolveFn, phi: Any, theta0: Any, batch: Any) -> Any:
    """solve(phi, theta0, batch), a theta like theta0.

    Raises:
      TypeError: solve is no such function. ValueError: it gave something else than a theta.
    """
    takes(solve, "solve(phi, theta0, batch)", phi, theta0, batch)
    theta = solve(phi, theta0, batch)
    alike("what solve returns", theta, theta0, "theta0")
    return theta


def linear_solution(linear_fn: LinearFn, product: ProductFn, v: Any, start: Any = None) -> Any:
    """linear_fn(product, v, start), a p like v; from zero for None.

    Raises:
      TypeError: linear_fn is no such function. ValueError: start or what it gave are not like v.
    """
    start = jax.tree.map(jnp.zeros_like, v) if start is None else start
    alike("linear_start", start, v, "theta")
    start = cast_like(start, v)
    takes(linear_fn, "linear_fn(product, v, start)", product, v, start)
    p = linear_fn(product, v, start)
    alike("what linear_fn returns", p, v, "v")
    return p
