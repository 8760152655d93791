"""Every reproduction that has no test of its own runs for a few steps from the command line, and leaves a page with its data."""

import importlib

import matplotlib
import pytest

from experiments import registry
from experiments.lib import experiment, gates, pages

matplotlib.use("agg")
OPTIONS = {
    "hypergradient_gates": ["--rounds", "1"],
    "synthetic_bilevel": ["--methods", "penalty", "implicit, CG"],
    "untargeted_poisoning_gates": ["--dataset", "digits", "--counts", "3", "60", "--seeds", "1"],
    "metapoison_gates": [],
    "fuzz_bounds": [],
    "certified_poisoning_gates": ["--dataset", "digits", "--victims", "Gaussian", "--seeds", "1"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_reproduction_runs_for_a_few_steps_and_is_kept(name, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "prepare", lambda *_: None)  # the devices and the cache of the tests stay
    script, page = importlib.import_module(registry.ENTRIES[name].module), tmp_path / "page.md"
    options = ["--quick", "--out", str(tmp_path / "runs"), "--page", str(page), *OPTIONS[name]]
    texts = []
    for _ in range(2):  # what takes long is kept: the second run finds the same
        experiment.main(script, name, options)
        content = pages.read(page)
        assert pages.render(content) == page.read_text()
        (section,) = content["sections"]
        texts.append([block for block in section["blocks"] if name != "hypergradient_gates"])  # which times
        assert any("rows" in block and block["rows"] for block in section["blocks"])
        for block in section["blocks"]:
            assert all(gates.Gate(**{k: v for k, v in gate.items() if k != "met"}).met == gate["met"] for gate in block.get("gates", []))
        assert f"python -m experiments {name} --" in section["made"]["command"] and "--quick" in section["made"]["command"]
        if name == "hypergradient_gates":
            return
    assert texts[0] == texts[1]
    assert "flags" in section or name != "metapoison_gates"
