"""What a targeted attack on a training set is given: the set, the rows that it may poison, and its targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.base import Array, Threat
from robustjax.poisoning import arguments


class Task(NamedTuple):
    """A training set, the rows of it that are poisoned, and images that the poisons are to act on.

    Every crafting method with its settings bound is a function `(key, task) -> PoisonResult`, and
    `insert(task.x, task.y, task.rows, found.x, threat=threat)` is the poisoned set.

    >>> x, y = jnp.linspace(0.0, 1.0, 12).reshape(6, 2), jnp.array([0, 1, 0, 1, 0, 1])
    >>> task = poisoning.Task(x, y, rows=jnp.array([1, 3]), x_target=jnp.full((1, 2), 0.5))
    >>> attack = base.bind(poisoning.bullseye, features_fns=[jnp.tanh], threat=threats.Linf(0.1), num_steps=5, learning_rate=0.05)
    >>> attack(jax.random.key(0), task).x.shape
    (2, 2)
    """

    x: Array | np.ndarray  # [N, ...] training images
    y: Array | np.ndarray  # [N] int, their labels; poisons keep those of the rows they replace
    rows: Array | np.ndarray  # [M] int, which images are poisoned, all different: `choose` draws some
    x_target: Array | np.ndarray  # [T, ...] images that are not in the set
    # [T] int, as what the targets are to be read; in `poison_certificates` the label whose certified radius is to fall. None where poisons
    # give the targets their own label, through features.
    y_target: Array | np.ndarray | None = None

    @property
    def x_base(self) -> Array:
        """[M, ...] the images that are poisoned, as they are in the set."""
        return jnp.asarray(self.x)[self.rows]

    @property
    def y_base(self) -> Array:
        """[M] their labels."""
        return jnp.asarray(self.y)[self.rows]


def check(task: Task, threat: Threat | None = None) -> None:
    """A task whose arrays fit together; labels are checked by `check_labels`, where the number of classes is known.

    Raises:
      TypeError: no task, no array, no threat. ValueError: images or targets of another shape or type, NaN, base images outside the box of
        the threat; rows that repeat or lie beyond the set, as far as they are known at trace time.
    """
    if not isinstance(task, Task):
        raise TypeError(f"expected poisoning.Task(x, y, rows, x_target, y_target), got a {type(task).__name__}.")
    x, rows = task.x, task.rows
    arguments.images(x)
    if jnp.ndim(rows) != 1 or jnp.size(rows) == 0 or not jnp.issubdtype(jnp.result_type(rows), jnp.integer):
        raise ValueError(f"expected whole rows [M], one at least, got {rows}; `poisoning.choose` draws some.")
    is_known = not isinstance(rows, jax.core.Tracer)
    if is_known and (len(np.unique(rows)) < len(rows) or not np.isin(rows, np.arange(len(x))).all()):
        raise ValueError(f"expected different rows of {len(x)} images, got {np.asarray(rows)}; `poisoning.choose` draws some.")
    # Inside jit a jax array that is indexed becomes a tracer, of which no value is known.
    arguments.images(np.asarray(x)[np.asarray(rows)] if is_known and not isinstance(x, jax.core.Tracer) else task.x_base, threat)
    arguments.shaped_like(task.x_target, x, "x_target")


def check_labels(task: Task, num_classes: int) -> None:
    """Integer labels of the set and of the targets, each below the number of classes where its value is known.

    Raises:
      ValueError: they are not.
    """
    arguments.labelled(task.y, len(task.x), num_classes)
    if task.y_target is None:
        raise ValueError(f"expected integer labels y_target [{len(task.x_target)}], as what the targets are to be read, got None.")
    arguments.labelled(task.y_target, len(task.x_target), num_classes, "y_target")
