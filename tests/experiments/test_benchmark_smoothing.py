"""The benchmark of certification runs, names the best rows of each network, and judges them by the right kind of time."""

import numpy as np
import pytest

from experiments.benchmarks import smoothing
from experiments.lib import bench


def test_the_benchmark_fills_its_page(tmp_path, monkeypatch):
    load = smoothing.Load("cpu", 0.85, 500, (50, 100), ((1, 50),), ((2, 50),), 2, 100)
    monkeypatch.setattr(smoothing, "CPU", load)
    page = tmp_path / "page.md"
    smoothing.main(["--rounds", "1", "--out", str(page), "--torch-threads"])
    text = page.read_text()
    for row in (
        "forward, batch 50",
        "count_predictions, 1 images, chunks of 50",
        "smoothing.sample, 2 images, chunks of 50",
        "noise alone",
    ):
        assert f"| {row}" in text
    assert (
        text.count(">= 0.85") == 2 and "| compilations after the first, over sigmas, seeds, a shorter tail and a resumption | 0 |" in text
    )


def test_each_network_is_judged_by_its_own_best_rows_and_kind_of_time():
    def times(wall):
        return bench.Times(np.full(3, wall), np.full(3, 7.0))

    rows = {"a, forward, batch 1": times(3.0), "a, forward, batch 2": times(2.0), "b, forward, batch 1": times(1.0)}
    rows |= {f"{name}, {verb}": times(wall) for name, wall in (("a", 2.5), ("b", 1.0)) for verb in smoothing._VERBS}
    for name, ratio in (("a, ", 0.8), ("b, ", 1.0)):
        bars = smoothing.check(rows, name, smoothing.ACCELERATOR)
        assert [bar.value for bar in bars] == pytest.approx([ratio, ratio]) and bars[0].bound == 0.95
        assert [bar.met for bar in bars] == [ratio >= 0.95] * 2
