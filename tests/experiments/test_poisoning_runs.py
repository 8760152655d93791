"""Poisoning experiments: crafted sets keep their provenance, and a table says of its numbers what they say."""

import jax
import numpy as np
import pytest

from experiments.lib import classical_learners, data, evaluation, experiment, metapoison, models, pages, poisoned_certificates, poisons
from experiments.reproductions import certified_poisoning_gates, metapoison_gates
from experiments.tutorial.part4 import influence_scatter, poison_frogs
from robustjax import base, poisoning
from robustjax.base import Certificate
from robustjax.poisoning import classical

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
        with pytest.raises(ValueError, match=rf"made with another {next(iter(changed))}: "):
            poisons.kept(path, PROVENANCE._replace(**changed), lambda: pytest.fail("crafted"))


def test_a_killed_craft_leaves_nothing_behind(tmp_path):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        poisons.kept(tmp_path / "poisons.npz", PROVENANCE, killed)
    assert not list(tmp_path.iterdir())


def test_networks_with_statistics_are_refused():
    with pytest.raises(ValueError, match="preactresnet18 has statistics"):
        models.stateless("preactresnet18", 10, (8, 8, 3))


def shown(blocks):
    return pages.render_section({"title": "", "blocks": blocks, "made": {"command": "python -m x"}})


def judged(radius_of_mine, radius_of_others):
    y = np.array([8, 8, 3, 3, 4, 4])
    radius = np.where(y == 8, radius_of_mine, radius_of_others).astype(float)
    prediction = np.where(np.arange(6) % 2, y, 0)  # every other one is wrong, and counts as 0
    return poisoned_certificates.Judged(Certificate(prediction, radius, radius > 0), y, 0.5)


def test_the_gates_of_certified_poisoning_are_ratios_of_average_radii():
    size = poisoned_certificates.Size(4, 2, 200, 1, 1)
    sets = {"clean": judged(1.0, 1.0), "random noise": judged(0.8, 1.0), "poisoned": judged(0.4, 0.95)}
    assert sets["clean"].radius(8) == 0.5 and poisoned_certificates.others(sets["poisoned"]) == pytest.approx(0.475)
    against_noise, against_clean, rest = certified_poisoning_gates.check([sets, sets])
    assert against_noise.value == pytest.approx(0.5) and against_noise.met
    assert against_clean.value == pytest.approx(0.4) and against_clean.met and (against_clean.high, rest.low) == (0.7, 0.9)
    assert rest.value == pytest.approx(0.95) and rest.met
    weak = sets | {"poisoned": judged(0.42, 0.87)}
    assert [gate.met for gate in certified_poisoning_gates.check([sets, weak])] == [False, True, True]
    assert [gate.met for gate in certified_poisoning_gates.check([weak, weak])] == [False, True, False]
    page = shown(certified_poisoning_gates.section([sets, weak], size))
    assert "| poisoned | 0.205 (0.200, 0.210) | 0.500 (0.500, 0.500) | 0.455 (0.475, 0.435) |" in page
    assert "| ACR of class 8, poisoned / random noise | 0.512 | <= 0.5 | MISSED |" in page
    assert "; 2 points of class 8, 2 of each other" in " ".join(page.split())


def test_there_is_something_to_certify_of_the_smallest_data_set():
    digits = data.load("digits")
    size = poisoned_certificates.Size(500, 15, 10_000, 1, 1)
    split = poisoned_certificates.split_of(digits[1:3], digits[3:], 250, size)
    assert (split.y_points == 8).sum() > 50 and min(np.bincount(split.y_points)) == 15 and len(split.x_val) > 10


def test_attacks_on_classical_learners_turn_the_model_and_random_moves_do_not():
    for task, steps in ((classical_learners.wine(), 60), (classical_learners.tumours(), 60)):
        start = np.sqrt(task.outer_fn()(task.fit_fn(task.x, task.y))[0])
        for order, weights in task.weights.items():
            found = classical_learners.attack(task, order, weights[2], steps)
            left = np.sqrt(found.loss[-1]) / start
            assert left < 0.75, (task.title, order, left)
            assert classical_learners.random_distance(task, order, found.effort, 0) / start > 0.85


