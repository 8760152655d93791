"""Experiments of smoothing: known votes and radii make known rows, a contradicted certificate fails, the gates run for a few steps."""

import jax
import matplotlib
import numpy as np
import optax
import pytest

from experiments.lib import certification, data, denoisers, experiment, models, runs, smoothed, votes
from experiments.reproductions import smoothing_gates
from experiments.tutorial.part3 import radii_history, sandwich, smoothing_methods, vote_histogram
from robustjax import base, smoothing, training
from robustjax.base import Certificate

matplotlib.use("agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_row_of_the_methods_is_what_the_votes_say():
    estimation = np.array([[1000, 0], [1000, 0], [600, 400], [0, 1000]])
    poll = votes.Poll(0.5, num_selection=10, num_samples=1000)
    state = smoothing.VoteState(np.array([[10, 0], [10, 0], [7, 3], [0, 10]]), estimation)
    summary = certification.summarize(poll, state, np.zeros(4, int), (0.0, 0.5))
    most, least = 0.5 * 2.46326, float(0.5 * smoothing.radii.gaussian_l2(smoothing.binomial_lower(600, 1000, 0.001), 1.0))
    row = smoothing_methods.row("name", 0.5, summary, 1.234)
    assert row == ["name", "0.5", f"{(2 * most + least) / 4:.3f}", "75", "50", "50", "1.2"]


def test_the_curve_falls_at_every_radius_of_a_right_image():
    certificate = Certificate(np.array([0, 0, 1, -1]), np.array([0.3, 0.7, 0.9, 0.0]), np.array([True, True, True, False]))
    plot, axis = plt.subplots()
    smoothing_methods.curve(axis, certificate, np.zeros(4, int), "Gaussian")
    x, height = axis.lines[0].get_data()
    np.testing.assert_allclose(x, [0.0, 0.3, 0.7, 0.7])
    np.testing.assert_allclose(height, [0.5, 0.5, 0.25, 0.0])
    assert axis.lines[0].get_drawstyle() == "steps-pre"
    smoothing_methods.curve(axis, certificate, np.full(4, 3), "MACER")  # nothing certified
    plt.close(plot)


def test_the_sandwich_counts_contradictions_and_fails_beyond_chance():
    certified = np.array([0.5, 0.4, 0.0, 0.9])
    found = np.array([0.6, 0.3, 0.1, np.inf])
    bounds = sandwich.Bounds(certified, found, np.array([1, 2, -1, 0]))
    allowed = smoothing.failures(4, 0.002)
    assert allowed >= 1 and sandwich.check(bounds, 0.001, 0.001) == 1, "the abstained one does not count"
    row = sandwich.row("name", bounds, np.array([1, 0, 0, 0]), 1)
    assert row == ["name", "0.450", "0.450", "0.975", "2 of 4", "2", "1"]
    wrong = bounds._replace(found=np.full(4, 0.05))
    with pytest.raises(ArithmeticError, match="3 of 4 certificates are contradicted"):
        sandwich.check(wrong, 0.001, 0.001)


def test_the_attack_of_the_sandwich_reaches_the_boundary_of_a_half_space(tmp_path):
    weight = np.array([[1.0, -1.0], [0.0, 0.0]], np.float32)
    model_fn = jax.tree_util.Partial(lambda w, x: 20.0 * (x - 0.5) @ w, weight)
    x = np.array([[0.8, 0.5], [0.6, 0.4], [0.3, 0.5]], np.float32)
    bounds = sandwich.measure(tmp_path, model_fn, x, 0, 2000, num_steps=30)
    distance = np.abs(x[:, 0] - 0.5)
    assert (bounds.certified <= distance).all() and (bounds.certified > distance - 0.1).all()
    assert (bounds.found >= distance).all() and (bounds.found < 2.1 * distance + 0.05).all()
    assert sandwich.check(bounds, 0.001, 0.001) == 0


def test_paired_gains_and_savings():
    gain = certification.gain(np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 2.0]))
    assert gain.mean == 1 and gain.error == pytest.approx(1 / np.sqrt(3)) and str(gain) == "+1.0000 +- 0.5774"
    certificate = Certificate(np.array([1, 0, -1]), np.array([0.5, 0.7, 0.0]), np.array([True, True, False]))
    np.testing.assert_array_equal(certification.right_radii(certificate, np.array([1, 1, 1])), [0.5, 0.0, 0.0])
    whole = certification.Summary(1.0, np.array([0.9, 0.5]), np.zeros(5), 0.0, 3000.0)
    less = whole._replace(certified=np.array([0.9, 0.49]), samples=1000.0)
    saving, loss = certification.savings(whole, less, 2)
    assert saving == 3 and loss == pytest.approx(1.0)
    assert certification.savings(whole, less, 1)[1] == 0, "a rule that does not ask for a radius is not judged there"
    made = certification.row("MACER", whole, 0.9, np.array([True, False, False, False]), gain)
    assert made == ["MACER", "1.0000", "0.9", "90.0", "50.0", "0.0", "25.0", "+1.0000 +- 0.5774"]


