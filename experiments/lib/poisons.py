"""Crafted poisons as files: what they are is kept with what they were made for, so that they are never judged as something else."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


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


def save(path: str | pathlib.Path, crafted: Crafted, provenance: Provenance) -> None:
    """Writes one npz with the provenance inside, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(partial, **crafted._asdict(), provenance=json.dumps(provenance._asdict()))
    partial.replace(path)


def load(path: str | pathlib.Path, provenance: Provenance) -> Crafted:
    """A crafted set.

    Raises:
      ValueError: it was made for something else.
    """
    with np.load(path) as file:
        found = json.loads(str(file["provenance"]))
        wanted = json.loads(json.dumps(provenance._asdict()))
        changed = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if changed:
            told = "; ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)
            raise ValueError(f"the poisons in {path} were made for something else ({told}); choose another file, or delete it.")
        return Crafted(*(file[name] for name in Crafted._fields))


def kept(path: str | pathlib.Path, provenance: Provenance, craft: Callable[[], Crafted]) -> Crafted:
    """A crafted set from its file if there is one, else made and saved."""
    if not pathlib.Path(path).exists():
        save(path, craft(), provenance)
    return load(path, provenance)
