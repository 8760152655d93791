"""Influence functions: what a training point does to a test loss, without training again (Koh & Liang, 2017)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base
from robustjax.base import Array, Bilevel, Key, Numeric, SolveFn
from robustjax.bilevel import _implicit
from robustjax.bilevel import problem as parts
from robustjax.bilevel.problem import LinearFn, MethodFn
from robustjax.poisoning._craft import GradientFn

_SYSTEMS_AT_ONCE = 32  # of the correction: enough to keep a CPU busy with products, few enough for the memory of a network


class Influence(NamedTuple):
    """Predicted changes of a test loss when a training point is left out, and how far to trust them.

    Measured by training again without each point: logistic regression on breast_cancer, 200 to 455 training points, nine splits with weight
    decay .001 to .1, the mean loss of all other points as test loss (`tests/poisoning/test_influence.py` holds one of them).
    """

    removal: Array  # [N] Pearson with the truth .89 to .9998; a point's own prediction is as good as its `remaining`
    first_order: Array  # [N] Koh & Liang's formula, too small by a factor of 1 - leverage at least: Pearson .31 to .98
    leverage: Array | None  # [N] share of the point in the curvature along its own step; at 0 first order is right; NaN where H falls
    # [N] slope of the training loss without the point after the step, over that before it; 0 at the new minimum. Errors of removal, as root
    # mean squares over those of the truth: .014 at most below .01, .08 from there to .1, .21 to .3, and up to 2.2 beyond: train again
    # without these (2 of 400 points at most). For a softmax of 4 classes: .01, .11, .12, .27.
    remaining: Array | None
    residual: Array  # |H p - v| / |v| without damping, of the worst linear system: removal was off by no more than that, for .46 to 1e-12
    stationarity: Array  # |d training loss|, 0 at the minimum that is assumed: params are off by at most this / smallest eigenvalue of H


class Response(NamedTuple):
    """What `response_gradient` carries on: the victim, and how well its linear system was solved.

    The victim's own slope is not in it: let `solve` take enough steps, see `bilevel.ImplicitInfo`.
    """

    theta: Any  # the victim that the last gradient saw
    solution: Any  # of the linear system, like theta, which the next starts from
    residual: Any = jnp.inf  # of the last one, as in `bilevel.ImplicitInfo`; above 1 the gradient is worth nothing; inf before the first


def influence(
    params: Any,
    x: Array,
    y: Array,
    *,
    loss_fn: Callable,
    test_loss_fn: Callable[[Any], Array],
    linear_fn: LinearFn,
    regularizer_fn: Callable[[Any], Array] | None = None,
    damping: Numeric = 0.0,
    corrected: bool = True,
) -> Influence:
    """test_loss(params + step_i) - test_loss(params), step_i = (H - H_i / N)^-1 d loss_i / N: Newton's step to the minimum without point i.

    H and H_i are Hessians of the mean loss and of loss_i, the regularizer of H having the weight that N - 1 points leave it. A point of
    large leverage h_i = <u, H_i u> / (N <u, H u>), u = H^-1 d loss_i, holds its own minimum: first order sees 1 - h_i of the step.

    >>> y = jnp.array([1.0, 2.0, 6.0])  # their mean, 3, is 1.5 without the last
    >>> found = poisoning.influence(
    ...     jnp.array([3.0]), jnp.ones((3, 1)), y, loss_fn=lambda theta, x, y: 0.5 * (theta @ x - y) ** 2,
    ...     test_loss_fn=lambda theta: theta[0], linear_fn=bilevel.dense)
    >>> found.removal.round(4).tolist()
    [1.0, 0.5, -1.5]

    Args:
      params: a minimum of mean loss_fn + regularizer.
      x: training inputs [N, ...]. y: [N].
      loss_fn: (params, x [...], y) -> scalar, of one example.
      test_loss_fn: params -> scalar, without the regularizer.
      linear_fn: see `bilevel.implicit`; `dense` for few parameters, `conjugate_gradient` where the loss is convex, `lissa` for much data.
      regularizer_fn: params -> scalar, counted with every point.
      damping: for Hessians that are not positive definite; about the size of the most negative eigenvalue.
      corrected: whether H_i counts, at one linear system, one gradient and one test loss for every training point. Without, `removal` is
        the first order (1 / N) <H^-1 d test_loss, d loss_i>, from one linear system for all of them: for much data.

    Returns:
      The influence of every training point.

    Raises:
      TypeError: params that cannot be differentiated, functions that cannot be called. ValueError: fewer than two points; x and y of
        different length; NaN; a loss that is no scalar; a linear_fn that gives something else; damping below 0.

    Guarantee:
      Exact for squared losses of linear predictions with a quadratic regularizer, at residual and stationarity 0. Exactly Newton's step
      where loss_i depends on params through one linear score (logistic and squared losses, hinges); where it has several, only the
      curvature along the point's own gradient is corrected. Without correction first order: exact as N grows.
    Source: Koh & Liang, ICML 2017, eq. 2, arXiv:1703.04730; the correction by Sherman & Morrison, 1950, as in Cook's distance (Pregibon,
      1981). Differs: H is that of N - 1 points' regularizer; test losses are evaluated at the step, not linearised.
    """
    num_points = _check_points(x, y)
    parts.variables(params=params)
    parts.not_negative(damping=damping)
    losses = [("loss_fn(params, x, y)", loss_fn, (params, x[0], y[0])), ("test_loss_fn(params)", test_loss_fn, (params,))]
    if regularizer_fn is not None:
        losses.append(("regularizer_fn(params)", regularizer_fn, (params,)))
    for form, loss, args in losses:
        parts.takes(loss, form, *args)
        parts.scalar(form.partition("(")[0], jax.eval_shape(loss, *args))

    def penalty(params):
        return 0.0 if regularizer_fn is None else regularizer_fn(params)

    def risk(params, share):
        return jax.vmap(loss_fn, (None, 0, 0))(params, x, y).mean() + share * penalty(params)

    def rest(params, phi=None, batch=None):  # with the regularizer that is left when the mean is over one point fewer
        del phi, batch
        return risk(params, 1.0 - 1.0 / num_points)

    product = parts.hessian(rest, params, None, None)

    def solve(v):
        def damped(p):
            return jax.tree.map(jnp.add, product(p), parts.times(damping, p))

        p = parts.linear_solution(linear_fn, damped, v)
        return p, parts.mismatch(product(p), v)

    def slope(loss):
        return jax.tree.map(parts.at_least_float32, jax.grad(loss)(params))

    def first(example):  # <p, gradient of one loss> as a forward derivative: no gradient per example is ever stored
        point = lambda params: loss_fn(params, *example) + penalty(params)  # noqa: E731
        return jax.jvp(point, (params,), (parts.cast_like(p, params),))[1] / num_points

    p, residual = solve(slope(test_loss_fn))
    first_order = jax.lax.map(first, (x, y), batch_size=256)
    stationarity = parts.norm(jax.grad(risk)(params, 1.0))
    if not corrected:
        return Influence(first_order, first_order, None, None, residual, stationarity)
    pull, _ = solve(slope(penalty)) if regularizer_fn is not None else (jax.tree.map(jnp.zeros_like, p), None)
    before = test_loss_fn(params)

    def leave_out(example):
        def one(params, phi=None, batch=None):
            del phi, batch
            return loss_fn(params, *example)

        def steepness(params):  # of the training loss without this point
            return parts.norm(jax.tree.map(lambda g, own: g - own / num_points, jax.grad(rest)(params), jax.grad(one)(params)))

        own, mine = parts.hessian(one, params, None, None), slope(one)
        size = parts.norm(mine)
        unit = jax.tree.map(lambda g: arrays.ratio(g, size), mine)
        u, missed = solve(unit)
        leverage = arrays.ratio(parts.inner(u, own(u)), num_points * parts.inner(u, unit), jnp.where(size > 0, jnp.nan, 0.0))
        step = jax.tree.map(lambda u, q: size * u + q, u, pull)
        # Of one score: H_i step = <unit, H_i step> unit, and H^-1 of that is a multiple of u, summed up as a geometric series.
        more = parts.inner(unit, own(step)) / (num_points * (1.0 - leverage))
        moved = jax.tree.map(lambda t, s, u: t + ((s + more * u) / num_points).astype(t.dtype), params, step, u)
        return test_loss_fn(moved) - before, leverage, arrays.ratio(steepness(moved), steepness(params)), missed

    removal, leverage, remaining, missed = jax.lax.map(leave_out, (x, y), batch_size=_SYSTEMS_AT_ONCE)
    return Influence(removal, first_order, leverage, remaining, jnp.maximum(residual, missed.max()), stationarity)


def response_gradient(problem: Bilevel, solve: SolveFn, batch: Any = None, *, linear_fn: LinearFn, damping: Numeric = 0.0) -> GradientFn:
    """The gradient function of the training-set attack, for `craft_poisons`: poisons are phi, the victim is trained again at every step.

    Args:
      problem: inner_loss, the victim's training loss with phi [M, ...] among its data; outer_loss, what the attacker minimises.
      solve: (phi, theta0, batch) -> theta, the victim's training, its own arguments bound; it goes on from the last victim.
      batch: what the losses take as their third argument.
      linear_fn: (product, v, start) -> p, such as `base.bind(bilevel.conjugate_gradient, num_steps=50)`.
      damping: added to the Hessian, where it is not positive definite.

    Returns:
      (key, poisons, state) -> (loss, gradient, state); the state is a `Response`: start with `Response(theta, zeros like theta)`.

    Raises:
      TypeError, ValueError: when it is called, what `bilevel.implicit` names; a state that is no `Response`.

    Guarantee:
      that of `bilevel.implicit`, whose residual the state keeps.
    Source: Koh & Liang, ICML 2017, section 5.2, arXiv:1703.04730; with Adam on the linear system Mehra & Hamm's ApproxGrad,
      arXiv:1911.03432.
    """
    return base.bind(_respond, problem=problem, solve=solve, batch=batch, linear_fn=linear_fn, damping=damping)


def method_gradient(problem: Bilevel, method: MethodFn, solve: SolveFn, theta0: Any, batch: Any = None) -> GradientFn:
    """The gradient function of any method of `bilevel`, for `craft_poisons`; the victim is trained from theta0 at every step.

    With `base.bind(bilevel.back_gradient)` it is back-gradient poisoning, with `base.bind(bilevel.unrolled)` unrolled poisoning.

    Args:
      problem: inner_loss, the victim's training loss with the poisons as phi [M, ...]; outer_loss, what the attacker minimises.
      solve: (phi, theta0, batch) -> theta, the victim's training, its own arguments bound.
      theta0: where the victim begins.
      batch: what the losses take as their third argument.
      method: (problem, solve, phi, theta0, batch) -> HyperGradient, its own arguments bound.

    Returns:
      (key, poisons, state) -> (loss, gradient, state); the state is the method's last `HyperGradient`, whose info says how far to trust
        it: start with None.

    Raises:
      TypeError, ValueError: when it is called, what the method names; a method that is not bound, or gives no `HyperGradient`.

    Guarantee:
      that of the method.
    Source: Munoz-Gonzalez et al., AISec 2017, Algorithm 1, arXiv:1708.08689.
    """
    return base.bind(_differentiated, problem=problem, method=method, solve=solve, theta0=theta0, batch=batch)


def _differentiated(key: Key, poisons, state, *, problem, method, solve, theta0, batch):
    del key, state
    parts.takes(method, "method(problem, solve, phi, theta0, batch)", problem, solve, poisons, theta0, batch)
    found = method(problem, solve, poisons, theta0, batch)
    parts.is_hypergradient(found)
    return found.value, found.grad, found


def _respond(key: Key, poisons, state, *, problem, solve, batch, linear_fn, damping):
    del key
    if not isinstance(state, Response):
        raise TypeError(f"expected the state Response(theta, zeros like theta) to start with, got a {type(state).__name__}.")
    found = _implicit.implicit(
        problem, solve, poisons, state.theta, batch, linear_fn=linear_fn, damping=damping, linear_start=state.solution
    )
    return found.value, found.grad, Response(found.theta, found.info.solution, found.info.residual)


def _check_points(x, y):
    if not hasattr(x, "shape") or not hasattr(y, "shape"):
        raise TypeError(f"expected arrays x and y, got {type(x).__name__} and {type(y).__name__}; pass jnp.asarray(...).")
    if x.ndim < 1 or y.shape[:1] != x.shape[:1] or x.shape[0] < 2:
        raise ValueError(f"expected training points x [N, ...] and as many y, two at least, got x {x.shape} and y {y.shape}.")
    if not isinstance(x, jax.core.Tracer) and not np.isfinite(np.asarray(x)).all():
        raise ValueError("x holds NaN or infinite values, and one such point spoils every influence; leave it out.")
    return x.shape[0]
