"""What a driver tells of each step, in plain numbers and outside of compiled programs: for a log, a dashboard or a progress bar."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from robustjax import checks

OnStep = Callable[[dict[str, Any]], None]  # what the drivers call `on_step`

_T = TypeVar("_T")
_P = ParamSpec("_P")


def reported(states: Iterator[_T], numbers_fn: Callable[[_T], Mapping[str, Any]], on_step: OnStep | None) -> Iterator[_T]:
    """The same states; before each of them is handed on, `on_step` is called with its numbers.

    Args:
      states: what a driver makes, one state a step.
      numbers_fn: state -> numbers and arrays by name; arrays on a device are waited for.
      on_step: gets {"step", "seconds", ...}: the number of the step from 0 unless `numbers_fn` has its own, the time that the driver
        took for it, without what its caller did in between, and all numbers as Python's. None returns the states as they are.

    Raises:
      TypeError: a hook that cannot be called.
    """
    if on_step is None:
        return states
    checks.functions(on_step=on_step)
    return _reported(states, numbers_fn, on_step)


def reporting(numbers_fn: Callable[[_T], Mapping[str, Any]]) -> Callable[[Callable[_P, Iterator[_T]]], Callable[_P, Iterator[_T]]]:
    """Decorates a generator of states with an argument `on_step`, which it need not look at: its states are `reported`.

    Args:
      numbers_fn: as for `reported`.
    """

    def decorated(function):
        @functools.wraps(function)
        def generator(*args, **kwargs):
            return reported(function(*args, **kwargs), numbers_fn, kwargs.get("on_step"))

        return generator

    return decorated


def _reported(states, numbers_fn, on_step):
    step, start = 0, time.perf_counter()
    for state in states:
        numbers = jax.tree.map(_plain, dict(numbers_fn(state)))
        on_step({"step": step, "seconds": time.perf_counter() - start} | numbers)
        yield state
        step, start = step + 1, time.perf_counter()


def _plain(leaf):
    return np.asarray(leaf).tolist()
