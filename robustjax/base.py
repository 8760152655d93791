"""The nouns: what a model, a threat, an attack and its result are.

A model is any pytree that can be called on a batch, an attack is a function `(key, model_fn, x, y) -> AttackResult` whose
hyper-parameters were bound. Everything else in the library is a function between these. `bind`, `node` and `static`, which make functions
and dataclasses pytrees, are those of `configured`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.configured import Configured, bind, node, static, static_field, unwrap, wrap

__all__ = [
    "NORM_THREAT",
    "ApplyFn",
    "Array",
    "Attack",
    "AttackInfo",
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
    "NormThreat",
    "Numeric",
    "SolveFn",
    "SuccessFn",
    "Threat",
    "TransformFn",
    "bind",
    "draw",
    "node",
    "static",
    "static_field",
    "straight_through",
]

_T = TypeVar("_T")

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


@runtime_checkable
class NormThreat(Threat, Protocol):
    """A threat that is a ball of some norm, cut by a box of valid inputs: what attacks for a smallest norm, and bounds, ask for besides.

    Norms are those of delta / eps where eps is per coordinate, and then the radius is 1.
    """

    def radius(self) -> Array:
        """The largest norm allowed, a scalar or [B]."""

    def finite_radius(self, x: Array) -> Array:
        """A length for steps and starts [B]: the radius, or what the box allows where that is infinite."""

    def with_radius(self, radius: Numeric) -> "NormThreat":
        """The same threat of another radius [B]."""

    def norm(self, delta: Delta) -> Array:
        """The norm of each perturbation [B]."""

    def dual_norm(self, grad: Delta) -> Array:
        """The largest <grad, delta> over perturbations of norm 1, without a box [B]."""

    def within(self, delta: Delta) -> Array:
        """Whether the norm is at most the radius [B]."""

    def delta_bounds(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest perturbation of every coordinate that box and mask allow."""

    def max_norm(self, x: Array) -> Array:
        """The norm of the largest perturbation that the box allows [B]."""

    def support(self, normal: Array, x: Array) -> Array:
        """The maximum of <normal, delta> over ball and box [B]."""

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The smallest delta in the box with <normal, delta> = offset."""

    def to_unit(self, delta: Delta) -> Delta:
        """delta in the unit that the norm measures."""

    def from_unit(self, unit: Delta) -> Delta:
        """Its inverse."""


NORM_THREAT = tuple(name for name, value in vars(NormThreat).items() if callable(value) and not name.startswith("_"))


class AttackInfo(NamedTuple):
    """What an attack has to say besides its result; None where it has nothing to say."""

    norm: Array | None = None  # [B] of the smallest delta that fooled the model; inf: none did, NaN: gradients were not finite
    num_queries: Array | None = None  # [B] int, outputs that a black-box attack asked for until it succeeded


class AttackResult(NamedTuple):
    """What every attack returns."""

    x: Array  # [B, ...] perturbed inputs, inside the threat
    delta: Delta  # their perturbations: x = threat.apply(x_clean, delta); leaves [1, ...] where the batch shares one
    loss: Array  # [B] loss_fn at x; minimum-norm attacks: -norm where fooled, -inf elsewhere
    success: Array  # [B] bool, success_fn at x; minimum-norm attacks: and norm <= threat.eps
    info: AttackInfo = AttackInfo()


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


def draw(model_fn: _T, keys: Array) -> _T:
    """One realisation of a randomised model, or of a pytree with such models or random threats inside; any other is returned as it is.

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


def straight_through(forward_fn: Callable, backward_fn: Callable) -> Configured:
    """A function with the value of one and the derivative of another, in both modes: the primitive of BPDA.

    A defense that is not differentiable, or whose gradient misleads, gets the derivative of what it resembles, such as the identity.

    Args:
      forward_fn: (*args) -> arrays; never differentiated.
      backward_fn: (*args) -> arrays of the same shapes; a callable pytree is differentiated in its own parameters too.

    Returns:
      A callable pytree.

    Raises:
      ValueError: when called, if shapes differ.

    Example:
      >>> rounded = straight_through(jnp.round, lambda x: x)
      >>> float(rounded(0.7)), float(jax.grad(rounded)(0.7))
      (1.0, 1.0)

    Source: Athalye et al., ICML 2018, section 4.1.1, arXiv:1802.00420; Bengio et al., 2013, arXiv:1308.3432.
    """
    return bind(_straight_through, forward_fn=forward_fn, backward_fn=backward_fn)


def _straight_through(*args, forward_fn, backward_fn):
    shapes, expected = (jax.eval_shape(function, *args) for function in (backward_fn, forward_fn))
    if jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"expected backward_fn to return the shapes of forward_fn, {expected}, got {shapes}.")
    # What they close over as pytrees are arguments: custom_jvp takes no derivative in anything else.
    return _value_of_first((wrap(forward_fn), wrap(backward_fn)), jax.tree.map(jnp.asarray, args))


@jax.custom_jvp
def _value_of_first(functions, args):
    return unwrap(functions[0])(*args)


@_value_of_first.defjvp
def _derivative_of_second(primals, tangents):
    (functions, args), (d_functions, d_args) = primals, tangents
    value = unwrap(functions[0])(*args)
    _, slope = jax.jvp(lambda backward_fn, args: unwrap(backward_fn)(*args), (functions[1], args), (d_functions[1], d_args))
    return value, jax.tree.map(lambda v, s: jnp.asarray(s, v.dtype), value, slope)
