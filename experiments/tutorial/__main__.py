"""The tutorial report: every table and figure, part by part, on one page that grows while it runs."""

import dataclasses
import importlib
import pathlib
from collections.abc import Sequence
from typing import Literal

from experiments import registry
from experiments.lib import experiment, report

TITLE = "Why are machine learning models vulnerable to attacks?"


@dataclasses.dataclass(frozen=True)
class Report(experiment.Settings):
    """Settings of all sections."""

    part: Literal[1, 2, 3, 4] | None = None
    """One part alone; all by default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """python -m experiments.tutorial [--part N]."""
    options = experiment.parse(Report, "experiments.tutorial", __doc__, arguments)
    settings = experiment.Settings(dataset=options.dataset, seed=options.seed, out=options.out, quick=options.quick)
    page = pathlib.Path(options.out) / "index.html"
    sections: dict[str, list[report.Section]] = {}
    for number, title in registry.PARTS.items():
        if options.part in (None, number):
            sections[title] = []
            for entry in registry.of_part(number):
                sections[title].append(experiment.section(importlib.import_module(entry.module).run, settings))
                report.page(page, TITLE, sections)
    experiment.console.print(f"report: {page}")


if __name__ == "__main__":
    main()