def test_predictions_are_ruined_by_few_points_and_not_by_random_moves_of_them():
    found = [classical_learners.ruined(classical_learners.tumours(), 0.1, 40, seed) for seed in (0, 1)]
    clean, moved, _, poisoned = np.mean(found, axis=0)  # random corners take more effort, and may do as much harm
    assert clean > 85 and moved > clean - 6 and poisoned < moved - 4


def outcomes(num_clean, num_noise, num_attack, num_trials=20):
    counts = {"clean": num_clean, "random noise": num_noise, "MetaPoison": num_attack, "Witches' Brew": num_attack - 8}
    return {(name, 10): np.arange(num_trials) < count for name, count in counts.items()}


def test_an_attack_beats_noise_when_the_intervals_are_apart():
    found = outcomes(0, 1, 14)
    size = metapoison.Size(200, (10,), 20, 2, 4)
    assert evaluation.interval(found["MetaPoison", 10]) == pytest.approx((70.0, 45.7, 88.1), abs=0.1)  # Clopper-Pearson's of 14 of 20
    assert metapoison.beats_noise(found, "MetaPoison", 10) and not metapoison.beats_noise(found, "Witches' Brew", 10)
    page = shown(metapoison_gates.section(found, size))
    row = "| 10 (5 %) | 0 % (0 to 17) | 5 % (0 to 25) | 70 % (46 to 88) | 30 % (12 to 54) | MetaPoison: yes, Witches' Brew: no |"
    assert row in page


def test_poisons_can_be_recoloured(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((200, 4, 4, 3)).astype(np.float32), np.repeat(np.arange(10), 20).astype(np.int32)
    size = metapoison.Size(200, (20,), 1, 2, 2, 2, 1, eps=0.05, is_colour=True)
    trial = metapoison.Trial(poisoning.Task(x, y, np.flatnonzero(y == 3), x[:1], np.array([3], np.int32)), 0)
    found = metapoison.judge(trial, experiment.Settings(out=str(tmp_path)), size)
    assert found.shape == (len(metapoison.COLUMNS),) and found.dtype == bool
    crafted = [np.load(file)["x"] for file in tmp_path.rglob("*.npz")]
    moved = [float(np.abs(poisons - x[trial.task.rows]).max()) for poisons in crafted]
    assert len(moved) == 2 and 1e-3 < min(moved) <= max(moved) <= 0.05 + 1e-6


def test_trials_can_be_shared_by_processes_and_are_judged_once(tmp_path, monkeypatch):
    judged = []

    def judge(trial, settings, size):
        num_poisons = len(trial.task.rows)
        judged.append((num_poisons, trial.seed))
        return np.array([False, trial.seed == 1, num_poisons == 20, True])

    monkeypatch.setattr(metapoison, "judge", judge)
    monkeypatch.setattr(metapoison, "_logits", lambda key, x, y, x_test, *size: np.eye(10)[dataset.y_test])
    digits = data.load("digits")
    dataset = digits._replace(x_test=digits.x_test[:50], y_test=digits.y_test[:50])
    settings, size = experiment.Settings(out=str(tmp_path)), metapoison.Size(400, (10, 20), 3, 2, 4)
    half = metapoison.successes(dataset, settings, size, 1, 2)
    assert judged == [(10, 1), (20, 0), (20, 2)] and [len(half["clean", budget]) for budget in size.budgets] == [1, 2]
    metapoison.successes(dataset, settings, size, 0, 2)
    found = metapoison.successes(dataset, settings, size)
    assert len(judged) == len(set(judged)) == 6
    np.testing.assert_array_equal(found["random noise", 10], [False, True, False])
    assert not found["MetaPoison", 10].any() and found["MetaPoison", 20].all()
    with pytest.raises(ValueError, match="num_steps"):
        metapoison.successes(dataset, settings, size._replace(num_steps=3))


def test_victims_see_no_order_of_batches_that_the_attacker_saw(tmp_path, monkeypatch):
    seen, who = {"attacker": set(), "victim": set()}, ["attacker"]
    permutation, logits = jax.random.permutation, metapoison._logits

    def noted(key, *rest):
        jax.debug.callback(lambda data: seen[who[0]].add(tuple(data.tolist())), jax.random.key_data(key))
        return permutation(key, *rest)

    def victim(*args):
        jax.effects_barrier()
        who[0] = "victim"
        found = jax.block_until_ready(logits(*args))
        jax.effects_barrier()
        return found

    monkeypatch.setattr(jax.random, "permutation", noted)
    monkeypatch.setattr(metapoison, "_logits", victim)
    rng = np.random.default_rng(0)
    x, y = rng.random((230, 3, 3, 1)).astype(np.float32), (np.arange(230) % 10).astype(np.int32)
    size = metapoison.Size(230, (20,), 1, 3, 2, 2, 4)
    trial = metapoison.Trial(poisoning.Task(x, y, np.flatnonzero(y == 3), x[:1], np.array([3], np.int32)), 0)
    metapoison.judge(trial, experiment.Settings(out=str(tmp_path)), size)
    assert len(seen["victim"]) == 4 and len(seen["attacker"]) >= 4 + 3 * 2
    assert not seen["victim"] & seen["attacker"]


def test_trials_ask_for_the_second_choice_and_poison_the_images_of_it_that_are_least_like_the_target():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 20).astype(np.int32)
    dataset = data.Dataset("digits", rng.random((200, 4, 4, 1)), y, rng.random((30, 4, 4, 1)), y[::7][:30])
    logits = rng.normal(size=(len(dataset.y_test), 10))
    logits[::2][np.arange(len(logits[::2])), dataset.y_test[::2]] = 9.0  # every other image is read rightly
    for seed in range(10):
        trial = metapoison.choose(dataset, dataset.x_train, y, logits, 12, seed).task
        target = int(np.flatnonzero((dataset.x_test == trial.x_target).all(axis=(1, 2, 3)))[0])
        assert logits[target].argmax() == dataset.y_test[target] and (logits[target] > logits[target][trial.y_target]).sum() == 1
        distances = np.linalg.norm((dataset.x_train - trial.x_target).reshape(200, -1), axis=1)
        left = np.setdiff1d(np.flatnonzero(y == trial.y_target), trial.rows)
        assert len(set(trial.rows)) == 12 and len(left) == 8 and distances[trial.rows].min() > distances[left].max()
    with pytest.raises(ValueError, match="cannot poison 21 of 20 examples"):
        metapoison.choose(dataset, dataset.x_train, y, logits, 21, 0)


