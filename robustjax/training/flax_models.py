"""Flax modules in the form that training needs: a pure `apply_fn` with three modes, parameters, and the rest of the module's state."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from robustjax import prng
from robustjax.base import ApplyFn, Key

MODES = ("eval", "batch", "train")
_SWITCHES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}  # in training
_RNGS = "rngs"  # where model_state keeps the key of a Linen module, beside its collections


class Model(NamedTuple):
    """The parts of a network that training needs; `training.classifier(*model)` is the network itself."""

    apply_fn: ApplyFn  # (params, model_state, x, mode) -> (logits, model_state); mode "eval", "batch" or "train"
    params: Any
    model_state: Any  # what forward passes in mode "train" change; without leaves if there is nothing


def from_linen(
    module: Any, variables: Mapping, *, key: Key | None = None, train_kwargs: Mapping | None = None, eval_kwargs: Mapping | None = None
) -> Model:
    """A Linen module with its variables, for `training.init` and the `apply_fn` of losses.

    Mode "train" keeps what a forward pass changes (statistics of BatchNorm), "batch" computes the same and keeps nothing, and "eval"
    changes nothing. The mode is passed to the module by that argument among `train`, `training`, `is_training`, `deterministic` and
    `use_running_average` that its `__call__` has, or by a field of that name.

    Every forward pass in mode "train" uses a fresh part of `key`, and keeps the rest in the model_state: a resumed run draws the same as
    the uncut run. Mode "batch" draws what the next pass in mode "train" will draw, so that an attack meets the dropout mask of the
    training step.

    Args:
      module: a `flax.linen.Module` whose `__call__(x [B, ...], switch)` returns logits [B, C].
      variables: what `module.init` returned; every collection but "params" and "intermediates" becomes model_state.
      key: one key for Dropout and all other random streams; None for a module that draws nothing.
      train_kwargs, eval_kwargs: arguments of `__call__` in training and in evaluation, if it has none of the names above. Pass {} for
        both if the module is the same in both.

    Returns:
      `Model(apply_fn, params, model_state)`. Make it once: another apply_fn is another function, and compiles again. Use the same
      apply_fn with other parameters of the same module.

    Raises:
      TypeError: module, variables or key are not what their names say. ValueError: variables without "params", a `__call__` that needs
        more than x, or statistics or a key without a switch; when apply_fn is traced: an unknown mode, a module that is still in training
        in mode "eval", a missing key or collection, or (TypeError) an output that is not an array.

    Example:
      >>> from flax import linen
      >>> net = linen.Dense(3)
      >>> model = training.from_linen(net, net.init(jax.random.key(0), jnp.ones((1, 4))))
      >>> training.classifier(*model)(jnp.ones((2, 4))).shape
      (2, 3)
    """
    from flax import core, linen  # a third of a second, paid by those who call it

    _check_module(module, linen.Module, "Linen", "from_nnx")
    if not isinstance(variables, Mapping):
        raise TypeError(f"expected the variables that module.init returns, a dictionary of collections, got {type(variables).__name__}.")
    state = {name: part for name, part in core.unfreeze(dict(variables)).items() if name != "intermediates"}
    if "params" not in state:
        raise ValueError(f"expected variables with 'params' as module.init returns them, got {sorted(state)}; pass the whole dictionary.")
    params = state.pop("params")
    fields = {field.name for field in dataclasses.fields(module)}
    switches = _switches(module, train_kwargs, eval_kwargs, fields)
    if switches == ({}, {}) and train_kwargs is None and (key is not None or "batch_stats" in state):
        raise ValueError(
            f"{_name(module)} keeps {'batch_stats' if 'batch_stats' in state else 'a key'}, but has no switch between training and "
            f"evaluation: expected one of {tuple(_SWITCHES)} in its __call__; add it, or pass train_kwargs and eval_kwargs."
        )
    modules = {}
    for mode, switch in zip(("train", "eval"), switches, strict=True):
        own = {name: value for name, value in switch.items() if name in fields}
        kwargs = {name: value for name, value in switch.items() if name not in fields}
        _check_call(module, kwargs)
        modules[mode] = (module.clone(**own) if own else module, kwargs)
    if key is not None:
        prng.example_keys(key, 1)  # named here if it is none
        state[_RNGS] = key
    return Model(functools.partial(_apply_linen, modules, frozenset(state)), params, state)


def from_nnx(module: Any, *, train_kwargs: Mapping | None = None, eval_kwargs: Mapping | None = None) -> Model:
    """An NNX module, for `training.init` and the `apply_fn` of losses. It is copied, and is not changed.

    Mode "train" keeps what a forward pass changes (statistics of BatchNorm, the counts of random streams), "batch" computes the same and
    keeps nothing, and "eval" changes nothing. The mode is set by `.train()` and `.eval()` of the copies, and by that argument among
    `train`, `training`, `is_training`, `deterministic` and `use_running_average` that the module's `__call__` has.

    Random layers (Dropout) draw from the streams that they were made with, which are part of the model_state: a resumed run draws the
    same as the uncut run. Mode "batch" draws what the next pass in mode "train" will draw, so that an attack meets the dropout mask of
    the training step.

    Args:
      module: a `flax.nnx.Module` whose `__call__(x [B, ...])` returns logits [B, C]; its own mode does not matter.
      train_kwargs, eval_kwargs: arguments of `__call__` in training and in evaluation, if it has none of the names above.

    Returns:
      `Model(apply_fn, params, model_state)`: params are the `nnx.Param`, model_state all other variables. Make it once: another
      apply_fn is another function, and compiles again. `nnx.update(module, params, model_state)` writes trained values into the module.

    Raises:
      TypeError: not an NNX module. ValueError: a `__call__` that needs more than x; when apply_fn is traced: an unknown mode, a module
        that is still in training in mode "eval", or (TypeError) an output that is not an array.
    """
    from flax import nnx  # half a second, paid by those who call it

    _check_module(module, nnx.Module, "NNX", "from_linen")
    graphs, params, state = {}, None, None
    for mode, kwargs in zip(("train", "eval"), _switches(module, train_kwargs, eval_kwargs), strict=True):
        _check_call(module, kwargs)
        copied = nnx.clone(module)
        getattr(copied, mode)()
        nnx.pop(copied, nnx.Intermediate)
        graph, params, _, state = _split(copied)
        graphs[mode] = (graph, kwargs)
    return Model(functools.partial(_apply_nnx, graphs), params, state)


def _apply_linen(modules, names, params, model_state, x, mode):
    from flax import errors

    _check_mode(mode)
    state = dict(model_state or {})
    if state.keys() != names:
        raise ValueError(f"expected model_state with {sorted(names)}, got {sorted(state)}; pass what training.from_linen returned.")
    module, kwargs = modules["eval" if mode == "eval" else "train"]
    key = state.pop(_RNGS, None)
    key_pass, key_next = (None, None) if key is None or mode == "eval" else jax.random.split(key)
    mutable = False if mode == "eval" else list(state)
    try:
        out = module.apply({"params": params, **state}, x, rngs=key_pass, mutable=mutable, **kwargs)
    except errors.ScopeCollectionNotFound as error:
        raise ValueError(
            f"{_name(module)} misses a collection ({error}); pass all that module.init returned, not 'params' alone."
        ) from error
    except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
        if mode == "eval":
            raise ValueError(_still_in_training(module, error)) from error
        raise ValueError(
            f"{_name(module)} draws in mode {mode!r} ({error}); pass key=jax.random.key(...) to training.from_linen."
        ) from error
    logits, updated = (out, {}) if mode == "eval" else out
    _check_output(logits, module)
    if mode != "train":
        return logits, model_state
    return logits, {**state, **updated, **({} if key is None else {_RNGS: key_next})}


def _apply_nnx(graphs, params, model_state, x, mode):
    from flax import nnx

    _check_mode(mode)
    graph, kwargs = graphs["eval" if mode == "eval" else "train"]
    module = nnx.merge(graph, params, model_state, copy=True)  # variables of this trace, or BatchNorm could not update them in a scan
    logits = module(x, **kwargs)
    _check_output(logits, module)
    _, _, _, updated = _split(module)
    if mode == "train":
        return logits, updated
    if mode == "eval":
        before, after = (nnx.to_flat_state(nnx.filter_state(state, (nnx.BatchStat, nnx.RngState))) for state in (model_state, updated))
        changed = [".".join(map(str, path)) for (path, old), (_, new) in zip(before, after, strict=True) if old[...] is not new[...]]
        if changed:
            raise ValueError(_still_in_training(module, f"it changes {', '.join(changed)}"))
    return logits, model_state


def _split(module) -> Any:
    from flax import nnx

    return nnx.split(module, nnx.Param, nnx.Intermediate, ...)  # graph, parameters, what was sown, whatever else


def _switches(module, train_kwargs, eval_kwargs, fields=frozenset()):
    if (train_kwargs is None) != (eval_kwargs is None):
        raise ValueError("expected train_kwargs and eval_kwargs together, got one of them; pass {} for a call without arguments.")
    if train_kwargs is not None:
        return dict(train_kwargs), dict(eval_kwargs)
    names = fields | inspect.signature(module.__call__).parameters.keys()
    train = {name: value for name, value in _SWITCHES.items() if name in names}
    return train, {name: not value for name, value in train.items()}


def _still_in_training(module, why):
    return (
        f"{_name(module)} is still in training in mode 'eval' ({why}): expected running statistics and no draws after .eval() and "
        f"with one of {tuple(_SWITCHES)}; let such an argument of its __call__ switch every layer, or pass train_kwargs and eval_kwargs."
    )


def _check_module(module, kind, name, other):
    if not isinstance(module, kind):
        got = f"the class {module.__name__}; make an instance" if isinstance(module, type) else f"{_name(module)}; see training.{other}"
        raise TypeError(f"expected a {name} module, got {got}.")


def _check_call(module, kwargs):
    signature = inspect.signature(module.__call__)
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{_name(module)} cannot be called as module(x, **{kwargs}): {error}, got {signature}; "
            "give other arguments a default, or pass train_kwargs and eval_kwargs."
        ) from error


def _check_mode(mode):
    if mode not in MODES:
        raise ValueError(f"expected mode to be one of {MODES}, got {mode!r}.")


def _check_output(logits, module):
    if not isinstance(logits, jax.Array):
        raise TypeError(
            f"expected {_name(module)} to return logits, one array [B, C], got {type(logits).__name__}; "
            "put it into a module that returns the logits alone."
        )


def _name(module):
    return type(module).__name__
