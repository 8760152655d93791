"""Sections of figures and tables, kept as files, and one self-contained HTML page of them."""

import base64
import dataclasses
import html
import io
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.lib import files

_WIDE = 6.5  # inches of a figure that a phone must not shrink
_REMEDY = "Delete it, and the experiment runs again."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    title: str
    caption: str
    alt: str  # what it shows, for who does not see it
    png: bytes
    dark: bytes  # the same for a dark page
    is_wide: bool = False  # too wide to be shrunk to a phone's width


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header, with a caption."""

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """What one experiment shows; the fields after `more` are filled in by whoever ran it."""

    title: str
    text: str
    items: Sequence[Figure | Table]
    slide: str = ""  # the title of the tutorial's, where it is known
    more: str = ""  # what the full settings add
    name: str = ""
    command: str = ""
    seed: int = 0
    seconds: float = 0.0
    full_command: str = ""  # empty where there is no more
    full_minutes: float = 0.0  # on two CPU cores, by itself; 0 where nobody measured it
    made: dict = dataclasses.field(default_factory=dict)  # by `pages.made`


class Part(NamedTuple):
    """Sections under one heading."""

    title: str
    introduction: str
    sections: Sequence[Section]
    waiting: Sequence[str] = ()  # names of those that are still to come


def figure(title: str, caption: str, plot, alt: str) -> Figure:
    """A matplotlib figure as a `Figure`, on white and on black."""
    import matplotlib.pyplot as plt

    from experiments.lib import style

    light, is_wide = _png(plot), bool(plot.get_figwidth() > _WIDE)
    plot.set_layout_engine("none")  # where everything is, it stays
    style.darken(plot)
    dark = _png(plot)
    plt.close(plot)
    return Figure(title, caption, alt, light, dark, is_wide)


def _png(plot):
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def write(folder: pathlib.Path, section: Section, about: dict) -> None:
    """Writes a section to section.json and its pictures beside it, the JSON last and at once."""
    items = []
    for index, item in enumerate(section.items):
        entry = {key: value for key, value in dataclasses.asdict(item).items() if key not in ("png", "dark")}
        if isinstance(item, Figure):
            entry["file"] = f"figure{index}.png"
            files.write(folder / entry["file"], item.png)
            files.write(folder / _dark_file(entry["file"]), item.dark)
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


def page(path: pathlib.Path, title: str, introduction: str, parts: Sequence[Part]) -> None:
    """Writes one HTML page with everything inside, at once."""
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>", _contents_html(parts)]
    for number, part in enumerate(parts):
        body.append(f'<h2 id="part-{number}">{html.escape(part.title)}</h2><p>{html.escape(part.introduction)}</p>')
        body += [_section_html(section, part) for section in part.sections]
    files.write(path, _PAGE.format(title=html.escape(title), body="\n".join(body)))


def _kept_figure(folder, *, title, caption, alt, is_wide, file):
    path = folder / file
    if pathlib.PurePath(file).name != file or path.resolve().parent != folder.resolve():
        raise ValueError(f"{folder / 'section.json'} names the figure {file!r}, which is not in its folder. {_REMEDY}")
    light, dark = (files.read(folder / name, _REMEDY) for name in (file, _dark_file(file)))
    return _require_kinds(Figure(title, caption, alt, light, dark, is_wide))


def _dark_file(file):
    return pathlib.PurePath(file).stem + "-dark.png"


def _kept_table(*, title, caption, header, rows):
    if not all(isinstance(row, list) for row in (rows, header, *rows)):
        raise TypeError("a table has a row that is no list")
    return _require_kinds(Table(title, caption, header, rows))


def _require_kinds(made):
    # Whatever is text here becomes text of the page, and so on: a file may have been changed by hand.
    kinds = {"seed": int, "seconds": int | float, "full_minutes": int | float, "made": dict}
    kinds |= {"is_wide": bool, "png": bytes, "dark": bytes, "items": list, "header": list, "rows": list}
    for name, value in vars(made).items():
        if not isinstance(value, kinds.get(name, str)):
            raise TypeError(f"{name} is {value!r}")
    return made


def _contents_html(parts):
    lines = []
    for number, part in enumerate(parts):
        done = [f'<li><a href="#{html.escape(section.name)}">{html.escape(section.title)}</a></li>' for section in part.sections]
        waiting = [f"<li class=waiting>{html.escape(name)} (to come)</li>" for name in part.waiting]
        lines.append(f'<li><a href="#part-{number}">{html.escape(part.title)}</a><ol>{"".join(done + waiting)}</ol></li>')
    return f"<nav aria-labelledby=contents><h2 id=contents>Contents</h2><ul>{''.join(lines)}</ul></nav>"


def _section_html(section, part):
    slide = f"slide &ldquo;{html.escape(section.slide)}&rdquo;" if section.slide else html.escape(part.title)
    items = "\n".join(_figure_html(item, slide) if isinstance(item, Figure) else _table_html(item, slide) for item in section.items)
    made = f"<p class=made><code>{html.escape(section.command)}</code> &middot; seed {section.seed} &middot; {section.seconds:.1f} s</p>"
    head = f"<h3>{html.escape(section.title)}</h3><p>{html.escape(section.text)}</p>"
    return f'<section id="{html.escape(section.name)}">{head}{items}{_more_html(section)}{made}</section>'


def _more_html(section):
    if not section.full_command:
        return ""
    minutes = f", about {max(section.full_minutes, 0.1):.2g} min on two cores" if section.full_minutes else ""
    return f"<p class=more>With more: {html.escape(section.more)} <code>{html.escape(section.full_command)}</code>{minutes}</p>"


def _figure_html(item, slide):
    light, dark = (f"data:image/png;base64,{base64.b64encode(content).decode()}" for content in (item.png, item.dark))
    wide = " class=wide" if item.is_wide else ""
    return (
        f'<figure><div class=box tabindex=0><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img{wide} alt="{html.escape(item.alt)}" src="{light}"></picture></div>{_caption_html(item, slide)}</figure>'
    )


def _table_html(item, slide):
    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = "".join(f"<th scope=col>{html.escape(cell).replace('-', '&#8209;')}</th>" for cell in item.header)  # no line ends in PGD-
    rows = "".join(row(cells, "td") for cells in item.rows)
    box = f"<div class=box tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return f"<figure>{box}{_caption_html(item, slide)}</figure>"


def _caption_html(item, slide):
    return (
        f"<figcaption><b>{html.escape(item.title)}.</b> {html.escape(item.caption)} <span class=slide>Tutorial: {slide}</span></figcaption>"
    )


# A wide figure keeps a width at which its text can be read; on a phone its box scrolls, as that of a table does.
_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark"><link rel=icon href="data:,"><title>{title}</title>
<style>
:root {{ --ink: #1f2328; --paper: #fff; --pale: #5b636d; --line: #d4d8dd; --link: #0b5cad; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e2e5e9; --paper: #14171b; --pale: #a3abb5; --line: #363c44; --link: #7ab8f5; }} }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: var(--ink); background: var(--paper);
  overflow-wrap: break-word; }}
h1 {{ font-size: 1.8rem; line-height: 1.25; }}
h2 {{ border-bottom: 1px solid var(--line); margin-top: 3.5rem; line-height: 1.3; }}
h3 {{ margin-top: 2.5rem; }}
p, figcaption, nav {{ max-width: 46rem; }}
a {{ color: var(--link); }}
nav h2 {{ border: 0; margin: 2rem 0 0; font-size: 1.1rem; }}
nav ul {{ padding-left: 0; list-style: none; }}
nav > ul > li {{ margin: .6rem 0; }}
.waiting, figcaption, .made, .more {{ color: var(--pale); }}
img {{ max-width: 100%; height: auto; display: block; }}
figure {{ margin: 1.5rem 0; }}
.box {{ overflow-x: auto; }}
@media (max-width: 40rem) {{ img.wide {{ max-width: none; width: 44rem; }} }}
figcaption {{ font-size: .9rem; margin-top: .4rem; }}
.slide {{ white-space: normal; font-style: italic; }}
table {{ border-collapse: collapse; font-size: .88rem; }}
td, th {{ padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--paper); }}
.made, .more {{ font-size: .88rem; }}
code {{ font-size: .95em; }}
</style>
<main>
{body}
</main>
</html>
"""
