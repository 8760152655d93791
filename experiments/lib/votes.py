"""Votes of a data set on file: written while they are cast, resumed after a kill at any moment, refused if of something else."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.lib import experiment, files
from robustjax import base, fingerprint, smoothing
from robustjax.base import Certificate, ModelFn

_NAMES = ("selection", "estimation")  # of the votes in a file


class Poll(NamedTuple):
    """Whose votes are counted, and how many; equal polls see equal noise on any mesh, with any batch."""

    sigma: float
    num_selection: int = 100
    num_samples: int = 100_000
    num_step_samples: int = 1000
    seed: int = 0
    alpha: float = 0.001
    grid: tuple[float, ...] = ()  # sequential, if not empty or with a tolerance: an image stops where more votes would not matter
    tolerance: float | None = None

    @property
    def is_sequential(self) -> bool:
        """Whether images stop early."""
        return bool(self.grid) or self.tolerance is not None

    def about(self) -> dict:
        """What the votes depend on: alpha, and how often they are looked at, only where they decide when to stop."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha}; 0.001 is usual.")
        deciding = ("alpha", "grid", "tolerance", "num_step_samples")
        return {name: value for name, value in self._asdict().items() if self.is_sequential or name not in deciding}

    def undecided_fn(self) -> Callable | None:
        """The rule to stop by, None for all samples of every image."""
        if not self.is_sequential:
            return None
        return functools.partial(
            smoothing.undecided, num_samples=self.num_samples, sigma=self.sigma, alpha=self.alpha, grid=self.grid, tolerance=self.tolerance
        )

    def certify(self, state: smoothing.VoteState) -> Certificate:
        """The certificates that the votes allow."""
        if self.is_sequential:
            return smoothing.certify_sequential(*state, num_samples=self.num_samples, sigma=self.sigma, alpha=self.alpha)
        return smoothing.certify(*state, sigma=self.sigma, alpha=self.alpha, num_samples=self.num_samples)


def cast(
    path: str | pathlib.Path,
    poll: Poll,
    model_fn: ModelFn,
    x: np.ndarray,
    *,
    images_per_device: int = 2,
    chunk_size: int = 100,
    mesh=None,
    save_every: float = 5.0,
    start: smoothing.VoteState | None = None,
) -> smoothing.VoteState:
    """All votes of a poll, from its file if there is one; with several processes, the first one reads and writes.

    Args:
      path: of the npz file.
      poll: sigma, numbers of samples, seed, and the rule to stop by.
      model_fn: the base classifier.
      x: [N, ...] images.
      images_per_device: at once, at least 2; with `chunk_size` the shape in which a device sees samples, in which convolutions round.
      chunk_size: samples of an image at once; divides the numbers of samples.
      mesh: devices; None for all.
      save_every: seconds.
      start: votes of the same images cast before, with fewer samples, where there is no file yet.

    Raises:
      OSError: nothing can be written beside the file.
      ValueError: the file is of another model, data set, poll or shape; what differs is named. Or fewer than two images at once.
    """
    if images_per_device < 2:
        raise ValueError(f"images_per_device={images_per_device}: a single image is computed in another way; pass at least 2.")
    path, mesh = pathlib.Path(path), experiment.mesh() if mesh is None else mesh
    about = {
        "model": files.digest((model_fn, fingerprint.program(base.bind(_logits, model_fn=model_fn), x[:1]))),
        "data": files.digest(x),
        "images_per_device": images_per_device,
        "chunk_size": chunk_size,
    } | poll.about()
    if start is None:
        num_classes = jax.eval_shape(base.bind(_logits, model_fn=model_fn), x[:1]).shape[1]
        start = smoothing.VoteState(*(np.zeros((len(x), num_classes), np.int32) for _ in _NAMES))
    kept = _resumed(path, start, about)
    sample = functools.partial(
        smoothing.vote_dataset, jax.random.key(poll.seed, impl="threefry2x32"), model_fn, x, sigma=poll.sigma,
        num_selection=poll.num_selection, num_samples=poll.num_samples, num_step_samples=poll.num_step_samples,
        batch_size=images_per_device * mesh.size, chunk_size=chunk_size, undecided_fn=poll.undecided_fn(), mesh=mesh,
    )  # fmt: skip
    # Votes of the same stream: whatever else they depend on has been compared, and the rest of their fingerprint is of this run.
    states = sample(state=smoothing.VoteState(*kept, next(sample()).fingerprint))
    is_writer, saved = jax.process_index() == 0, time.monotonic()
    with experiment.progress(disable=not is_writer) as bar:
        task = bar.add_task(f"votes {path.stem}", total=None)
        for state in states:
            if is_writer and time.monotonic() - saved > save_every:
                _write(path, state, about)
                saved = time.monotonic()
            bar.update(task, completed=int(_drawn(state).sum()), total=_expected(poll, state))
    if is_writer:
        _write(path, state, about)
    return state


