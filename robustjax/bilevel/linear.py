"""Ways to solve H p = v from products with H, over pytrees: `linear_fn(product, v, start) -> p`. `implicit` reports the residual."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from robustjax import arrays, checks
from robustjax.base import Array, Key, Numeric
from robustjax.bilevel import problem
from robustjax.bilevel.problem import ProductFn

_PROBE_STEPS = 20  # of Lanczos' iteration


def conjugate_gradient(product: ProductFn, v: Any, start: Any, *, num_steps: int, tolerance: Numeric = 0.0) -> Any:
    """Conjugate gradients; H positive definite. The error falls like ((sqrt(k) - 1) / (sqrt(k) + 1))^steps, k its condition number.

    >>> bilevel.conjugate_gradient(lambda p: jnp.array([1.0, 4.0]) * p, jnp.ones(2), jnp.zeros(2), num_steps=2).round(4).tolist()
    [1.0, 0.25]

    Args:
      product: p -> H p.
      v: the right side.
      start: the first p.
      num_steps: products, at most.
      tolerance: of |H p - v| / |v|, where to stop before; at least the rounding of v's type.

    Raises:
      TypeError: a product that cannot be called, another number of steps than an integer. ValueError: no steps.

    Source: Hestenes & Stiefel, 1952, as in `jax.scipy`; for hypergradients Pedregosa, ICML 2016, arXiv:1602.02355.
    """
    problem.takes(product, "product(p)", v)
    checks.counts(num_steps=num_steps)
    # Squares of a small right side underflow, and past rounding the recursion does, to 0 / 0: solved for a right side of length 1. One of
    # zero has no scale to stop at, but a known solution.
    size = problem.norm(v)
    shrink = arrays.ratio(1.0, size)
    tolerance = jnp.maximum(jnp.asarray(tolerance).astype(size.dtype), jnp.finfo(size.dtype).eps)
    start, unit = problem.times(shrink, start), problem.times(shrink, v)
    return problem.times(size, jax.scipy.sparse.linalg.cg(product, unit, start, tol=tolerance, maxiter=num_steps)[0])


def neumann(product: ProductFn, v: Any, start: Any, *, step_size: Numeric, num_steps: int) -> Any:
    """p <- p + step_size (v - H p): the Neumann series; step_size below 2 / lambda_max. From zero, `num_steps` terms.

    Args:
      product: p -> H p.
      v: the right side.
      start: the first p.
      step_size: of a step; 1 / lambda_max is the usual choice.
      num_steps: products.

    Raises:
      TypeError: a product that cannot be called, another number of steps than an integer. ValueError: no steps, a step that is not above 0.

    Source: Lorraine et al., AISTATS 2020, arXiv:1911.02590.
    """
    problem.takes(product, "product(p)", v)
    checks.counts(num_steps=num_steps)
    checks.positive(step_size=step_size)

    def step(p, _):
        missed = jax.tree.map(jnp.subtract, v, product(p))
        return jax.tree.map(jnp.add, p, problem.times(step_size, missed)), None

    return jax.lax.scan(step, start, length=num_steps)[0]


def dense(product: ProductFn, v: Any, start: Any) -> Any:
    """The matrix itself, column by column, and a direct solution: for few parameters, and as the judge of the others.

    Args:
      product: p -> H p.
      v: the right side.
      start: not used; the other ways have it.

    Raises:
      TypeError: a product that cannot be called.
    """
    del start
    problem.takes(product, "product(p)", v)
    flat, unravel = ravel_pytree(v)
    matrix = jax.vmap(lambda column: ravel_pytree(product(unravel(column)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return unravel(jnp.linalg.solve(matrix, flat))


def solve_by_adam(product: ProductFn, v: Any, start: Any, *, learning_rate: Numeric, num_steps: int) -> Any:
    """Adam on |H p - v|^2 / 2, warm-started: the linear system of ApproxGrad. Rough; its residual says how rough.

    Args:
      product: p -> H p.
      v: the right side.
      start: the first p.
      learning_rate: of Adam, in the unit of p.
      num_steps: steps, of two products each.

    Raises:
      TypeError: a product that cannot be called, another number of steps than an integer. ValueError: no steps, a rate that is not above 0.

    Source: Mehra & Hamm, ACML 2021, arXiv:1911.03432, as released. Differs: Adam's moments start afresh in every call.
    """
    problem.takes(product, "product(p)", v)
    checks.counts(num_steps=num_steps)
    checks.positive(learning_rate=learning_rate)
    optimizer = optax.scale_by_adam()

    def step(carry, _):
        p, state = carry
        residual = jax.tree.map(jnp.subtract, product(p), v)
        updates, state = optimizer.update(product(residual), state)  # H is symmetric
        return (jax.tree.map(jnp.subtract, p, problem.times(learning_rate, updates)), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)[0][0]


def lissa(
    product: ProductFn,
    v: Any,
    start: Any,
    *,
    key: Key,
    sampled_fn: Callable[[Key, Any], Any],
    scale: Numeric | None = None,
    damping: Numeric | None = None,
    num_steps: int,
    num_repeats: int = 1,
    num_probes: int = 8,
) -> Any:
    """The Neumann series with Hessians of samples: q <- v + q - (H_i + damping) q / scale, p = q / scale, averaged over repeats.

    Args:
      product: p -> H p of the whole, undamped; only where damping is None.
      v, start: the right side and the first p.
      key: of the samples.
      sampled_fn: (key, p) -> H_i p of a random part of the data, H being the mean of all H_i.
      scale: above the largest eigenvalue of every H_i + damping, or it diverges. About scale / lambda_min steps are needed. None: 1.1 times
        the largest of `num_probes` samples, by 20 products each.
      damping: above minus the most negative eigenvalue of H. None: 1.1 times that of the product, 0 where it has none.
      num_steps: of one run.
      num_repeats: runs.

    Raises:
      TypeError: no key, a sampled_fn that cannot be called, numbers that are no integers. ValueError: several keys, numbers below 1.

    Source: Agarwal et al., JMLR 2017, arXiv:1602.03943; Koh & Liang, ICML 2017, arXiv:1703.04730. Differs: damping has the unit of H;
      theirs is divided by scale.
    """
    checks.counts(num_steps=num_steps, num_repeats=num_repeats, num_probes=num_probes)
    problem.takes(sampled_fn, "sampled_fn(key, p)", key, start)
    problem.one_key(key)
    if damping is None:
        smallest, _ = extreme_eigenvalues(product, v, num_steps=_PROBE_STEPS)
        damping = 1.1 * jnp.maximum(-smallest, 0.0)
    if scale is None:
        keys = jax.random.split(jax.random.fold_in(key, num_repeats), num_probes)
        probes = jax.lax.map(lambda key: extreme_eigenvalues(lambda p: sampled_fn(key, p), v, num_steps=_PROBE_STEPS)[1], keys)
        scale = 1.1 * (probes.max() + damping)

    def run(key):
        def step(q, i):
            h = sampled_fn(jax.random.fold_in(key, i), q)
            damped = jax.tree.map(lambda h, q: h.astype(q.dtype) + q, h, problem.times(damping, q))
            return jax.tree.map(lambda v, q, h: v + q - h, v, q, problem.times(1.0 / scale, damped)), None

        first = problem.times(scale, start)
        return jax.lax.scan(step, first, jnp.arange(num_steps))[0]

    runs = jax.lax.map(run, jax.random.split(key, num_repeats))
    return problem.times(1.0 / scale, jax.tree.map(lambda q: q.mean(axis=0), runs))


def largest_eigenvalue(product: ProductFn, like: Any, *, num_steps: int = 30) -> Array:
    """The largest |eigenvalue| of H: 1 / it is a safe step of `neumann`, and the scale of LiSSA.

    A lower estimate, see `extreme_eigenvalues`; multiply by 1.1 where a bound is needed.

    Args:
      product: p -> H p.
      like: the pytree that p is like.
      num_steps: products.
    """
    smallest, largest = extreme_eigenvalues(product, like, num_steps=num_steps)
    return jnp.maximum(jnp.abs(smallest), jnp.abs(largest))


def extreme_eigenvalues(product: ProductFn, like: Any, *, num_steps: int = 50) -> tuple[Array, Array]:
    """(smallest, largest) eigenvalue of H by Lanczos' iteration: between the true ones, and near them long before power iteration is.

    Minus the smallest, where it is negative, is the damping that H needs.

    Args:
      product: p -> H p.
      like: the pytree that p is like.
      num_steps: products, at most as many as p has numbers.

    Source: Lanczos, 1950; without reorthogonalisation, which the extremes do not need (Paige, 1980).
    """
    checks.counts(num_steps=num_steps)
    problem.takes(product, "product(p)", like)
    alpha, beta, _ = _lanczos(product, like, jnp.zeros(num_steps, jnp.float32))
    values = jnp.linalg.eigvalsh(_tridiagonal(alpha, beta, alpha[0]))
    return values[0], values[-1]


def lowest_eigenvector(product: ProductFn, like: Any, *, num_steps: int = 50) -> Any:
    """The direction of the smallest eigenvalue of H, of length 1, by the same iteration, run twice: nothing but its ends is kept.

    Args:
      product: p -> H p.
      like: the pytree that p is like.
      num_steps: products, of each run.
    """
    alpha, beta, _ = _lanczos(product, like, jnp.zeros(num_steps))
    beyond = jnp.abs(alpha).sum() + 2.0 * jnp.abs(beta).sum()  # above every eigenvalue: an ended iteration has no vectors there
    vector = jnp.linalg.eigh(_tridiagonal(alpha, beta, beyond))[1][:, 0]
    direction = _lanczos(product, like, jnp.zeros(num_steps, vector.dtype).at[: len(vector)].set(vector))[2]
    size = problem.norm(direction)
    return jax.tree.map(lambda d: d / jnp.where(size == 0, 1.0, size), direction)


def _lanczos(product, like, weights):
    """Diagonals of H in the basis of the iteration, and the sum of the basis by weights, like `like`."""
    flat, unravel = ravel_pytree(jax.tree.map(problem.at_least_float32, like))
    start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def step(carry, weight):
        before, q, beta, total = carry
        h = ravel_pytree(product(unravel(q)))[0].astype(q.dtype)
        alpha = jnp.vdot(q, h)
        rest = h - alpha * q - beta * before
        beta = problem.norm(rest)
        return (q, rest / jnp.where(beta == 0, 1.0, beta), beta, total + weight.astype(q.dtype) * q), (alpha, beta)

    nothing = jnp.zeros_like(start)
    first = (nothing, start / problem.norm(start), jnp.zeros((), flat.dtype), nothing)
    (*_, total), (alpha, beta) = jax.lax.scan(step, first, weights[: flat.size])
    return alpha, beta, unravel(total)


def _tridiagonal(alpha, beta, filling):
    ended = jnp.cumsum(beta == 0) > jnp.int32(beta == 0)  # an invariant space was found before
    diagonal = jnp.where(ended, filling, alpha)
    return jnp.diag(diagonal) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
