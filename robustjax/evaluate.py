"""Robust accuracy: attacks in turn on the examples that still stand, compacted between attacks on the host.

`evaluate` is a generator of states, each of them complete: whoever drives it may show, save and resume it. A result does not depend
on the batch size, on compaction or on the number of devices, because every key is made from the example's place in the data set, and
what an attack has for every example (eps, masks, step sizes, targets) follows its example.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from robustjax import arrays, base, checks, graph, loops, losses, parallel
from robustjax import fingerprint as fingerprints
from robustjax import flags as flagging
from robustjax.attacks import combinators, kinds
from robustjax.base import Array, Attack, Key, ModelFn

NOT_RUN = -1


class EvaluationState(NamedTuple):
    """What is known after a batch; numpy arrays over the data set N and the attacks A, filled in place as the evaluation goes on."""

    names: tuple[str, ...]  # of the attacks
    correct: np.ndarray  # [N] bool, without attack; if y are targets alone: not yet taken for the target
    success: np.ndarray  # [A, N] int8: 1 fooled, 0 not, NOT_RUN
    loss: np.ndarray  # [A, N] of the attack's result, NaN where not run or not known; minimum-norm attacks: -norm
    x: np.ndarray  # [N, ...] an adversarial example where one was found, else the input
    at_goal: np.ndarray  # [A, N] bool, a targeted attack has nothing to do: the input is taken for the target as it is
    signs: np.ndarray  # [2, N] bool, of the clean logits: they look like probabilities; their cross-entropy is saturated
    kinds: np.ndarray  # [2, A] int8: 1 if it asks for no gradient; which ball's norm it makes small (place in NORMS), -1 for none
    fingerprint: dict[str, np.ndarray]  # of key, attacks, model and data

    def pending(self, attack: int, survivors_only: bool) -> np.ndarray:
        """The examples that an attack still has to run on."""
        eligible = self.correct & (self.success[attack] == NOT_RUN) & ~self.at_goal[attack]
        return eligible & ~(self.success[:attack] == 1).any(axis=0) if survivors_only else eligible

    @property
    def flags(self) -> list[flagging.Flag]:
        """What the numbers say about themselves, from what was computed anyway: see `flags`. A silent flag is no proof."""
        return _flags(self)


NORMS = ("L0", "L1", "L2", "Linf")


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
    targets: np.ndarray | None = None,
    survivors_only: bool = True,
    mesh=None,
    state: EvaluationState | None = None,
) -> Iterator[EvaluationState]:
    """Runs the attacks in order, and yields the state after the clean pass and after every batch.

    What the numbers say about themselves stands in `state.flags`, at no extra pass.

    Args:
      key: of the evaluation; example n of attack a gets fold_in(fold_in(key, n), a).
      attacks: attacks by name, hyper-parameters bound with `base.bind` (then a new eps or model compiles nothing again). Fields of length N
        (eps, mask, box, step size, target of a loss) belong to the examples.
      model_fn: the model; a randomised one is judged on one draw (wrap it in `attacks.eot` to judge its mean).
      x: [N, ...] inputs. y: [N] labels; if all attacks are targeted and `targets` is None, the target labels: then "accuracy" is
        the fraction that is not taken for its target.
      batch_size: rows given to an attack at once; the last batch is padded to it or to a quarter of it.
      targets: [N] labels that targeted attacks aim at, where y are the true ones. They run on what is classified correctly and is not
        the target already.
      survivors_only: an attack skips what an earlier one has fooled (worst case, as AutoAttack does it); False runs every attack on
        all correctly classified examples, for a table by attack.
      mesh: devices to shard batches over (`parallel.data_mesh`), the model being replicated; None for one device.
      state: where to resume.

    Yields:
      States; the last one is the result.

    Raises:
      TypeError: one attack instead of a mapping, a model in train mode. ValueError: labels that are not integers [N] in the model's range,
        targeted attacks beside others without `targets`, inputs outside an attack's box, fields of another length, logits that are not
        finite (-inf masks a class and may stand), or a state of another key, attack, model or data set, which is named.
    """
    _check_attacks(attacks)
    x, y = np.asarray(x), np.asarray(y)
    aimed = np.array([combinators.is_targeted(attack) for attack in attacks.values()])
    if targets is None and aimed.any() and not aimed.all():
        names = [name for name, is_aimed in zip(attacks, aimed, strict=True) if is_aimed]
        raise ValueError(f"{', '.join(names)} are targeted and the others are not: pass y as the labels and targets=... [N] for those.")
    targets = (y if aimed.any() else None) if targets is None else np.asarray(targets)
    _check_data(attacks, x, y, targets, batch_size, mesh)
    run = _Runner(key, base.bind(model_fn), x, batch_size, mesh)
    checks.model(model_fn, jnp.asarray(x[:batch_size]))
    fingerprint = _fingerprint(key, attacks, model_fn, x, y, targets)
    if state is None:
        state = _clean(run, tuple(attacks), y, targets, aimed, _kinds(attacks), fingerprint)
    else:
        fingerprints.require_same(state.fingerprint, fingerprint, "evaluation")
        state = jax.tree.map(np.array, state._replace(names=()))._replace(names=tuple(attacks))
    yield state
    for index, attack in enumerate(attacks.values()):
        rows = np.flatnonzero(state.pending(index, survivors_only))
        for batch in np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else ():
            result = run(attack, index, batch, targets if aimed[index] else y)
            fooled = result.success & np.isfinite(result.x).reshape(len(batch), -1).all(axis=1)
            state.success[index, batch] = fooled
            state.loss[index, batch] = result.loss
            state.x[batch[fooled]] = result.x[fooled]
            yield state


def accuracies(state: EvaluationState, survivors_only: bool = True) -> dict[str, float]:
    """Robust accuracy after each attack, with "clean" and "worst case".

    Args:
      state: of an evaluation.
      survivors_only: cumulative, as where each attack ran on survivors only; False for each attack alone.

    Raises:
      ValueError: survivors_only=False of an attack that did not run on all correctly classified examples: nothing is known of the rest.
    """
    fooled = state.success == 1
    table = {"clean": float(state.correct.mean())}
    for index, name in enumerate(state.names):
        skipped = int(state.pending(index, survivors_only=False).sum())
        if not survivors_only and skipped:
            raise ValueError(
                f"{name} did not run on {skipped} of {int(state.correct.sum())} correctly classified examples: its accuracy alone is not "
                "known; evaluate with survivors_only=False, or ask for the cumulative table."
            )
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

    def __init__(self, key, model_fn, x, batch_size, mesh):
        self.key, self.x, self.batch_size, self.mesh = key, x, batch_size, mesh
        self.model_fn = model_fn if mesh is None else parallel.replicate(model_fn, mesh)

    def __call__(self, attack, index, rows, y):
        quarter = self.batch_size // 4
        small = 0 < len(rows) <= quarter and (self.mesh is None or quarter % self.mesh.size == 0)
        padded = parallel.pad_to(rows, quarter if small else self.batch_size)
        keys = arrays.fold_in(jax.vmap(jax.random.fold_in, (None, 0))(self.key, padded), index)
        batch = (keys, jnp.asarray(self.x[padded]), jnp.asarray(y[padded]))
        if self.mesh is not None:
            batch = parallel.shard_batch(batch, self.mesh)
        attack = attack if isinstance(attack, base.Configured) else base.bind(attack)
        attack = combinators.take_rows(attack, padded, len(self.x), self.x.ndim)
        result = (_call if loops.is_host(attack) else _compiled)(attack, batch[0], self.model_fn, *batch[1:])
        return jax.tree.map(lambda a: np.asarray(a)[: len(rows)], result)


def _call(attack, keys, model_fn, x, y):
    return attack(keys, model_fn, x, y)


_compiled = jax.jit(_call)


def _logits(keys, model_fn, x, y):
    del y
    return losses.as_logits(base.draw(model_fn, keys)(x))


def _fingerprint(key, attacks, model_fn, x, y, targets):
    plan = {f"attack {name}": attack for name, attack in attacks.items()}
    row = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    keys = arrays.example_keys(jax.random.key(0), 1)
    operations = fingerprints.program(lambda model_fn, x: base.draw(model_fn, keys)(x), base.bind(model_fn), row)
    data = {"x": x, "y": y} | ({} if targets is None else {"targets": targets})
    return fingerprints.of(key=key, order=tuple(attacks), model=(base.bind(model_fn), operations), **plan, **data)


def _clean(run, names, y, targets, aimed, kinds, fingerprint):
    num_examples = len(run.x)
    rows = np.split(np.arange(num_examples), range(run.batch_size, num_examples, run.batch_size))
    logits = np.concatenate([run(_logits, len(names), batch, y) for batch in rows])
    unusable = (~(logits < np.inf)).any(axis=1) | ~np.isfinite(logits).any(axis=1)  # -inf masks a class
    if unusable.any():
        raise ValueError(
            f"the model's logits are not finite for {int(unusable.sum())} of {num_examples} inputs, first for input "
            f"{int(unusable.argmax())}; check its parameters and the scale of x."
        )
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None:
            checks.labels_in_range(labels, logits.shape[1], name)
    prediction = logits.argmax(axis=1)
    at_target = np.zeros(num_examples, bool) if targets is None else prediction == targets
    shape = (len(names), num_examples)
    return EvaluationState(
        names=names,
        correct=~at_target if targets is y else prediction == y,
        success=np.full(shape, NOT_RUN, np.int8),
        loss=np.full(shape, np.nan, np.float32),
        x=run.x.copy(),
        at_goal=aimed[:, None] & at_target[None],
        signs=_signs(logits, y),
        kinds=kinds,
        fingerprint=fingerprint,
    )


def _signs(logits, y):
    probabilities = (np.abs(logits.sum(axis=1) - 1.0) < 1e-5) & (logits >= 0).all(axis=1)
    largest = logits.max(axis=1)
    loss = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - logits[np.arange(len(y)), y]
    return np.stack([probabilities, loss < 1e-6])


def _kinds(attacks):
    norms = [kinds.minimised_norm(attack) for attack in attacks.values()]
    places = [NORMS.index(norm) if norm in NORMS else -1 for norm in norms]
    return np.array([[kinds.is_black_box(attack) for attack in attacks.values()], places], np.int8)


def _flags(state):
    probabilities, saturated = state.signs
    black_box = state.kinds[0] == 1
    fooled, ran = state.success == 1, state.success != NOT_RUN
    found = []
    if black_box.any() and not black_box.all():
        both = ran[black_box].any(axis=0) | (fooled[~black_box].any(axis=0) & state.correct)
        white, either = fooled[~black_box].any(axis=0), fooled.any(axis=0)
        found.append(flagging.black_box_wins(np.mean(state.correct & ~(white & both)), np.mean(state.correct & ~(either & both))))
    unknown = ran & ~fooled & np.isnan(state.loss)
    return [
        *found,
        flagging.minimum_norms(state.names, -state.loss, [NORMS[place] if place >= 0 else None for place in state.kinds[1]]),
        flagging.unknown_gradients(float(unknown.any(axis=0).mean())),
        flagging.looks_like_probabilities(bool(probabilities.all())),
        flagging.saturated_fraction(float(saturated.mean())),
    ]


def _check_attacks(attacks):
    if not isinstance(attacks, Mapping):
        raise TypeError(f"expected attacks by name, got {type(attacks).__name__}; pass {{'pgd': attack}}.")
    if not attacks:
        raise ValueError("expected at least one attack; pass {'pgd': attack}.")


def _check_data(attacks, x, y, targets, batch_size, mesh):
    checks.inputs(x)
    if len(x) == 0:
        raise ValueError(f"expected at least one input, got x {x.shape}.")
    checks.labels(y, len(x))
    if targets is not None:
        checks.labels(targets, len(x), "targets")
    checks.counts(batch_size=batch_size)
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {mesh.size} devices.")
    for threat in (threat for attack in attacks.values() for threat in combinators.threats_of(attack)):
        if hasattr(threat, "check"):  # a user's own need not have it
            threat.check(x)
