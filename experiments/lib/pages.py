"""Pages of results: data in NAME.json, and NAME.md written from it; a run replaces its own section and leaves those of others.

The data of a page are {title, head, sections}, those of a section {title, blocks, made, flags}. A block is {text}, {header, rows} with a
title and a caption or without, or {gates}; `made` says by which command, where and when; `flags` are outcomes by example, not shown.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lib import files, gates

_WIDTH = 140  # of lines
_REMEDY = "Choose another file, or delete it."
Block = dict[str, Any]


class Page(NamedTuple):
    """What stands above all sections, and titles of sections that come first, in this order."""

    title: str
    head: str = ""
    order: tuple[str, ...] = ()


def text(paragraphs: str) -> Block:
    """Paragraphs in Markdown; long lines are broken."""
    parts = paragraphs.strip("\n").split("\n\n")
    return {"text": "\n\n".join(part if "\n" in part else textwrap.fill(part, _WIDTH) for part in parts)}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", caption: str = "") -> Block:
    """A table, with a heading and a caption or without."""
    named = {"title": title, "caption": textwrap.fill(caption, _WIDTH)} if title else {}
    return named | {"header": list(header), "rows": [list(row) for row in rows]}


def gates_of(made: Iterable[gates.Gate]) -> Block:
    """Gates with their verdicts."""
    return {"gates": [gate._asdict() | {"met": gate.met} for gate in made]}


def made(command: str, start: float, packages: Sequence[str] = (), seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Where and when a section was made, which began at `start` by `time.perf_counter`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "load": round(os.getloadavg()[2], 2),  # of the last quarter of an hour
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", *packages)},
        "seeds": list(seeds),
        "seconds": round(time.perf_counter() - start, 1),
    }


def section(title: str, blocks: Sequence[Block], about: dict[str, Any], flags: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """The data of a section: its blocks, by what it was made, and outcomes by example as digits 0 and 1."""
    told = {name: "".join(str(int(flag)) for flag in np.ravel(part)) for name, part in (flags or {}).items()}
    return files.plain({"title": title, "blocks": list(blocks), "made": about} | ({"flags": told} if told else {}))


def replace(path: pathlib.Path, page: Page, new: dict[str, Any]) -> None:
    """Writes a section, data first and the page from them; sections with other titles stay as other runs left them.

    Raises:
      OSError: a file cannot be read or written. ValueError: there is a page without its data, or what is beside it are no data of a page.
    """
    known = read(path)
    sections = {section["title"]: section for section in (known["sections"] if known else [])} | {new["title"]: new}
    titles = [*(name for name in page.order if name in sections), *(name for name in sections if name not in page.order)]
    content = {"title": page.title, "head": page.head.strip("\n"), "sections": [sections[name] for name in titles]}
    files.write(path.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    files.write(path, render(content))


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """The data of a page, None if there is no page yet.

    Raises:
      OSError: a file cannot be read. ValueError: there is a page without its data, or what is beside it are no data of a page.
    """
    beside = path.with_suffix(".json")
    if path.suffix != ".md":
        raise ValueError(f"{path} is not called NAME.md, as a page of results is. Choose another name.")
    if not beside.exists():
        if path.exists():
            raise ValueError(f"{path} is there without its data, {beside.name}. {_REMEDY}")
        return None
    content = files.read_json(beside, _REMEDY)
    try:
        render(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} holds no data of a page ({type(error).__name__}: {error}). {_REMEDY}") from error
    return content


def render(content: dict[str, Any]) -> str:
    """The page of its data, in Markdown."""
    return "\n\n".join(filter(None, [f"# {content['title']}", content["head"], *map(render_section, content["sections"])])) + "\n"


def render_section(section: dict[str, Any]) -> str:
    """A section of it."""
    parts = [part for block in section["blocks"] for part in _block(block)]
    return "\n\n".join(filter(None, [f"## {section['title']}" if section["title"] else "", *parts, *_about(section["made"])]))


def _block(block):
    if "text" in block:
        return [block["text"]]
    if "gates" in block:
        return [_table(*gates.table(_gate(**gate) for gate in block["gates"]))]
    return [f"## {block['title']}" if "title" in block else "", block.get("caption", ""), _table(block["header"], block["rows"])]


def _gate(*, met, **fields):
    del met  # it follows from the others, and is kept for who reads the data
    return gates.Gate(**fields)


def _about(made):
    shown = [
        made.get("date"),
        made.get("device"),
        f"{made['cores']} cores" if "cores" in made else None,
        f"load average {made['load']:g}" if "load" in made else None,
        ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
        f"{made['seconds']:.0f} s" if "seconds" in made else None,
    ]
    told = "; ".join(part for part in shown if part)
    return [f"    {made['command']}", textwrap.fill(f"Made: {told}.", _WIDTH) if told else ""]


def _table(header, rows):
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
