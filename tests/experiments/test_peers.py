"""The comparisons with other libraries run without them: the benchmark of attacks on tiny networks, parity against a stand-in."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attacks as benchmark
from experiments.lib import experiment, models, pages
from experiments.reproductions import parity_autoattack as parity

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_benchmark_of_attacks_fills_its_page(tmp_path, monkeypatch):
    tiny = functools.partial(models.Mlp, width=4, num_hidden=1)
    for name in ("convnet", "convnet_pooled"):
        monkeypatch.setitem(models.ARCHITECTURES, name, tiny)
    monkeypatch.setattr(benchmark, "_PGD_STEPS", 2)
    monkeypatch.setattr(benchmark, "compile_times", lambda *_, **__: {n: benchmark.bench.Times(*np.ones((2, 3))) for n in (20, 100)})
    monkeypatch.setattr(benchmark, "_APGD_STEPS", 100)
    page = tmp_path / "page.md"
    experiment.main(benchmark, "benchmark_attacks", ["--quick", "--out", str(tmp_path), "--page", str(page)])
    (section,) = pages.read(page)["sections"]
    rows = [row[0] for row in section["blocks"][1]["rows"]]
    assert rows[:2] == ["jitted step, plain", "loop of steps, plain"] and "PGD-40, scan, rewritten, 2 devices" in rows
    assert "pooled net, SGD epoch in scan, rewritten" in rows
    found = {gate["what"]: gate for gate in section["blocks"][2]["gates"]}
    assert found["compilations after the first across eps, seed, target, batch tail"]["met"]
    assert found["the same over that of 20 steps"]["value"] == 1.0 and found["the same over that of 20 steps"]["high"] == 1.1
    with pytest.raises(SystemExit):
        experiment.main(benchmark, "benchmark_attacks", ["--peers", "art", "--network", "wrn-28-10", "--out", str(tmp_path)])


WEIGHT = jax.random.normal(jax.random.key(0), (6, 4))
MODEL = jax.tree_util.Partial(lambda weight, x: (x.reshape(len(x), -1) - 0.5) @ weight, WEIGHT)


def test_parity_counts_what_one_package_alone_fools(tmp_path, monkeypatch):
    x = np.array(jax.random.uniform(jax.random.key(1), (6, 2, 3, 1), minval=0.3, maxval=0.7))
    case = parity.Case("plain", MODEL, None, x, np.asarray(MODEL(jnp.asarray(x)).argmax(axis=1)), 8)
    monkeypatch.setattr(parity, "make_cases", lambda *_: iter([case]))
    monkeypatch.setattr(parity.peers, "require", lambda *_: None)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(set_num_threads=lambda n: None, set_flush_denormal=lambda on: None))
    monkeypatch.setattr(parity, "_NUM_TARGETS", 2)
    monkeypatch.setitem(parity._EPS, "plain", {"Linf": 0.02, "L2": 0.04})
    versions = pages.importlib.metadata.version
    monkeypatch.setattr(pages.importlib.metadata, "version", lambda name: "9" if "torch" in name or "auto" in name else versions(name))
    stand_in = parity.Outcome(np.ones(6, bool), np.full(6, 2.0), 1.0)  # fools all images
    for name in ("apgd", "targeted_apgd", "targeted_fab", "square"):
        monkeypatch.setattr(parity.reference, name, lambda *_: stand_in)
    page = tmp_path / "page.md"
    experiment.main(
        parity, "parity_autoattack", ["--steps", "3", "--queries", "5", "--seeds", "2", "--out", str(tmp_path), "--page", str(page)]
    )
    (section,) = pages.read(page)["sections"]
    rows = {(row[0], row[1]): row[2:] for row in section["blocks"][0]["rows"]}
    assert len(rows) == 10 and all(row[1] == "0.0 %" for row in rows.values()) and section["title"] == "plain"
    ours = section["flags"]["APGD-CE, linf 0.02, robustjax"]
    assert section["flags"]["APGD-CE, linf 0.02, pyautoattack"] == "111111" and len(ours) == 6 and "0" in ours
    assert rows["APGD-CE", "linf 0.02"][0] == f"{100 * ours.count('0') / 8:.1f} %"
    lost = next(gate for gate in section["blocks"][1]["gates"] if gate["what"].startswith("APGD-CE, linf 0.02: images"))
    assert lost["value"] == ours.count("0") / 6 and not lost["met"] and rows["APGD-CE", "linf 0.02"][4] == "MISSED"
    assert section["made"]["versions"]["pyautoattack"] == "9" and section["made"]["seeds"] == [0, 1]