def looks(folder: str | pathlib.Path, poll: Poll, model_fn: ModelFn, x, at: Sequence[int], **options) -> tuple[np.ndarray, np.ndarray]:
    """The votes of every image when each of `at` samples were drawn: selection [N, C] and estimation [L, N, C], of one stream of noise.

    Args:
      folder: of a file for each look. The rest as for `cast`; the poll is one without early stops, and the last look its number of samples.
    """
    states: list[smoothing.VoteState] = []
    for num_samples in at:
        path, part = pathlib.Path(folder) / f"{num_samples}.npz", poll._replace(num_samples=num_samples)
        states.append(cast(path, part, model_fn, x, start=states[-1] if states else None, **options))
    return states[-1].selection, np.stack([state.estimation for state in states])


def replay(poll: Poll, selection: np.ndarray, estimations: np.ndarray) -> smoothing.VoteState:
    """The votes that a sequential poll with these looks [L, N, C] would have stopped with."""
    undecided_fn = poll.undecided_fn() or (lambda selection, estimation: np.ones(len(selection), bool))
    stopped, waiting = estimations[0].copy(), np.ones(len(selection), bool)
    for estimation in estimations:
        stopped[waiting] = estimation[waiting]
        waiting[waiting] = undecided_fn(selection[waiting], estimation[waiting])
    return smoothing.VoteState(selection, stopped)


def _logits(x, *, model_fn):
    return base.draw(model_fn, jax.random.split(jax.random.key(0), len(x)))(x)


def _resumed(path, start, about):
    # One process tries the folder and reads; all learn what it read, or why they must stop.
    votes, problem = tuple(start), None
    if jax.process_index() == 0:
        try:
            votes = _read(files.try_file(path), votes, about)
        except (OSError, ValueError) as error:
            problem = error
    if jax.process_count() > 1:
        refused, votes = multihost_utils.broadcast_one_to_all((np.array(problem is not None), votes))
        problem = problem or (ValueError("the first process refused the file") if refused else None)
        votes = tuple(np.asarray(part) for part in votes)
    if problem:
        raise problem
    return votes


def _read(path, start, about):
    if not path.exists():
        return start
    votes = files.read_arrays(path, _NAMES, **about)
    if changed := files.differences(files.shapes(votes), files.shapes(dict(zip(_NAMES, start, strict=True)))):
        raise ValueError(f"{path} holds votes of another shape ({changed}). Choose another file, or delete it.")
    return tuple(votes[name] for name in _NAMES)


def _write(path, state, about):
    files.write_arrays(path, dict(zip(_NAMES, state, strict=True)), **about)


def _expected(poll, state):
    # At most: an image that waits may still stop.
    drawn, undecided_fn = _drawn(state), poll.undecided_fn()
    if undecided_fn is None:
        return len(drawn) * poll.num_samples
    begun = drawn > 0
    left = np.full(len(drawn), poll.num_samples)
    left[begun] = np.where(undecided_fn(state.selection[begun], state.estimation[begun]), poll.num_samples, drawn[begun])
    return int(left.sum())


def _drawn(state):
    return np.maximum(state.estimation, 0).sum(axis=1)  # images whose logits were not finite are marked by negative numbers
