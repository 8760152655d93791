"""Sphinx: the pages in Markdown (myst-nb), the API from docstrings (autodoc, napoleon)."""

import inspect
import pathlib
import re

project = "robustjax"
author = "the robustjax authors"
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "robustjax"

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(pathlib.Path(__file__).parent / "_build/.jupyter_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # shapes are in the docstrings
autodoc_class_signature = "mixed"
add_module_names = False
smartquotes = False
napoleon_use_param = False  # keeps "key, model_fn, x, y: as for pgd" in one line
napoleon_attr_annotations = False
napoleon_custom_sections = ["Guarantee", "Source"]

_FIELD = re.compile(r"^    (\w+): .*?#\s*(.*)$")


def _markup(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`; reStructuredText would read |x|_p, num_* and `code` as markup of its own."""
    del app, name, options
    text = []
    for line in lines:
        if line.startswith("Source:"):  # written on one line, continued by an indented one: a section for napoleon
            text += ["", "Source:", "    " + line.removeprefix("Source:").strip()]
        elif text and "Source:" in text and line.startswith("  "):
            text.append("    " + line.strip())
        else:
            text.append(line)
    if what == "class" and hasattr(obj, "_fields"):
        text += _fields(obj)
    lines[:] = [_escaped(line) for line in text]


def _escaped(line):
    if line.lstrip().startswith(">>>"):
        return line
    bullet = re.match(r"\s*\* ", line)
    if bullet:
        return bullet.group() + _escaped(line[bullet.end() :])
    parts = line.split("`")
    plain = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    merged = [part for pair in zip(plain, [*(f"``{code}``" for code in parts[1::2]), ""], strict=False) for part in pair]
    return "".join(merged)


def _fields(cls):
    # The shape comment behind each field of a NamedTuple.
    comments = dict(match.groups() for match in map(_FIELD.match, inspect.getsource(cls).splitlines()) if match)
    return ["", "Attributes:", *(f"    {field}: {comments.get(field, '')}" for field in cls._fields)]


def _skip(app, what, name, obj, skip, options):
    """Fields of a NamedTuple are listed with their class."""
    del app, what, options
    return skip or type(obj).__name__ == "_tuplegetter"


def setup(app):
    app.connect("autodoc-process-docstring", _markup, priority=1)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
