"""Projected gradient ascent inside a threat (Madry et al., 2018), and attacks that are special cases: FGSM, R+FGSM, BIM, MI-FGSM."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, checks, loops, losses, prng, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Delta, Key, LoopFn, LossFn, ModelFn, NormThreat, Numeric, SuccessFn, Threat


def pgd(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: Threat,
    step_size: Numeric,
    num_steps: int,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
    optimizer: optax.GradientTransformation | None = None,
    delta: Delta | None = None,
    keep_fn: Callable[[objective.Found, objective.Found], objective.Found] = objective.keep_best,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Projected gradient ascent: delta <- project(delta + step_size * update(grad loss)).

    Args:
      key: one key, or one per example [B].
      model_fn: x [B, ...] -> logits [B, C]. Attacks run it as it is: pass `lowering.rewrite(model_fn)` if it has convolutions and runs on
        CPU; `evaluate.evaluate` does so itself.
      x: inputs [B, ...], inside the threat's box.
      y: labels [B], or whatever the loss takes [B, C].
      threat: which perturbations are allowed, such as `threats.Linf(8 / 255)`.
      step_size: length of a step in the threat's norm; a scalar or one per example [B].
      num_steps: number of gradients.
      loss_fn: (logits, y) -> [B], what is ascended.
      success_fn: (logits, y) -> [B] booleans, what counts as success.
      optimizer: an optax transformation that receives the gradient to ascend, one example at a time; None is
        `steepest(threat)`. Momentum, Adam or a schedule are chains.
      delta: where to start: None for a random place, 0. for x itself, a perturbation, or a function (keys [B], x) -> delta such as
        `small_noise`.
      keep_fn: which iterate is returned: `keep_best` by (success, loss), or `keep_last`.
      loop_fn: how the steps are run, see `robustjax.loops`; the loops that stop early stop an example once it is fooled.

    Returns:
      The kept iterate, the last one included (num_steps gradients and one forward pass).

    Raises:
      ValueError: x and y of different length, integer x.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])  # two logits, which are the inputs: the label is the larger one
      >>> result = rj.attacks.pgd(jax.random.key(0), lambda x: x, x, y, threat=rj.Linf(0.125), step_size=0.05, num_steps=9)
      >>> result.delta, result.success
      (Array([[-0.125,  0.125]], dtype=float32), Array([ True], dtype=bool))

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
    """The threat's direction of steepest ascent as an optax transformation of one example: the last link of a chain."""

    def update(grad, state, delta=None, *, x, **_):
        first = jax.tree.map(lambda leaf: leaf[None], (grad, x, delta))
        return jax.tree.map(lambda leaf: leaf[0], threat.steepest(*first)), state

    return optax.GradientTransformationExtraArgs(lambda delta: optax.EmptyState(), update)


def normalize(order: float) -> optax.GradientTransformation:
    """The gradient over its norm of the given order: the first link of MI-FGSM's chain."""
    return optax.stateless(lambda grad, delta: arrays.normalize(grad[None], order)[0])


def fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, delta: Delta | None = 0.0, **options) -> AttackResult:
    """Fast gradient (sign) method: one step of length eps from x; the point after it is returned, whatever its loss.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: which perturbations are allowed; the step follows its direction of steepest ascent, in `Linf` the sign of the gradient.
      delta: where to start: 0. for x itself, None for a uniform random place; see also `rs_fgsm`.
      **options: further arguments of `pgd`, such as loss_fn; step_size is eps unless given.

    Returns:
      The point after the step.

    Raises:
      TypeError: a threat without `finite_radius` where no step_size is given.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> rj.attacks.fgsm(jax.random.key(0), lambda x: x, x, y, threat=rj.Linf(0.125)).delta
      Array([[-0.125,  0.125]], dtype=float32)

    Guarantee:
      feasibility only.
    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    objective.check(model_fn, x, y, threat)
    if "step_size" not in options:
        options["step_size"] = _whole_step(threat, x)
    return pgd(key, model_fn, x, y, threat=threat, delta=delta, num_steps=1, **{"keep_fn": objective.keep_last} | options)


def _whole_step(threat, x):
    if not callable(getattr(threat, "finite_radius", None)):  # of a user's own
        raise TypeError(
            f"one step is as long as the radius, and {type(threat).__name__} has no finite_radius(x) -> [B]; add it, or pass step_size."
        )
    return threat.finite_radius(x)


def r_fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: NormThreat, alpha: Numeric, **options) -> AttackResult:
    """R+FGSM: a random step of length alpha, then a gradient step of length eps - alpha.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: a norm ball.
      alpha: length of the random step, at most eps.
      **options: further arguments of `pgd`, such as loss_fn.

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
    if isinstance(ball, threats.Ball) and jnp.ndim(ball.eps) <= 1:
        checks.at_most(ball.eps, "eps", alpha=alpha)
    noise = prng.sample(jax.random.normal, objective.streams(key, x).own, x)
    delta = arrays.per_example(alpha, x) * threat.steepest(noise, x, jnp.zeros_like(x))
    return fgsm(key, model_fn, x, y, threat=threat, delta=delta, step_size=threat.finite_radius(x) - alpha, **options)


