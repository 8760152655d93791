"""Timing on a shared machine: rows that run in turn, ratios within a round, and what they must not pass."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """Something to time: `num_passes` forward and backward passes of the model."""

    function: Callable  # () -> None, returns when the work is done
    num_passes: int
    floor: str | None = None  # the bare gradients in the same kind of loop


class Times(NamedTuple):
    """Seconds of one row in every round, per pass."""

    wall: np.ndarray
    cpu: np.ndarray  # of all threads of this process


class Bar(NamedTuple):
    """A measured value against what it must not pass."""

    what: str
    value: float
    bound: float
    is_lower: bool = False  # whether the bound is the least allowed value

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.is_lower else self.value <= self.bound

    @property
    def row(self) -> str:
        """Its line in a page of results."""
        return f"| {self.what} | {self.value:.3g} | {'>=' if self.is_lower else '<='} {self.bound:g} | {'met' if self.met else 'MISSED'} |"


def measure(runs: dict[str, Run], num_rounds: int) -> dict[str, Times]:
    """Times of all the runs in turn, after a first call each that compiles."""
    for run in runs.values():
        run.function()
    wall, cpu = ({name: [] for name in runs} for _ in range(2))
    for round_ in range(num_rounds):
        for name, run in runs.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run.function()
            wall[name].append((time.perf_counter() - wall_start) / run.num_passes)
            cpu[name].append((time.process_time() - cpu_start) / run.num_passes)
        print(f"round {round_ + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return {name: Times(np.array(wall[name]), np.array(cpu[name])) for name in runs}


def time_ratio(times, name, reference, kind: str) -> float:
    """The median over rounds of the time of one row over that of another."""
    return float(np.median(getattr(times[name], kind) / getattr(times[reference], kind)))


def on_threads(num_threads, function):
    """Runs a function of torch on so many threads."""
    import torch

    torch.set_num_threads(num_threads)
    function()
