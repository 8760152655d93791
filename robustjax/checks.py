"""What a user can get wrong in the same way everywhere: counts, labels, keys and models in train mode. Each check has one place.

Only what is known at trace time is looked at, so that every check costs nothing in a compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np


def counts(least: int = 1, **numbers) -> None:
    """Each named number is a Python integer, and at least `least`.

    Raises:
      TypeError: it is traced, or no integer. ValueError: it is too small.
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


def inputs(x, name: str = "x") -> None:
    """Inputs are arrays of float32 or float64.

    Raises:
      TypeError: they are no array. ValueError: they are of another type.
    """
    if not hasattr(x, "dtype"):
        raise TypeError(f"expected {name} as an array [B, ...], got a {type(x).__name__}; pass jnp.asarray({name}).")
    if x.dtype not in (jnp.float32, jnp.float64):
        remedy = f"pass {name}.astype('float32'), in the unit of the radius: {name} / 255 for bytes"
        if jnp.issubdtype(x.dtype, jnp.floating):
            remedy = f"pass {name}.astype('float32') and cast inside the model, whose logits may be of any floating type"
        raise ValueError(f"expected {name} of float32 or float64, got {x.dtype}; {remedy}.")


def logits(logits, num_examples: int) -> None:
    """What a model gave are logits [B, C] of at least two classes.

    Raises:
      TypeError: no array. ValueError: an array of another shape or type.
    """
    if not hasattr(logits, "dtype"):
        raise TypeError(
            f"expected logits [{num_examples}, C], got a {type(logits).__name__}; let the model return its logits alone, such as "
            "lambda x: model(x)[0] of a pair (logits, state)."
        )
    if logits.ndim != 2 or logits.shape[0] != num_examples or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"expected logits [{num_examples}, C] of as many inputs, got shape {logits.shape} of {logits.dtype}; flatten what the model "
            "gives to one row of real numbers for each input."
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"expected logits of at least 2 classes, got {logits.shape}; a binary model with one score s has the logits "
            "jnp.concatenate([jnp.zeros_like(s), s], axis=1)."
        )


def labels(y, num_examples: int, name: str = "y") -> None:
    """Labels are integers [B].

    Raises:
      ValueError: they are of another shape, or no integers.
    """
    shape, dtype = jnp.shape(y), jnp.result_type(y)
    if shape != (num_examples,) or not jnp.issubdtype(dtype, jnp.integer):
        remedy = ""
        if len(shape) == 2 and shape[1] == 1:
            remedy = f"; drop the last axis: {name}[:, 0]"
        elif len(shape) == 2:
            remedy = f"; one-hot labels become integers by {name}.argmax(axis=1)"
        elif len(shape) == 1 and shape[0] == num_examples:
            remedy = f"; cast them: {name}.astype('int32')"
        raise ValueError(f"expected integer labels {name} [{num_examples}], got shape {shape} of {dtype}{remedy}.")


def labels_in_range(y, num_classes: int, name: str = "y") -> None:
    """Labels whose values are known lie in [0, num_classes); labels [0] pass.

    Raises:
      ValueError: they do not.
    """
    if isinstance(y, jax.core.Tracer) or np.size(y) == 0:
        return
    low, high = int(np.min(y)), int(np.max(y))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"expected labels {name} in [0, {num_classes}), as many as the model has logits, got values from {low} to {high}; "
            "count classes from 0, or give the model more outputs."
        )


def positive(**numbers) -> None:
    """Each named number, or every entry of an array, is positive and finite, as far as its value is known at trace time.

    Raises:
      ValueError: it is not.
    """
    for name, number in numbers.items():
        if isinstance(number, jax.core.Tracer):
            continue
        values = np.asarray(number)
        if not np.issubdtype(values.dtype, np.number) or not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(f"{name} must be positive and finite, got {number}.")
