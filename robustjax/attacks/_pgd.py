"""Projected gradient ascent inside a threat (Madry et al., 2018), and its bindings: FGSM, R+FGSM, BIM, MI-FGSM."""

from typing import Any

import jax
import optax

from robustjax import arrays, base, checks, loops, losses, prng, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Delta, Key, LossFn, ModelFn, SuccessFn, Threat


def pgd(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: Threat,
    step_size,
    num_steps: int,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    optimizer: optax.GradientTransformation | None = None,
    delta: Delta | None = None,
    keep_fn=objective.keep_best,
    loop_fn=loops.scan,
) -> AttackResult:
    """Projected gradient ascent: delta <- project(delta + step_size * update(grad loss)).

    Args:
      key: one key, or one per example [B].
      model_fn: x [B, ...] -> logits [B, C].
      x: inputs [B, ...], inside the threat's box.
      y: labels [B], or whatever the loss takes [B, C].
      threat: what is admissible.
      step_size: length of a step in the threat's norm; a scalar or one per example [B].
      num_steps: number of gradients.
      loss_fn: what is ascended.
      success_fn: what counts as success.
      optimizer: an optax transformation that receives the gradient to ascend, one example at a time; None is
        `steepest(threat)`. Momentum, Adam or a schedule are chains.
      delta: start; None for a random one, 0. for x itself, or a function (keys [B], x) -> delta such as `small_noise`.
      keep_fn: which iterate is returned: `objective.keep_best` by (success, loss), or `objective.keep_last`.
      loop_fn: see `loops`; the early ones stop an example once it is fooled.

    Returns:
      The kept iterate, the last one included (num_steps gradients and one forward pass).

    Raises:
      ValueError: x and y of different length, integer x.

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Madry et al., ICLR 2018, arXiv:1706.06083. Differs: keeps the best iterate.
    """
    objective.check(model_fn, x, y, threat, num_steps=num_steps)
    keys = objective.streams(key, x)
    delta = objective.start(threat, keys.start, x, delta)
    if isinstance(step_size, int | float) and not 0 <= step_size < float("inf"):
        raise ValueError(f"step_size must be finite and not negative, got {step_size}; the loss is ascended along its gradient.")
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise TypeError(f"expected an optax transformation as optimizer, got {optimizer!r}; call it first, e.g. optax.scale_by_adam().")
    optimizer = optimizer and optax.with_extra_args_support(optimizer)
    state = jax.vmap(optimizer.init)(delta) if optimizer else ()
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    step = base.bind(_step, problem=problem, keys=keys.model, step_size=step_size, optimizer=optimizer, keep_fn=keep_fn)
    carry = loop_fn(step, (delta, state, objective.unsuccessful(delta, x)), num_steps, objective.has_succeeded)
    delta, _, found = carry
    last = objective.evaluate(objective.step_problem(problem, keys.model, num_steps), delta)
    return objective.result(problem, keep_fn(found, last))


def _step(i, carry, *, problem, keys, step_size, optimizer, keep_fn):
    delta, state, found = carry
    problem = objective.step_problem(problem, keys, i)
    x, threat = problem.x, problem.threat
    candidate, grad = objective.ascend(problem, delta)
    if optimizer is None:
        update = threat.steepest(grad, x, delta)
    else:
        one = lambda grad, state, delta, x: optimizer.update(grad, state, delta, x=x)  # noqa: E731
        update, state = jax.vmap(one)(grad, state, delta, x)
    moved = jax.tree.map(lambda d, u: d + arrays.per_example(step_size, d) * u, delta, update)
    return threat.project(moved, x), state, keep_fn(found, candidate)


def steepest(threat: Threat) -> optax.GradientTransformationExtraArgs:
    """The threat's ascent direction as an optax transformation of one example: the last link of a chain."""

    def update(grad, state, delta=None, *, x, **_):
        first = jax.tree.map(lambda leaf: leaf[None], (grad, x, delta))
        return jax.tree.map(lambda leaf: leaf[0], threat.steepest(*first)), state

    return optax.GradientTransformationExtraArgs(lambda delta: optax.EmptyState(), update)


def normalize(order) -> optax.GradientTransformation:
    """The gradient over its norm of the given order: the first link of MI-FGSM's chain."""
    return optax.stateless(lambda grad, delta: arrays.normalize(grad[None], order)[0])


def fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Any, delta: Delta | None = 0.0, **options) -> AttackResult:
    """Fast gradient (sign) method: one step of length eps from x, whatever its loss.

    Args:
      key, model_fn, x, y, threat, **options: as for `pgd`.
      delta: start; None for a uniform one, see also `rs_fgsm`.

    Returns:
      The point after the step.

    Guarantee:
      feasibility only.
    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    objective.check(model_fn, x, y, threat)
    options = {"step_size": threat.finite_radius(x), "keep_fn": objective.keep_last} | options
    return pgd(key, model_fn, x, y, threat=threat, delta=delta, num_steps=1, **options)


def r_fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Any, alpha, **options) -> AttackResult:
    """R+FGSM: a random step of length alpha, then a gradient step of length eps - alpha.

    Args:
      key, model_fn, x, y, threat, **options: as for `pgd`.
      alpha: length of the random step, at most eps.

    Returns:
      The point after both steps.

    Raises:
      ValueError: alpha beyond eps.

    Guarantee:
      feasibility only.
    Source: Tramer et al., ICLR 2018, section 4.1, arXiv:1705.07204.
    """
    objective.check(model_fn, x, y, threat)
    objective.require_threat(threat, (threats.Ball,), "r_fgsm")
    ball = threat.ball if isinstance(threat, threats.Latent) else threat
    if isinstance(ball, threats.Ball) and jax.numpy.ndim(ball.eps) <= 1:
        checks.at_most(ball.eps, "eps", alpha=alpha)
    noise = prng.sample(jax.random.normal, objective.streams(key, x).own, x)
    delta = arrays.per_example(alpha, x) * threat.steepest(noise, x, jax.numpy.zeros_like(x))
    return fgsm(key, model_fn, x, y, threat=threat, delta=delta, step_size=threat.finite_radius(x) - alpha, **options)


def rs_fgsm(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: Any,
    step_size=None,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
) -> AttackResult:
    """FGSM from a random start: the attack of fast adversarial training.

    The start, and the point of the gradient, may leave the box; the result does not. On images of black and white the start would
    otherwise be x itself in half of the pixels, and training collapses sooner.

    Args:
      key, model_fn, x, y, threat, loss_fn, success_fn: as for `pgd`.
      step_size: 1.25 eps for None.

    Returns:
      The point after the step, projected.

    Guarantee:
      feasibility only.
    Source: Wong et al., ICLR 2020, Algorithm 3, arXiv:2001.03994.
    """
    objective.check(model_fn, x, y, threat)
    objective.require_threat(threat, (threats.Ball,), "rs_fgsm", latent=False)
    unboxed = threat.replace(box=(-jax.numpy.inf, jax.numpy.inf))
    step_size = 1.25 * threat.finite_radius(x) if step_size is None else step_size
    moved = fgsm(key, model_fn, x, y, threat=unboxed, delta=None, step_size=step_size, loss_fn=loss_fn).delta
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    last = objective.step_problem(problem, objective.streams(key, x).own, 0)
    return objective.result(problem, objective.evaluate(last, threat.project(moved, x)))


def n_fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Any, noise=2.0, **options) -> AttackResult:
    """N-FGSM: a gradient step from noise that is larger than eps, and not projected back: for training, never for evaluation.

    Args:
      key, model_fn, x, y, threat, **options: as for `pgd`; step_size is eps unless given.
      noise: radius of the uniform noise, in multiples of eps (k).

    Returns:
      The point after the step. Its success is misclassification, be it outside eps.

    Guarantee:
      feasibility only in a larger ball: |delta| <= (noise + 1) eps, and the box.
    Source: de Jorge et al., NeurIPS 2022, arXiv:2202.01181.
    """
    objective.check(model_fn, x, y, threat)
    objective.require_threat(threat, (threats.Ball,), "n_fgsm")
    radius = threat.finite_radius(x)
    options = {"step_size": radius, "delta": threat.with_radius(noise * radius).init(objective.streams(key, x).own, x)} | options
    return fgsm(key, model_fn, x, y, threat=threat.with_radius((noise + 1.0) * radius), **options)


def bim(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, step_size, num_steps: int, **options) -> AttackResult:
    """Basic iterative method: `pgd` from x itself.

    Args:
      key, model_fn, x, y, threat, step_size, num_steps, **options: as for `pgd`.

    Returns:
      As `pgd`.

    Guarantee:
      feasibility only.
    Source: Kurakin et al., 2017, arXiv:1607.02533. Differs: keeps the best iterate.
    """
    return pgd(key, model_fn, x, y, threat=threat, step_size=step_size, num_steps=num_steps, delta=0.0, **options)


def mi_fgsm(
    key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, step_size, num_steps: int, decay: float = 1.0, **options
) -> AttackResult:
    """Momentum iterative FGSM: BIM on the running sum of l1-normalised gradients.

    Args:
      key, model_fn, x, y, threat, step_size, num_steps, **options: as for `pgd`.
      decay: weight of the past in the sum (mu).

    Returns:
      As `pgd`.

    Guarantee:
      feasibility only.
    Source: Dong et al., CVPR 2018, arXiv:1710.06081. Differs: keeps the best iterate.
    """
    chain = optax.chain(normalize(1), optax.trace(decay), steepest(threat))
    return bim(key, model_fn, x, y, threat=threat, step_size=step_size, num_steps=num_steps, optimizer=chain, **options)
