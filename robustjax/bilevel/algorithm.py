"""Iterative solvers of a bilevel problem: a pair of functions, `init` and `step`, as an optax transformation is one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import base, checks
from robustjax.base import Array, Bilevel, HyperGradient, SolveFn
from robustjax.bilevel import _implicit
from robustjax.bilevel import problem as parts
from robustjax.bilevel.problem import LinearFn, MethodFn


class Algorithm(NamedTuple):
    """An iterative solver; what it solves and its constants are bound, so that it crosses `jit` as an argument.

    `jax.lax.scan(algorithm.step, state, batches)` is the whole loop, over batches that lead with the number of steps; `minimize` writes it
    for one batch.
    """

    init: Callable[[Any, Any], Any]  # (phi, theta0) -> state, which has phi and theta
    step: Callable[..., tuple[Any, "StepInfo"]]  # (state, batch) -> (state, StepInfo)


class StepInfo(NamedTuple):
    """What a step says of itself; scalars, so that many can be kept.

    Values fall with phi even where hypergradients are wrong: trust them as far as `info` allows.
    """

    value: Array  # outer loss at the new theta and the old phi
    info: Any  # how far to trust the step: that of the hypergradient, without arrays; `SolveInfo` of `penalty_method`


class DescentState(NamedTuple):
    """The state of `hypergradient_descent` and of `approx_grad`."""

    phi: Any
    theta: Any  # of the last hypergradient, where the next inner solution starts
    linear: Any  # the last solution of the linear system, where the next starts; None in `hypergradient_descent`
    opt_phi: Any


def hypergradient_descent(
    problem: Bilevel,
    method: MethodFn,
    solve: SolveFn,
    *,
    optimizer: optax.GradientTransformation,
    project_fn: Callable[[Any], Any] = lambda phi: phi,
) -> Algorithm:
    """Steps of an optimizer along hypergradients, the inner problem warm-started from one to the next.

    >>> problem = base.Bilevel(lambda theta, phi, _: (theta - phi) ** 2, lambda theta, phi, _: (theta - 3.0) ** 2)
    >>> solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, step_size=0.25, num_steps=10)
    >>> descent = bilevel.hypergradient_descent(problem, bilevel.unrolled, solve, optimizer=optax.sgd(0.2))
    >>> state, steps = bilevel.minimize(descent, jnp.zeros(()), jnp.zeros(()), num_steps=20)
    >>> bool(abs(state.phi - 3.0) < 0.01), steps.value.shape
    (True, (20,))

    Args:
      problem: inner and outer loss.
      method: (problem, solve, phi, theta0, batch) -> HyperGradient, its own arguments bound.
      solve: (phi, theta0, batch) -> theta, the inner solver, its own arguments bound.
      optimizer: of phi, down the hypergradient.
      project_fn: phi -> the nearest phi that is allowed.

    Returns:
      The algorithm; its state is a `DescentState`.

    Raises:
      TypeError, ValueError: no optimizer, functions that cannot be called; in `init`, a phi or theta that holds no real numbers, and a
        project_fn that gives something else than a phi; in a step, what the method names, and a method that is not bound or gives no
        `HyperGradient`.
    """
    step = base.bind(_follow, problem=problem, method=method, solve=solve)
    return _descent(step, optimizer, project_fn, is_linear=False)


def approx_grad(
    problem: Bilevel,
    solve: SolveFn,
    *,
    linear_fn: LinearFn,
    damping: base.Numeric = 0.0,
    optimizer: optax.GradientTransformation,
    project_fn: Callable[[Any], Any] = lambda phi: phi,
) -> Algorithm:
    """ApproxGrad: `hypergradient_descent` by `implicit`, each linear system warm-started from the solution of the last.

    A few rough steps of `linear_fn` in an update are enough, since all updates work on the same slowly changing system.

    Args:
      problem: inner and outer loss.
      solve: (phi, theta0, batch) -> theta, the inner solver, its own arguments bound.
      linear_fn: (product, v, start) -> p; the authors' is ten steps of `bilevel.solve_by_adam`.
      damping: added to the Hessian of the inner loss.
      optimizer: of phi, down the hypergradient.
      project_fn: phi -> the nearest phi that is allowed.

    Returns:
      The algorithm; its state is a `DescentState`, the info of a step holds `residual` and `stationarity` of `ImplicitInfo`.

    Raises:
      TypeError, ValueError: those of `hypergradient_descent`, in a step those of `implicit`.

    Guarantee:
      none: the `info` of each step says how far to trust it.
    Source: Mehra & Hamm, ACML 2021, arXiv:1911.03432. Differs: Adam's moments, if linear_fn or solve keep some, start afresh in each step.
    """
    parts.is_function(linear_fn, "linear_fn(product, v, start)")
    parts.not_negative(damping=damping)
    step = base.bind(_respond, problem=problem, solve=solve, linear_fn=linear_fn, damping=damping)
    return _descent(step, optimizer, project_fn, is_linear=True)


def minimize(
    algorithm: Algorithm,
    phi: Any,
    theta0: Any,
    batch: Any = None,
    *,
    num_steps: int,
    batch_fn: Callable[[Any, Array], Any] = lambda batch, step: batch,
) -> tuple[Any, StepInfo]:
    """min over phi of outer_loss(theta(phi), phi), by steps of an algorithm.

    Args:
      algorithm: `hypergradient_descent`, `approx_grad`, `penalty_method`, or another pair of functions like theirs.
      phi: where it starts, a pytree of real numbers.
      theta0: where the inner variable starts, a pytree of real numbers.
      batch: what the losses take as their third argument.
      num_steps: steps of phi.
      batch_fn: (batch, step, int32) -> what the losses get as batch in that step: other rows, or a key folded with the step.

    Returns:
      The last state, whose `phi` and `theta` are the solution, and the `StepInfo` of all steps, its leaves [num_steps].

    Raises:
      TypeError, ValueError: no algorithm, no steps, a batch_fn of another kind; what `init` and `step` name.
    """
    checks.counts(num_steps=num_steps)
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"expected an Algorithm, such as bilevel.hypergradient_descent(...), got a {type(algorithm).__name__}.")
    parts.takes(batch_fn, "batch_fn(batch, step)", batch, 0)

    def step(state, i):
        return algorithm.step(state, batch_fn(batch, i))

    return jax.lax.scan(step, algorithm.init(phi, theta0), jnp.arange(num_steps))


def _descent(gradient_fn, optimizer, project_fn, is_linear):
    parts.optimizes("optimizer", optimizer)
    parts.is_function(project_fn, "project_fn(phi)")
    return Algorithm(
        base.bind(_start, optimizer=optimizer, project_fn=project_fn, is_linear=is_linear),
        base.bind(_step, gradient_fn=gradient_fn, optimizer=optimizer, project_fn=project_fn),
    )


def _start(phi, theta0, *, optimizer, project_fn, is_linear):
    parts.variables(phi=phi, theta0=theta0)
    parts.takes(project_fn, "project_fn(phi)", phi)
    parts.alike("what project_fn returns", jax.eval_shape(project_fn, phi), phi, "phi")
    linear = jax.tree.map(lambda leaf: jnp.zeros_like(parts.at_least_float32(leaf)), theta0) if is_linear else None
    return DescentState(phi, theta0, linear, optimizer.init(phi))


def _step(state, batch=None, *, gradient_fn, optimizer, project_fn):
    if not isinstance(state, DescentState):
        raise TypeError(f"expected a DescentState, got a {type(state).__name__}; the algorithm's init makes the first.")
    found, linear = gradient_fn(state, batch)
    updates, opt_phi = optimizer.update(found.grad, state.opt_phi, state.phi)
    phi = project_fn(optax.apply_updates(state.phi, updates))
    info = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else None, found.info)  # a solution is as large as theta
    return DescentState(phi, found.theta, linear, opt_phi), StepInfo(found.value, info)


def _follow(state, batch, *, problem, method, solve) -> tuple[HyperGradient, Any]:
    parts.takes(method, "method(problem, solve, phi, theta0, batch)", problem, solve, state.phi, state.theta, batch)
    found = method(problem, solve, state.phi, state.theta, batch)
    parts.is_hypergradient(found)
    return found, None


def _respond(state, batch, *, problem, solve, linear_fn, damping) -> tuple[HyperGradient, Any]:
    found = _implicit.implicit(
        problem, solve, state.phi, state.theta, batch, linear_fn=linear_fn, damping=damping, linear_start=state.linear
    )
    return found, found.info.solution
