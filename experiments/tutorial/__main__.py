"""The tutorial report: every table and figure, part by part, on one page that grows while it runs.

With --quick a few steps of everything, with --full more of everything; each effort has a folder of its own.
"""

import dataclasses
import importlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Literal

from experiments import registry
from experiments.lib import experiment, files, report

TITLE = "Why are machine learning models vulnerable to attacks?"
INTRODUCTION = (
    "A classifier that reads nearly every test image rightly can be wrong about an image that no person could tell from one of them. Four "
    "parts ask why, what can be done, what can be proved, and what happens when the training data are attacked. Every figure and table is "
    "made by one command, which stands below it; the data are 5,000 handwritten digits unless it says otherwise. Times are of the machine "
    "that made this page."
)
QUICK = " This page was made with --quick, to see that everything runs: it does not show what its texts say."
INTRODUCTIONS = {
    1: "A naive model is trained on images as they are. An attacker changes an image within a limit eps: in linf no pixel moves by more "
    "than eps, in l2 the change as a whole is no longer than eps. These sections show what such changes look like, which attack finds the "
    "smallest ones and at what cost, and how near the nearest error of every image is. A second model, trained on attacked images "
    "(robust), stands beside the naive one (undefended).",
    2: "The defense that has held best is to train on attacked images: adversarial training. These sections show how it moves a decision "
    "boundary, that the attack in training has to be a strong one, what robustness costs in accuracy, and that a change along the data's "
    "own manifold, where every image still looks like a digit, is another matter than a change away from it.",
    3: "An attack that fails proves nothing: a better one may succeed. A certificate proves that no change shorter than a radius alters "
    "the prediction. Randomized smoothing gives one for any model: it asks the model about many noisy copies of an image and counts the "
    "votes. These sections show what a radius costs, where it comes from, how training makes it longer, and what lies between the radius "
    "that is proved and the error that an attack finds.",
    4: "Here the attacker does not touch what a model sees, but what it learns from. A poison is a training image that was changed so that "
    "the model trained on it fails: everywhere, on one image, or in what it certifies. To choose it the attacker has to know how training "
    "moves with its data, a problem inside a problem (bilevel). The first section compares ways to differentiate it, the others use them.",
}


@dataclasses.dataclass(frozen=True)
class Report(experiment.Settings):
    """Settings of all sections."""

    part: Literal[1, 2, 3, 4] | None = None
    """One part alone; all by default."""


class Clock:
    """The time that is left: by the last run's seconds of each section, else by the registry's minutes."""

    def __init__(self, path: pathlib.Path, entries: Sequence[registry.Entry]):
        try:
            known = files.read_json(path)
        except (OSError, ValueError):  # none yet, or damaged: these are guesses only
            known = {}
        self._path, self._waiting, self._start = path, [entry.name for entry in entries], time.monotonic()
        self.seconds = {entry.name: 60 * (entry.minutes or 0.5) for entry in entries} | known

    def left(self) -> float:
        """Seconds, of the section that runs and of those after it."""
        now, *later = [self.seconds[name] for name in self._waiting] or [0.0]
        return max(now - (time.monotonic() - self._start), 0.0) + sum(later)

    def ended(self, name: str, seconds: float) -> None:
        """A section took so long; the next one begins."""
        self._waiting.remove(name)
        self._start, self.seconds[name] = time.monotonic(), seconds
        files.write(self._path, json.dumps(self.seconds, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """python -m experiments.tutorial [--part N] [--quick | --full]."""
    options = experiment.parse(Report, "experiments.tutorial", __doc__, arguments)
    experiment.prepare(options.pick(1, 1, None))
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(experiment.Settings)}
    settings = experiment.Settings(**fields)
    chosen = {number: registry.of_part(number) for number in registry.PARTS if options.part in (None, number)}
    entries = [entry for part in chosen.values() for entry in part]
    page, clock = pathlib.Path(options.out) / "index.html", Clock(pathlib.Path(options.out) / "seconds.json", entries)
    made: dict[int, list[report.Section]] = {number: [] for number in chosen}
    with experiment.progress() as bar:
        task = bar.add_task("sections", total=len(entries), left_fn=clock.left)
        for number, part in chosen.items():
            for entry in part:
                section = experiment.section(importlib.import_module(entry.module).run, settings)
                made[number].append(section)
                clock.ended(entry.name, section.seconds)
                bar.advance(task)
                report.page(
                    page, TITLE, INTRODUCTION + (QUICK if settings.quick else ""), [_part(number, chosen, made) for number in chosen]
                )
    experiment.console.print(f"report: {page}")


def _part(number, chosen, made):
    waiting = [entry.about for entry in chosen[number][len(made[number]) :]]
    return report.Part(registry.PARTS[number], INTRODUCTIONS[number], made[number], waiting)


if __name__ == "__main__":
    main()
