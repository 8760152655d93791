"""The comparison of both plans of AutoAttack runs, and its gates count what the quick one misses."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import experiment, pages
from experiments.reproductions import quick_ensemble

WEIGHTS = jax.random.normal(jax.random.key(0), (784, 10)) / 28
MODEL = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, WEIGHTS)


def test_both_plans_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_ensemble.parity_autoattack, "network", lambda *_: (MODEL, None))
    page = tmp_path / "page.md"
    experiment.main(quick_ensemble, "quick_ensemble", ["--quick", "--out", str(tmp_path), "--page", str(page)])
    (section,) = pages.read(page)["sections"]
    (row,) = section["blocks"][0]["rows"]
    assert row[:2] == ["plain", "8"]
    missed, passes = section["blocks"][1]["gates"]
    flags = {name: np.array(list(told), int) for name, told in section["flags"].items()}
    assert missed["value"] == np.sum(flags["plain, standard"] > flags["plain, quick"])
    assert 0.1 < passes["value"] < 1.0


def test_the_quick_plan_takes_a_third_of_the_passes():
    cost = [quick_ensemble._found(version, MODEL, np.full((2, 784), 0.5, np.float32), np.asarray(MODEL(jnp.full((2, 784), 0.5)).argmax(1)),
                                  1e-6, True).passes for version in ("quick", "standard")]  # fmt: skip
    assert cost[0] < cost[1]
