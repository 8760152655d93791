"""Configured functions and nodes: functions with keyword arguments bound, and frozen dataclasses, both as pytrees.

A configured function crosses `jit` as an argument: its arrays and floats are leaves, so that a new eps never recompiles, and whatever
fixes a shape or a path through the code is static. It is asked in three ways only: `children`, `map_children` and `get`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

_T = TypeVar("_T")
_STATIC = "robustjax_static"  # in the metadata of a dataclass's field


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def node(cls: type[_T]) -> type[_T]:
    """A frozen dataclass registered as a pytree, every field a child but those marked by `static_field`.

    In jax 0.10 to 0.12 the structures of two classes that went through `jax.tree_util.register_dataclass` (as flax.struct's do)
    compare equal if their fields do, so that a jit cache may take `Linf` for `L2`; custom nodes compare their types.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = tuple(field.name for field in fields if not field.metadata.get(_STATIC))
    static_names = tuple(field.name for field in fields if field.metadata.get(_STATIC))

    def static_values(value):
        return tuple(getattr(value, name) for name in static_names)

    def flatten(value):
        return [getattr(value, name) for name in names], static_values(value)

    def flatten_with_keys(value):
        return [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names], static_values(value)

    def unflatten(values, children):
        value = object.__new__(cls)  # no __post_init__: children may be tracers, axes or placeholders
        for name, child in zip((*names, *static_names), (*children, *values), strict=True):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def static_field(**options: Any) -> Any:
    """A field of a `node` that is part of its structure, such as a size: another value compiles again. It must be hashable.

    Args:
      **options: of `dataclasses.field`, such as `default`.
    """
    return dataclasses.field(metadata={_STATIC: True}, **options)


@jax.tree_util.register_pytree_node_class
class Static:
    """A value that is part of a pytree's structure, not a leaf: see `static`."""

    def __init__(self, value):
        self.value = value

    def tree_flatten(self):
        return (), self.value

    @classmethod
    def tree_unflatten(cls, value, _):
        return cls(value)


def static(value: Any) -> Static:
    """Marks a float, or anything else, that `bind` shall keep static because it fixes shapes: `bind(f, fraction=static(0.8))`."""
    return Static(value)


@jax.tree_util.register_pytree_node_class
class Configured:
    """A function with keyword arguments bound, as a pytree: see `bind`."""

    # Function and options are children, what is static in them wrapped: their treedef as auxiliary data would not do, see `node`.

    def __init__(self, wrapped_function, wrapped_options):
        self._function, self._options = wrapped_function, wrapped_options

    @property
    def function(self) -> Callable:
        """What is called."""
        return unwrap(self._function)

    def get(self, name: str, default: Any = None) -> Any:
        """The value that an argument is bound to, or `default` if it is not bound."""
        return self._values().get(name, default)

    def children(self) -> list[Callable]:
        """Every bound value that can be called, those in tuples, lists and dictionaries too: attacks of a combination, a loss, a loop."""
        found: list[Callable] = []

        def collect(child):
            found.append(child)
            return child

        self.map_children(collect)
        return found

    def map_children(self, change: Callable[[Callable], Any]) -> "Configured":
        """The same function with `change` applied to every child."""

        def changed(value):
            if isinstance(value, dict):
                named = {name: changed(part) for name, part in value.items()}
                return named if any(named[name] is not value[name] for name in value) else value
            if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
                found = type(value)(changed(part) for part in value)
                return found if any(new is not old for new, old in zip(found, value, strict=True)) else value
            return change(value) if callable(value) else value

        return Configured(self._function, _changed(self._options, self._values(), changed))

    def map_values(self, change: Callable[[Any], Any]) -> "Configured":
        """`change` applied to the function and to every bound value; what it returns as it was stays static or not, as it was."""
        function = self.function
        changed = change(function)
        wrapped = self._function if changed is function else wrap(changed)
        return Configured(wrapped, _changed(self._options, self._values(), change))

    def __call__(self, *args, **kwargs):
        return self.function(*args, **(self._values() | kwargs))

    def call_with(self, function: Callable) -> Any:
        """What another function makes of the bound arguments."""
        return function(**self._values())

    def __repr__(self):
        return f"bind({getattr(self.function, '__name__', self.function)}, {self._values()})"

    def _values(self) -> dict[str, Any]:
        return unwrap(self._options)

    def tree_flatten(self):
        return (self._function, self._options), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def bind(function: Callable, /, **options: Any) -> Configured:
    """`functools.partial` for keyword arguments, whose result is a pytree and crosses `jit` as an argument.

    A Python integer, boolean, string, None, function, or tuple of integers is static: another value compiles again. Floats and arrays are
    leaves, also those inside a bound model, loss, threat or attack: a new `eps` never recompiles. `static(0.8)` marks a float
    that fixes shapes. Binding a configured function again adds to its options or replaces them.

    Args:
      function: a function, or a callable pytree, whose numbers are leaves too.
      **options: its keyword arguments.

    Returns:
      A callable pytree.
    """
    wrapped = {name: _wrap_option(value) for name, value in options.items()}
    if isinstance(function, Configured):
        return Configured(function._function, function._options | wrapped)
    return Configured(wrap(function), wrapped)


def walk(value: Any) -> Iterator[Callable]:
    """Every callable inside a configured function or a partial: itself, what it calls, and the children of its children."""
    if isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from walk(part)
    elif isinstance(value, functools.partial):
        yield value
        yield from walk([value.func, *value.args, *value.keywords.values()])
    elif isinstance(value, Configured):
        yield value
        yield from walk([value.function, *value.children()])
    elif callable(value):
        yield value


def statics(tree: Any) -> list[Any]:
    """What is static in a pytree: functions, strings, the integers that `bind` was given, and what was marked."""
    parts = jax.tree.leaves(wrap(tree), is_leaf=lambda part: isinstance(part, Static))
    return [part.value for part in parts if isinstance(part, Static)]


def is_number(leaf) -> bool:
    """Whether a leaf can be traced: an array or a number, but no boolean."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(leaf, bool)


def _changed(wrapped, options, change):
    # A value that did not change keeps its wrapper: one marked static stays so.
    changed = {name: change(value) for name, value in options.items()}
    return {name: wrapped[name] if value is options[name] else _wrap_option(value) for name, value in changed.items()}


def _wrap_option(value):
    is_integers = isinstance(value, tuple) and all(isinstance(part, int) for part in value)
    if isinstance(value, Static) or value is None:
        return value
    return Static(value) if isinstance(value, int) or is_integers else wrap(value)


def wrap(tree: Any) -> Any:
    """A pytree whose leaves are numbers: everything else in it becomes static."""
    return jax.tree.map(lambda leaf: leaf if is_number(leaf) else Static(leaf), tree)


def unwrap(tree: Any) -> Any:
    """The inverse of `wrap`."""
    whole = lambda node: isinstance(node, Static | Configured)  # noqa: E731  (a configured value unwraps its own)
    return jax.tree.map(lambda node: node.value if isinstance(node, Static) else node, tree, is_leaf=whole)
