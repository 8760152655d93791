"""What the drivers of this package, `evaluate`, `training.step` and the samplers of `smoothing`, do to the model that they are given."""

from typing import TypeVar

import jax

from robustjax import lowering

_T = TypeVar("_T")


def lowered(function: _T, rewritten: bool) -> _T | lowering.Rewritten:
    """A model or an `apply_fn` as a driver runs it: by `lowering.rewrite`, which changes nothing but on CPU.

    Args:
      function: the model. If it, or a part of it, is a `lowering.Rewritten`, it stays as it is: its owner has chosen.
      rewritten: False returns the function itself.
    """

    def is_rewritten(part):
        return isinstance(part, lowering.Rewritten)

    if not rewritten or any(map(is_rewritten, jax.tree.leaves(function, is_leaf=is_rewritten))):
        return function
    return lowering.rewrite(function)
