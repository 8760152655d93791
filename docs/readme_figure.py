"""Draw docs/images/robustness.svg: run the README's twenty lines, and save their plot so that it reads on white and on black.

    .venv/bin/python docs/readme_figure.py

The curves' numbers go into the picture as its description; tests/test_readme.py runs the same lines and compares.
"""

import contextlib
import json
import pathlib
import re
import tempfile

import matplotlib

matplotlib.use("agg")  # before the README imports pyplot

import matplotlib.pyplot as plt

_ROOT = pathlib.Path(__file__).parent.parent
_GREY = "#808890"  # 3.6:1 on white and 5.3:1 on GitHub's black
_STYLE = {
    "figure.figsize": (5.6, 3.0),
    "svg.fonttype": "none",
    "svg.hashsalt": "robustjax",  # the same names of elements in every run
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=["#d55e00", "#0072b2"]),  # vermilion and blue of Okabe & Ito, as in the report
    "lines.linewidth": 2.5,
    "legend.frameon": False,
    "legend.labelcolor": _GREY,
} | dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], _GREY)


def curves(readme: str) -> dict[str, list[float]]:
    """Run the Python block of the text in a folder of its own; its plot is the current figure, its curves are returned by their labels."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    return {line.get_label(): [round(float(value), 3) for value in line.get_ydata()] for line in plt.gca().get_lines()}


def main() -> None:
    """Write the picture."""
    with plt.rc_context(_STYLE):
        found = curves((_ROOT / "README.md").read_text())
        plt.xlabel("eps, linf")
        plt.ylabel("accuracy under APGD")
        path = _ROOT / "docs/images/robustness.svg"
        plt.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None, "Description": json.dumps(found)})
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))


if __name__ == "__main__":
    main()