def test_leaving_out_is_predicted_and_done_exactly():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 4))
    y = np.where(x @ np.array([1.0, -1.0, 0.5, 0.0]) + rng.normal(size=60) > 0, 1.0, -1.0)
    found = influence_scatter.scatter(x, y, x[:10] + 0.1, y[:10], 10, 10, seed=0)
    assert found.pearson() > 0.95 and 0.8 < found.slope() < 2.0 and found.residual < 1e-8
    options = {"reg": influence_scatter.REG}
    test_loss = lambda theta: np.logaddexp(0, -y[found.test] * (theta[:4] @ (x[found.test] + 0.1) + theta[4]))  # noqa: E731
    for row, change in list(zip(found.rows, found.exact, strict=True))[:3]:
        others = classical.logistic(np.delete(x, row, axis=0), np.delete(y, row), **options)
        assert change == pytest.approx(test_loss(others) - test_loss(classical.logistic(x, y, **options)), abs=1e-8)


def test_one_frog_changes_what_a_retrained_head_says_of_its_target():
    # Features are the inputs; a frog that sits on its target and carries the other label decides it, one that stays at its base does not.
    rng = np.random.default_rng(0)
    centres = np.where(np.arange(40) < 20, -1.0, 1.0)[:, None]
    x = (0.5 + 0.1 * centres + 0.05 * rng.normal(size=(40, 60))).astype(np.float32)
    rows = np.array([[20, 21, 22, 23, 24], [30, 31, 32, 33, 34]])
    targets = x[:2] + 0.05 * rng.normal(size=(2, 60)).astype(np.float32)
    trials = poison_frogs.Trials(x, np.repeat([0, 1], 20).astype(np.int32), targets, rows)
    identity = base.bind(lambda x: 20.0 * (x - 0.5))
    left = poison_frogs.successes(identity, trials, rows[:, :1], x[rows[:, :1]], 0)
    hit = poison_frogs.successes(identity, trials, rows[:, :1], targets[:, None], 0)
    assert not left.any() and hit.all()
    assert evaluation.rate(hit) == "100 % (16 to 100)"
