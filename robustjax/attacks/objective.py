"""What every attack solves, evaluates and keeps: its problem, loss, success and gradient at a perturbation, and the best one so far."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from robustjax import arrays, base, checks, prng, threats
from robustjax.base import Array, AttackInfo, AttackResult, Delta, Key, LossFn, ModelFn, NormThreat, Numeric, SuccessFn, Threat

_T = TypeVar("_T", "Found", AttackResult)


class Problem(NamedTuple):
    """All that an attack solves: find a perturbation in the threat for which the model at x is as wrong about y as can be.

    A pytree that crosses `jit` as a bound argument of a step. What is random in it is drawn by `step_problem`.
    """

    model_fn: ModelFn
    x: Array  # [B, ...]
    y: Array  # [B], or whatever the loss takes
    threat: Any  # a `base.Threat`; what an attack asks of it besides is checked by `require_threat`
    loss_fn: LossFn
    success_fn: SuccessFn


class Found(NamedTuple):
    """A perturbation with its loss and success: the part of an `AttackResult` that loops carry."""

    delta: Delta  # leaves [B, ...], or [1, ...] where a batch shares one: see `threats.Shared`
    loss: Array  # [B]
    success: Array  # [B] bool
    known: Array  # [B] bool, no loss or gradient so far was NaN, no gradient infinite


class Streams(NamedTuple):
    """Keys of every example for the three things that an attack draws; no two are equal, and the step number is folded into each."""

    start: Array  # [B] of the first perturbation
    model: Array  # [B] of what is random in the problem, such as the model: see `step_problem`
    own: Array  # [B] of the attack's own choices


def streams(key: Key, x: Array) -> Streams:
    """The streams of an attack, from one key or one per example."""
    return Streams(*prng.split(prng.example_keys(key, x.shape[0]), 3))


def check(model_fn: ModelFn, x: Array, y: Array, threat: Threat, **counts) -> None:
    """Raises an error where the arguments of an attack are not what they must be, as far as this is known at trace time.

    Args:
      model_fn: the model.
      x: [B, ...]. y: labels, targets or whatever the loss takes, of length B.
      threat: which perturbations are allowed.
      **counts: numbers of steps, rounds, restarts, each an integer of at least 1.

    Raises:
      TypeError: a model that cannot be called, x is no array or of half precision, a class or a number in place of a threat, a count that
        is no integer. ValueError: x and y of different length, integer x, a count below 1, a model in train mode.
    """
    checks.inputs(x)
    if not hasattr(y, "ndim"):
        raise TypeError(f"expected labels y as an array [B], got a {type(y).__name__}; pass jnp.asarray(y).")
    if x.ndim < 2 or y.ndim < 1 or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"expected inputs x [B, ...] and labels y of the same length B, got x {x.shape} and y {y.shape}; "
            "give a single input a leading axis: x[None], y[None]."
        )
    checks.threat(threat)
    if hasattr(threat, "check_shapes"):  # a user's own need not have it
        threat.check_shapes(x.shape)
    checks.model(model_fn, x)
    checks.counts(**counts)


def require_threat(threat: Threat, kinds: tuple[type, ...], attack: str, latent: bool = True, own: bool = True) -> None:
    """Raises an error where an attack cannot work in a threat; a threat of the user's own needs what `base.NormThreat` declares.

    Args:
      threat: the threat.
      kinds: classes of balls in which the attack works.
      attack: its name, for the message.
      latent: whether it works in such balls of a decoder's codes, too.
      own: whether it works in a threat of the user's own.

    Raises:
      ValueError: a ball of another norm, or another threat in which it does not work. TypeError: a method is missing, which is named.
    """
    ball = threat.ball if latent and isinstance(threat, threats.Latent) else threat
    if not own or isinstance(ball, threats.Ball | threats.Latent | threats.Recolor | threats.Shared):
        if not isinstance(ball, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{attack} works in {names}, got {type(threat).__name__}; pass such a threat, or another attack.")
        return
    missing = [name for name in base.NORM_THREAT if not callable(getattr(threat, name, None))]
    if missing:
        raise TypeError(
            f"{attack} measures perturbations, and {type(threat).__name__} lacks {', '.join(missing)}; add them (see base.NormThreat), or "
            "use an attack that asks for a base.Threat alone, such as pgd."
        )


def start(threat: Threat, keys: Array, x: Array, delta: Delta | None) -> Delta:
    """The first perturbation, projected into the threat.

    Args:
      threat: the threat.
      keys: of every example [B].
      x: inputs [B, ...].
      delta: None for a random one, a number for the same in every coordinate, a perturbation, or a function (keys [B], x) -> delta.

    Raises:
      ValueError: a perturbation of another shape.
    """
    shapes = jax.eval_shape(threat.init, keys, x)
    if delta is None:
        return threat.init(keys, x)
    if callable(delta):
        return _typed(threat.project(delta(keys, x), x), shapes)
    if jax.tree_util.all_leaves([delta]) and jnp.ndim(delta) == 0:
        value = jnp.asarray(delta)
        delta = jax.tree.map(lambda s: jnp.full(s.shape, value, s.dtype), shapes)
    got, wanted = (jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree) for tree in (delta, shapes))
    if got != wanted:
        raise ValueError(f"expected delta of shape {wanted}, as the threat's own, got {got}; pass a number for the same everywhere.")
    return _typed(threat.project(delta, x), shapes)


def _typed(delta, shapes):
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), delta, shapes)


def small_noise(keys: Array, x: Array, *, scale: Numeric = 1e-3) -> Array:
    """Normal noise of standard deviation `scale`: the start of TRADES, where the gradient of the KL divergence at x is zero."""
    return prng.sample(jax.random.normal, keys, x) * scale


def unsuccessful(delta: Delta, like: Array) -> Found:
    """Nothing found yet: loss -inf."""
    lowest = jnp.full(like.shape[0], -jnp.inf, like.dtype)
    return Found(delta, lowest, jnp.zeros(like.shape[0], bool), jnp.ones(like.shape[0], bool))


def logits_at(problem: Problem, delta: Delta) -> Array:
    """The model's logits of the perturbed inputs: one forward pass."""
    return checks.called(problem.model_fn, problem.threat.apply(problem.x, delta))


