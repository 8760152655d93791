"""Robust accuracy: attacks in turn on the examples that still stand, compacted between attacks on the host.

`evaluate` is a generator of states, each of them complete: whoever drives it may show, save and resume it. A result does not depend
on the batch size, on compaction or on the number of devices, because every key is made from the example's place in the data set.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from robustjax import arrays, base, graph, loops, parallel
from robustjax.attacks import combinators
from robustjax.base import Array, Attack, Key, ModelFn

NOT_RUN = -1


class EvaluationState(NamedTuple):
    """What is known after a batch; numpy arrays over the data set N and the attacks A, filled in place as the evaluation goes on."""

    names: tuple[str, ...]  # of the attacks
    correct: np.ndarray  # [N] bool, without attack
    success: np.ndarray  # [A, N] int8: 1 fooled, 0 not, NOT_RUN
    loss: np.ndarray  # [A, N] of the attack's result, NaN where not run; minimum-norm attacks: -norm
    x: np.ndarray  # [N, ...] an adversarial example where one was found, else the input

    def pending(self, attack: int, survivors_only: bool) -> np.ndarray:
        """The examples that an attack still has to run on."""
        eligible = self.correct & (self.success[attack] == NOT_RUN)
        return eligible & ~(self.success[:attack] == 1).any(axis=0) if survivors_only else eligible


class Passes(NamedTuple):
    """Cost of an attack, in model evaluations per example."""

    forward: float
    backward: float
    bounded: bool  # False where a while loop may stop earlier: then each loop is counted once


def evaluate(
    key: Key,
    attacks: Mapping[str, Attack],
    model_fn: ModelFn,
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int,
    survivors_only: bool = True,
    mesh=None,
    state: EvaluationState | None = None,
) -> Iterator[EvaluationState]:
    """Runs the attacks in order, and yields the state after the clean pass and after every batch.

    Args:
      key: of the evaluation; example n of attack a gets fold_in(fold_in(key, n), a).
      attacks: attacks by name, hyper-parameters bound with `base.bind` (then a new eps or model compiles nothing again).
      model_fn: the model; a randomised one is judged on one draw (wrap it in `attacks.eot` to judge its mean).
      x: [N, ...] inputs. y: [N] labels, or target labels for targeted attacks.
      batch_size: rows given to an attack at once; the last batch is padded to it or to a quarter of it.
      survivors_only: an attack skips what an earlier one has fooled (worst case, as AutoAttack does it); False runs every attack on
        all correctly classified examples, for a table by attack.
      mesh: devices to shard batches over (`parallel.data_mesh`), the model being replicated; None for one device.
      state: where to resume.

    Yields:
      States; the last one is the result.

    Raises:
      ValueError: x and y of different length, an empty set, labels outside the model's range, inputs outside an attack's box,
        non-finite logits, or a state of other attacks or data.
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(attacks, x, y, batch_size, mesh)
    run = _Runner(key, base.bind(model_fn), x, y, batch_size, mesh)
    if state is None:
        state = _clean(run, tuple(attacks), model_fn)
    elif state.names != tuple(attacks) or state.x.shape != x.shape:
        raise ValueError(
            f"cannot resume: the state is of attacks {state.names} on x {state.x.shape}, asked for {tuple(attacks)} on {x.shape}."
        )
    else:
        state = EvaluationState(state.names, *(array.copy() for array in state[1:]))
    yield state
    for index, attack in enumerate(attacks.values()):
        rows = np.flatnonzero(state.pending(index, survivors_only))
        for batch in np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else ():
            result = run(attack, index, batch)
            state.success[index, batch] = result.success
            state.loss[index, batch] = result.loss
            state.x[batch[result.success]] = result.x[result.success]
            yield state


def accuracies(state: EvaluationState, survivors_only: bool = True) -> dict[str, float]:
    """Robust accuracy after each attack (cumulative where each ran on survivors only), with "clean" and "worst case"."""
    fooled = state.success == 1
    table = {"clean": float(state.correct.mean())}
    for index, name in enumerate(state.names):
        broken = fooled[: index + 1].any(axis=0) if survivors_only else fooled[index]
        table[name] = float((state.correct & ~broken).mean())
    return table | {"worst case": float((state.correct & ~fooled.any(axis=0)).mean())}


class Errors(NamedTuple):
    """The decomposition of robust error, example by example: robust = natural + boundary, and never both."""

    natural: np.ndarray  # [N] bool, misclassified as it is
    boundary: np.ndarray  # [N] bool, classified correctly, and not everywhere within the threat
    robust: np.ndarray  # [N] bool, an error somewhere within the threat


def decompose(state: EvaluationState) -> Errors:
    """Natural and boundary errors of an evaluation; lower bounds of the true ones in `boundary` and `robust`.

    Source: Zhang et al., ICML 2019, eq. 1, arXiv:1901.08573.
    """
    boundary = state.correct & (state.success == 1).any(axis=0)
    return Errors(~state.correct, boundary, ~state.correct | boundary)


def pareto_front(accuracy: Sequence[float], robustness: Sequence[float]) -> np.ndarray:
    """Which of several models no other beats in one of two measures without losing in the other [M] bool."""
    points = np.stack([np.asarray(accuracy, float), np.asarray(robustness, float)], axis=1)
    at_least = np.all(points[None] >= points[:, None], axis=2)  # [m, n]: model n is at least as good as m in both
    better = np.any(points[None] > points[:, None], axis=2)
    return np.logical_not(np.any(at_least & better, axis=1))


def accuracy_curve(norms: np.ndarray, eps: Sequence[float]) -> np.ndarray:
    """Accuracy against eps from minimum-norm attacks.

    Args:
      norms: [N] smallest perturbation found, 0 where misclassified anyway, inf where none was found.
      eps: [E].

    Returns:
      [E] the fraction whose norm exceeds eps: an upper bound of the robust accuracy there.
    """
    norms = np.asarray(norms)
    return np.array([np.mean(norms > e) for e in eps])


