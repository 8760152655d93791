"""Influence functions: what a training point does to a test loss, without training again (Koh & Liang, 2017)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import base
from robustjax.base import Array, Bilevel, Key
from robustjax.bilevel import problem as parts
from robustjax.bilevel.implicit import implicit

_SYSTEMS_AT_ONCE = 32  # of the correction: enough to keep a CPU busy with products, few enough for the memory of a network


class Influence(NamedTuple):
    """Predicted changes of a test loss when a training point is left out, and how far to trust them."""

    # Right in rank and size where its leverage is small. Logistic regression on breast_cancer at weight decay .001 (400 points, the mean
    # loss of the others), by training again: RANGES
    removal: Array  # [N]
    first_order: Array  # [N] Koh & Liang's formula, too small by about 1 - leverage
    leverage: Array | None  # [N] share of a point in the curvature along its own step, 0 to 1 where losses are convex; None if not corrected
    # |H p - v| / |v| without damping, of the worst linear system: the relative error of a removal is at most the condition number of H times
    # that, and was at most FACTOR times it on the same data.
    residual: Array
    # |d training loss|, 0 at the minimum that the method assumes: the distance from it is at most stationarity / smallest eigenvalue of H.
    stationarity: Array


class Response(NamedTuple):
    """What `response_gradient` carries on: the victim, and how well its linear system was solved."""

    theta: Any
    solution: Any  # of the linear system, like theta
    residual: Any = jnp.inf  # of the last one; above 1 the gradient is worth nothing


def influence(
    params,
    x: Array,
    y: Array,
    *,
    loss_fn: Callable,
    test_loss_fn: Callable,
    linear_fn: Callable,
    regularizer_fn: Callable | None = None,
    damping=0.0,
    corrected: bool = True,
) -> Influence:
    """test_loss(params + step_i) - test_loss(params), step_i = (H - H_i / N)^-1 d loss_i / N: Newton's step to the minimum without point i.

    With H of what the other points would leave of the regularizer. A point of large leverage h_i = <u, H_i u> / (N <u, H u>),
    u = H^-1 d loss_i, holds its own minimum: first order, which leaves H_i out, predicts 1 - h_i of its step.

    Args:
      params: a minimum of mean loss_fn + regularizer.
      x: training inputs [N, ...]. y: [N].
      loss_fn: (params, x [...], y) -> scalar, of one example.
      test_loss_fn: params -> scalar, without the regularizer.
      linear_fn: see `bilevel.implicit`; `dense` for few parameters, `conjugate_gradient` where the loss is convex, `lissa` for much data.
      regularizer_fn: params -> scalar, counted with every point.
      damping: for Hessians that are not positive definite; about the size of the most negative eigenvalue.
      corrected: whether H_i counts, at one linear system and one test loss for every training point. Without, `removal` is the first
        order (1 / N) <H^-1 d test_loss, d loss_i>, from one linear system for all of them.

    Returns:
      The influence of every training point.

    Guarantee:
      Exact for squared losses of linear predictions with a quadratic regularizer, at residual and stationarity 0. Exactly Newton's step
      where loss_i depends on params through one linear score (logistic and squared losses, hinges); where it has several, only the
      curvature along the point's own gradient is corrected. Without correction first order: exact as N grows.
    Source: Koh & Liang, ICML 2017, eq. 2, arXiv:1703.04730; the correction by Sherman & Morrison, 1950, as in Cook's distance (Pregibon,
      1981). Differs: the regularizer has the weight that N - 1 points leave it; test losses are evaluated, not linearised.
    """
    num_points = x.shape[0]

    def penalty(params):
        return 0.0 if regularizer_fn is None else regularizer_fn(params)

    def risk(params, share):
        return jax.vmap(loss_fn, (None, 0, 0))(params, x, y).mean() + share * penalty(params)

    rest = parts.hessian(lambda params, phi, batch: risk(params, 1.0 - 1.0 / num_points), params, None, None)

    def solve(v):
        def damped(p):
            return jax.tree.map(lambda h, p: h + damping * p, rest(p), p)

        p = linear_fn(damped, v, jax.tree.map(jnp.zeros_like, v))
        return p, parts.relative(parts.norm(jax.tree.map(jnp.subtract, rest(p), v)), parts.norm(v))

    def wide_grad(loss):
        return jax.tree.map(parts.wide, jax.grad(loss)(params))

    def first(example):  # <p, gradient of one loss> as a forward derivative: no gradient per example is ever stored
        point = lambda params: loss_fn(params, *example) + penalty(params)  # noqa: E731
        return jax.jvp(point, (params,), (parts.like(p, params),))[1] / num_points

    p, residual = solve(wide_grad(test_loss_fn))
    first_order = jax.lax.map(first, (x, y), batch_size=256)
    stationarity = parts.norm(jax.grad(risk)(params, 1.0))
    if not corrected:
        return Influence(first_order, first_order, None, residual, stationarity)
    pull, _ = solve(wide_grad(penalty)) if regularizer_fn is not None else (jax.tree.map(jnp.zeros_like, p), None)
    before = test_loss_fn(params)

    def leave_out(example):
        slope = wide_grad(lambda params: loss_fn(params, *example))
        own = parts.hessian(lambda params, phi, batch: loss_fn(params, *example), params, None, None)
        size = parts.norm(slope)
        unit = jax.tree.map(lambda s: s / jnp.where(size == 0, 1.0, size), slope)
        u, missed = solve(unit)
        leverage = parts.relative(parts.inner(u, own(u)), num_points * parts.inner(u, unit))
        step = jax.tree.map(lambda u, q: size * u + q, u, pull)
        # Of one score: H_i step = <unit, H_i step> unit, and H^-1 of that is a multiple of u, summed up as a geometric series.
        more = parts.inner(unit, own(step)) / (num_points * (1.0 - leverage))
        moved = jax.tree.map(lambda t, s, u: t + ((s + more * u) / num_points).astype(t.dtype), params, step, u)
        return test_loss_fn(moved) - before, leverage, missed

    removal, leverage, missed = jax.lax.map(leave_out, (x, y), batch_size=_SYSTEMS_AT_ONCE)
    return Influence(removal, first_order, leverage, jnp.maximum(residual, missed.max()), stationarity)


def response_gradient(problem: Bilevel, solve: Callable, batch=None, *, linear_fn: Callable, damping=0.0) -> Callable:
    """The gradient function of the training-set attack, for `craft`: poisons are phi, the victim is trained again (warm) at every step.

    Args:
      problem: inner_loss, the victim's training loss with phi [M, ...] among its data; outer_loss, what the attacker minimises.
      solve, batch, linear_fn, damping: as for `bilevel.implicit`.

    Returns:
      (key, poisons, state) -> (loss, gradient, state); the state is a `Response`: start with `Response(theta, zeros like theta)`.

    Source: Koh & Liang, ICML 2017, section 5.2, arXiv:1703.04730; with Adam on the linear system Mehra & Hamm's ApproxGrad,
      arXiv:1911.03432.
    """
    return base.bind(_respond, problem=problem, solve=solve, batch=batch, linear_fn=linear_fn, damping=damping)


def method_gradient(problem: Bilevel, method: Callable, solve: Callable, theta0, batch=None) -> Callable:
    """The gradient function of any method of `bilevel`, for `craft`, the victim trained from theta0 at every step: back-gradient poisoning
    with `base.bind(bilevel.back_gradient)`, unrolled poisoning with `base.bind(bilevel.unrolled)`.

    Args:
      problem, solve, theta0, batch: as for the method; phi are the poisons [M, ...].
      method: (problem, solve, phi, theta0, batch) -> HyperGradient, its own arguments bound.

    Returns:
      (key, poisons, state) -> (loss, gradient, state); the state is the method's last `HyperGradient`, whose info says how far to trust
        it: start with None.

    Source: Munoz-Gonzalez et al., AISec 2017, Algorithm 1, arXiv:1708.08689.
    """
    return base.bind(_differentiated, problem=problem, method=method, solve=solve, theta0=theta0, batch=batch)


def _differentiated(key: Key, poisons, state, *, problem, method, solve, theta0, batch):
    del key, state
    found = method(problem, solve, poisons, theta0, batch)
    return found.value, found.grad, found


def _respond(key: Key, poisons, state, *, problem, solve, batch, linear_fn, damping):
    del key
    found = implicit(problem, solve, poisons, state.theta, batch, linear_fn=linear_fn, damping=damping, linear_start=state.solution)
    return found.value, found.grad, Response(found.theta, found.info.solution, found.info.residual)
