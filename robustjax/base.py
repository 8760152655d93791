"""The nouns: what a model, a threat, an attack and its result are, and `bind`, which makes a verb a pytree.

A model is any pytree that can be called on a batch, an attack is a function `(key, model_fn, x, y) -> AttackResult` whose
hyper-parameters were bound. Everything else in the library is a function between these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array  # one key, or one per example [B]
Delta = Any  # a pytree of arrays that lead with B
ModelFn = Callable[[Array], Array]  # x [B, ...] -> logits [B, C]
LossFn = Callable[[Array, Array], Array]  # (logits [B, C], y [B] or [B, C]) -> [B]; larger = worse for the model
SuccessFn = Callable[[Array, Array], Array]  # (logits, y) -> [B] bool


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def node(cls: type[_T]) -> type[_T]:
    """A frozen dataclass registered as a pytree, every field a child.

    In jax 0.10 to 0.12 the structures of two classes that went through `jax.tree_util.register_dataclass` (as flax.struct's do)
    compare equal if their fields do, so that a jit cache may take `Linf` for `L2`; custom nodes compare their types.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def flatten_with_keys(value):
        return [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names], None

    def unflatten(_, children):
        value = object.__new__(cls)  # no __post_init__: children may be tracers, axes or placeholders
        for name, child in zip(names, children, strict=True):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(
        cls, flatten_with_keys, unflatten, lambda value: ([getattr(value, name) for name in names], None)
    )
    return cls


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


def draw(model_fn: ModelFn, keys: Array) -> ModelFn:
    """One realisation of a randomised model; any other model is returned as it is.

    A randomised model offers `draw(keys) -> ModelFn`, `keys` [B] being one key per example. Every loop draws afresh at each
    step: a noise that is drawn once for the whole attack gives a false sense of security.
    """
    if isinstance(model_fn, Bound):
        return bind(draw(model_fn.function, keys), **model_fn.hyper)
    drawn = getattr(model_fn, "draw", None)
    return model_fn if drawn is None else drawn(keys)


_STATIC_NAMES = frozenset({"chunk_size", "batch_size", "patch_size", "image_shape"})


@jax.tree_util.register_pytree_node_class
class _Static:
    """A value that is part of a pytree's structure, not a leaf."""

    def __init__(self, value):
        self.value = value

    def tree_flatten(self):
        return (), self.value

    @classmethod
    def tree_unflatten(cls, value, _):
        return cls(value)


@jax.tree_util.register_pytree_node_class
class Bound:
    """A function with hyper-parameters bound, as a pytree: see `bind`."""

    # Function and hyper-parameters are children, what is static in them wrapped: their treedef as auxiliary data would not do, see
    # `node`.

    def __init__(self, wrapped_function, wrapped_hyper):
        self._function, self._hyper = wrapped_function, wrapped_hyper

    @property
    def function(self) -> Callable:
        """What is called."""
        return _unwrap(self._function)

    @property
    def hyper(self) -> dict[str, Any]:
        """The bound hyper-parameters by name."""
        return _unwrap(self._hyper)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **(self.hyper | kwargs))

    def __repr__(self):
        return f"bind({getattr(self.function, '__name__', self.function)}, {self.hyper})"

    def tree_flatten(self):
        return (self._function, self._hyper), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def bind(function: Callable, /, **hyper: Any) -> Bound:
    """`functools.partial` for keyword arguments, whose result is a pytree and crosses `jit` as an argument.

    Arrays and numbers become leaves, also those inside a bound model, loss or attack, so that a new `eps` never recompiles;
    functions, strings, booleans, and whatever is named `num_*`, `chunk_size`, `batch_size`, `patch_size` or `image_shape`, are
    static. Binding a bound function again adds to its hyper-parameters or replaces them.

    Args:
      function: a function, or a callable pytree, whose numbers are leaves too.
      **hyper: its keyword arguments.

    Returns:
      A callable pytree.
    """
    bound: Any = function
    if isinstance(bound, Bound):
        function, hyper = bound.function, bound.hyper | hyper
    wrapped = {name: _Static(value) if _is_static_name(name) else _wrap(value) for name, value in hyper.items()}
    return Bound(_wrap(function), wrapped)


def _wrap(tree):
    return jax.tree.map(lambda leaf: leaf if is_number(leaf) else _Static(leaf), tree)


def _unwrap(tree):
    whole = lambda node: isinstance(node, _Static | Bound)  # noqa: E731  (a bound value unwraps its own)
    return jax.tree.map(lambda node: node.value if isinstance(node, _Static) else node, tree, is_leaf=whole)


def _is_static_name(name):
    return name.startswith("num_") or name in _STATIC_NAMES


def is_number(leaf) -> bool:
    """Whether a leaf can be traced: an array or a number, but no boolean."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(leaf, bool)
