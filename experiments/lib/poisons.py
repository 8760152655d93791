"""Crafted poisons as files: what they are is kept with what they were made for, so that they are never judged as something else."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.lib import files


class Provenance(NamedTuple):
    """What a crafted set was made for."""

    dataset: str
    attack: str
    victim: str
    budget: str
    seed: int
    details: dict  # whatever else decides the result; JSON


class Crafted(NamedTuple):
    """Poisons and their places."""

    rows: np.ndarray  # [M] of the training set
    x: np.ndarray  # [M, ...]
    y: np.ndarray  # [M]


def kept(path: str | pathlib.Path, provenance: Provenance, craft: Callable[[], Crafted]) -> Crafted:
    """A crafted set from its file if there is one, else made and saved with the provenance inside.

    Raises:
      OSError: nothing can be written beside it.
      ValueError: it was made for something else, or the file is damaged or holds something else.
    """
    return Crafted(**files.kept_arrays(path, Crafted._fields, lambda: craft()._asdict(), **provenance._asdict()))
