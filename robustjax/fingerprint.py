"""What a resumable state was made from: a digest of every part by name, compared before a state is resumed.

A state that is continued under another key, plan, model or data set mixes two experiments without a sign of it; votes under another sigma
would even make an unsound certificate. Fingerprints are dictionaries of small numpy arrays, so that they can be saved with their state.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from robustjax import graph

_SHORT = 4  # arrays of at most so many numbers are kept as they are, so that a message can show them


def of(**parts: Any) -> dict[str, np.ndarray]:
    """The fingerprint of named parts.

    Args:
      **parts: pytrees. A number, or an array of at most 4 numbers, is kept as it is; for anything else the digest [32] uint8 is kept.
    """
    return {name: _short(part) for name, part in parts.items()}


def require_same(stored: Mapping[str, np.ndarray], current: Mapping[str, np.ndarray], what: str) -> None:
    """Requires two fingerprints to agree.

    Args:
      stored: of the state that is to be resumed. current: of the run that is asked for.
      what: the name of the thing in the message, such as "evaluation".

    Raises:
      ValueError: parts differ; the message names each of them, and shows both values of numbers.
    """
    changed = [name for name in sorted(stored.keys() | current.keys()) if not _equal(stored.get(name), current.get(name))]
    if changed:
        differences = "; ".join(_difference(name, stored.get(name), current.get(name)) for name in changed)
        raise ValueError(f"cannot resume: the {what} was begun with another {differences}. Pass what it was begun with, or begin anew.")


def require_resumable(state: Any, kind: type[Any], current: Mapping[str, np.ndarray], what: str) -> None:
    """Requires that a state can be resumed: it is of the right type, and its fingerprint agrees with the run that is asked for.

    Args:
      state: what the user passed. kind: the type that it must have, with a field `fingerprint`.
      current: the fingerprint of the run that is asked for.
      what: the name of the thing in messages, such as "evaluation".

    Raises:
      TypeError: it is of another type. ValueError: it has no fingerprint, or another one.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"expected the {kind.__name__} of an earlier run, got a {type(state).__name__}; pass what was yielded, or what was saved of it "
            f"as {kind.__name__}(**saved)."
        )
    if not state.fingerprint:
        raise ValueError(f"cannot resume: the {what} has no fingerprint of what it was made from; save that of the state with it.")
    require_same(state.fingerprint, current, what)


def digest(tree: Any) -> np.ndarray:
    """SHA-256 of a pytree [32] uint8: its arrays with types, shapes and places, and the names of the functions in it."""
    sha = hashlib.sha256(_without_addresses(str(jax.tree.structure(tree))).encode())
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(place)} {array.dtype} {array.shape}".encode())
        is_object = array.dtype == object  # a function or an optimizer, which is known by its name alone
        sha.update(_without_addresses(repr(leaf)).encode() if is_object else np.ascontiguousarray(array).tobytes())
    return np.frombuffer(sha.digest(), np.uint8)


def program(function: Callable, *args: Any) -> tuple:
    """What a function computes from arguments like these: its operations, and the constants that closures hold; a pytree for `of`."""
    made = graph.program(function, *args)
    return _without_addresses(str(made.source.jaxpr)), *graph.constants(made).values()


def _short(part):
    if isinstance(part, bool | int | float | np.generic | np.ndarray | jax.Array) and not _is_key(part):
        array = np.asarray(part)
        if array.size <= _SHORT:
            return array
    return digest(part)


def _is_key(part):
    return isinstance(part, jax.Array) and jax.dtypes.issubdtype(part.dtype, jax.dtypes.prng_key)


def _equal(stored, current):
    return stored is not None and current is not None and np.array_equal(np.asarray(stored), np.asarray(current), equal_nan=False)


def _difference(name, stored, current):
    shown = [None if value is None else np.asarray(value) for value in (stored, current)]
    if any(value is not None and value.size > _SHORT for value in shown):
        return name
    there, here = ("nothing" if value is None else value.tolist() for value in shown)
    return f"{name} ({there} there, {here} here)"


def _without_addresses(text):
    return re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]+", "", text)
