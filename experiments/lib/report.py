"""Sections of figures and tables, kept as files, and one self-contained HTML page of them."""

import base64
import dataclasses
import html
import io
import json
import pathlib
from collections.abc import Sequence

from experiments.lib import files

_REMEDY = "Delete it, and the experiment runs again."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header, with a caption."""

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """What one experiment shows; the last five fields are filled in by whoever ran it."""

    title: str
    text: str
    items: Sequence[Figure | Table]
    name: str = ""
    command: str = ""
    seed: int = 0
    seconds: float = 0.0
    made: dict = dataclasses.field(default_factory=dict)  # by `pages.made`


def figure(title: str, caption: str, plot) -> Figure:
    """A matplotlib figure as a `Figure`."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    import matplotlib.pyplot as plt

    plt.close(plot)
    return Figure(title, caption, buffer.getvalue())


def write(folder: pathlib.Path, section: Section, about: dict) -> None:
    """Writes a section to section.json and its pictures beside it, the JSON last and at once."""
    items = []
    for index, item in enumerate(section.items):
        entry = {key: value for key, value in dataclasses.asdict(item).items() if key != "png"}
        if isinstance(item, Figure):
            entry["file"] = f"figure{index}.png"
            files.write(folder / entry["file"], item.png)
        items.append(entry)
    content = dataclasses.asdict(dataclasses.replace(section, items=())) | {"items": items, "about": about}
    files.write(folder / "section.json", json.dumps(content, indent=1))


def read(folder: pathlib.Path, about: dict) -> Section | None:
    """The section in a folder if it was made with these settings.

    Raises:
      OSError: a file of it cannot be read. ValueError: it is damaged, or names a figure that is not in the folder.
    """
    path = folder / "section.json"
    if not path.exists():
        return None
    content = files.read_json(path, _REMEDY)
    try:
        if content.pop("about") != about:
            return None
        items = [_kept_figure(folder, **item) if "file" in item else _kept_table(**item) for item in content.pop("items")]
        return _require_kinds(Section(items=items, **content))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no section of a report ({type(error).__name__}: {error}). {_REMEDY}") from error


def page(path: pathlib.Path, title: str, parts: dict[str, Sequence[Section]]) -> None:
    """Writes one HTML page with everything inside, at once."""
    body = []
    for part, sections in parts.items():
        body.append(f"<h2>{html.escape(part)}</h2>")
        body += [_section_html(section) for section in sections]
    files.write(path, _PAGE.format(title=html.escape(title), body="\n".join(body)))


def _kept_figure(folder, *, title, caption, file):
    path = folder / file
    if pathlib.PurePath(file).name != file or path.resolve().parent != folder.resolve():
        raise ValueError(f"{folder / 'section.json'} names the figure {file!r}, which is not in its folder. {_REMEDY}")
    return _require_kinds(Figure(title, caption, files.read(path, _REMEDY)))


def _kept_table(*, title, caption, header, rows):
    if not all(isinstance(row, list) for row in (rows, header, *rows)):
        raise TypeError("a table has a row that is no list")
    return _require_kinds(Table(title, caption, header, rows))


def _require_kinds(made):
    # Whatever is text here becomes text of the page, and so on: a file may have been changed by hand.
    kinds = {"seed": int, "seconds": int | float, "made": dict, "png": bytes, "items": list, "header": list, "rows": list}
    for name, value in vars(made).items():
        if not isinstance(value, kinds.get(name, str)):
            raise TypeError(f"{name} is {value!r}")
    return made


def _section_html(section):
    items = "\n".join(_figure_html(item) if isinstance(item, Figure) else _table_html(item) for item in section.items)
    made = f"<p class=made><code>{html.escape(section.command)}</code> &middot; seed {section.seed} &middot; {section.seconds:.1f} s</p>"
    head = f"<h3>{html.escape(section.title)}</h3><p>{html.escape(section.text)}</p>"
    return f'<section id="{html.escape(section.name)}">{head}{items}{made}</section>'


def _figure_html(item):
    picture = base64.b64encode(item.png).decode()
    return (
        f'<figure><img alt="{html.escape(item.title)}" src="data:image/png;base64,{picture}">'
        f"<figcaption><b>{html.escape(item.title)}.</b> {html.escape(item.caption)}</figcaption></figure>"
    )


def _table_html(item):
    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(row(cells, "td") for cells in item.rows)
    caption = f"<b>{html.escape(item.title)}.</b> {html.escape(item.caption)}"
    return f"<figure><table>{row(item.header, 'th')}{rows}</table><figcaption>{caption}</figcaption></figure>"


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h2 {{ border-bottom: 1px solid #ccc; margin-top: 3rem; }}
img {{ max-width: 100%; }}
figure {{ margin: 1.5rem 0; overflow-x: auto; }}
figcaption {{ font-size: .9rem; color: #555; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
td, th {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
.made {{ font-size: .85rem; color: #777; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
