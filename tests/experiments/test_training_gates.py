"""The gates of adversarial training: every one runs, and its section says what was measured, against which bar, by which command."""

from unittest import mock

import numpy as np
import pytest

from experiments.lib import experiment
from experiments.reproductions import training_gates as gates
from experiments.tutorial.part2 import accuracy_against_robustness, manifolds
from robustjax import attacks, base

pytestmark = pytest.mark.filterwarnings("ignore")
_MADRY = ["clean", "FGSM", "PGD-40", "C&W-60"]
_PANELS = ["standard accuracy", "PGD-50", "OM-PGD-50"]
ROWS = {
    "digits": ["PGD training, PGD-50", "natural training, PGD-50"]
    + [f"TRADES {beta}, {column}" for beta in ("0.5", "1", "3", "6") for column in ("clean", "PGD-50")]
    + ["TRADES, clean at .5 less clean at 6", "TRADES, robust at 3 less robust at .5"],
    "overfitting": [
        "FGSM training from 0, FGSM", "FGSM training from 0, PGD-40", "RS-FGSM training, PGD-40",
        *(f"PGD-7 training with a ramp of eps, {column}" for column in ("clean", "PGD-40", "C&W-60")),
    ],
    "manifold": [f"{name}, {panel}" for name in ("normal", "AT", "OM-AT", "DMAT", "DMAT, TRADES form") for panel in _PANELS]
    + ["DMAT less AT, standard accuracy", "OM-AT less normal, OM-PGD-50"],
    "mnist": [f"PGD-7 training, 2 epochs, {column}" for column in _MADRY],
    "fashion": [f"{name} training, {column}" for name in ("PGD", "RS-FGSM", "FGSM") for column in ("clean", "PGD-40", "C&W-60")],
    "cifar10": [f"{name}, {column}" for name in ("undefended", "RS-FGSM", "PGD") for column in ("clean", "PGD-40", "AutoAttack")],
}  # fmt: skip
BARS = {
    "overfitting": [">= 40", "<= 2", ">= 30", ">= 93", ">= 60", ""],
    "mnist": [">= 97.5", "", ">= 88", ""],
    "fashion": ["", "", "", "", ">= 60", "", "", "", ""],
    "cifar10": [""] * 9,
}