def evaluate(problem: Problem, delta: Delta) -> Found:
    """Loss and success at a perturbation: one forward pass.

    Raises:
      ValueError: a loss or a success that is not one value per example.
    """
    return evaluate_logits(problem, delta, logits_at(problem, delta))


def evaluate_logits(problem: Problem, delta: Delta, logits: Array) -> Found:
    """Loss and success at a perturbation whose logits are known.

    Raises:
      ValueError: a loss or a success that is not one value per example.
    """
    x, y = problem.x, problem.y
    for name, function in (("loss_fn", problem.loss_fn), ("success_fn", problem.success_fn)):
        if not callable(function):
            raise TypeError(f"expected {name} as a function (logits, y) -> [B], got {function!r}; see robustjax.losses.")
    loss, success = problem.loss_fn(logits, y), problem.success_fn(logits, y)
    if getattr(logits, "ndim", 0) == 2 and y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        checks.labels_in_range(y, logits.shape[1])
    for name, value in (("loss_fn", loss), ("success_fn", success)):
        if jnp.shape(value) != x.shape[:1]:
            raise ValueError(
                f"{name} returned shape {jnp.shape(value)}, expected one value per example [{x.shape[0]}]; do not reduce it over the "
                "batch: that would couple the examples."
            )
    if success.dtype != bool:
        raise ValueError(f"success_fn returned {success.dtype}, expected booleans [B]; compare with a threshold.")
    known = ~jnp.isnan(loss)
    if jnp.ndim(logits) == 2 and jnp.issubdtype(logits.dtype, jnp.floating):
        known &= ~jnp.isnan(logits).any(axis=1)  # XLA's maximum on CPU may drop a NaN, and a margin with it
    return Found(delta, loss.astype(x.dtype), success, known)


def ascend(problem: Problem, delta: Delta) -> tuple[Found, Delta]:
    """`evaluate` with the gradient of the loss in delta: one forward and one backward pass.

    A gradient that is not finite is 0 in those entries; what the attack finds is then no longer `known`.
    """

    def total_loss(delta):
        found = evaluate(problem, delta)
        return found.loss.sum(), found._replace(delta=None)

    grad, found = jax.grad(total_loss, has_aux=True)(delta)
    return marked(found._replace(delta=delta), grad)


def marked(found: Found, grad: Delta) -> tuple[Found, Delta]:
    """A point and its gradient with 0 for entries that are not finite; the point is then no longer `known`."""
    grad, is_finite = finite(grad)
    return found._replace(known=found.known & is_finite), grad


