"""The benchmark of the first call: every stage is timed, and the gates read the right rows."""

from experiments.benchmarks import first_call
from experiments.lib import experiment, pages


def test_the_stages_of_programs_are_timed(tmp_path):
    page = tmp_path / "page.md"
    arguments = ["--networks", "mlp", "--quick", "--out", str(tmp_path), "--page", str(page)]
    experiment.main(first_call, "benchmark_first_call", arguments)
    (section,) = pages.read(page)["sections"]
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in section["blocks"][0]["rows"]}
    assert list(rows) == ["value_and_grad", "apgd-ce", "votes", "training step, natural"]
    assert rows["value_and_grad"][-1] == 1.0
    assert all(row[0] > 0 and row[2] > 0 for row in rows.values())


def test_gates_are_asked_of_attacks_alone():
    found = {"value_and_grad": (0.1, 0.1, 1.0, 1.0), "votes": (0.1, 0.1, 9.0, 9.0), "pgd": (0.1, 0.1, 1.25, 1.0)}
    found |= dict.fromkeys(first_call._MEMBERS, (0.1, 0.1, 1.125, 1.0))
    _, made = first_call.blocks(found, is_gated=True)
    assert [(gate["value"], gate["met"]) for gate in made["gates"]] == [(1.25, True), (4.5, True)]
    found.pop("square")  # the sum of some members says nothing of all
    assert len(first_call.blocks(found, is_gated=True)[1]["gates"]) == 1
    assert len(first_call.blocks(found, is_gated=False)) == 1
