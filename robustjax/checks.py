"""Checks of what a user can get wrong in many functions: counts, labels, keys and models in train mode. Each check has one place.

They look at values that are known at trace time alone, so that they cost nothing in a compiled program.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def counts(least: int = 1, **numbers: Any) -> None:
    """Requires each named number to be a Python integer of at least `least`.

    Raises:
      TypeError: it is traced, or not an integer. ValueError: it is too small.
    """
    for name, number in numbers.items():
        if isinstance(number, jax.core.Tracer):
            raise TypeError(
                f"{name} fixes shapes or loops and must be a Python integer, got a traced value; name it in static_argnames of jax.jit, "
                "bind it, or close over it."
            )
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise TypeError(f"expected {name} as a Python integer, got {number!r} of type {type(number).__name__}.")
        if number < least:
            raise ValueError(f"{name}={number} does nothing; pass {name} >= {least}.")


def inputs(x: Any, name: str = "x", is_half_allowed: bool = False) -> None:
    """Requires inputs to be an array [B, ...] of float32 or float64.

    Raises:
      TypeError: not an array, or half precision where that is not allowed. ValueError: a single number, or not of a floating type.
    """
    if not hasattr(x, "dtype"):
        raise TypeError(f"expected {name} as an array [B, ...], got a {type(x).__name__}; pass jnp.asarray({name}).")
    if x.ndim == 0:
        raise ValueError(f"expected {name} [B, ...], got one number; give it a leading axis, one row for each input.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected {name} of a floating type, got {x.dtype}; pass e.g. {name} / 255, and sigma or eps in that unit.")
    if x.dtype.itemsize < 4 and not is_half_allowed:
        raise TypeError(
            f"expected {name} of float32 or float64, got {x.dtype}; pass {name}.astype('float32') and cast inside the model: "
            "lambda x: model(x.astype(jnp.bfloat16))."
        )


def labels(y: Any, num_examples: int, name: str = "y") -> None:
    """Requires labels to be integers [B].

    Raises:
      ValueError: they are of another shape, or not integers.
    """
    shape, dtype = jnp.shape(y), y.dtype if hasattr(y, "dtype") else np.asarray(y).dtype
    if shape != (num_examples,) or not jnp.issubdtype(dtype, jnp.integer):
        remedy = ""
        if len(shape) == 2 and shape[1] == 1:
            remedy = f"; drop the last axis: {name}[:, 0]"
        elif len(shape) == 2:
            remedy = f"; one-hot labels become integers by {name}.argmax(axis=1)"
        elif len(shape) == 1 and shape[0] == num_examples:
            remedy = f"; cast them: {name}.astype('int32')"
        raise ValueError(f"expected integer labels {name} [{num_examples}], got shape {shape} of {dtype}{remedy}.")


def labels_in_range(y: Any, num_classes: int, name: str = "y") -> None:
    """Requires labels to lie in [0, num_classes), if their values are known; an empty array [0] passes.

    Raises:
      ValueError: they do not.
    """
    if isinstance(y, jax.core.Tracer) or np.size(y) == 0:
        return
    values = np.asarray(y)  # np.min of a jax.Array would be traced inside jit
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"expected labels {name} in [0, {num_classes}), as many as the model has logits, got values from {low} to {high}; "
            "count classes from 0, or give the model more outputs."
        )


def vector(y: Any, num_examples: int, name: str = "y") -> None:
    """Requires one label for each example [N].

    Raises:
      ValueError: another shape.
    """
    shape = np.shape(y)
    if shape != (num_examples,):
        remedy = ""
        if len(shape) == 2:
            remedy = f"; pass {name}[:, 0]" if shape[1] == 1 else f"; one-hot labels become numbers by {name}.argmax(axis=1)"
        raise ValueError(f"expected one label {name} for each of {num_examples} examples, got shape {shape}{remedy}.")


def positive(**numbers: Any) -> None:
    """Requires each named number, or every entry of an array, to be positive and finite, if its value is known at trace time.

    Raises:
      ValueError: it is not.
    """
    for name, number in numbers.items():
        if isinstance(number, jax.core.Tracer):
            continue
        values = np.asarray(number)
        if not jnp.issubdtype(values.dtype, jnp.number) or not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(f"{name} must be positive and finite, got {number}.")


def at_most(limit: Any, limit_name: str, **numbers: Any) -> None:
    """Requires each named number, or every entry of an array, to be at most a limit, if both are known at trace time.

    Raises:
      ValueError: it is not.
    """
    for name, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and not isinstance(limit, jax.core.Tracer) and not np.all(np.less_equal(number, limit)):
            raise ValueError(f"{name} must be at most {limit_name}, got {name}={number} and {limit_name}={limit}.")


def box(bounds: Any, name: str = "box") -> None:
    """Requires (lower, upper) with lower < upper, if their values are known.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise ValueError(f"expected {name}=(lower, upper), got {bounds!r}.")
    if not any(isinstance(bound, jax.core.Tracer) for bound in bounds) and not (np.asarray(bounds[0]) < np.asarray(bounds[1])).all():
        raise ValueError(f"the {name} needs lower < upper, got {bounds}.")


