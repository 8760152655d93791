"""A training run: one step on any loss, and a pure scan of steps over shuffled batches."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustjax import base, checks, configured, drivers, hooks, threats
from robustjax.attacks import combinators
from robustjax.base import Array, Key
from robustjax.training import ramps
from robustjax.training._dual_manifold import Coded
from robustjax.training._natural import Risk

TrainLoss = Callable[..., Risk]  # (params, model_state, key, x, y) -> (loss, (model_state, metrics))
StepFn = Callable[..., tuple[Any, dict[str, Array]]]  # (state, key, x, y) -> (state, metrics)
ScheduleFn = Callable[[TrainLoss, Array], TrainLoss]  # (loss, num_steps) -> the loss of that step


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Any
    model_state: Any  # what forward passes update, or None
    opt_state: Any  # state of the optimizer
    num_steps: Array  # number of steps so far, one for each batch


def init(params: Any, model_state: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
      params: a pytree of parameters, which are trained.
      model_state: what forward passes update (statistics of BatchNorm), or None.
      optimizer: an optax transformation.
    """
    return TrainState(params, model_state, optimizer.init(params), jnp.int32(0))


def step(
    loss: TrainLoss, optimizer: optax.GradientTransformation, schedule_fn: ScheduleFn | None = None, *, rewritten: bool = True
) -> StepFn:
    """A function `(state, key, x, y) -> (state, metrics)` that takes one optimizer step to lower the loss.

    Args:
      loss: (params, model_state, key, x, y) -> (loss, (model_state, metrics)), with all other arguments bound by `base.bind`.
      optimizer: an optax transformation of the gradient, for descent.
      schedule_fn: (loss, num_steps) -> the loss of that step, such as `base.bind(training.eps_ramp, num_ramp_steps=...)`.
      rewritten: whether the networks that the loss has bound as `apply_fn` and `model_fns` run with the convolutions and max-pools of
        `lowering.rewrite`, whose gradients are fast in loops on CPU; on other platforms it does nothing. Results agree to rounding.

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> step_fn = training.step(base.bind(training.natural, apply_fn=apply_fn), optax.sgd(0.5))
      >>> state = training.init(jnp.zeros((2, 2)), None, optax.sgd(0.5))
      >>> state, metrics = step_fn(state, jax.random.key(0), jnp.eye(2), jnp.array([0, 1]))
      >>> round(float(metrics["loss"]), 3), state.params.tolist()
      (0.693, [[0.125, -0.125], [-0.125, 0.125]])
    """
    return base.bind(_step, loss=loss, optimizer=optimizer, schedule_fn=schedule_fn, rewritten=rewritten)


def eps_ramp(loss: TrainLoss, num_steps: int | Array, *, num_ramp_steps: int) -> TrainLoss:
    """The loss with eps and step size of its attack scaled by (num_steps + 1) / num_ramp_steps, at most by 1: a `schedule_fn`.

    Without it, adversarial training with a large eps may keep predicting a constant class.

    Args:
      loss: a training loss whose attacks have a bound `threat`; in combinations all attacks are scaled.
      num_steps: number of steps so far.
      num_ramp_steps: number of steps until the full eps is reached.

    Raises:
      ValueError: a loss without an attack that has a bound threat.
    """
    checks.counts(num_ramp_steps=num_ramp_steps)
    factor = jnp.minimum(1.0, (num_steps + 1) / num_ramp_steps)
    changed = []

    def scaled(attack):
        changed.append(attack)
        return ramps.scaled(attack, factor)

    ramped = combinators.map_attacks(loss, scaled)
    if not changed:
        raise ValueError("eps_ramp scales the threat of an attack, and this loss has no attack with a bound threat; leave it out.")
    return ramped


