"""Voting over a data set: a generator of states, each of them complete, which whoever drives it may show, save and resume.

Keys are made from an image's place in the data set and votes are counted in steps of a fixed number of samples, so that an image sees
the same noise whatever the batch size, the mesh and the interruptions, and stops where its own votes say. Interruptions never change a
count. Shapes do not either, as far as the model gives an example the same logits in every batch: convolutions may differ in the last
digit from one shape to another, which moves the votes of samples that lie that near to a boundary.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import arrays, base, parallel
from robustjax.base import Array, Key, ModelFn
from robustjax.smoothing import counting, noise


class VoteState(NamedTuple):
    """Votes so far; `sample` fills numpy arrays over the data set N in place as it goes on."""

    selection: Any  # [N, C] int32, by which the class is chosen
    estimation: Any  # [N, C] int32, by which its probability is bounded; the sum of a row is what was drawn


def vote(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    *,
    sigma,
    num_selection: int = 100,
    num_samples: int,
    chunk_size: int,
    noise_fn: Callable = noise.gaussian,
) -> VoteState:
    """Both sets of votes of a batch, from one key: `certify(*vote(...), sigma=sigma)` is Cohen's procedure.

    Args:
      key: one key, or one per example [B]; an example selects with fold_in(its key, 0) and estimates with fold_in(its key, 1).
      model_fn, x, sigma, noise_fn: as for `counting.count_predictions`.
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n).
      chunk_size: samples of each example at a time; divides both numbers.

    Returns:
      The votes of `sample` for the same key and images; jax arrays.

    Raises:
      ValueError: as `counting.count_predictions`.
    """
    _check_chunk(chunk_size, num_selection=num_selection, num_samples=num_samples)
    keys = arrays.example_keys(key, x.shape[0])
    count = base.bind(counting.count_predictions, sigma=sigma, chunk_size=chunk_size, noise_fn=noise_fn)
    return VoteState(
        count(arrays.fold_in(keys, 0), model_fn, x, num_samples=num_selection),
        count(arrays.fold_in(keys, 1), model_fn, x, num_samples=num_samples),
    )


def sample(
    key: Key,
    model_fn: ModelFn,
    x: np.ndarray,
    *,
    sigma: float,
    num_selection: int = 100,
    num_samples: int,
    num_step_samples: int,
    batch_size: int,
    chunk_size: int,
    undecided_fn: Callable | None = None,
    noise_fn: Callable = noise.gaussian,
    mesh=None,
    state: VoteState | None = None,
) -> Iterator[VoteState]:
    """Votes for every image, and the state after every step.

    Args:
      key: of the whole; image n selects with fold_in(fold_in(key, n), 0) and estimates with fold_in(fold_in(key, n), 1).
      model_fn: the base classifier.
      x: [N, ...] inputs.
      sigma, noise_fn: of the noise, see `counting.count_predictions`.
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n), at most.
      num_step_samples: votes between two looks at an image; divides num_samples.
      batch_size: images at once. Where fewer are left, the places that are free take their next steps.
      chunk_size: samples of an image at once, see `counting.count_predictions`; divides num_selection and num_step_samples.
      undecided_fn: (selection [B, C], estimation [B, C]) -> which images need more votes [B] bool, such as
        `functools.partial(sequential.undecided, ...)`; None draws num_samples for all.
      mesh: devices to shard batches over (`parallel.data_mesh`), the model being replicated; None for one device.
      state: where to resume.

    Yields:
      States; the last one is the result.

    Raises:
      ValueError: an empty set, sigma or a number of samples not positive, numbers of samples that do not divide, logits that are not
        finite, or a state of another data set or plan.
    """
    x = np.asarray(x)
    if len(x) == 0 or batch_size < 1 or (mesh is not None and batch_size % mesh.size):
        devices = 1 if mesh is None else mesh.size
        raise ValueError(f"expected inputs, and a batch_size that is a multiple of the {devices} devices; got {len(x)} and {batch_size}.")
    if num_step_samples < 1 or num_samples % num_step_samples:
        raise ValueError(f"num_samples={num_samples} is not a multiple of num_step_samples={num_step_samples}; pass e.g. a tenth of it.")
    for number in (num_selection, num_samples):
        counting.check(sigma, number)
    _check_chunk(chunk_size, num_selection=num_selection, num_step_samples=num_step_samples)
    run = _Runner(key, base.bind(model_fn), x, batch_size, chunk_size, sigma, noise_fn, mesh)
    nothing = run.nothing()
    state = nothing if state is None else VoteState(*(np.array(part) for part in state))
    _check_resumable(state, len(x), num_selection, num_samples, num_step_samples)
    yield state
    rows = np.flatnonzero(state.selection.sum(axis=1) == 0)
    for batch in np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else ():
        state.selection[batch] = run(0, batch, np.zeros(len(batch), np.int32), num_selection)
        yield state

    def is_open(rows):
        wanted = state.estimation[rows].sum(axis=1) < num_samples
        return wanted if undecided_fn is None else wanted & undecided_fn(state.selection[rows], state.estimation[rows])

    waiting = is_open(np.arange(len(x)))
    while waiting.any():
        rows = np.flatnonzero(waiting)[:batch_size]
        turn, place = np.divmod(np.arange(batch_size), len(rows))
        rows = rows[place]
        first = state.estimation[rows].sum(axis=1) + turn * num_step_samples
        counts = run(1, rows, first, num_step_samples)
        for ahead in range(turn.max() + 1):  # votes ahead of a stop are not counted
            taken = (turn == ahead) & waiting[rows] & (first < num_samples)
            state.estimation[rows[taken]] += counts[taken]
            waiting[rows[taken]] = is_open(rows[taken])
        yield state


class _Runner:
    """Gathers rows, pads and shards them, counts, and cuts the padding off."""

    def __init__(self, key, model_fn, x, batch_size, chunk_size, sigma, noise_fn, mesh):
        self.x, self.batch_size, self.mesh = x, batch_size, mesh
        self.key, self.model_fn = (key, model_fn) if mesh is None else parallel.replicate((key, model_fn), mesh)
        self.verb = base.bind(counting.count_predictions, sigma=sigma, chunk_size=chunk_size, noise_fn=noise_fn)

    def nothing(self):
        """No votes yet; the first batch is looked at without noise, so that a broken model is named before hours of work."""
        logits = self._run(base.bind(_clean_logits), np.arange(min(self.batch_size, len(self.x))))
        if not np.isfinite(logits).all():
            raise ValueError("the model's logits are not finite; check its parameters and the scale of x.")
        return VoteState(*(np.zeros((len(self.x), logits.shape[1]), np.int32) for _ in range(2)))

    def __call__(self, role, rows, first, num_samples):
        return self._run(base.bind(self.verb, num_samples=num_samples), rows, role, first)

    def _run(self, verb, rows, role=0, first=None):
        padded = parallel.pad_to(rows, self.batch_size)
        first = np.zeros_like(padded) if first is None else parallel.pad_to(first, self.batch_size)
        batch = (padded.astype(np.int32), self.x[padded], first.astype(np.int32))
        role = np.int32(role)
        if self.mesh is None:
            result = np.asarray(_compiled(verb, self.key, self.model_fn, role, *batch))
        else:
            result = parallel.gather(_compiled(verb, self.key, self.model_fn, role, *parallel.shard_batch(batch, self.mesh)), self.mesh)
        return result[: len(rows)]


def _check_chunk(chunk_size, **numbers):
    if chunk_size < 1:
        raise ValueError(f"expected a positive chunk_size, got {chunk_size}.")
    if any(number % chunk_size for number in numbers.values()):
        named = " and ".join(f"{name}={number}" for name, number in numbers.items())
        raise ValueError(f"chunk_size={chunk_size} does not divide {named}; pass e.g. {math.gcd(*numbers.values())}.")


def _check_resumable(state, num_images, num_selection, num_samples, num_step_samples):
    if len(state.selection) != num_images:
        raise ValueError(f"cannot resume: the state is of {len(state.selection)} images, x of {num_images}.")
    chosen, drawn = (part.sum(axis=1) for part in state)
    if not np.isin(chosen, (0, num_selection)).all() or (drawn > num_samples).any() or (drawn % num_step_samples).any():
        raise ValueError(
            f"cannot resume: the state has {chosen.max()} and {drawn.max()} votes, which num_selection={num_selection}, "
            f"num_samples={num_samples} in steps of {num_step_samples} do not give; pass what it was begun with."
        )


def _clean_logits(keys, model_fn, x, *, first_sample):
    del first_sample
    return base.draw(model_fn, keys)(x)


@jax.jit
def _compiled(verb, key, model_fn, role, rows, x, first):
    keys = arrays.fold_in(jax.vmap(jax.random.fold_in, (None, 0))(key, rows), role)
    return verb(keys, model_fn, x, first_sample=first)
