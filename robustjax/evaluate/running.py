"""Attacks, one after the other, on the examples that are still classified correctly, as a generator of states."""

import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import base, checks, drivers, fingerprint, hooks, loops, losses, parallel, prng, threats
from robustjax.attacks import combinators, kinds
from robustjax.base import Attack, Key, ModelFn
from robustjax.evaluate import programs, reports, stages


@hooks.reporting(reports.progress)
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
    mesh: Mesh | None = None,
    rewritten: bool = True,
    on_step: hooks.OnStep | None = None,
    state: reports.EvaluationState | None = None,
) -> Iterator[reports.EvaluationState]:
    """Runs the attacks in order, and yields the state after the clean pass and after every batch.

    Signs of a flawed evaluation that its numbers show without further passes are in `state.flags`.

    Args:
      key: one key for the evaluation; example n of attack a gets fold_in(fold_in(key, n), a).
      attacks: attacks by name, with hyper-parameters bound by `base.bind` (then a new eps or model does not compile again). Fields of
        length N (eps, mask, box, step size, target of a loss) belong to the examples.
      model_fn: the model, x [B, ...] -> logits [B, C]; a randomised model is evaluated on one draw (`attacks.eot` evaluates its mean).
      x: inputs [N, ...]. y: labels [N]; if all attacks are targeted and `targets` is None, the target labels: "accuracy" is then the
        fraction that is not classified as its target.
      batch_size: rows that an attack gets at once, at most. Fewer are padded to one of few sizes, so that few programs are compiled.
      targets: [N] labels that targeted attacks aim at, if y are the true labels. Such attacks run on examples that are classified
        correctly, and not as the target.
      survivors_only: whether an attack skips examples that an earlier one has fooled (worst case, as in AutoAttack), and so do the
        restarts and targets of one attack; False runs every attack whole on all correctly classified examples, for a table by attack.
      mesh: devices to shard batches over (`parallel.data_mesh`), with the model replicated; None for one device.
      rewritten: whether the model runs with the convolutions and max-pools of `lowering.rewrite`, which are fast in loops on CPU; on
        other platforms it does nothing. Results agree to rounding, and a state may be resumed with another choice.
      on_step: called before each state is yielded, with {"step": number of the state from 0, "seconds", "attack": the one that runs, or
        "clean", "num_done": examples that it has run on, "robust_accuracy": so far}, plain Python numbers and a name.
      state: an earlier state to resume from.

    Yields:
      States; the last one is the result.

    Raises:
      TypeError: one attack instead of a mapping, a model in train mode. ValueError: labels that are not integers [N] in the model's range,
        targeted attacks beside others without `targets`, inputs outside an attack's box, fields of another length, logits that are not
        finite (-inf is allowed and masks a class), or a state of another key, attack, model or data set; the message names which.

    Example:
      >>> import robustjax as rj
      >>> x, y = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32), np.array([0, 0])
      >>> plan = {"fgsm": rj.bind(rj.attacks.fgsm, threat=rj.Linf(0.2))}
      >>> for state in rj.evaluate.evaluate(jax.random.key(0), plan, lambda x: x, x, y, batch_size=2):
      ...     print(state.success.tolist())  # -1: not run yet
      [[-1, -1]]
      [[0, 1]]
    """
    prng.example_keys(key, 1)
    _check_attacks(attacks)
    x, y = np.asarray(x), np.asarray(y)
    aimed = np.array([combinators.is_targeted(attack) for attack in attacks.values()])
    if targets is None and aimed.any() and not aimed.all():
        names = [name for name, is_aimed in zip(attacks, aimed, strict=True) if is_aimed]
        raise ValueError(f"{', '.join(names)} are targeted and the others are not: pass y as the labels and targets=... [N] for those.")
    if targets is not None and not aimed.any():
        raise ValueError("targets were given, but no attack is targeted; leave them out, or pass attacks.targeted(attack).")
    targets = (y if aimed.any() else None) if targets is None else np.asarray(targets)
    _check_data(attacks, x, y, targets, batch_size, mesh)
    rows_of = parallel.RowRunner(base.bind(drivers.lowered(model_fn, rewritten)), x, batch_size, mesh)
    on_devices = (rows_of, key if mesh is None else parallel.replicate(key, mesh))
    run = functools.partial(_run, *on_devices)
    checks.model(model_fn, jnp.asarray(x[:batch_size]))
    identity = programs.identity(key, attacks, model_fn, x, y, targets)
    if state is None:
        state = _clean(run, x, batch_size, tuple(attacks), y, targets, aimed, _kinds(attacks), identity)
    else:
        fingerprint.require_resumable(state, reports.EvaluationState, identity, "evaluation")
        state = jax.tree.map(np.array, state._replace(names=()))._replace(names=tuple(attacks))
    yield state
    num_classes = jax.eval_shape(_logits, prng.example_keys(key, 1), base.bind(model_fn), x[:1], y[:1]).shape[1]
    labels = [targets if is_aimed else y for is_aimed in aimed]
    sizes: list[set[int]] = [set() for _ in attacks]
    plan = [
        combinators.rounds(attack, num_classes) if survivors_only and _stops_at_success(attack) else [attack] for attack in attacks.values()
    ]
    compiler, compiled = ThreadPoolExecutor(max_workers=2), {}
    try:
        for index, rounds in enumerate(plan):
            rows = np.flatnonzero(state.pending(index, survivors_only))
            for batch in np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else ():
                # Later attacks are compiled at the same time, for the rows that are left now, once the first attack has shown how many.
                is_ahead = index or not survivors_only or np.sum(state.success[index] == 0) >= batch_size
                for later in range(index, len(plan) if is_ahead else index + 1):
                    first = np.flatnonzero(state.pending(later, survivors_only))[:batch_size]
                    if later not in compiled and len(first) and not _is_driven(plan[later][0]):
                        program = _lowered(*on_devices, plan[later][0], later, first, labels[later], sizes[later])
                        compiled[later] = compiler.submit(program.compile)
                if index in compiled:
                    compiled[index].result()
                for round_ in rounds:
                    left = batch[state.success[index, batch] != 1]
                    if len(left) == 0:
                        break
                    _keep(state, index, left, run(round_, index, left, labels[index], sizes[index]))
                yield state
    finally:
        compiler.shutdown(cancel_futures=True)


