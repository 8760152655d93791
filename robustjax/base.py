"""The nouns: what a model, a threat, an attack and its result are.

A model is any pytree that can be called on a batch, an attack is a function `(key, model_fn, x, y) -> AttackResult` whose
hyper-parameters were bound. Everything else in the library is a function between these. `bind`, `node` and `static`, which make functions
and dataclasses pytrees, are those of `configured`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from robustjax.configured import Configured, bind, node, static

__all__ = [
    "ApplyFn",
    "Array",
    "Attack",
    "AttackResult",
    "Bilevel",
    "Certificate",
    "Configured",
    "Delta",
    "Held",
    "HyperGradient",
    "Key",
    "LoopFn",
    "LossFn",
    "ModelFn",
    "NoiseFn",
    "Numeric",
    "SolveFn",
    "SuccessFn",
    "Threat",
    "TransformFn",
    "bind",
    "draw",
    "node",
    "static",
]

Array = jax.Array
Key = jax.Array  # one key, or one per example [B]
Delta = Any  # a pytree of arrays that lead with B
ModelFn = Callable[[Array], Array]  # x [B, ...] -> logits [B, C]
LossFn = Callable[[Array, Array], Array]  # (logits [B, C], y [B] or [B, C]) -> [B]; larger = worse for the model
SuccessFn = Callable[[Array, Array], Array]  # (logits, y) -> [B] bool
TransformFn = Callable[[Key, Array], Array]  # (key, x [...]) -> x of one example: augmentation, corruption, noise with its sigma bound
NoiseFn = Callable[[Key, Array, Any], Array]  # (key, x [...], sigma) -> noisy x of one example: see `smoothing.noise`
LoopFn = Callable[..., Any]  # (step, carry, num_steps, done_fn) -> carry: see `loops`
ApplyFn = Callable[..., tuple[Array, Any]]  # (params, model_state, x, mode) -> (logits, model_state): see `training`
SolveFn = Callable[..., Any]  # (phi, theta0, batch) -> theta: see `bilevel`
Numeric = float | Array | np.ndarray  # a number, which may be traced, or one per example [B]


@runtime_checkable
class Threat(Protocol):
    """What the adversary may do: a frozen pytree whose numbers may be traced.

    `project` and `init` return admissible perturbations; `steepest` is the unit ascent direction of the threat's geometry and
    must not depend on per-example fields such as `eps`, so that one example can be asked alone.
    """

    def init(self, key: Key, x: Array) -> Delta:
        """A random admissible perturbation of each example."""

    def project(self, delta: Delta, x: Array) -> Delta:
        """An admissible perturbation near `delta`."""

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """The direction of unit norm along which `grad` rises most."""

    def apply(self, x: Array, delta: Delta) -> Array:
        """The perturbed input."""


class AttackResult(NamedTuple):
    """What every attack returns."""

    x: Array  # [B, ...] perturbed inputs, inside the threat
    delta: Delta  # their perturbations: x = threat.apply(x_clean, delta)
    loss: Array  # [B] loss_fn at x; minimum-norm attacks: -norm where fooled, -inf elsewhere
    success: Array  # [B] bool, success_fn at x; minimum-norm attacks: and norm <= threat.eps


Attack = Callable[[Key, ModelFn, Array, Array], AttackResult]  # hyper-parameters bound by `bind`


class Certificate(NamedTuple):
    """What every certifier returns: nothing within `radius` of an input changes its prediction."""

    prediction: np.ndarray  # [B] int, -1 where it abstains
    radius: np.ndarray  # [B] in the norm and the unit of the threat, 0 where it abstains
    certified: np.ndarray  # [B] bool: it did not abstain and radius > 0; whether the prediction is right is the caller's question


class Bilevel(NamedTuple):
    """min over phi of outer_loss(theta(phi), phi), where theta(phi) = argmin over theta of inner_loss(theta, phi)."""

    inner_loss: Callable  # (theta, phi, batch) -> scalar; batch is whatever both take: data, keys, None
    outer_loss: Callable  # (theta, phi, batch) -> scalar


class HyperGradient(NamedTuple):
    """What every way to differentiate a bilevel problem returns."""

    value: Array  # outer loss at theta
    grad: Any  # like phi: of the outer loss in phi, with the response of theta
    theta: Any  # the inner solution that was differentiated
    info: Any  # how far to trust it: see each method


@node
class Held:
    """A model whose randomness its owner draws itself, such as once for every sample: `draw` does not look inside.

    Attributes:
      model_fn: the model.
    """

    model_fn: Any


def draw(model_fn: ModelFn, keys: Array) -> ModelFn:
    """One realisation of a randomised model; any other model is returned as it is.

    A randomised model offers `draw(keys) -> ModelFn`, `keys` [B] being one key per example. It may sit anywhere inside a model that is a
    pytree: a denoiser before a classifier, a model bound to a function, an argument of a `Partial`. Each is drawn with keys of its
    own, the outermost first, and what it returned is searched again. Every loop draws afresh at each step: a noise that is drawn once for
    the whole attack gives a false sense of security.
    """
    return _drawn(model_fn, keys) if hasattr(model_fn, "draw") else _searched(model_fn, keys, None)


_INNER = 2**31  # a random model may fold small numbers into the keys it gets: what is found elsewhere folds in others


def _drawn(model_fn, keys):
    once = model_fn.draw(keys)
    again = hasattr(once, "draw") and type(once) is not type(model_fn)
    return _drawn(once, _fold_in(keys, _INNER - 1)) if again else _searched(once, keys, once)


def _searched(tree, keys, root):
    """The same tree with every random model in it drawn, but for `root`, which used the keys; the very same object if there is none."""
    places = itertools.count(_INNER)
    num_parts = 0

    def count(part):
        nonlocal num_parts
        num_parts += 1
        return part

    _replaced(tree, root, count)
    if num_parts == 1 and root is None:  # what merely wraps one random model is as random as that one
        return _replaced(tree, root, lambda part: _drawn(part, keys))
    return _replaced(tree, root, lambda part: _drawn(part, _fold_in(keys, next(places)))) if num_parts else tree


def _replaced(tree, root, change):
    """The same tree with `change` made to its outermost random models; the very same object if nothing changes."""

    def is_part(value):
        return value is not root and (isinstance(value, Held | Configured) or hasattr(value, "draw"))

    def visit(part):
        if isinstance(part, Held) or part is root:
            return part
        if isinstance(part, Configured):
            return part.map_values(search)
        return change(part) if hasattr(part, "draw") else part

    def search(value):
        parts, treedef = jax.tree.flatten(value, is_leaf=is_part)
        found = [visit(part) for part in parts]
        return value if all(new is old for new, old in zip(found, parts, strict=True)) else jax.tree.unflatten(treedef, found)

    return search(tree)


def _fold_in(keys, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
