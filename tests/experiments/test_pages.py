"""Pages of results: every committed page is what its data say, a run replaces its own section, gates say met or missed."""

import json
import pathlib

import numpy as np
import pytest

from experiments import registry
from experiments.lib import experiment, gates, pages, report

PAGES = sorted((pathlib.Path(__file__).parents[2] / "docs/results").glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_committed_page_is_what_its_data_say(path):
    content = pages.read(path)
    assert pages.render(content) == path.read_text()
    for section in content["sections"]:
        words = section["made"]["command"].removeprefix("ROBUSTJAX_DATA=DIR ").removeprefix("taskset -c 0 ").split()
        assert words[:3] == ["python", "-m", "experiments"] and words[3] in registry.ENTRIES
        for gate in (gate for block in section["blocks"] for gate in block.get("gates", [])):
            fields = {name: value for name, value in gate.items() if name != "met"}
            assert gates.Gate(**fields).met == gate["met"]


def test_there_is_no_page_without_data_and_no_data_without_a_page():
    assert len(PAGES) > 10 and {path.stem for path in PAGES} == {path.stem for path in PAGES[0].parent.glob("*.json")}


def section(title, word, **more):
    return pages.section(title, [pages.text(word)], {"command": f"python -m x {word}"}, **more)


def test_a_run_replaces_its_own_section_and_leaves_those_of_others(tmp_path):
    path, page = tmp_path / "results" / "page.md", pages.Page("Head", "About it.", ("Gaussian", "MACER"))
    for title, word in (("new", "own"), ("MACER", "first"), ("Gaussian", "noise"), ("MACER", "second")):
        pages.replace(path, page, section(title, word))
    assert path.read_text() == (
        "# Head\n\nAbout it.\n\n## Gaussian\n\nnoise\n\n    python -m x noise\n\n## MACER\n\nsecond\n\n    python -m x second\n\n"
        "## new\n\nown\n\n    python -m x own\n"
    )
    content = json.loads(path.with_suffix(".json").read_text())
    assert [part["title"] for part in content["sections"]] == ["Gaussian", "MACER", "new"] and pages.render(content) == path.read_text()


def test_data_hold_what_the_page_does_not_show(tmp_path):
    path = tmp_path / "page.md"
    made = pages.made("python -m x", 0.0, ["numpy"], seeds=[3, 4])
    found = [gates.over_seeds("accuracy", np.float32([0.125, 0.5]), low=0.3, digits=".1f")]
    blocks = [pages.table(["a", "b"], [["1", "2"]], "T", "about it"), pages.gates_of(found)]
    pages.replace(path, pages.Page("P"), pages.section("", blocks, made, {"fooled": np.array([True, False, True])}))
    (kept,) = pages.read(path)["sections"]
    assert kept["flags"] == {"fooled": "101"} and kept["made"]["seeds"] == [3, 4] and kept["made"]["versions"]["numpy"] == np.__version__
    assert kept["blocks"][1]["gates"][0] | {"values": None} == {
        "what": "accuracy", "value": 0.3125, "low": 0.3, "high": None, "values": None, "digits": ".1f", "met": True,
    }  # fmt: skip
    text = path.read_text()
    assert "## T\n\nabout it\n\n| a | b |\n| --- | --- |\n| 1 | 2 |" in text and "| accuracy | 0.3 | 0.1, 0.5 | >= 0.3 | met |" in text
    assert f"Made: {made['date']}; " in text and f"load average {made['load']:g}" in text


@pytest.mark.parametrize(
    "gate, bound, verdict",
    [
        (gates.Gate("w", 1.0, low=1.0), ">= 1", "met"),
        (gates.Gate("w", 1.0, high=0.5), "<= 0.5", "MISSED"),
        (gates.Gate("w", 0.95, 0.9, 1.1), "0.9 to 1.1", "met"),
        (gates.Gate("w", 0.8, 0.9, 1.1), "0.9 to 1.1", "MISSED"),
        (gates.Gate("w", float("nan"), high=1.0), "<= 1", "MISSED"),
        (gates.Gate("w", 7.0), "", ""),
    ],
)
def test_a_gate_says_whether_its_bound_is_kept(gate, bound, verdict):
    header, ((*_, wanted, told),) = gates.table([gate])
    assert (wanted, told) == (bound, verdict) and header == ["gate", "measured", "bound", ""]


@pytest.mark.parametrize(
    "content, words",
    [(None, "there without its data"), ("{", "not whole JSON"), ("[]", "no data of a page"), ('{"title": "t"}', "no data of a page")],
)
def test_a_page_that_is_none_is_refused_before_anything_is_computed(content, words, tmp_path, capsys):
    (tmp_path / "page.md").write_text("# by hand\n")
    if content is not None:
        (tmp_path / "page.json").write_text(content)
    with pytest.raises(ValueError, match=f"{words}.*Choose another file, or delete it"):
        pages.read(tmp_path / "page.md")
    with pytest.raises(SystemExit):
        experiment.parse(experiment.Settings, "x", None, ["--page", str(tmp_path / "page.md"), "--out", str(tmp_path)])
    assert "Choose another file" in capsys.readouterr().err


def test_the_tables_of_a_section_become_a_page(tmp_path, monkeypatch):
    def run(settings: experiment.Settings) -> report.Section:
        return report.Section(
            "Title", "What it shows.", [report.Figure("F", "c", "a line", b"\x89PNG", b"\x89PNG"), report.Table("T", "c", ["a"], [["1"]])]
        )

    run.__module__ = "experiments.tutorial.part1.margins"
    monkeypatch.setattr(experiment, "prepare", lambda *_: None)
    script = type("Script", (), {"run": staticmethod(run), "__doc__": "Script."})
    for _ in range(2):  # made, then kept
        experiment.main(script, "margins", ["--out", str(tmp_path), "--seed", "2", "--page", str(tmp_path / "page.md")])
        text = (tmp_path / "page.md").read_text()
        assert text.startswith("# Title\n\nWhat it shows.\n\n## T\n\nc\n\n| a |\n")
        assert f"    python -m experiments margins --out {tmp_path} --page {tmp_path / 'page.md'} --seed 2\n\nMade: 20" in text
