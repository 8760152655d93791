"""Voting over a data set: a generator of states, each of them complete, which the caller may show, save and resume.

Keys are made from an image's place in the data set and votes are counted in steps of a fixed number of samples, so that an image sees
the same noise whatever the batch size, the mesh and the interruptions, and stops where its own votes decide. Interruptions never change
a count. The shape of a batch does not either, if the model gives an example the same logits in every batch: convolutions may differ in
the last digit from one shape to another, and when they are rewritten, which changes the votes of samples that lie so near to a boundary.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import base, checks, fingerprint, hooks, parallel, prng
from robustjax.base import Array, Key, ModelFn, NoiseFn, Numeric
from robustjax.smoothing import counting, noise


@base.node
class VoteState:
    """Votes so far; `vote_dataset` fills numpy arrays over the data set N in place as it goes on.

    It unpacks into its two sets of votes: `certify(*state, sigma=sigma)`.
    """

    selection: Any  # [N, C] int32, votes that choose the class
    estimation: Any  # [N, C] int32, votes that bound its probability; the sum of a row is the number of votes that were drawn
    fingerprint: Any = None  # of what `vote_dataset` draws from: dict of name -> small numpy array, to be saved with the votes

    def __iter__(self):
        return iter((self.selection, self.estimation))


def vote(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    *,
    sigma: Numeric,
    num_selection: int = 100,
    num_samples: int,
    chunk_size: int,
    noise_fn: NoiseFn = noise.gaussian,
    rewritten: bool = True,
) -> VoteState:
    """Both sets of votes of a batch, from one key: `certify(*vote(...), sigma=sigma)` is Cohen's procedure.

    Args:
      key: one key, or one per example [B]; an example selects with fold_in(its key, 0) and estimates with fold_in(its key, 1).
      model_fn: x [B, ...] -> logits [B, C], C >= 2; a randomised model draws again for every sample.
      x: inputs [B, ...].
      sigma: standard deviation of the noise, in the unit of x; a scalar or [B].
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n).
      chunk_size: samples of each example at a time; divides both numbers. Memory is that of B * chunk_size examples.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `noise`.
      rewritten: whether convolutions are those of `lowering.rewrite`, as for `count_predictions`.

    Returns:
      The votes of `vote_dataset` for the same key and images; jax arrays, without a fingerprint.

    Raises:
      ValueError, TypeError: as for `count_predictions`.

    Example:
      >>> model_fn, x = lambda x: 4.0 * x, jnp.array([[0.9, 0.1], [0.5, 0.5]])  # the second input lies on the boundary
      >>> votes = smoothing.vote(jax.random.key(0), model_fn, x, sigma=0.25, num_samples=1000, chunk_size=100)
      >>> smoothing.certify(*votes, sigma=0.25).prediction
      array([ 0, -1])
    """
    checks.inputs(x, is_half_allowed=True)
    _check_chunk(chunk_size, num_selection=num_selection, num_samples=num_samples)
    keys = prng.example_keys(key, x.shape[0])
    count = base.bind(counting.count_predictions, sigma=sigma, chunk_size=chunk_size, noise_fn=noise_fn, rewritten=rewritten)
    return VoteState(
        count(prng.fold_in(keys, 0), model_fn, x, num_samples=num_selection),
        count(prng.fold_in(keys, 1), model_fn, x, num_samples=num_samples),
    )


def _numbers(state):
    drawn = np.where(counting.not_finite(state.estimation), 0, state.estimation.sum(axis=1))
    complete = drawn == state.fingerprint["num_samples"]
    return {"num_selected": np.any(state.selection != 0, axis=1).sum(), "num_complete": complete.sum(), "num_votes": drawn.sum()}


@hooks.reporting(_numbers)
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
    undecided_fn: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    noise_fn: NoiseFn = noise.gaussian,
    mesh: Mesh | None = None,
    rewritten: bool = True,
    on_step: hooks.OnStep | None = None,
    state: VoteState | None = None,
) -> Iterator[VoteState]:
    """Draws the votes of every image, and yields the state after every step.

    Args:
      key: one key for the whole run; image n selects with fold_in(fold_in(key, n), 0) and estimates with fold_in(fold_in(key, n), 1).
      model_fn: the base classifier, x [B, ...] -> logits [B, C].
      x: [N, ...] inputs.
      sigma: standard deviation of the noise, in the unit of x; one for all images.
      num_selection: votes for choosing the class (n0).
      num_samples: votes for estimating its probability (n), at most.
      num_step_samples: votes between two looks at an image; divides num_samples.
      batch_size: images at once. If fewer images are left, the free slots draw the next steps of the same images.
      chunk_size: samples of an image at once; divides num_selection and num_step_samples. Memory is that of batch_size * chunk_size.
      undecided_fn: (selection [B, C], estimation [B, C]) -> which images need more votes [B] bool, such as
        `functools.partial(smoothing.undecided, ...)`; None draws num_samples for all.
      noise_fn: (key, x [...], sigma) -> noisy x, of one example; see `noise`.
      mesh: devices to shard batches over (`parallel.data_mesh`), with the model replicated; None for one device.
      rewritten: whether convolutions are those of `lowering.rewrite`, as for `count_predictions`.
      on_step: called before each state is yielded, with {"step": number of the state from 0, "seconds", "num_selected": images whose class
        is chosen, "num_complete": images with all num_samples votes, "num_votes": estimation votes of all images}, plain Python numbers.
      state: where to resume; batch_size, chunk_size, undecided_fn, mesh and rewritten may differ from before.

    Yields:
      States; the last one is the result. An image with logits that are not finite under noise is marked, and gets no more votes.

    Raises:
      ValueError: sigma or a number of samples not positive, numbers of samples that do not divide, logits that are not finite without
        noise, or a state of another key, model, data set or plan: the message names what differs.
      TypeError: a number of samples that is not an integer, a model that returns a tuple, several keys, or a state that is not one.

    Example:
      >>> model_fn, x = lambda x: 4.0 * x, np.array([[0.9, 0.1], [0.5, 0.5]])
      >>> options = {"sigma": 0.25, "num_samples": 1000, "num_step_samples": 500, "batch_size": 2, "chunk_size": 100}
      >>> [int(state.estimation.sum()) for state in smoothing.vote_dataset(jax.random.key(0), model_fn, x, **options)]
      [0, 0, 1000, 2000]
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
    count = base.bind(counting.count_predictions, sigma=sigma, chunk_size=int(chunk_size), noise_fn=noise_fn, rewritten=rewritten)
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
        # Slot s of the batch draws step `turn` from now of image `place`: with fewer images than slots, several steps of an image at once.
        rows = np.flatnonzero(waiting)[:batch_size]
        turn, place = np.divmod(np.arange(batch_size), len(rows))
        rows = rows[place]
        first = state.estimation[rows].sum(axis=1) + turn * num_step_samples
        counts = run(estimate, rows, first.astype(np.int32))
        for ahead in range(turn.max() + 1):  # votes drawn beyond the stop of their image are not counted
            taken = (turn == ahead) & waiting[rows] & (first < num_samples)
            cast, before = counts[taken], state.estimation[rows[taken]]
            state.estimation[rows[taken]] = np.where(counting.not_finite(cast)[:, None], cast, before + cast)
            waiting[rows[taken]] = is_open(rows[taken])
        yield state


def _check_clean(run, key):
    # The model is tried on the first batch without noise, so that a broken one is reported before hours of work.
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
    # It covers everything that decides which votes are cast.
    model = model_fn, fingerprint.program(_logits, model_fn, *_example(x))
    keys, image = _example(x)
    drawn = fingerprint.program(noise_fn, keys[0], image[0], np.float32(1.0))
    return fingerprint.of(key=key, model=model, data=x, noise_fn=drawn, **plan)


def _example(x):
    return jax.random.split(jax.random.key(0), 1), np.zeros((1, *x.shape[1:]), x.dtype)


def _check_resumable(state, nothing, num_selection, num_samples, num_step_samples):
    fingerprint.require_resumable(state, VoteState, nothing.fingerprint, "vote")
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
    return _logits(model_fn, prng.row_keys(key, rows), x)


def _logits(model_fn, keys, x):
    return counting.grouped(base.draw(model_fn, keys)(x), len(x), 1)[:, 0]


@jax.jit
def _count(count, key, role, model_fn, rows, x, first):
    keys = prng.fold_in(prng.row_keys(key, rows), role)
    return count(keys, model_fn, x, first_sample=first)