def finite(grad: Delta) -> tuple[Delta, Array]:
    """A gradient with 0 for entries that are not finite, and in which examples all were finite [B]."""
    are_finite = jax.tree.map(jnp.isfinite, grad)
    known = jnp.stack([arrays.flatten_examples(leaf).all(axis=1) for leaf in jax.tree.leaves(are_finite)]).all(axis=0)
    return jax.tree.map(lambda g, ok: jnp.where(ok, g, jnp.zeros((), g.dtype)), grad, are_finite), known


def as_minimum_norm(found: Found, threat: NormThreat) -> Found:
    """What minimum-norm attacks compare: loss = -norm where fooled and -inf elsewhere, success = fooled within the threat."""
    loss = jnp.where(found.success, -threat.norm(found.delta), -jnp.inf).astype(found.loss.dtype)
    return found._replace(loss=loss, success=found.success & threat.within(found.delta))


def has_fooled(found: Found) -> Array:
    """Whether a minimum-norm attack has fooled the model at all, also outside eps [B]."""
    return found.loss > -jnp.inf


def keep_best(incumbent: Found, candidate: Found) -> Found:
    """The better of two by `is_better`, the earlier of equal ones."""
    return choose(is_better(candidate, incumbent), candidate, incumbent)._replace(known=incumbent.known & candidate.known)


def is_better(candidate: Found | AttackResult, incumbent: Found | AttackResult) -> Array:
    """Success first, then the larger loss [B]; of perturbations that a batch shares, the larger mean loss, the same for all."""
    if threats.is_shared(candidate.delta, candidate.loss.shape[0]):
        return jnp.broadcast_to(candidate.loss.mean() > incumbent.loss.mean(), candidate.loss.shape)
    return jnp.where(candidate.success == incumbent.success, candidate.loss > incumbent.loss, candidate.success)


def choose(better: Array, candidate: _T, incumbent: _T) -> _T:
    """Per example the candidate where `better` [B] holds; where a batch shares its perturbation `better` must be the same for all."""
    if not threats.is_shared(candidate.delta, candidate.loss.shape[0]):
        return arrays.where_example(better, candidate, incumbent)
    delta = arrays.where_example(better[:1], candidate.delta, incumbent.delta)
    return arrays.where_example(better, candidate._replace(delta=None), incumbent._replace(delta=None))._replace(delta=delta)


def keep_last(incumbent: Found, candidate: Found) -> Found:
    """The candidate, whether it is better or not."""
    return candidate._replace(known=incumbent.known & candidate.known)


def result(problem: Problem, found: Found, info: AttackInfo | None = None) -> AttackResult:
    """The found perturbation as an attack's result; where nothing was found and gradients were not finite, the loss is NaN.

    The inputs are those of the problem's own threat, not of a draw of it: a random threat's `apply` shows its perturbation at one place.
    """
    loss = jnp.where(found.known | found.success, found.loss, jnp.nan)
    return AttackResult(problem.threat.apply(problem.x, found.delta), found.delta, loss, found.success, info or AttackInfo())


def minimum_norm_result(problem: Problem, found: Found) -> AttackResult:
    """`result` of a minimum-norm attack, which found something wherever the model was ever fooled, with the norm in `info`."""
    found = found._replace(known=found.known | has_fooled(found))
    return result(problem, found, AttackInfo(norm=jnp.where(found.known, -found.loss, jnp.nan)))


def has_succeeded(carry: tuple) -> Array:
    """`done_fn` of attacks whose carry ends in what they found; examples that share a perturbation go on until all have succeeded."""
    found = carry[-1]
    shared = threats.is_shared(found.delta, found.success.shape[0])
    return jnp.broadcast_to(found.success.all(), found.success.shape) if shared else found.success


def step_problem(problem: Problem, keys: Array, i: Array | int) -> Problem:
    """The problem of step i: a fresh draw of whatever is random in it, be it the model, the threat or a loss, each with keys of its own.

    A random threat offers `draw(keys) -> threat`, as a random model does (see `base.draw`). Its perturbations, and so `init`, `project`,
    `steepest` and norms, must not depend on the draw: only what `apply` makes of them may.
    """
    return base.draw(problem, prng.fold_in(keys, i))
