"""Poisoning experiments: crafted sets keep their provenance, and a table says of its numbers what they say."""

import numpy as np
import pytest

from experiments import certified_poisoning, classical_poisoning
from experiments.lib import models, poisons
from robustjax.base import Certificate

PROVENANCE = poisons.Provenance("digits", "metapoison", "convnet_fast", "10 images, linf 0.1", 0, {"steps": (1, 2)})
CRAFTED = poisons.Crafted(np.array([3, 5]), np.random.default_rng(0).random((2, 4, 4, 1), np.float32), np.array([8, 8]))


def test_crafted_sets_reload_whole_and_refuse_another_provenance(tmp_path):
    path = tmp_path / "folder" / "poisons.npz"
    made = []
    craft = lambda: made.append(1) or CRAFTED  # noqa: E731
    for _ in range(2):
        found = poisons.kept(path, PROVENANCE, craft)
        for part, wanted in zip(found, CRAFTED, strict=True):
            np.testing.assert_array_equal(part, wanted)
            assert part.dtype == wanted.dtype
    assert len(made) == 1 and [file.name for file in path.parent.iterdir()] == ["poisons.npz"]
    for changed in (
        {"seed": 1},
        {"victim": "mlp"},
        {"budget": "9 images, linf 0.1"},
        {"attack": "x"},
        {"details": {}},
        {"dataset": "mnist"},
    ):
        with pytest.raises(ValueError, match=rf"made for something else \({next(iter(changed))} "):
            poisons.load(path, PROVENANCE._replace(**changed))


def test_a_killed_craft_leaves_nothing_behind(tmp_path):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        poisons.kept(tmp_path / "poisons.npz", PROVENANCE, killed)
    assert not list(tmp_path.iterdir())


def test_networks_with_statistics_are_refused():
    with pytest.raises(ValueError, match="preactresnet18 has statistics"):
        models.stateless("preactresnet18", 10, (8, 8, 3))


def judged(radius_of_mine, radius_of_others):
    y = np.array([8, 8, 3, 3, 4, 4])
    radius = np.where(y == 8, radius_of_mine, radius_of_others).astype(float)
    prediction = np.where(np.arange(6) % 2, y, 0)  # every other one is wrong, and counts as 0
    return certified_poisoning.Judged(Certificate(prediction, radius, radius > 0), y, 0.5)


def test_the_gates_of_certified_poisoning_are_ratios_of_average_radii():
    sets = {"clean": judged(1.0, 1.0), "random noise": judged(0.8, 1.0), "poisoned": judged(0.4, 0.95)}
    assert sets["clean"].radius(8) == 0.5 and certified_poisoning.others(sets["poisoned"]) == pytest.approx(0.475)
    against_noise, rest = certified_poisoning.gates([sets, sets])
    assert against_noise.value == pytest.approx(0.5) and against_noise.met
    assert rest.value == pytest.approx(0.95) and rest.met
    weak = sets | {"poisoned": judged(0.42, 0.87)}
    assert [gate.met for gate in certified_poisoning.gates([sets, weak])] == [False, True]
    assert [gate.met for gate in certified_poisoning.gates([weak, weak])] == [False, False]
    page = certified_poisoning.section("Gaussian", [sets, weak], "python -m x", 1.0)
    assert "| poisoned | 0.205 (0.200, 0.210) | 0.500 (0.500, 0.500) | 0.455 (0.475, 0.435) |" in page
    assert "| ACR of class 8, poisoned / random noise | 0.512 | <= 0.5 | MISSED |" in page


def test_attacks_on_classical_learners_turn_the_model_and_random_moves_do_not():
    for task, steps in ((classical_poisoning.wine(), 60), (classical_poisoning.tumours(), 60)):
        start = np.sqrt(task.outer_fn()(task.fit_fn(task.x, task.y))[0])
        for order, weights in task.weights.items():
            found = classical_poisoning.attack(task, order, weights[2], steps)
            left = np.sqrt(found.loss[-1]) / start
            assert left < 0.75, (task.title, order, left)
            assert classical_poisoning.random_distance(task, order, found.effort, 0) / start > 0.85
