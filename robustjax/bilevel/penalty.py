"""The penalty method: the inner problem as a constraint on its gradient, with multipliers (Mehra & Hamm, 2021).

A solver with a state of its own, not an estimate of a hypergradient: it needs neither a solved inner problem nor a regular Hessian.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import base, checks
from robustjax.base import Array, Bilevel, Numeric
from robustjax.bilevel import linear
from robustjax.bilevel import problem as parts
from robustjax.bilevel._unrolled import SolveInfo
from robustjax.bilevel.algorithm import Algorithm, StepInfo

_FALL = 1e-3  # of the slope at the start: what falls less steeply far away is taken as level


class PenaltyState(NamedTuple):
    """Everything that the method changes.

    How far to trust phi: as far as rho has grown. Where theta is stationary, the direction of phi was wrong by 390, .3, .02 and .0019 of
    the hypergradient's length at rho 10, 1e2, 1e3 and 1e4 on ridge regression without multipliers (`docs/results/hypergradients.md`), and
    phi itself by less than .02 and 1 % after thousands of steps with them (`tests/bilevel/test_penalty.py`).
    """

    phi: Any
    theta: Any
    multiplier: Any  # like theta, in float32 at least: nu of the constraint d inner / d theta = 0
    rho: Array  # of the penalty
    weight: Array  # lambda of the inner loss itself, which holds theta near its minimum at first
    tolerance: Array  # epsilon of the stationarity at which the former three change
    rate: Array  # by which both learning rates are multiplied
    opt_phi: Any
    opt_theta: Any
    num_raised: Array  # how often that happened; 0 after many steps: the tolerance is never met, and rho is what it was at first


def penalty_method(
    problem: Bilevel,
    *,
    rho: Numeric,
    weight: Numeric,
    tolerance: Numeric = 1.0,
    optimizer_phi: optax.GradientTransformation,
    optimizer_theta: optax.GradientTransformation,
    num_inner_steps: int = 20,
    growth: Numeric = 1.1,
    weight_decay: Numeric = 0.9,
    tolerance_decay: Numeric = 0.9,
    rate_decay: Numeric = 0.9,
    project_fn: Callable[[Any], Any] = lambda phi: phi,
) -> Algorithm:
    """Some steps of theta down h + weight * inner, one step of phi down h, then the constants if both are nearly stationary.

    h = outer + <multiplier, d inner / d theta> + rho / 2 |d inner / d theta|^2.

    Args:
      problem: inner and outer loss.
      rho: of the penalty, at first. For an outer loss that is unbounded below (an attack on a validation loss) see `penalty_check`.
      weight: of the inner loss (lambda), at first; it holds theta near its minimum.
      tolerance: of the stationarity that ends the first stage (epsilon).
      optimizer_phi: of phi; `optax.adam(0.1)` in the paper.
      optimizer_theta: of theta; `optax.adam(1e-3)` in the paper.
      num_inner_steps: steps of theta before one of phi.
      growth: factor of rho at the end of a stage, at least 1.
      weight_decay: factor of the weight, in (0, 1], as the next two.
      tolerance_decay: factor of the tolerance.
      rate_decay: factor of both learning rates.
      project_fn: phi -> the nearest phi that is allowed.

    Returns:
      The algorithm; its state is a `PenaltyState`, best begun with a theta at the inner minimum for phi. The info of a step is the
      `SolveInfo` of its theta.

    Raises:
      TypeError, ValueError: constants out of their range, no optimizers; in `init`, a phi or theta that holds no real numbers; in a step,
        another state, and what `check` names.

    Guarantee:
      none: solve the inner problem at the phi that it found.
    Source: Mehra & Hamm, ACML 2021, Algorithm 1, arXiv:1911.03432.
    """
    parts.optimizes("optimizer_phi", optimizer_phi)
    parts.optimizes("optimizer_theta", optimizer_theta)
    parts.is_function(project_fn, "project_fn(phi)")
    checks.counts(least=0, num_inner_steps=num_inner_steps)
    parts.not_negative(rho=rho, weight=weight, tolerance=tolerance)
    factors = {"growth": growth, "weight_decay": weight_decay, "tolerance_decay": tolerance_decay, "rate_decay": rate_decay}
    for name, factor in factors.items():
        if isinstance(factor, jax.core.Tracer):
            continue
        if name == "growth" and not factor >= 1.0:
            raise ValueError(f"growth multiplies rho at the end of a stage: expected at least 1, got {factor}.")
        if name != "growth" and not 0.0 < factor <= 1.0:
            raise ValueError(f"{name} shrinks it at the end of a stage: expected a factor in (0, 1], got {factor}.")
    optimizers = {"optimizer_phi": optimizer_phi, "optimizer_theta": optimizer_theta}
    return Algorithm(
        base.bind(_start, rho=rho, weight=weight, tolerance=tolerance, **optimizers),
        base.bind(_step, problem=problem, num_inner_steps=num_inner_steps, project_fn=project_fn, **optimizers, **factors),
    )


def penalty_check(problem: Bilevel, state: PenaltyState, batch: Any = None, *, num_steps: int = 50) -> None:
    """Names a start whose inner problem still falls far down its gradient, or far along its most negative curvature; for concrete values.

    With an outer loss that is unbounded below and a small rho, the penalised inner problem leads away from every minimum of the inner
    loss, and its stationary point has nothing to do with the bilevel problem's.

    Args:
      problem: inner and outer loss.
      state: the first, from the `init` of `penalty_method`.
      batch: what the losses take as their third argument.
      num_steps: products with a Hessian, for its smallest eigenvalue and the direction (Lanczos; a slight curvature may be missed).

    Raises:
      TypeError, ValueError: another state, and what `check` names; the value, its slope or its curvature is not finite; or the problem
        still falls between 10,000 and 20,000 times as far from the start as theta is long. With what to do. What falls along other lines,
        or only along a curve, is not seen.
    """
    _check(problem, state, batch)

    def penalised(theta, phi, batch):
        return _penalised(problem, state, theta, phi, batch, state.weight)

    value, grad = jax.value_and_grad(penalised)(state.theta, state.phi, batch)
    product, like = parts.hessian(penalised, state.theta, state.phi, batch), jax.tree.map(parts.at_least_float32, state.theta)
    smallest, largest = linear.extreme_eigenvalues(product, like, num_steps=num_steps)
    steepness, far = parts.norm(grad), 1e4 * (1.0 + parts.norm(state.theta))
    at = f"at rho={float(state.rho):g} and weight={float(state.weight):g} the penalised inner problem"
    if not jnp.isfinite(value + steepness + smallest):
        found = f"value {float(value):g}, slope {float(steepness):g}, smallest eigenvalue {float(smallest):g}"
        raise ValueError(f"{at} is not finite: {found}; check the start and the losses.")

    def falls(direction, slope):
        def height(distance):
            theta = jax.tree.map(lambda t, d: t + (distance * d).astype(t.dtype), state.theta, direction)
            return float(penalised(theta, state.phi, batch))

        return height(2.0 * far) < height(far) - _FALL * float(far * slope) or height(2.0 * far) == -math.inf

    down = jax.tree.map(lambda g: -g / jnp.where(steepness == 0, 1.0, steepness), grad)
    is_unbounded = falls(down, steepness)
    if smallest < -100 * jnp.finfo(smallest.dtype).eps * jnp.maximum(-smallest, largest):  # not rounding
        lowest = linear.lowest_eigenvector(product, like, num_steps=num_steps)
        is_unbounded = is_unbounded or falls(lowest, 0.0) or falls(jax.tree.map(jnp.negative, lowest), 0.0)
    if is_unbounded:
        raise ValueError(
            f"{at} still falls at {float(far):.3g} from its start and may be unbounded below; start with a larger rho, keep the weight, or "
            "bound the outer loss."
        )


def _start(phi, theta0, *, rho, weight, tolerance, optimizer_phi, optimizer_theta):
    parts.variables(phi=phi, theta0=theta0)
    multiplier = jax.tree.map(lambda leaf: jnp.zeros_like(parts.at_least_float32(leaf)), theta0)
    rho, weight, tolerance, rate = (jnp.asarray(value, jnp.result_type(float)) for value in (rho, weight, tolerance, 1.0))
    opt_phi, opt_theta = optimizer_phi.init(phi), optimizer_theta.init(theta0)
    return PenaltyState(phi, theta0, multiplier, rho, weight, tolerance, rate, opt_phi, opt_theta, jnp.int32(0))


def _step(
    state, batch=None, *, problem, optimizer_phi, optimizer_theta, num_inner_steps, project_fn, growth, weight_decay, tolerance_decay,
    rate_decay,
):  # fmt: skip
    _check(problem, state, batch)

    def penalised(theta, phi, weight=0.0):
        return _penalised(problem, state, theta, phi, batch, weight)

    def descend(optimizer, grad, opt_state, value):
        updates, opt_state = optimizer.update(grad, opt_state, value)
        return optax.apply_updates(value, jax.tree.map(lambda u: (state.rate * u).astype(u.dtype), updates)), opt_state

    def inner_step(carry, _):
        theta, opt_theta = carry
        grad = jax.grad(penalised)(theta, state.phi, state.weight)
        return descend(optimizer_theta, grad, opt_theta, theta), None

    (theta, opt_theta), _ = jax.lax.scan(inner_step, (state.theta, state.opt_theta), length=num_inner_steps)
    value = problem.outer_loss(theta, state.phi, batch)
    by_phi = jax.grad(penalised, argnums=1)(theta, state.phi)
    phi, opt_phi = descend(optimizer_phi, by_phi, state.opt_phi, state.phi)
    phi = project_fn(phi)
    state = state._replace(phi=phi, theta=theta, opt_phi=opt_phi, opt_theta=opt_theta)
    by_theta, by_phi = jax.grad(penalised)(theta, phi, state.weight), jax.grad(penalised, argnums=1)(theta, phi)
    # The norms are squared, and squared again, as in the authors' code.
    still = parts.inner(by_phi, by_phi) ** 2 + parts.inner(by_theta, by_theta) ** 2 < state.tolerance**2
    slope = jax.grad(problem.inner_loss)(theta, phi, batch)
    rho = growth * state.rho
    raised = state._replace(
        multiplier=jax.tree.map(lambda m, g: m + (rho * g).astype(m.dtype), state.multiplier, slope),
        rho=rho,
        weight=weight_decay * state.weight,
        tolerance=tolerance_decay * state.tolerance,
        rate=rate_decay * state.rate,
        num_raised=state.num_raised + 1,
    )
    return jax.tree.map(lambda new, old: jnp.where(still, new, old), raised, state), StepInfo(value, SolveInfo(parts.norm(slope)))


def _check(problem, state, batch):
    if not isinstance(state, PenaltyState):
        raise TypeError(f"expected a PenaltyState, got a {type(state).__name__}; the init of bilevel.penalty_method makes the first.")
    parts.check(problem, state.phi, state.theta, batch)


def _penalised(problem, state, theta, phi, batch, weight):
    value, slope = jax.value_and_grad(problem.inner_loss)(theta, phi, batch)
    constraint = parts.inner(state.multiplier, slope) + 0.5 * state.rho * parts.inner(slope, slope)
    return problem.outer_loss(theta, phi, batch) + constraint + weight * value
