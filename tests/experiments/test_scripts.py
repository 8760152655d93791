"""Every experiment runs for a few steps and fills its page; a finished one is kept."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import matplotlib
import pytest

from experiments import tutorial
from experiments.lib import experiment, report

matplotlib.use("agg")
ROOT = pathlib.Path(__file__).parents[2]
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


def test_the_command_line_of_an_experiment_writes_what_made_it(tmp_path):
    command = [sys.executable, "-m", "experiments.why_adversarial_examples", "--quick", "--seed", "3", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"MPLBACKEND": "agg"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    about = json.loads((tmp_path / "why_adversarial_examples" / "section.json").read_text())["about"]
    assert about["seed"] == 3 and about["dataset"] == "digits"
