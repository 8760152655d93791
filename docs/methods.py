"""Write docs/methods.md, the list of all methods, from what docstrings say under `Guarantee:` and `Source:`.

    .venv/bin/python docs/methods.py

The order is that of the API pages. tests/test_docs.py fails if the committed page is not what this writes.
"""

import importlib
import inspect
import pathlib
import re

_DOCS = pathlib.Path(__file__).parent

_OPENING = """<!-- Written by docs/methods.py from the docstrings: change those, and run it again. -->

# Methods

Every function and class of the package that states where it comes from or what its result is worth, family by family, in the order of
the [API](api/index.md). *Guarantee* is what holds whatever the model does. An attack shows that a model is *not* robust and never that it
is; *feasibility* says that its result lies in the threat. A certificate by smoothing is about the smoothed classifier, not about its base;
no certificate covers floating point. What the code does differently from its source is under `Differs` in the API.
"""

# A page of docs/api: the title of the family, its concept, and how-tos.
_FAMILIES = {
    "attacks": ("Attacks", "attacks", {"choose one": "choose_an_attack", "compose": "compose", "write your own": "own_attack"}),
    "threats": ("Threats", "threats", {"make your own": "own_threat"}),
    "losses": ("Losses and goals", "attacks", {}),
    "evaluation": ("Evaluation", "evaluation", {"evaluate a defense": "evaluate_a_defense"}),
    "training": ("Training", "training", {"train": "adversarial_training", "train Flax modules": "flax_models"}),
    "bounds": ("Bounds", "bounds", {}),
    "smoothing": ("Smoothing", "smoothing", {"certify": "certify"}),
    "bilevel": ("Bilevel problems", "bilevel", {"solve one": "bilevel", "come from jaxopt": "from_jaxopt"}),
    "poisoning": ("Poisoning", "poisoning", {"poison a training set": "poisoning"}),
    "core": ("Gradients and speed", "lowering", {"be fast": "speed", "use several devices": "several_devices"}),
}


def page() -> str:
    """The text of docs/methods.md."""
    parts = [_OPENING]
    for name, (title, concept, how_tos) in _FAMILIES.items():
        how_to = ", ".join(f"[{what}](how_to/{path}.md)" for what, path in how_tos.items())
        reading = [f"[Concept](concepts/{concept}.md)", *([f"how to {how_to}"] if how_to else []), f"[API](api/{name}.md)"]
        parts.append(f"## {title}\n\n{'; '.join(reading)}.\n")
        for heading, entries in _sections((_DOCS / "api" / f"{name}.md").read_text()):
            if rows := [row for entry in entries if (row := _row(entry))]:
                parts.append(f"### {heading}\n" if heading else "")
                parts.append("| Function | What it does | Guarantee | Source |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(part for part in parts if part)


def _sections(text):
    """(heading or None, documented names) of an API page; a heading that is the name of a module says nothing here."""
    heading, entries = None, []
    for line in text.splitlines():
        if line.startswith("## "):
            yield heading, entries
            heading, entries = line.removeprefix("## "), []
        elif match := re.match(r"\.\. auto(?:function|class):: robustjax\.(\S+)", line):
            entries.append(match.group(1))
    yield heading, entries


def _row(entry):
    module, _, name = entry.rpartition(".")
    doc = inspect.getdoc(getattr(importlib.import_module(f"robustjax.{module}"), name))
    guarantee, source = (_field(doc, field) for field in ("Guarantee", "Source"))
    if guarantee is None and source is None:
        return None
    finds = _plain(doc.splitlines()[0])
    return f"| `{entry}` | {finds} | {_plain(guarantee or '')} | {_linked(_plain((source or '').partition(' Differs:')[0]))} |"


def _field(doc, name):
    match = re.search(rf"^{name}:(.*(?:\n +.*)*)", doc, re.MULTILINE)
    return " ".join(match.group(1).split()) if match else None


def _plain(text):
    """Docstrings are plain text with `code`: what Markdown would read as markup of its own is escaped outside code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\[]|(?<!\w)_|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", r"\|")


def _linked(source):
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"(?<!/)openreview\.net/\S*\w", r"[OpenReview](https://\g<0>)", source)


if __name__ == "__main__":
    (_DOCS / "methods.md").write_text(page())