def _stops_at_success(attack):
    # With an infinite radius every norm is a success, and the smallest is what a minimum-norm attack is for.
    parts = [part for part in combinators.parts(attack) if kinds.minimised_norm(part) is not None]
    return all(np.isfinite(threat.radius()).all() for part in parts for threat in combinators.threats_of(part))


def _is_driven(attack):
    return kinds.stops_alone(attack) or loops.is_host(attack)


def _keep(state, index, rows, result):
    fooled = result.success & np.isfinite(result.x).reshape(len(rows), -1).all(axis=1)
    better = fooled | (state.success[index, rows] == reports.NOT_RUN) | (result.loss > state.loss[index, rows])
    state.success[index, rows] = fooled
    state.loss[index, rows[better]] = result.loss[better]
    state.x[rows[fooled]] = result.x[fooled]


def _run(run, key, attack, index, rows, y, sizes):
    if kinds.stops_alone(attack):
        return stages.run(run, key, attack, index, rows, y[rows])
    arguments, num_rows = _bound(run, key, attack, index, rows, sizes)
    call = functools.partial(_call if loops.is_host(attack) else _compiled, *arguments)
    return run(call, rows, y[rows], num_rows=num_rows)


def _lowered(run, key, attack, index, rows, y, sizes):
    # What `_run` compiles; once this is compiled, `jax.jit` finds it.
    arguments, num_rows = _bound(run, key, attack, index, rows, sizes)
    return drivers.jitted(_call).lower(*arguments, *run.arguments(rows, y[rows], num_rows=num_rows))


def _bound(run, key, attack, index, rows, sizes):
    num_rows = _num_rows(len(rows), sizes, run.batch_size, 1 if run.mesh is None else run.mesh.size)
    attack = attack if isinstance(attack, base.Configured) else base.bind(attack)
    attack = combinators.take_rows(attack, parallel.pad_to(rows, num_rows), len(run.x), run.x.ndim)
    return (attack, key, np.int32(index)), num_rows


def _num_rows(num_left, sizes, batch_size, num_devices):
    """The rows that a batch is padded to: the least size of a compiled program that is at least half full, else a new one, of few."""
    if fitting := [size for size in sizes if num_left <= size <= 2 * num_left]:
        return min(fitting)
    step = 2 ** max((num_left - 1).bit_length() - 3, 0)  # four sizes an octave
    step = -(-step // num_devices) * num_devices
    sizes.add(size := min(-(-num_left // step) * step, batch_size))
    return size


def _call(attack, key, index, model_fn, rows, x, y):
    keys = prng.fold_in(prng.row_keys(key, rows), index)
    return attack(keys, model_fn, x, y)


_compiled = drivers.jit(_call)


def _logits(keys, model_fn, x, y):
    del y
    return losses.as_logits(base.draw(model_fn, keys)(x))


def _clean(run, x, batch_size, names, y, targets, aimed, kinds, identity):
    num_examples = len(x)
    rows = np.split(np.arange(num_examples), range(batch_size, num_examples, batch_size))
    sizes: set[int] = set()
    logits = np.concatenate([run(_logits, len(names), batch, y, sizes) for batch in rows])
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
    return reports.EvaluationState(
        names=names,
        correct=~at_target if targets is y else prediction == y,
        success=np.full(shape, reports.NOT_RUN, np.int8),
        loss=np.full(shape, np.nan, np.float32),
        x=x.copy(),
        at_goal=aimed[:, None] & at_target[None],
        signs=_signs(logits, y),
        kinds=kinds,
        fingerprint=identity,
    )


def _signs(logits, y):
    probabilities = (np.abs(logits.sum(axis=1) - 1.0) < 1e-5) & (logits >= 0).all(axis=1)
    largest = logits.max(axis=1)
    loss = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - logits[np.arange(len(y)), y]
    return np.stack([probabilities, loss < 1e-6])


def _kinds(attacks):
    norms = [kinds.minimised_norm(attack) for attack in attacks.values()]
    places = [reports.NORMS.index(norm) if norm in reports.NORMS else -1 for norm in norms]
    return np.array([[kinds.is_black_box(attack) for attack in attacks.values()], places], np.int8)


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
        if isinstance(threat, threats.Shared):
            raise ValueError(
                "evaluate judges every example by itself, and threats.Shared makes one perturbation for a batch: craft it on training "
                "data, and count the errors that it makes on others."
            )
        if hasattr(threat, "check"):  # a user's own need not have it
            threat.check(x)