def rs_fgsm(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: threats.Linf | threats.L2 | threats.L1 | threats.L0,
    step_size: Numeric | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    success_fn: SuccessFn = losses.misclassified,
) -> AttackResult:
    """FGSM from a random start: the attack of fast adversarial training.

    The start, where the gradient is taken, may leave the box; the result does not. On images of black and white a start inside the box
    would be x itself in half of the pixels, and training would collapse sooner.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: a norm ball.
      step_size: length of the step in the threat's norm; None is 1.25 eps, the paper's.
      loss_fn, success_fn: (logits, y) -> [B], what is ascended, and what counts as fooled.

    Returns:
      The point after the step, projected.

    Guarantee:
      feasibility only.
    Source: Wong et al., ICLR 2020, Algorithm 3, arXiv:2001.03994.
    """
    objective.check(model_fn, x, y, threat)
    objective.require_threat(threat, (threats.Ball,), "rs_fgsm", latent=False, own=False)
    unboxed = threat.replace(box=(-jnp.inf, jnp.inf))
    step_size = 1.25 * threat.finite_radius(x) if step_size is None else step_size
    moved = fgsm(key, model_fn, x, y, threat=unboxed, delta=None, step_size=step_size, loss_fn=loss_fn).delta
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    last = objective.step_problem(problem, objective.streams(key, x).own, 0)
    return objective.result(problem, objective.evaluate(last, last.threat.project(moved, x)))


def n_fgsm(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: NormThreat, noise: Numeric = 2.0, **options) -> AttackResult:
    """N-FGSM: a gradient step from noise that is larger than eps, and not projected back: for training, never for evaluation.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: a norm ball, which the result may leave.
      noise: radius of the uniform noise, in multiples of eps (k).
      **options: further arguments of `pgd`, such as loss_fn; step_size is eps unless given.

    Returns:
      The point after the step. It counts as a success where it is misclassified, also outside eps.

    Guarantee:
      feasibility only in a larger ball: |delta| <= (noise + 1) eps, and the box.
    Source: de Jorge et al., NeurIPS 2022, arXiv:2202.01181.
    """
    objective.check(model_fn, x, y, threat)
    objective.require_threat(threat, (threats.Ball,), "n_fgsm")
    radius = threat.finite_radius(x)
    options = {"step_size": radius, "delta": threat.with_radius(noise * radius).init(objective.streams(key, x).own, x)} | options
    return fgsm(key, model_fn, x, y, threat=threat.with_radius((noise + 1.0) * radius), **options)


def bim(key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, step_size: Numeric, num_steps: int, **options) -> AttackResult:
    """Basic iterative method: `pgd` that starts at x itself.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: which perturbations are allowed.
      step_size: length of a step in the threat's norm; a scalar or one per example [B].
      num_steps: number of gradients.
      **options: further arguments of `pgd`, such as loss_fn.

    Returns:
      The best iterate by (success, loss).

    Guarantee:
      feasibility only.
    Source: Kurakin et al., 2017, arXiv:1607.02533. Differs: keeps the best iterate.
    """
    return pgd(key, model_fn, x, y, threat=threat, step_size=step_size, num_steps=num_steps, delta=0.0, **options)


def mi_fgsm(
    key: Key, model_fn: ModelFn, x: Array, y: Array, *, threat: Threat, step_size: Numeric, num_steps: int, decay: float = 1.0, **options
) -> AttackResult:
    """Momentum iterative FGSM: BIM on the running sum of l1-normalised gradients.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: which perturbations are allowed.
      step_size: length of a step in the threat's norm; a scalar or one per example [B].
      num_steps: number of gradients.
      decay: weight of the past in the sum (mu).
      **options: further arguments of `pgd`, such as loss_fn.

    Returns:
      The best iterate by (success, loss).

    Guarantee:
      feasibility only.
    Source: Dong et al., CVPR 2018, arXiv:1710.06081. Differs: keeps the best iterate.
    """
    chain = optax.chain(normalize(1), optax.trace(decay), steepest(threat))
    return bim(key, model_fn, x, y, threat=threat, step_size=step_size, num_steps=num_steps, optimizer=chain, **options)
