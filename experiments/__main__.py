"""`python -m experiments list`, and `python -m experiments NAME [--options]`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table

from experiments import registry

_CAPTION = "python -m experiments NAME --help says more; python -m experiments.tutorial makes one report of parts 1 to 4"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    name, *options = (sys.argv[1:] if arguments is None else arguments) or ["list"]
    if name in ("list", "-h", "--help"):
        rich.console.Console(width=None if sys.stdout.isatty() else 160).print(table())
    elif name in registry.ENTRIES:
        from experiments.lib import experiment  # and with it JAX, which the list does without

        experiment.main(importlib.import_module(registry.ENTRIES[name].module), name, options)
    else:
        near = difflib.get_close_matches(name, registry.ENTRIES) or ["list"]
        raise SystemExit(f"no experiment is called {name!r}; try python -m experiments {' or '.join(near)}.")


def table() -> rich.table.Table:
    """All experiments."""
    made = rich.table.Table(box=rich.box.SIMPLE, caption=_CAPTION)
    made.add_column("name", no_wrap=True)
    for column in ("what it shows", "tutorial or source", "minutes", "data", "device"):
        made.add_column(column)
    kind = None
    for entry in registry.ENTRIES.values():
        if entry.kind != kind:
            made.add_section()
            made.add_row(f"[bold]{entry.kind}[/bold]")
            kind = entry.kind
        minutes = "" if entry.minutes is None else f"{entry.minutes:g}"
        made.add_row(entry.name, entry.about, entry.source, minutes, entry.data, entry.device)
    return made


if __name__ == "__main__":
    main()
