"""The benchmark of training runs, and its bars are ratios to the gradients of the same round."""

import numpy as np
import pytest

from experiments.benchmarks import training
from experiments.lib import bench, experiment

pytestmark = pytest.mark.filterwarnings("ignore")


def cells(page, heading):
    lines = page.read_text().splitlines()
    start = next(row for row, line in enumerate(lines) if line.startswith(heading)) + 2
    table = lines[start : lines.index("", start) if "" in lines[start:] else None]
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in table)}


def test_it_runs_and_compiles_a_run_once(tmp_path):
    page = tmp_path / "page.md"
    arguments = ["--quick", "--out", str(tmp_path), "--page", str(page)]
    experiment.main(training, "benchmark_training", arguments)
    assert (
        f"\n    python -m experiments benchmark_training --out {tmp_path} --quick --page {page} --rounds 1 --batch-size 4\n"
        in page.read_text()
    )
    rows = cells(page, "| row |")
    assert list(rows) == ["input gradient", "parameter gradient", "PGD-7 step", "free-8 step"]
    assert all(float(value) > 0 for row in rows.values() for value in row)
    assert cells(page, "| gate |")["compilations of a run of three epochs with a ramp of eps"] == ["1", "<= 1", "met"]


def test_bars_are_the_medians_of_ratios_within_a_round(tmp_path, monkeypatch):
    cpu = {"input gradient": [1, 2, 1], "parameter gradient": [2, 4, 2], "PGD-7 step": [9, 19.8, 18], "free-8 step": [17.6, 38.4, 19.2]}
    times = {name: bench.Times(wall=np.full(3, 7e-3), cpu=1e-3 * np.array(values)) for name, values in cpu.items()}
    monkeypatch.setattr(bench, "measure", lambda runs, num_rounds: {name: times[name] for name in runs})
    monkeypatch.setattr(training, "count_compilations", lambda digits: 2)
    page = tmp_path / "page.md"
    experiment.main(training, "benchmark_training", ["--batch-size", "4", "--out", str(tmp_path), "--page", str(page)])
    assert cells(page, "| row |")["free-8 step"] == ["7.0", "19.2"]
    bars = cells(page, "| gate |")
    assert bars["PGD-7 step to 7 input gradients and one parameter gradient"] == ["1.1", "<= 1.15", "met"]
    assert bars["free-8 step to 8 parameter gradients"] == ["1.2", "<= 1.1", "MISSED"]
    assert bars["compilations of a run of three epochs with a ramp of eps"] == ["2", "<= 1", "MISSED"]