def confidence_interval(num_correct: int, num_examples: int, alpha: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson interval of an accuracy, in float64.

    Guarantee:
      Covers the accuracy on the population with probability at least 1 - alpha, over the draw of the examples.

    Raises:
      ValueError: an empty set, more correct than examples, or alpha outside (0, 1).
    """
    if not 0 <= num_correct <= num_examples or num_examples == 0 or not 0 < alpha < 1:
        raise ValueError(f"expected 0 <= correct <= examples, examples > 0 and 0 < alpha < 1; got {num_correct}, {num_examples}, {alpha}.")
    interval = scipy.stats.binomtest(num_correct, num_examples).proportion_ci(1 - alpha, method="exact")
    return float(interval.low), float(interval.high)


def cost(attack: Attack, model_fn: ModelFn, x: Array, y: Array) -> Passes:
    """Forward and backward passes of an attack per example, counted in its traced program without running it.

    Args:
      attack: a bound attack of any kind.
      model_fn: the model (only its shapes matter).
      x: a batch [B, ...]. y: [B].
    """
    attack = loops.without_host(attack)
    x, y = jnp.asarray(x), jnp.asarray(y)
    logits = jax.eval_shape(base.draw(model_fn, arrays.example_keys(jax.random.key(0), x.shape[0])), x)
    stand_in = base.bind(_stand_in, logits=jnp.zeros(logits.shape, logits.dtype))
    program = jax.make_jaxpr(lambda key, x, y: attack(key, stand_in, x, y))(jax.random.key(0), x, y)
    counts, bounded = {"_forward": 0.0, "_backward": 0.0}, True
    for eqn, times in graph.equations(program.jaxpr):
        name = eqn.params.get("name")
        if eqn.primitive.name in ("jit", "pjit") and name in counts:
            bounded &= times is not None
            # A vmapped pass has a larger batch: the result of a forward pass is logits, of a backward pass an input.
            unit = logits.size if name == "_forward" else x.size
            counts[name] += (times or 1) * eqn.outvars[0].aval.size / unit
    return Passes(counts["_forward"], counts["_backward"], bounded)


@jax.jit
def _forward(x, logits):
    return logits + 0.0 * x.sum()


@jax.jit
def _backward(x, cotangent):
    return 0.0 * x + cotangent.sum()


@jax.custom_vjp
def _counted(x, logits):
    return _forward(x, logits)


_counted.defvjp(lambda x, logits: (_forward(x, logits), (x, logits)), lambda saved, ct: (_backward(saved[0], ct), 0.0 * saved[1]))


def _stand_in(x, *, logits):
    return _counted(x, jnp.broadcast_to(logits[:1], (x.shape[0], logits.shape[1])))


class _Runner:
    """Gathers rows, pads and shards them, runs an attack, and cuts the padding off."""

    def __init__(self, key, model_fn, x, y, batch_size, mesh):
        self.key, self.x, self.y, self.batch_size, self.mesh = key, x, y, batch_size, mesh
        self.model_fn = model_fn if mesh is None else parallel.replicate(model_fn, mesh)

    def __call__(self, attack, index, rows):
        quarter = self.batch_size // 4
        small = 0 < len(rows) <= quarter and (self.mesh is None or quarter % self.mesh.size == 0)
        padded = parallel.pad_to(rows, quarter if small else self.batch_size)
        keys = arrays.fold_in(jax.vmap(jax.random.fold_in, (None, 0))(self.key, padded), index)
        batch = (keys, jnp.asarray(self.x[padded]), jnp.asarray(self.y[padded]))
        if self.mesh is not None:
            batch = parallel.shard_batch(batch, self.mesh)
        attack = attack if isinstance(attack, base.Configured) else base.bind(attack)
        result = (_call if loops.is_host(attack) else _compiled)(attack, batch[0], self.model_fn, *batch[1:])
        return jax.tree.map(lambda a: np.asarray(a)[: len(rows)], result)


def _call(attack, keys, model_fn, x, y):
    return attack(keys, model_fn, x, y)


_compiled = jax.jit(_call)


def _logits(keys, model_fn, x, y):
    del y
    return base.draw(model_fn, keys)(x)


def _clean(run, names, model_fn):
    num_examples = len(run.x)
    rows = np.split(np.arange(num_examples), range(run.batch_size, num_examples, run.batch_size))
    logits = np.concatenate([run(_logits, len(names), batch) for batch in rows])
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite; check its parameters and the scale of x.")
    if run.y.min() < 0 or run.y.max() >= logits.shape[1]:
        raise ValueError(f"expected labels in [0, {logits.shape[1]}), got values from {run.y.min()} to {run.y.max()}.")
    shape = (len(names), num_examples)
    return EvaluationState(
        names=names,
        correct=logits.argmax(axis=1) == run.y,
        success=np.full(shape, NOT_RUN, np.int8),
        loss=np.full(shape, np.nan, np.float32),
        x=run.x.copy(),
    )


def _check(attacks, x, y, batch_size, mesh):
    if len(x) != len(y) or len(x) == 0 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected inputs and integer labels of the same length N > 0, got {x.shape} and {y.shape} of {y.dtype}.")
    if batch_size < 1 or (mesh is not None and batch_size % mesh.size):
        raise ValueError(f"batch_size={batch_size} must be positive and a multiple of the {1 if mesh is None else mesh.size} devices.")
    for threat in (threat for attack in attacks.values() for threat in combinators.threats_of(attack)):
        if hasattr(threat, "check"):  # a user's own need not have it
            threat.check(x)
