"""Names of version 0.1.0, which lead to their successors for one more version, with a warning that says which."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def lookup(module: str, **successors: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that answers to old names.

    Args:
      module: its `__name__`.
      **successors: old name = the new one, of the same module or, with a dot, of another one of the package.
    """

    def get(name: str) -> Any:
        if name not in successors:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        successor = successors[name] if "." in successors[name] else f"{module.removeprefix('robustjax.')}.{successors[name]}"
        warnings.warn(f"{module}.{name} is now robustjax.{successor}; the old name goes in version 0.3.", DeprecationWarning, stacklevel=2)
        place, _, attribute = successor.rpartition(".")
        return getattr(importlib.import_module(f"robustjax.{place}"), attribute)

    return get
