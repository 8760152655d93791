"""Every experiment runs for a few steps and fills its page; a finished one is kept."""

import importlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import types

import matplotlib
import pytest
import tyro

from experiments import __main__ as command_line
from experiments import registry
from experiments.lib import experiment, report
from tests.experiments import browser

matplotlib.use("agg")
ROOT = pathlib.Path(__file__).parents[2]
SECTIONS = [entry for number in registry.PARTS for entry in registry.of_part(number)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return experiment.Settings(out=str(tmp_path_factory.mktemp("tutorial")), quick=True)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.CHROMIUM is None:
        yield None
        return
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore")
@pytest.mark.xdist_group("tutorial")  # they share two trained models
@pytest.mark.parametrize("entry", SECTIONS, ids=lambda entry: entry.name)
def test_experiment_runs_and_is_kept(entry, settings, chromium, tmp_path):
    script = importlib.import_module(entry.module)
    made = experiment.section(script.run, settings)
    assert made.items and made.command == f"python -m experiments {entry.name} --quick" and made.seconds > 0
    assert experiment.section(script.run, settings) == made
    figures = [item for item in made.items if isinstance(item, report.Figure)]
    assert all(len(figure.alt) > 40 and figure.alt not in (figure.title, figure.caption) for figure in figures)
    assert bool(made.more) == bool(made.full_command) and made.full_command in ("", f"python -m experiments {entry.name} --full")
    report.page(tmp_path / "index.html", "t", "i", [report.Part("part", "words", [made])])
    if chromium is not None:
        found = chromium.look(tmp_path / "index.html", 390)
        assert not found["errors"] and not found["broken"] and found["overflow"] <= 0 and len(found["images"]) == len(figures)


def test_the_registry_names_every_script_and_nothing_else():
    folders = [*(f"tutorial/part{number}" for number in registry.PARTS), "reproductions", "benchmarks"]
    scripts = {path for folder in folders for path in (ROOT / "experiments" / folder).glob("*.py") if path.name != "__init__.py"}
    named = [ROOT / f"{entry.module.replace('.', '/')}.py" for entry in registry.ENTRIES.values()]
    assert set(named) == scripts and len(named) == len(scripts)
    assert all(entry.name == name and entry.about and entry.source and entry.data for name, entry in registry.ENTRIES.items())


@pytest.mark.parametrize("name", registry.ENTRIES)
def test_every_script_has_a_help_page_and_needs_no_peer_for_it(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main([name, "--help"])
    assert not ended.value.code and f"python -m experiments {name}" in capsys.readouterr().out


def test_the_list_reads_no_script():
    code = "import sys; from experiments import __main__ as line; line.main([]); assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "250"}
    )
    assert all(name in done.stdout for name in registry.ENTRIES)


def test_an_unknown_name_is_told_its_neighbour():
    with pytest.raises(SystemExit, match="no experiment is called 'margin'; try python -m experiments margins"):
        command_line.main(["margin"])


def test_a_command_gives_its_settings_again():
    settings = experiment.Settings(dataset="mnist", seed=3, quick=True, out="a folder")
    words = shlex.split(experiment.command("margins", settings))
    assert words[:4] == ["python", "-m", "experiments", "margins"]
    assert tyro.cli(experiment.Settings, args=words[4:]) == settings


def test_the_command_line_of_an_experiment_writes_what_made_it(tmp_path):
    command = [sys.executable, "-m", "experiments", "why_adversarial_examples", "--quick", "--seed", "3", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"MPLBACKEND": "agg"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    about = json.loads((tmp_path / "why_adversarial_examples" / "section.json").read_text())["about"]
    assert about["seed"] == 3 and about["dataset"] == "digits"


def test_the_script_that_contributing_shows_runs_and_keeps_its_gate(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## A new experiment")[2]
    script = types.ModuleType("linear_margin")
    monkeypatch.setitem(sys.modules, "linear_margin", script)  # where its settings find their types
    exec(compile(text.split("```python\n")[1].split("```")[0], "CONTRIBUTING.md", "exec"), script.__dict__)
    monkeypatch.setitem(registry.ENTRIES, "linear_margin", registry.ENTRIES["synthetic_bilevel"])
    page = tmp_path / "page.md"
    experiment.main(script, "linear_margin", ["--quick", "--out", str(tmp_path), "--page", str(page)])
    assert "| found to closed form, median | 1." in page.read_text() and page.read_text().count("| met |") == 1
