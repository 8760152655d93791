"""Timing on a shared machine: rows that run in turn, ratios within a round; and how often something compiles."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np


class Run(NamedTuple):
    """Something to time: `num_passes` forward and backward passes of the model."""

    function: Callable  # () -> None, returns when the work is done
    num_passes: int
    floor: str | None = None  # the bare gradients in the same kind of loop


def run(num_passes: int, function: Callable, *args, floor: str | None = None, **options) -> Run:
    """A run of a function of JAX, whose output is waited for."""
    return Run(lambda: jax.block_until_ready(function(*args, **options)), num_passes, floor)


class Times(NamedTuple):
    """Seconds of one row in every round, per pass."""

    wall: np.ndarray
    cpu: np.ndarray  # of all threads of this process


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


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows by one with every program that XLA compiles inside."""
    heard: list[str] = []
    open_ = True

    def count(event, duration, **_):
        del duration
        if open_ and event.endswith("backend_compile_duration"):
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)  # which cannot be taken back
    try:
        yield heard
    finally:
        open_ = False


def on_threads(num_threads, function):
    """Runs a function of torch on so many threads."""
    import torch

    torch.set_num_threads(num_threads)
    function()
