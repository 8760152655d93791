"""Voting over a data set: a generator of states, each of them complete, which whoever drives it may show, save and resume.

Keys are made from an image's place in the data set and votes are counted in steps of a fixed number of samples, so that an image sees
the same noise whatever the batch size, the mesh and the interruptions, and stops where its own votes say. Interruptions never change a
count. Shapes do not either, as far as the model gives an example the same logits in every batch: convolutions may differ in the last
digit from one shape to another, which moves the votes of samples that lie that near to a boundary.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from robustjax import base, checks, fingerprint, parallel, prng
from robustjax.base import Array, Key, ModelFn
from robustjax.smoothing import counting, noise


@base.node
class VoteState:
    """Votes so far; `vote_dataset` fills numpy arrays over the data set N in place as it goes on.

    It unpacks into its two sets of votes: `certify(*state, sigma=sigma)`.
    """

    selection: Any  # [N, C] int32, by which the class is chosen
    estimation: Any  # [N, C] int32, by which its probability is bounded; the sum of a row is what was drawn
    fingerprint: Any = None  # of what `vote_dataset` draws: dict of name -> small numpy array, to be saved with the votes

    def __iter__(self):
        return iter((self.selection, self.estimation))


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
      model_fn, x, sigma, noise_fn: as for `count_predictions`.
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n).
      chunk_size: samples of each example at a time; divides both numbers.

    Returns:
      The votes of `vote_dataset` for the same key and images; jax arrays, without a fingerprint.

    Raises:
      ValueError, TypeError: as `count_predictions`.
    """
    checks.inputs(x, is_half_allowed=True)
    _check_chunk(chunk_size, num_selection=num_selection, num_samples=num_samples)
    keys = prng.example_keys(key, x.shape[0])
    count = base.bind(counting.count_predictions, sigma=sigma, chunk_size=chunk_size, noise_fn=noise_fn)
    return VoteState(
        count(prng.fold_in(keys, 0), model_fn, x, num_samples=num_selection),
        count(prng.fold_in(keys, 1), model_fn, x, num_samples=num_samples),
    )