def threat(threat: Any) -> None:
    """Requires a threat to offer the methods that `base.Threat` lists.

    Raises:
      TypeError: it does not, or is a number or a class.
    """
    missing = [name for name in ("init", "project", "steepest", "apply") if not callable(getattr(threat, name, None))]
    if isinstance(threat, type) or missing:
        raise TypeError(
            f"expected a threat, such as threats.Linf(8 / 255), got {threat!r} of type {type(threat).__name__}"
            + ("; make an instance of it." if isinstance(threat, type) else f", which has no {', '.join(missing)}.")
        )


def functions(**values: Any) -> None:
    """Requires each named value to be a function, or another callable.

    Raises:
      TypeError: it cannot.
    """
    for name, value in values.items():
        if not callable(value) or isinstance(value, type):
            raise TypeError(f"expected {name} as a function, got {value!r:.60} of type {type(value).__name__}; bind its parameters to one.")


def on_host(*values: Any) -> None:
    """Requires that no value is traced: statistics are numpy in float64.

    Raises:
      TypeError: a value is traced.
    """
    if any(isinstance(value, jax.core.Tracer) for value in values):
        raise TypeError("statistics run on the host in float64, got traced values; call them outside jit, vmap and grad.")


def model(model_fn: Any, x: Any) -> None:
    """Requires that a model can be called, and that no Flax module in it is in train mode, in which every pass would change it.

    Raises:
      TypeError: it cannot be called. ValueError: it is in train mode; the message names the first such layer.
    """
    if not (callable(model_fn) or hasattr(model_fn, "draw")) or isinstance(model_fn, type):
        raise TypeError(f"expected a model, a function x [B, ...] -> logits [B, C], got {model_fn!r} of type {type(model_fn).__name__}.")
    nnx = sys.modules.get("flax.nnx")  # a user who has such a module has imported it
    if nnx is None:
        return

    def is_module(part):
        return isinstance(part, nnx.Module)

    modules = [part for part in jax.tree.leaves(model_fn, is_leaf=is_module) if is_module(part)]
    training = [
        ".".join([type(module).__name__, *map(str, path)])
        for module in modules
        for path, layer in nnx.iter_modules(module)
        if getattr(layer, "use_running_average", None) is False or getattr(layer, "deterministic", None) is False
    ]
    if training and _changes_itself(model_fn, x):
        raise ValueError(_in_train_mode(training[0]))


def called(model_fn: Any, x: Any) -> Any:
    """model_fn(x), with a clear error instead of Flax's for a module in train mode, which a closure may hide from `model`.

    Raises:
      ValueError: a module in train mode.
    """
    try:
        return model_fn(x)
    except Exception as error:
        if type(error).__name__ == "TraceContextError":
            raise ValueError(_in_train_mode("a Flax module inside the model")) from error
        raise


def _changes_itself(model_fn, x):
    changed = []

    def probe(model_fn, x):
        before = jax.tree.leaves(model_fn)
        model_fn(x)
        changed.append(any(old is not new for old, new in zip(before, jax.tree.leaves(model_fn), strict=True)))
        return 0

    try:
        jax.eval_shape(probe, model_fn, x)
    except Exception as error:
        if type(error).__name__ != "TraceContextError":
            return False  # other errors of the call are raised where it is made
        changed.append(True)
    return any(changed)


def _in_train_mode(name):
    return f"{name} is in train mode: it normalises by the batch or drops out, and changes in every pass; call model.eval() first."