def fit(
    state: TrainState,
    key: Key,
    x: Any,
    y: Any,
    *,
    step_fn: StepFn,
    num_epochs: int,
    batch_size: int,
    place_fn: Callable[[Any], Any] | None = None,
    on_step: hooks.OnStep | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Epochs of shuffled batches in one scan, or step by step from Python if a hook asks for the numbers of each.

    The permutation of an epoch and the key of a step depend on the key and the step's number alone, so that a run that is cut into
    several calls of whole epochs equals the uncut run. Fields of an attack that have one entry per example of the data set (eps, mask,
    step size) follow their examples into the batches.

    Args:
      state: the state to start from.
      key: one key for the whole run.
      x: inputs [N, ...], or a pytree of such arrays. y: labels [N], or a pytree too.
      step_fn: (state, key, x, y) -> (state, metrics), as `step` returns it.
      num_epochs: passes over the data.
      batch_size: B; the last N mod B examples of each permutation are left out of its epoch.
      place_fn: (x [B, ...], y [B]) -> the same batch, applied to each batch first, such as `jax.lax.with_sharding_constraint` with the
        shardings of several devices bound.
      on_step: called after each step with {"step": number of steps so far, "seconds", and the metrics}, all plain Python numbers; the
        steps are then compiled one by one and agree with those of the scan to rounding. None costs nothing.

    Returns:
      The state after the last step, and the metrics of all steps, stacked.

    Raises:
      ValueError: arrays of different length, or fewer than B examples; a hook inside jit; outside jit, what `check` finds.

    Example:
      >>> apply_fn = lambda params, model_state, x, mode: (x @ params, model_state)
      >>> step_fn = training.step(base.bind(training.natural, apply_fn=apply_fn), optax.sgd(0.5))
      >>> x, y = jnp.tile(jnp.eye(2), (8, 1)), jnp.tile(jnp.arange(2), 8)
      >>> state = training.init(jnp.zeros((2, 2)), None, optax.sgd(0.5))
      >>> state, metrics = training.fit(state, jax.random.key(0), x, y, step_fn=step_fn, num_epochs=2, batch_size=4)
      >>> metrics["loss"].shape, int(state.num_steps)
      ((8,), 8)
    """
    checks.counts(num_epochs=num_epochs, batch_size=batch_size)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((step_fn, x, y))):
        check(step_fn, x)
        _check_labels(step_fn, state, x, y)
    data = jax.tree.map(jnp.asarray, (x, y))
    num_examples = jax.tree.leaves(y)[0].shape[0]
    if any(leaf.shape[0] != num_examples for leaf in jax.tree.leaves(data)):
        lengths = jax.tree.map(len, data)
        raise ValueError(f"expected as many labels as inputs, got lengths (x, y) = {lengths}.")
    num_batches = num_examples // batch_size
    if num_batches == 0:
        raise ValueError(f"batch_size={batch_size} is larger than the data set of {num_examples}; pass at most {num_examples}.")
    first_epoch = state.num_steps // num_batches

    def batches(epoch):
        order = jax.random.permutation(jax.random.fold_in(key, first_epoch + epoch), num_examples)
        return order[: num_batches * batch_size].reshape(num_batches, batch_size)

    if on_step is not None:
        rows = (rows for epoch in range(num_epochs) for rows in batches(epoch))
        return _fit_from_host(state, key, data, rows, step_fn, place_fn, on_step)

    def one_batch(state, rows):
        return _on_rows(step_fn, place_fn, key, data, state, rows)

    state, metrics = jax.lax.scan(lambda state, epoch: jax.lax.scan(one_batch, state, batches(epoch)), state, jnp.arange(num_epochs))
    return state, jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), metrics)


def check(loss: TrainLoss | StepFn, x: Any) -> None:
    """Raises before a run for what would spoil it; values must be concrete, so call it outside jit.

    Args:
      loss: a bound training loss, or a step on one; a loss without an attack is not checked.
      x: the data [N, ...], or `Coded` data.

    Raises:
      ValueError: data outside a threat's box, or a random start in a ball of radius 0.
    """
    for part in configured.walk(loss):
        threat: Any = part.get("threat") if isinstance(part, base.Configured) else None
        if hasattr(threat, "check"):
            inputs = x if not isinstance(x, Coded) else x.code if isinstance(threat, threats.Latent) else x.x
            threat.check(inputs)
        if threat is not None and _starts_at_random(part) and _is_point(threat):
            raise ValueError(f"{part} starts at random in a ball of radius 0; pass eps > 0, or train with training.natural.")


def _on_rows(step_fn, place_fn, key, data, state, rows):
    key_step = jax.random.fold_in(jax.random.fold_in(key, 2**31), state.num_steps)
    batch = jax.tree.map(lambda array: array[rows], data)
    num_examples, *_ = jax.tree.leaves(data[1])[0].shape
    own_step_fn = combinators.take_rows(step_fn, rows, num_examples, jax.tree.leaves(data[0])[0].ndim)
    return own_step_fn(state, key_step, *(batch if place_fn is None else place_fn(batch)))


_on_rows_compiled = jax.jit(_on_rows)


def _fit_from_host(state, key, data, batches, step_fn, place_fn, on_step):
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, key, data, step_fn))):
        raise ValueError("on_step is called from Python after each step, and this fit is inside jit, vmap or grad; call it outside.")
    step_fn, place_fn = base.bind(step_fn), place_fn and base.bind(place_fn)

    def steps(state):
        for rows in batches:
            state, metrics = _on_rows_compiled(step_fn, place_fn, key, data, state, rows)
            yield state, metrics

    taken = []
    for after, metrics in hooks.reported(steps(state), lambda step: {"step": step[0].num_steps} | step[1], on_step):
        state = after
        taken.append(metrics)
    return state, jax.tree.map(lambda *each: jnp.stack(each), *taken)


def _check_labels(step_fn, state, x, y):
    # The number of classes is that of the model's outputs; a loss without an `apply_fn` is not checked.
    apply_fns = [part.get("apply_fn") for part in configured.walk(step_fn) if isinstance(part, base.Configured) and part.get("apply_fn")]
    leaves = jax.tree.leaves(y)
    if not apply_fns or len(leaves) != 1 or not jnp.issubdtype(jnp.result_type(leaves[0]), jnp.integer) or jnp.ndim(leaves[0]) != 1:
        return
    params = getattr(state.params, "params", state.params)  # of free training, beside its perturbations
    inputs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *jnp.shape(a)[1:]), jnp.result_type(a)), x.x if isinstance(x, Coded) else x)
    logits, _ = jax.eval_shape(lambda p, s, x: apply_fns[0](p, s, x, "eval"), params, state.model_state, inputs)
    checks.labels_in_range(leaves[0], logits.shape[-1])


def _starts_at_random(attack):
    default = inspect.signature(attack.function).parameters.get("delta")
    return default is not None and attack.get("delta", default.default) is None


def _is_point(threat):
    if not hasattr(threat, "radius"):  # a user's own need not have one
        return False
    with jax.ensure_compile_time_eval():
        return bool(np.all(np.asarray(threat.radius()) == 0))


def _step(state, key, x, y, *, loss, optimizer, schedule_fn, rewritten):
    if schedule_fn is not None:
        loss = schedule_fn(loss, state.num_steps)
    if rewritten:
        loss = _lowered(loss)
    grad, (model_state, metrics) = jax.grad(loss, has_aux=True)(state.params, state.model_state, key, x, y)
    updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), model_state, opt_state, state.num_steps + 1), metrics


def _lowered(loss):
    # Networks are rewritten and not the loss as a whole: the gradients that an attack takes inside it are of other primitives by then.
    if not isinstance(loss, base.Configured):
        return loss
    if loss.get("apply_fn") is not None:
        loss = base.bind(loss, apply_fn=drivers.lowered(loss.get("apply_fn"), rewritten=True))
    if loss.get("model_fns"):
        loss = base.bind(loss, model_fns=tuple(drivers.lowered(model_fn, rewritten=True) for model_fn in loss.get("model_fns")))
    return loss.map_children(_lowered)
