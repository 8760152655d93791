"""The nouns: what a model, a threat, an attack and its result are, and `bind`, which makes a verb a pytree.

A model is any pytree that can be called on a batch, an attack is a function `(key, model_fn, x, y) -> AttackResult` whose
hyper-parameters were bound. Everything else in the library is a function between these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array  # one key, or one per example [B]
Delta = Any  # a pytree of arrays that lead with B
ModelFn = Callable[[Array], Array]  # x [B, ...] -> logits [B, C]
LossFn = Callable[[Array, Array], Array]  # (logits [B, C], y [B] or [B, C]) -> [B]; larger = worse for the model
SuccessFn = Callable[[Array, Array], Array]  # (logits, y) -> [B] bool


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


Attack = Callable[[Key, ModelFn, Array, Array], AttackResult]


def draw(model_fn: ModelFn, keys: Array) -> ModelFn:
    """One realisation of a randomised model; any other model is returned as it is.

    A randomised model offers `draw(keys) -> ModelFn`, `keys` [B] being one key per example. Every loop draws afresh at each
    step: a noise that is drawn once for the whole attack gives a false sense of security.
    """
    drawn = getattr(model_fn, "draw", None)
    return model_fn if drawn is None else drawn(keys)


_STATIC_NAMES = frozenset({"chunk_size", "batch_size", "patch_size"})


class _Traced:
    def __repr__(self):
        return "traced"


_TRACED = _Traced()


@jax.tree_util.register_pytree_node_class
class Bound:
    """A function with hyper-parameters bound, as a pytree: see `bind`."""

    def __init__(self, function, treedef, statics, leaves):
        self.function, self._treedef, self._statics, self._leaves = function, treedef, statics, leaves

    @property
    def hyper(self) -> dict[str, Any]:
        """The bound hyper-parameters by name."""
        leaves = iter(self._leaves)
        return jax.tree.unflatten(self._treedef, [next(leaves) if s is _TRACED else s for s in self._statics])

    def __call__(self, *args, **kwargs):
        return self.function(*args, **(self.hyper | kwargs))

    def __repr__(self):
        return f"bind({getattr(self.function, '__name__', self.function)}, {self.hyper})"

    def tree_flatten(self):
        return self._leaves, (self.function, self._treedef, self._statics)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(*aux, tuple(leaves))


def bind(function: Callable, /, **hyper) -> Bound:
    """`functools.partial` for keyword arguments, whose result is a pytree and crosses `jit` as an argument.

    Arrays and numbers become leaves, also those inside a bound model, loss or attack, so that a new `eps` never recompiles;
    functions, strings, booleans, and whatever is named `num_*`, `chunk_size`, `batch_size` or `patch_size`, are static. Binding
    a bound function again adds to its hyper-parameters or replaces them.

    Args:
      function: the function.
      **hyper: its keyword arguments.

    Returns:
      A callable pytree.
    """
    if isinstance(function, Bound):
        function, hyper = function.function, function.hyper | hyper
    nested = {name: _Static(value) if _is_static_name(name) else value for name, value in hyper.items()}
    leaves, treedef = jax.tree.flatten(nested, is_leaf=lambda leaf: isinstance(leaf, _Static))
    values = [leaf.value if isinstance(leaf, _Static) else leaf for leaf in leaves]
    traced = [not isinstance(leaf, _Static) and _is_number(leaf) for leaf in leaves]
    statics = tuple(_TRACED if t else value for t, value in zip(traced, values, strict=True))
    return Bound(function, treedef, statics, tuple(value for t, value in zip(traced, values, strict=True) if t))


class _Static(NamedTuple):
    value: Any


def _is_static_name(name):
    return name.startswith("num_") or name in _STATIC_NAMES


def _is_number(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(leaf, bool)
