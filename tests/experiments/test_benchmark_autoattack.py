"""The benchmark of AutoAttack: our side for a few steps, its page from outcomes that are given, both frameworks on the same weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import autoattack
from experiments.lib import experiment, two_frameworks


def test_our_side_runs_every_member(tmp_path, monkeypatch):
    monkeypatch.setattr(autoattack, "_BATCHES", (2,))
    arguments = ["--networks", "convnet", "--side", "ours", "--quick", "--out", str(tmp_path)]
    experiment.main(autoattack, "benchmark_autoattack", arguments)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    for run in ("ours, cold", "ours, warm"):
        assert len(outcome[run]["robust"]) == 4
        assert {"clean"} <= set(outcome[run]["seconds"]) <= {"clean", *autoattack._MEMBERS}
    assert outcome["passes"]["square"][1] == 0 < outcome["passes"]["apgd-ce"][1]
    assert set(outcome["bare"]) == {"forward", "forward and backward"}


def test_gates_compare_cold_runs_and_flags():
    def side(seconds, robust):
        return {"seconds": {"clean": [0.0, 0.0], "apgd-ce": seconds}, "ran": {"apgd-ce": 4}, "robust": robust}

    bare = {"forward": 0.02, "forward and backward": 0.06}
    ours = {"ours, cold": side([5.0, 8.0], [True] * 4), "ours, warm": side([1.0, 2.0], [True] * 4), "passes": {"apgd-ce": [101, 100]}}
    outcomes = {"ours": ours | {"bare": bare}, "torch": {"torch": side([10.0, 10.0], [True] * 3 + [False]), "bare": bare}}
    *_, made = autoattack._blocks("convnet", outcomes)
    assert [(gate["value"], gate["met"]) for gate in made["gates"]] == [(0.5, True), (0.8, False), (0.75, False)]


@pytest.mark.parametrize("name", two_frameworks.NAMES)
def test_the_networks_are_the_same_in_torch(name):
    torch = pytest.importorskip("torch", reason="torch is of the extra for benchmarks")
    rng = np.random.default_rng(0)
    channels = [16] * 3 + [32] * 3 + [64] * 3
    weights = {
        "c1": (16, 1, 4, 4),
        "c2": (32, 16, 4, 4),
        "w3": (100, 1568),
        "w4": (10, 100),
        "b1": (16,),
        "b2": (32,),
        "b3": (100,),
        "b4": (10,),
    }
    x = rng.uniform(size=(2, 28, 28, 1)).astype(np.float32)
    if name == "resnet20":
        weights, inputs = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64), "linear.bias": (10,)}, 16
        norms = ["bn1"]
        for (block, _), outputs in zip(two_frameworks._blocks(), channels, strict=True):
            weights |= {f"{block}.conv1.weight": (outputs, inputs, 3, 3), f"{block}.conv2.weight": (outputs, outputs, 3, 3)}
            norms, inputs = [*norms, f"{block}.bn1", f"{block}.bn2"], outputs
        for norm, width in zip(norms, [16, *np.repeat(channels, 2)], strict=True):
            weights |= {f"{norm}.{part}": (int(width),) for part in ("weight", "bias", "running_mean", "running_var")}
        x = rng.uniform(size=(2, 32, 32, 3)).astype(np.float32)
    weights = {key: rng.uniform(0.1, 1, shape).astype(np.float32) / np.prod(shape[1:]) for key, shape in weights.items()}
    ours = getattr(two_frameworks, name)({key: jnp.asarray(value) for key, value in weights.items()}, jnp.asarray(x))
    theirs = two_frameworks._module(name, weights)(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
