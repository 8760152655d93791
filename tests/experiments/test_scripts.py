"""Every experiment runs for a few steps and fills its page; a finished one is kept."""

import importlib
import json

import matplotlib
import pytest

from experiments import tutorial
from experiments.lib import experiment, report

matplotlib.use("agg")
SCRIPTS = [script for _, scripts in tutorial.PARTS.values() for script in scripts]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return experiment.Settings(out=str(tmp_path_factory.mktemp("tutorial")), quick=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.xdist_group("tutorial")  # they share two trained models
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.rpartition(".")[2])
def test_experiment_runs_and_is_kept(script, settings, tmp_path):
    made = experiment.section(script.run, settings)
    assert made.items and made.command.startswith("python -m experiments.") and made.seconds > 0
    assert experiment.section(script.run, settings) == made
    report.page(tmp_path / "index.html", "t", {"part": [made]})
    assert (tmp_path / "index.html").stat().st_size > 2_000


@pytest.mark.parametrize("name", ["parity_autoattack", "benchmarks.attacks"])
def test_comparisons_with_peers_import_without_them(name):
    importlib.import_module(f"experiments.{name}")


def test_section_files_hold_what_made_them(tmp_path):
    settings = experiment.Settings(out=str(tmp_path), quick=True, seed=3)
    experiment.section(SCRIPTS[0].run, settings)
    about = json.loads((tmp_path / "why_adversarial_examples" / "section.json").read_text())["about"]
    assert about["seed"] == 3 and about["dataset"] == "digits"