def vote_dataset(
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
      sigma, noise_fn: of the noise, see `count_predictions`; one sigma for all images.
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n), at most.
      num_step_samples: votes between two looks at an image; divides num_samples.
      batch_size: images at once. Where fewer are left, the places that are free take their next steps.
      chunk_size: samples of an image at once, see `count_predictions`; divides num_selection and num_step_samples.
      undecided_fn: (selection [B, C], estimation [B, C]) -> which images need more votes [B] bool, such as
        `functools.partial(sequential.undecided, ...)`; None draws num_samples for all.
      mesh: devices to shard batches over (`parallel.data_mesh`), the model being replicated; None for one device.
      state: where to resume; batch_size, chunk_size, undecided_fn and mesh may be others than before.

    Yields:
      States; the last one is the result. An image with logits that are not finite under noise is marked, and given no more votes.

    Raises:
      ValueError: sigma or a number of samples not positive, numbers of samples that do not divide, logits that are not finite without
        noise, or a state of another key, model, data set or plan: what differs is named.
      TypeError: a number of samples that is no integer, a model that returns a tuple, several keys, or a state that is none.
    """
    checks.on_host(x)
    x = np.asarray(x)
    checks.inputs(x, is_half_allowed=True)
    checks.model(model_fn, x[:1])
    checks.functions(noise_fn=noise_fn, **({} if undecided_fn is None else {"undecided_fn": undecided_fn}))
    checks.counts(batch_size=batch_size, num_samples=num_samples, num_step_samples=num_step_samples)
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(f"batch_size={batch_size} is not a multiple of the {mesh.size} devices; pass e.g. {mesh.size}.")
    if num_samples % num_step_samples:
        raise ValueError(f"num_samples={num_samples} is not a multiple of num_step_samples={num_step_samples}; pass e.g. a tenth of it.")
    _check_chunk(chunk_size, num_selection=num_selection, num_step_samples=num_step_samples)
    checks.positive(sigma=sigma)
    if np.ndim(sigma):
        raise ValueError(f"expected one sigma for all images, got shape {np.shape(sigma)}; sample for each of them, or use vote.")
    _check_single(key)
    model_fn = base.bind(model_fn)
    plan = {"sigma": sigma, "num_selection": num_selection, "num_samples": num_samples, "num_step_samples": num_step_samples}
    none = np.zeros((len(x), _num_classes(model_fn, x)), np.int32)
    nothing = VoteState(none, none, _fingerprint(key, model_fn, x, noise_fn, plan))
    if state is not None:
        _check_resumable(state, nothing, num_selection, num_samples, num_step_samples)
    run = parallel.RowRunner(model_fn, x, batch_size, mesh)
    key = key if mesh is None else parallel.replicate(key, mesh)
    _check_clean(run, key)
    count = base.bind(counting.count_predictions, sigma=sigma, chunk_size=int(chunk_size), noise_fn=noise_fn)
    select, estimate = (
        functools.partial(_count, base.bind(count, num_samples=int(number)), key, np.int32(role))
        for role, number in enumerate((num_selection, num_step_samples))
    )
    begun = nothing if state is None else state
    state = VoteState(np.array(begun.selection), np.array(begun.estimation), nothing.fingerprint)
    yield state
    rows = np.flatnonzero(state.selection.sum(axis=1) == 0)
    for batch in np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else ():
        state.selection[batch] = run(select, batch, np.zeros(len(batch), np.int32))
        yield state

    def is_open(rows):
        selection, estimation = state.selection[rows], state.estimation[rows]
        wanted = (estimation.sum(axis=1) < num_samples) & ~counting.not_finite(selection) & ~counting.not_finite(estimation)
        return wanted if undecided_fn is None else wanted & _asked(undecided_fn, selection, estimation)

    waiting = is_open(np.arange(len(x)))
    while waiting.any():
        rows = np.flatnonzero(waiting)[:batch_size]
        turn, place = np.divmod(np.arange(batch_size), len(rows))
        rows = rows[place]
        first = state.estimation[rows].sum(axis=1) + turn * num_step_samples
        counts = run(estimate, rows, first.astype(np.int32))
        for ahead in range(turn.max() + 1):  # votes ahead of a stop are not counted
            taken = (turn == ahead) & waiting[rows] & (first < num_samples)
            cast, before = counts[taken], state.estimation[rows[taken]]
            state.estimation[rows[taken]] = np.where(counting.not_finite(cast)[:, None], cast, before + cast)
            waiting[rows[taken]] = is_open(rows[taken])
        yield state


def _check_clean(run, key):
    # The first batch is looked at without noise, so that a broken model is named before hours of work.
    rows = np.arange(min(run.batch_size, len(run.x)))
    if len(rows) and not np.isfinite(run(functools.partial(_clean_logits, key), rows).max(axis=1)).all():
        raise ValueError("the model's logits are not finite; check its parameters and the scale of x.")


def _check_chunk(chunk_size, **numbers):
    checks.counts(chunk_size=chunk_size, **numbers)
    if any(number % chunk_size for number in numbers.values()):
        named = " and ".join(f"{name}={number}" for name, number in numbers.items())
        raise ValueError(f"chunk_size={chunk_size} does not divide {named}; pass e.g. {math.gcd(*numbers.values())}.")


def _check_single(key):
    prng.example_keys(key, 1)
    if key.ndim != (0 if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
        raise TypeError(f"expected one key for the whole data set, got keys of shape {key.shape}; each image gets its own from it.")


def _num_classes(model_fn, x):
    return jax.eval_shape(_logits, model_fn, *_example(x)).shape[1]


def _fingerprint(key, model_fn, x, noise_fn, plan):
    # Of all that decides which votes are cast.
    model = model_fn, fingerprint.program(_logits, model_fn, *_example(x))
    keys, image = _example(x)
    drawn = fingerprint.program(noise_fn, keys[0], image[0], np.float32(1.0))
    return fingerprint.of(key=key, model=model, data=x, noise_fn=drawn, **plan)


def _example(x):
    return jax.random.split(jax.random.key(0), 1), np.zeros((1, *x.shape[1:]), x.dtype)


def _check_resumable(state, nothing, num_selection, num_samples, num_step_samples):
    if not isinstance(state, VoteState):
        raise TypeError(f"expected the VoteState of an earlier run, got a {type(state).__name__}; pass what sample yielded.")
    if state.fingerprint is None:
        raise ValueError("cannot resume: the votes have no fingerprint of what they were drawn from; save that of the state with them.")
    fingerprint.require_same(state.fingerprint, nothing.fingerprint, "vote")
    shapes = [np.shape(part) for part in state]
    chosen, drawn = (np.asarray(part)[~counting.not_finite(part)].sum(axis=1) for part in state)
    if (
        shapes != [part.shape for part in nothing]
        or not np.isin(chosen, (0, num_selection)).all()
        or (drawn > num_samples).any()
        or (drawn % num_step_samples).any()
    ):
        raise ValueError("cannot resume: these votes are none that the plan in their fingerprint gives; save and restore the state whole.")


def _asked(undecided_fn, selection, estimation):
    more = np.asarray(undecided_fn(selection, estimation))
    if more.shape != selection.shape[:1] or more.dtype != bool:
        raise ValueError(
            f"undecided_fn returned shape {more.shape} of {more.dtype}; it must say of each of the {len(selection)} images whether it "
            "needs more votes."
        )
    return more


@jax.jit
def _clean_logits(key, model_fn, rows, x):
    return _logits(model_fn, jax.vmap(jax.random.fold_in, (None, 0))(key, rows), x)


def _logits(model_fn, keys, x):
    return counting.grouped(base.draw(model_fn, keys)(x), len(x), 1)[:, 0]


@jax.jit
def _count(count, key, role, model_fn, rows, x, first):
    keys = prng.fold_in(jax.vmap(jax.random.fold_in, (None, 0))(key, rows), role)
    return count(keys, model_fn, x, first_sample=first)
