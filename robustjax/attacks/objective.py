"""What every attack evaluates and keeps: loss, success and gradient at a perturbation, and the best perturbation so far."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from robustjax import arrays, base, threats
from robustjax.base import Array, AttackResult, Delta, LossFn, ModelFn, SuccessFn, Threat


class Goal(NamedTuple):
    """What an attack is after."""

    threat: Any
    loss_fn: LossFn
    success_fn: SuccessFn


class Found(NamedTuple):
    """A perturbation and what the model made of it: the part of an `AttackResult` that loops carry."""

    delta: Delta  # leaves [B, ...]
    loss: Array  # [B]
    success: Array  # [B] bool


def check(x: Array, y: Array) -> None:
    """x and y lead with the same B, and there is at least one axis behind it.

    Raises:
      ValueError: they do not.
    """
    if x.ndim < 2 or y.ndim < 1 or x.shape[0] != y.shape[0] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"expected float inputs x [B, ...] and labels y of the same length B, got x {x.shape} of {x.dtype} and y {y.shape}; "
            "scale integer pixels to the threat's box first."
        )


def require(threat, kinds: tuple[type, ...], attack: str) -> None:
    """The threat is of a kind that the attack can work in; a user's own threat is taken at its word.

    Raises:
      ValueError: it is a ball of another norm.
    """
    if isinstance(threat, threats.Ball) and not isinstance(threat, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{attack} works in {names}, got {type(threat).__name__}; pass such a threat, or another attack.")


def start(threat: Threat, keys: Array, x: Array, delta: Delta | None) -> Delta:
    """The first perturbation, projected into the threat: random for None, a number everywhere, the one given, or what it draws."""
    if delta is None:
        return threat.init(keys, x)
    if callable(delta):
        return threat.project(delta(keys, x), x)
    shapes = jax.eval_shape(threat.init, keys, x)
    if jax.tree_util.all_leaves([delta]) and jnp.ndim(delta) == 0:
        value = jnp.asarray(delta)
        delta = jax.tree.map(lambda s: jnp.full(s.shape, value, s.dtype), shapes)
    chex.assert_trees_all_equal_shapes(delta, shapes)
    return threat.project(delta, x)


def small_noise(keys: Array, x: Array, *, scale=1e-3) -> Array:
    """Normal noise of standard deviation `scale`: the start of TRADES, where the gradient of the KL divergence at x is zero."""
    return scale * arrays.sample(jax.random.normal, keys, x)


def nothing(delta: Delta, like: Array) -> Found:
    """Nothing found yet: loss -inf."""
    return Found(delta, jnp.full(like.shape[0], -jnp.inf, like.dtype), jnp.zeros(like.shape[0], bool))


def evaluate(model_fn: ModelFn, x: Array, y: Array, delta: Delta, goal: Goal) -> Found:
    """Loss and success at a perturbation: one forward pass."""
    logits = model_fn(goal.threat.apply(x, delta))
    return Found(delta, goal.loss_fn(logits, y), goal.success_fn(logits, y))


def ascend(model_fn: ModelFn, x: Array, y: Array, delta: Delta, goal: Goal) -> tuple[Found, Delta]:
    """`evaluate` with the gradient of the loss in delta: one forward and one backward pass."""

    def total_loss(delta):
        found = evaluate(model_fn, x, y, delta, goal)
        return found.loss.sum(), (found.loss, found.success)

    grad, (loss, success) = jax.grad(total_loss, has_aux=True)(delta)
    return Found(delta, loss, success), grad


def by_norm(found: Found, threat) -> Found:
    """The face of the minimum-norm attacks: loss = -norm where fooled and -inf elsewhere, success = fooled within the threat."""
    loss = jnp.where(found.success, -threat.norm(found.delta), -jnp.inf)
    return Found(found.delta, loss, found.success & threat.within(found.delta))


def was_fooled(found: Found) -> Array:
    """Whether a minimum-norm attack has found anything, be it outside eps."""
    return found.loss > -jnp.inf


def keep_best(incumbent: Found, candidate: Found) -> Found:
    """Success first, then the larger loss, then the earlier."""
    higher = candidate.loss > incumbent.loss
    better = jnp.where(candidate.success == incumbent.success, higher, candidate.success)
    return arrays.select(better, candidate, incumbent)


def keep_last(incumbent: Found, candidate: Found) -> Found:
    """The candidate, as it comes."""
    del incumbent
    return candidate


def result(x: Array, found: Found, threat) -> AttackResult:
    """The found perturbation as an attack's result."""
    return AttackResult(threat.apply(x, found.delta), found.delta, found.loss, found.success)


def has_succeeded(carry) -> Array:
    """`done_fn` of the attacks whose carry ends in what they found."""
    return carry[-1].success


def step_model(model_fn: ModelFn, keys: Array, i) -> ModelFn:
    """The model of step i: a fresh draw if it is randomised."""
    return base.draw(model_fn, arrays.fold_in(keys, i))
