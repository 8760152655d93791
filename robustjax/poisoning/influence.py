"""Influence functions: what a training point does to a test loss, without training again (Koh & Liang, 2017)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import base
from robustjax.base import Array, Bilevel, Key
from robustjax.bilevel import problem as parts
from robustjax.bilevel.implicit import implicit


class Influence(NamedTuple):
    """Predicted changes of a test loss, and how far to trust them."""

    removal: Array  # [N] of the test loss when a training point is left out
    residual: Array  # |H p - v| / |v| of the linear system without damping
    stationarity: Array  # |d training loss|, 0 at the minimum that the method assumes


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
) -> Influence:
    """(1 / N) <(H + damping)^-1 d test_loss, d loss_i>: the first-order change of the test loss when point i is left out.

    Args:
      params: a minimum of mean loss_fn + regularizer.
      x: training inputs [N, ...]. y: [N].
      loss_fn: (params, x [...], y) -> scalar, of one example.
      test_loss_fn: params -> scalar, without the regularizer.
      linear_fn: see `bilevel.implicit`; `conjugate_gradient` where the loss is convex, `lissa` for much data.
      regularizer_fn: params -> scalar, counted with every point.
      damping: for Hessians that are not positive definite; about the size of the most negative eigenvalue.

    Returns:
      The influence of every training point.

    Guarantee:
      first order: exact as N grows, for a regular minimum and residual 0.
    Source: Koh & Liang, ICML 2017, eq. 2, arXiv:1703.04730.
    """

    def penalty(params):
        return 0.0 if regularizer_fn is None else regularizer_fn(params)

    def risk(params, phi, batch):
        del phi, batch
        return jax.vmap(loss_fn, (None, 0, 0))(params, x, y).mean() + penalty(params)

    product = parts.hessian(risk, params, None, None, damping)
    v = jax.tree.map(parts.wide, jax.grad(test_loss_fn)(params))
    p = linear_fn(product, v, jax.tree.map(jnp.zeros_like, v))
    undamped = parts.hessian(risk, params, None, None)
    size = parts.norm(v)
    residual = parts.norm(jax.tree.map(jnp.subtract, undamped(p), v)) / jnp.where(size == 0, 1.0, size)

    def slope(example):  # <p, gradient of one loss> as a forward derivative: no gradient per example is ever stored
        point = lambda params: loss_fn(params, *example) + penalty(params)  # noqa: E731
        return jax.jvp(point, (params,), (parts.like(p, params),))[1]

    removal = jax.lax.map(slope, (x, y), batch_size=256) / x.shape[0]
    return Influence(removal, residual, parts.norm(jax.grad(risk)(params, None, None)))


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
