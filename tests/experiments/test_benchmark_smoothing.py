"""The benchmark of certification runs, names the best rows of each network, and judges them by the right kind of time."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import smoothing
from experiments.lib import bench, experiment


@pytest.mark.parametrize("kind", ["cpu", "wall"])
def test_the_benchmark_fills_its_page(kind, tmp_path, monkeypatch):
    if kind == "wall":
        monkeypatch.setattr(smoothing.jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(smoothing, "count_compilations", lambda module, x: 0)  # the first run has compiled
        flat = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, np.ones((12, 3), np.float32))
        images = np.zeros((2, 2, 2, 3), np.float32)
        monkeypatch.setattr(smoothing, "residual_networks", lambda: {"flat, ": (flat, images)})
        with pytest.raises(SystemExit):
            experiment.main(smoothing, "benchmark_smoothing", ["--torch-threads", "1", "--out", str(tmp_path)])
    page = tmp_path / "page.md"
    options = ["--quick", "--out", str(tmp_path), "--page", str(page), *(["--torch-threads"] if kind == "cpu" else [])]
    experiment.main(smoothing, "benchmark_smoothing", options)
    text = page.read_text()
    networks = ("",) if kind == "cpu" else ("convnet, ", "flat, ")
    rows = "forward, batch 50", "count_predictions, 1 images, chunks of 50", "smoothing.vote_dataset, 2 images, chunks of 50"
    assert all(f"| {network}{row}" in text for row in rows for network in networks) and "| noise alone" in text
    assert text.count(">= 0.85" if kind == "cpu" else ">= 0.95") == 2 * len(networks)
    assert ("CPU us a sample" in text) == (kind == "cpu") and "| compilations after the first, over sigmas, seeds" in text


def test_each_network_is_judged_by_its_own_best_rows_and_kind_of_time():
    def times(wall):
        return bench.Times(np.full(3, wall), np.full(3, 7.0))

    rows = {"a, forward, batch 1": times(3.0), "a, forward, batch 2": times(2.0), "b, forward, batch 1": times(1.0)}
    rows |= {f"{name}, {verb}": times(wall) for name, wall in (("a", 2.5), ("b", 1.0)) for verb in smoothing._VERBS}
    for name, ratio in (("a, ", 0.8), ("b, ", 1.0)):
        bars = smoothing.check(rows, name, smoothing.ACCELERATOR)
        assert [bar.value for bar in bars] == pytest.approx([ratio, ratio]) and bars[0].low == 0.95
        assert [bar.met for bar in bars] == [ratio >= 0.95] * 2
