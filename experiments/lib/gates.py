"""Gates: a measured figure, and the bounds that it must keep."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Gate(NamedTuple):
    """One figure; bounds are allowed values, and None where there is none."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()  # by seed, of which `value` is the mean
    digits: str = ".3g"

    @property
    def met(self) -> bool | None:
        """None where there is no bound; NaN keeps no bound."""
        if self.low is None and self.high is None:
            return None
        return bool((self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high))

    @property
    def cells(self) -> list[str]:
        """Its row, by HEADER."""
        seeds = ", ".join(format(value, self.digits) for value in self.values)
        return [self.what, format(self.value, self.digits), seeds, self._wanted(), verdict(self.met)]

    def _wanted(self):
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return "" if self.met is None else f">= {self.low:g}" if self.high is None else f"<= {self.high:g}"


HEADER = ["gate", "measured", "seeds", "bound", ""]


def over_seeds(what: str, values: Iterable[float], low: float | None = None, high: float | None = None, digits: str = ".1f") -> Gate:
    """A gate for the mean over seeds."""
    values = tuple(float(value) for value in values)
    return Gate(what, float(np.mean(values)), low, high, values, digits)


def verdict(met: bool | None) -> str:
    """In a word."""
    return {None: "", True: "met", False: "MISSED"}[met]


def table(made: Iterable[Gate]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, without the column of seeds where nothing has seeds."""
    rows = [gate.cells for gate in made]
    kept = [place for place, name in enumerate(HEADER) if name != "seeds" or any(row[place] for row in rows)]
    return [HEADER[place] for place in kept], [[row[place] for place in kept] for row in rows]
