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
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(pathlib.Path(__file__).parent / "_build/.jupyter_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"

nitpicky = True  # a reference to nothing is a warning, and an error with -W
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
_ENTRY = re.compile(r"^\.\. (?:autofunction|autoclass|automodule|py:data):: (\S+)", re.MULTILINE)
_ENTRIES = {entry for page in (pathlib.Path(__file__).parent / "api").glob("*.md") for entry in _ENTRY.findall(page.read_text())}


def _markup(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`; reStructuredText would read |x|_p, num_* and `code` as markup of its own.

    Code that names an entry of the API pages, as in "as for `natural`", becomes a reference to it.
    """
    del app, options
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
    own = {name.rpartition(".")[2], *_parameters(obj)}
    marked, is_example = [], False
    for line in text:
        is_example = line.lstrip().startswith(">>>") or (is_example and bool(line.strip()))  # with what it shows, to an empty line
        marked.append(line if is_example else _escaped(line, name, own))
    lines[:] = marked


def _escaped(line, place, own):
    bullet = re.match(r"\s*\* ", line)
    if bullet:
        return bullet.group() + _escaped(line[bullet.end() :], place, own)
    parts = line.split("`")
    plain = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    coded = [f"``{code}``" if code in own else _reference(code, place) for code in parts[1::2]]
    return "".join(part for pair in zip(plain, [*coded, ""], strict=False) for part in pair)


def _reference(code, place):
    """A reference to what the code names where it stands: in the same module, in its package, or in the library."""
    packages = place.split(".")
    for depth in range(len(packages), 0, -1):
        entry = ".".join([*packages[:depth], code])
        if entry in _ENTRIES:
            return f":py:obj:`{code} <{entry}>`"
    return f"``{code}``"


def _parameters(obj):
    try:
        return inspect.signature(obj).parameters
    except (TypeError, ValueError):
        return ()


def _fields(cls):
    # The shape comment behind each field of a NamedTuple.
    comments = dict(match.groups() for match in map(_FIELD.match, inspect.getsource(cls).splitlines()) if match)
    return ["", "Attributes:", *(f"    {field}: {comments.get(field, '')}" for field in cls._fields)]


def _skip(app, what, name, obj, skip, options):
    """Fields of a NamedTuple are listed with their class."""
    del app, what, options
    return skip or type(obj).__name__ == "_tuplegetter"


def _link(app, doctree):
    """Code in a page that names an entry of the API pages, as `attacks.pgd` does, becomes a reference to it."""
    from docutils import nodes  # here: a test reads this file where there is no Sphinx
    from sphinx import addnodes

    for literal in list(doctree.findall(nodes.literal)):
        entry = f"robustjax.{literal.astext()}"
        if entry in _ENTRIES and not isinstance(literal.parent, nodes.reference | nodes.title | addnodes.pending_xref):
            reference = addnodes.pending_xref(
                "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=entry, refdoc=app.env.docname, refwarn=True
            )
            literal.replace_self(reference)


def setup(app):
    app.connect("doctree-read", _link)
    app.connect("autodoc-process-docstring", _markup, priority=1)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