def test_votes_in_bfloat16_are_those_of_a_rounded_network():
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, np.array([[1.0, 1.001], [0.0, 0.0]], np.float32))
    x = np.array([[1.0, 0.0]], np.float32)
    assert model_fn(x).argmax() == 1 and model_fn(x)[0, 0] < model_fn(x)[0, 1]
    logits = models.in_bfloat16(model_fn)(x)
    assert logits.dtype == np.float32 and logits[0, 0] == logits[0, 1] == 1, "1.001 is 1 in bfloat16"
    whole = certification.Summary(1.0, np.array([0.9, 0.5]), np.zeros(5), 0.0, 10.0)
    states = [smoothing.VoteState(np.zeros((2, 2), int), np.array(votes)) for votes in ([[9, 1], [5, 5]], [[9, 1], [7, 3]])]
    moved, loss = certification.apart(states, [whole, whole._replace(certified=np.array([0.9, 0.498]))])
    np.testing.assert_allclose(moved, [0.0, 0.2])
    assert loss == 0.2


def test_the_gates_run_for_a_few_steps(tmp_path, monkeypatch, capsys):
    digits = data.load("digits")
    few = digits._replace(x_train=digits.x_train[:200], y_train=digits.y_train[:200])
    monkeypatch.setattr(data, "load", lambda name: few)
    monkeypatch.setattr(smoothing_gates, "EFFORTS", {"mnist": {0.5: smoothed.Effort("linear", 1, 3, 100, 1e-3, 1, 2, 2)}})
    effort = smoothed.Effort("linear", 1, 1, 50, 1e-3, 1, 2, 2)
    monkeypatch.setattr(smoothing_gates, "_MANY", 2000)
    page, runs = tmp_path / "smoothing.md", tmp_path / "runs"
    short = "--num-images 6 --n 1000 --num-fixed 4 --num-halved 4 --effort num_epochs 1 batch_size 50"
    numbers = f"--sigmas 0.5 --methods Gaussian MACER SmoothAdv {short}"
    options = [*numbers.split(), "--out", str(runs), "--page", str(page)]
    experiment.main(smoothing_gates, "smoothing_gates", options)
    text = page.read_text()
    assert all(f"| {name} | " in text for name in ("Gaussian", "MACER", "SmoothAdv", "fixed")) and "| Stability | " not in text
    assert f"python -m experiments smoothing_gates --out {runs} --page {page} {numbers}" in text and "times fewer" in text
    assert "then 1 of each" in text and "| bfloat16 | " in text
    model_fn = smoothed.train(
        "Gaussian",
        0.5,
        experiment.Settings(dataset="mnist", seed=0, out=str(runs / "mnist")),
        few.x_train,
        few.y_train,
        effort,
    )
    x, y = certification.spread(few.x_test, few.y_test, 6)
    counts = smoothing.count_predictions(
        jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), n), 1))(np.arange(6)), model_fn, x, sigma=0.5,
        num_samples=1000, chunk_size=100,
    )  # fmt: skip
    share = 100 * np.mean(np.asarray(counts)[np.arange(6), y] > 990)
    assert next(line for line in text.splitlines() if line.startswith("| Gaussian")).split(" | ")[-2] == f"{share:.1f}"


def test_a_denoiser_denoises():
    model = denoisers.models.from_nnx(denoisers.Denoiser((8, 8, 1), num_channels=8, num_layers=1, rngs=denoisers.nnx.Rngs(0)))
    x = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[:, None, None, None], (64, 8, 8, 1))
    loss = base.bind(training.denoise, sigma=0.3)
    denoiser = runs.fit(model, loss, optax.adam(1e-2), x, np.zeros(64, int), seed=0, num_epochs=30, batch_size=16)
    noisy = x + 0.3 * np.asarray(jax.random.normal(jax.random.key(1), x.shape))
    assert denoiser(noisy).shape == x.shape
    assert np.mean((denoiser(noisy) - x) ** 2) < 0.5 * 0.3**2


def test_the_histogram_says_the_certificate():
    plot, axis = plt.subplots()
    counts = np.array([100, 900])
    vote_histogram.histogram(axis, np.array([1, 9]), counts, 0.123, votes.Poll(0.5, num_samples=1000))
    bound = float(smoothing.binomial_lower(900, 1000, 0.001))
    assert axis.get_title() == f"900 of 1000 votes: pA >= {bound:.4f}, R = 0.123"
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], [0.1, 0.9])
    plt.close(plot)


def test_the_history_of_radii_is_in_order_of_tightness():
    values = np.array([[bound(np.array(p), 1.0) for p in (0.6, 0.75, 0.9, 0.99)] for bound in radii_history.BOUNDS.values()])
    assert (np.diff(values, axis=0) <= 1e-9).all(), "the tightest bound first"
