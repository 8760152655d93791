"""What a user hands to an attack on training data: images, labels, targets and networks, each checked in one place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import checks
from robustjax.base import ApplyFn, Array, Numeric, Threat
from robustjax.bilevel import problem


def images(x: Array | np.ndarray, threat: Threat | None = None, name: str = "x", least: int = 1) -> None:
    """Images or rows [M, ...] of float32 or float64, M >= `least`; finite and, as far as values are known, in the box of the threat.

    Raises:
      TypeError: no array, or no threat. ValueError: another shape or type; NaN or values outside the box.
    """
    checks.inputs(x, name)
    if x.ndim < 2 or x.shape[0] < least:
        raise ValueError(
            f"expected {name} [M, ...] of at least {least} image, got shape {x.shape}; a single one needs a leading axis: {name}[None]."
        )
    if threat is not None:
        checks.threat(threat)
    if isinstance(x, jax.core.Tracer):
        return
    if not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{name} holds NaN or infinite values; look at what it was read or scaled from.")
    if threat is not None and hasattr(threat, "check"):
        threat.check(x)


def shaped_like(x: Array | np.ndarray, other: Array | np.ndarray, name: str) -> None:
    """Images [T, ...] of the shape of others.

    Raises:
      TypeError: no array. ValueError: another shape or type, or NaN.
    """
    images(x, name=name)
    if x.shape[1:] != other.shape[1:]:
        raise ValueError(f"expected {name} [T, {', '.join(map(str, other.shape[1:]))}] like x {other.shape}, got {x.shape}.")


def inside(x: Numeric, bounds: tuple, name: str = "x") -> None:
    """Values, as far as they are known, lie in a box.

    Raises:
      ValueError: they do not.
    """
    if isinstance(x, jax.core.Tracer) or any(isinstance(bound, jax.core.Tracer) for bound in bounds):
        return
    values = np.asarray(x)
    if not ((values >= np.asarray(bounds[0])) & (values <= np.asarray(bounds[1]))).all():
        raise ValueError(f"{name} from {values.min():g} to {values.max():g} leaves the box {bounds}; scale it, or pass its own box.")


def fractions(**numbers) -> None:
    """Each named number lies in [0, 1], as far as its value is known.

    Raises:
      ValueError: it does not.
    """
    for name, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and not ((np.asarray(number) >= 0) & (np.asarray(number) <= 1)).all():
            raise ValueError(f"{name} is a share: expected it in [0, 1], got {number}.")


def classes(apply_fn: ApplyFn, params: Any, model_state: Any, x: Array | np.ndarray, mode: str = "eval") -> int:
    """The number of classes of a network (params, model_state, x, mode) -> (logits [B, C], model_state), of which only shapes are asked.

    Raises:
      TypeError: no such function; params that cannot be differentiated. ValueError: it returns something else.
    """
    problem.takes(apply_fn, "apply_fn(params, model_state, x, mode)", params, model_state, x, mode)
    problem.variables(params=params)
    made = jax.eval_shape(lambda params, model_state, x: apply_fn(params, model_state, x, mode), params, model_state, x)
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[0], "shape"):
        got = f"an array of shape {made.shape}" if hasattr(made, "shape") else f"a {type(made).__name__}"
        raise ValueError(
            f"expected apply_fn to return (logits, model_state), got {got}; a network without statistics returns (logits, None)."
        )
    if made[0].ndim != 2 or made[0].shape[0] != x.shape[0]:
        raise ValueError(f"expected logits [{x.shape[0]}, C] of as many images, got {made[0].shape}; flatten what the network gives.")
    return made[0].shape[1]


def labelled(y: Any, num_examples: int, num_classes: int, name: str = "y") -> None:
    """Integer labels of as many images, each below the number of classes where its value is known.

    Raises:
      ValueError: they are not.
    """
    checks.labels(y, num_examples, name)
    checks.labels_in_range(y, num_classes, name)


def per_example(name: str, values: Array, num_examples: int) -> Array:
    """The values of a loss, if there is one for each example.

    Raises:
      ValueError: there is not.
    """
    if jnp.shape(values) != (num_examples,):
        raise ValueError(
            f"expected {name} to return one loss per example [{num_examples}], got shape {jnp.shape(values)}; do not reduce it."
        )
    return values


def table(x: Array | np.ndarray, y: Array | np.ndarray, name: str = "y") -> None:
    """Rows [N, D] of finite numbers, one at least, and as many finite labels [N].

    Raises:
      ValueError: something else.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"expected rows x [N, D], one at least, got shape {x.shape}; flatten images: x.reshape(len(x), -1).")
    checks.vector(y, len(x), name)
    if not np.issubdtype(x.dtype, np.number) or not np.isfinite(x).all():
        raise ValueError(
            f"expected rows x of finite numbers, got {x.dtype} with {int(np.sum(~(np.abs(x) < np.inf)))} others; drop those rows."
        )
    if not np.isfinite(y.astype(float)).all():
        raise ValueError(f"{name} holds NaN or infinite labels; drop those rows.")


def binary_table(x: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Rows of finite numbers and one label for each, -1 or 1, and both of them.

    Raises:
      ValueError: otherwise.
    """
    table(x, y)
    if set(np.unique(y)) != {-1, 1}:
        raise ValueError(f"expected both labels -1 and 1 of {np.size(y)} points, got {np.unique(y)[:5]}; for 0 and 1 pass 2 * y - 1.")
