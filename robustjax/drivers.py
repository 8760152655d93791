"""What the drivers of this package, `evaluate`, `training.step` and the samplers of `smoothing`, do to the model that they are given."""

import functools
from collections.abc import Callable
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


def jit(function: Callable) -> Callable:
    """`jax.jit` for the programs of attacks, whose compilation on CPU often takes longer than their run.

    There XLA is asked for its older emitters of fused loops and its first level of optimisation, as far as this jaxlib knows them.
    Measured on the members of AutoAttack: compilation takes .4 to .8 of the time, and what it makes runs as fast, since convolutions and
    matrix products are calls of a library.

    Args:
      function: a function of pytrees alone.
    """
    return lambda *args: jitted(function)(*args)


def jitted(function: Callable):
    """What `jit` calls, with the methods of `jax.jit`'s result."""
    return _jitted(function, jax.default_backend())


@functools.cache
def _jitted(function, platform):
    return jax.jit(function, compiler_options=_quick_options() if platform == "cpu" else None)


@functools.cache
def _quick_options():
    wanted = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
    return {name: value for name, value in wanted.items() if _is_known({name: value})}


def _is_known(options):
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