@pytest.fixture(autouse=True)
def tiny_data(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("fashion_mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        x, y = random.integers(0, 256, (260, *shape), np.uint8), np.arange(260) % 10
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "all.npz", x_train=x[:240], y_train=y[:240], x_test=x, y_test=y)
    monkeypatch.setenv("ROBUSTJAX_DATA", str(tmp_path))
    monkeypatch.setattr(experiment, "prepare", lambda *_: None)  # the devices and the cache of the tests stay


def run(page, *arguments):
    experiment.main(gates, "training_gates", ["--out", str(page.parent), "--page", str(page), *arguments])


def sections(page):
    head, *parts = page.read_text().rstrip("\n").split("\n\n## ")
    assert head.startswith("# Adversarial training against its bars")
    return dict(part.split("\n\n", 1) for part in parts)


def table(section):
    lines = section.split("\n\n", 1)[0].splitlines()
    assert lines[0].startswith("| gate | measured | seeds | bound |") and lines[1] == "| --- | --- | --- | --- | --- |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.xdist_group("training_gates")  # they share programs
@pytest.mark.parametrize("name", ["overfitting", "mnist", "fashion", "cifar10"])
def test_a_gate_runs_and_fills_its_section(name, tmp_path, monkeypatch):
    monkeypatch.setattr(
        gates.attacks, "ensemble", lambda threat, **options: {"apgd-ce": base.bind(attacks.apgd, threat=threat, num_steps=2)}
    )
    page = tmp_path / "page.md"
    run(page, "--gates", name, "--seeds", "1", "--epochs", "2", "--quick")
    written = sections(page)
    assert list(written) == [gates._TITLES[name]]
    rows = table(written[gates._TITLES[name]])
    assert [row[0] for row in rows] == ROWS[name]
    assert all(row[1] == row[2] and 0 <= float(row[1]) <= 100 for row in rows)
    options = f"--out {tmp_path} --quick --page {page} --gates {name} --seeds 1 --epochs 2"
    assert (
        f"    ROBUSTJAX_DATA=DIR python -m experiments training_gates {options}\n" in written[gates._TITLES[name]]
        and "\nMade: 20" in written[gates._TITLES[name]]
    )


def judged(name, recipe, seed, split, options, num_strong):
    """Numbers that tell method, attack and seed: 10 for the method, 1 for the attack, .1 for the seed."""
    method = ["undefended", "FGSM", "RS-FGSM", "PGD"].index(name)
    assert num_strong == (200 if split.dataset == "cifar10" else 0) and recipe.num_epochs > 0
    return {attack: 10.0 * method + place + 0.1 * seed for place, attack in enumerate([*_MADRY, "AutoAttack"])}


@pytest.mark.parametrize("name", BARS)
def test_each_row_holds_its_own_method_and_attack_over_seeds_and_its_bar(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "_trained_and_judged", judged)
    page = tmp_path / "page.md"
    run(page, "--gates", name, "--seeds", "3")
    rows = table(sections(page)[gates._TITLES[name]])
    for (what, mean, seeds, bar, verdict), expected_bar in zip(rows, BARS[name], strict=True):
        method, _, attack = what.rpartition(", ")
        first = 10 * next(place for place, key in ((0, "undef"), (2, "RS-FGSM"), (1, "FGSM"), (3, "PGD")) if method.startswith(key))
        first += [*_MADRY, "AutoAttack"].index(attack)
        assert (mean, seeds) == (f"{first + 0.1:.1f}", f"{first:.1f}, {first + 0.1:.1f}, {first + 0.2:.1f}")
        assert bar == expected_bar
        if bar:
            sign, bound = bar.split()
            met = first + 0.1 >= float(bound) if sign == ">=" else first + 0.1 <= float(bound)
            assert verdict == ("met" if met else "MISSED")


def test_the_manifold_gate_holds_each_way_to_train_over_seeds(tmp_path, monkeypatch):
    def accuracies(projected, seed, num_epochs, num_steps, names):
        assert projected.train.x.shape == (200, 28, 28, 1) and len(projected.y_test) == 60 and (num_epochs, num_steps) == (1, 5)
        return {name: tuple(10.0 * row**2 + column + 0.1 * seed for column in range(3)) for row, name in enumerate(names)}

    monkeypatch.setattr(manifolds, "accuracies", mock.create_autospec(manifolds.accuracies, side_effect=accuracies))
    page = tmp_path / "page.md"
    run(page, "--gates", "manifold", "--seeds", "2", "--quick")
    rows = table(sections(page)[gates._TITLES["manifold"]])
    assert [row[0] for row in rows] == ROWS["manifold"]
    firsts = [10 * row**2 + column for row in range(5) for column in range(3)]
    assert [row[2] for row in rows[:15]] == [f"{first:.1f}, {first + 0.1:.1f}" for first in firsts]
    assert [row[2] for row in rows[15:]] == ["80.0, 80.0", "40.0, 40.0"]
    bars = {
        "AT, PGD-50": ">= 30",
        "OM-AT, PGD-50": "<= 2",
        "OM-AT, OM-PGD-50": ">= 58",
        "DMAT, PGD-50": ">= 33",
        "DMAT, OM-PGD-50": ">= 55",
    }
    bars |= {"DMAT less AT, standard accuracy": ">= 5", "OM-AT less normal, OM-PGD-50": ">= 10"}
    assert {row[0]: row[3] for row in rows if row[3]} == bars
    assert [row[0] for row in rows if row[4] == "MISSED"] == ["AT, PGD-50", "OM-AT, PGD-50", "OM-AT, OM-PGD-50"]


def test_the_digits_gate_compares_betas_seed_by_seed(tmp_path, monkeypatch):
    def sweep(num_seeds, num_epochs):
        assert (num_seeds, num_epochs) == (2, 60)
        names = ("natural", "PGD", "TRADES 0.5", "TRADES 1", "TRADES 3", "TRADES 6")
        wave = np.arange(2) / 100
        return {name: accuracy_against_robustness.Sweep(0.9 - wave * row, 0.1 * row + wave) for row, name in enumerate(names)}

    monkeypatch.setattr(accuracy_against_robustness, "sweep", mock.create_autospec(accuracy_against_robustness.sweep, side_effect=sweep))
    page = tmp_path / "page.md"
    run(page, "--gates", "digits", "--seeds", "2")
    rows = table(sections(page)[gates._TITLES["digits"]])
    assert [row[0] for row in rows] == ROWS["digits"]
    assert rows[0][2:] == ["10.0, 11.0", ">= 60", "MISSED"] and rows[1][2:] == ["0.0, 1.0", "<= 15", "met"]
    assert [row[2] for row in rows[2:6]] == ["90.0, 88.0", "20.0, 21.0", "90.0, 87.0", "30.0, 31.0"]
    assert rows[-2][2:] == ["0.0, 3.0", ">= 0", "met"] and rows[-1][2:] == ["20.0, 20.0", ">= 0", "met"]


def test_sections_of_other_runs_are_kept_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "_trained_and_judged", judged)
    page = tmp_path / "page.md"
    run(page, "--gates", "cifar10", "--seeds", "1")
    before = sections(page)[gates._TITLES["cifar10"]]
    run(page, "--gates", "fashion", "overfitting", "--seeds", "2")
    written = sections(page)
    assert list(written) == [gates._TITLES[name] for name in ("overfitting", "fashion", "cifar10")]
    assert written[gates._TITLES["cifar10"]].rstrip() == before.rstrip() and "PreActResNet-18" in before
    assert "--gates fashion overfitting --seeds 2" in written[gates._TITLES["fashion"]]


def test_held_out_images_are_neither_trained_nor_tested_on():
    options = type("Options", (), {"quick": False})
    split = gates._split("mnist", 180, 60, 15, options)
    whole = gates.data.load("mnist")
    np.testing.assert_array_equal(np.concatenate([split.train[0], split.held_out[0]]), whole.x_train)
    assert len(split.train[1]) == 180 and len(split.held_out[1]) == 60
    np.testing.assert_array_equal(split.test[1], whole.y_test[:15])
