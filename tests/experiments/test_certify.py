"""Certifying a data set: no kill, mesh or number of processes changes a vote, foreign votes are refused, known votes make known rows."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.lib import certification, experiment, models, votes
from experiments.reproductions import certify
from robustjax import smoothing

pytestmark = pytest.mark.xdist_group("certify")  # they share an uncut run
ROOT = pathlib.Path(__file__).parents[2]
SHORT = ["--n", "600", "--step", "20", "--n0", "20", "--chunk-size", "20", "--num-images", "48", "--sigma", "0.5", "--model", "linear"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "linear.npz"
    model = models.build("linear", seed=1)
    models.write(path, jax.tree.map(lambda leaf: 3.0 * leaf, model.params), model.model_state)
    return path


def command(weights, out, *more):
    return [sys.executable, "-m", "experiments", "certify", "--weights", str(weights), "--out", str(out), *SHORT, *more]


def environment(num_devices):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def run(weights, out, *more, num_devices=1):
    return subprocess.run(
        command(weights, out, *more), env=environment(num_devices), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


def counts(path):
    with np.load(path) as file:
        return file["selection"], file["estimation"]


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "votes.npz"
    done = run(weights, path)
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def killed(weights, out, is_time):
    """A run that is killed at the first moment when `is_time(its process)`, or ends before."""
    process = subprocess.Popen(command(weights, out, "--save-every", "0"), env=environment(1), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not is_time(process) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_killed_three_times_goes_on_to_the_same_votes(weights, whole, tmp_path):
    out = tmp_path / "votes.npz"
    killed(weights, out, lambda _: out.exists() and counts(out)[0].any())  # as a rule while classes are chosen
    assert counts(out)[0].any()
    killed(weights, out, lambda _: counts(out)[1].any())
    assert 0 < counts(out)[1].sum() < 48 * 600, "it was killed on the way"
    killed(weights, out, lambda process: any(str(process.pid) in path.name for path in tmp_path.iterdir()))  # in the midst of writing
    resumed = run(weights, out)
    assert resumed.returncode == 0, resumed.stderr
    for cut, uncut in zip(counts(out), counts(whole[0]), strict=True):
        np.testing.assert_array_equal(cut, uncut)
    rows = lambda text: text.splitlines()[1:]  # noqa: E731
    assert rows(resumed.stdout) == rows(whole[1]) and "average certified radius" in resumed.stdout


def test_eight_devices_count_as_one(weights, whole, tmp_path):
    done = run(weights, tmp_path / "votes.npz", num_devices=8)
    assert done.returncode == 0 and "8 devices" in done.stdout, done.stderr
    for many, one in zip(counts(tmp_path / "votes.npz"), counts(whole[0]), strict=True):
        np.testing.assert_array_equal(many, one)


def test_two_processes_count_as_one_and_the_first_writes(weights, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    outs = [tmp_path / "first.npz", tmp_path / "second.npz"]
    together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    both = [
        subprocess.Popen(command(weights, out, *together, str(rank)), env=environment(1), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank, out in enumerate(outs)
    ]
    for process in both:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    assert outs[0].exists() and not outs[1].exists()
    for two, one in zip(counts(outs[0]), counts(whole[0]), strict=True):
        np.testing.assert_array_equal(two, one)


CENTRES = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def nearest(centres, x):
    return -jnp.square(x[:, None] - centres[None]).sum(axis=-1)


MODEL = jax.tree_util.Partial(nearest, CENTRES)
X = np.array([[0.1, 0.0], [0.8, 0.1], [0.3, 0.9], [0.52, 0.0], [0.05, 0.02]], np.float32)
POLL = votes.Poll(sigma=0.25, num_selection=40, num_samples=2000, num_step_samples=100)


@pytest.mark.parametrize(
    "name, changes",
    [("sigma", {"sigma": 0.3}), ("seed", {"seed": 1}), ("num_samples", {"num_samples": 3000}), ("model", {}), ("data", {})],
)
def test_votes_of_something_else_are_refused_by_name(name, changes, tmp_path):
    votes.cast(tmp_path / "votes.npz", POLL, MODEL, X, chunk_size=20)
    model_fn = jax.tree_util.Partial(nearest, CENTRES + 1e-6) if name == "model" else MODEL
    x = X + np.float32(1e-6) if name == "data" else X
    with pytest.raises(ValueError, match=rf"made with another {name}: .* there, .* here"):
        votes.cast(tmp_path / "votes.npz", POLL._replace(**changes), model_fn, x, chunk_size=20)


def test_votes_are_kept_for_another_alpha_but_not_for_another_rule_to_stop_by(tmp_path):
    once = votes.cast(tmp_path / "fixed.npz", POLL, MODEL, X, chunk_size=20)
    again = votes.cast(tmp_path / "fixed.npz", POLL._replace(alpha=0.01, num_step_samples=500), MODEL, X, chunk_size=20)
    np.testing.assert_array_equal(again.estimation, once.estimation)
    poll = POLL._replace(grid=(0.0, 0.2))
    votes.cast(tmp_path / "sequential.npz", poll, MODEL, X, chunk_size=20)
    with pytest.raises(ValueError, match=r"made with another alpha: 0.001 there, 0.01 here"):
        votes.cast(tmp_path / "sequential.npz", poll._replace(alpha=0.01), MODEL, X, chunk_size=20)
    with pytest.raises(ValueError, match="alpha must lie in"):
        votes.cast(tmp_path / "never.npz", POLL._replace(alpha=1.5), MODEL, X, chunk_size=20)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "fixed.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a whole npz file"):
        votes.cast(tmp_path / "cut.npz", POLL, MODEL, X, chunk_size=20)


def test_a_file_keeps_the_shape_that_its_samples_were_seen_in(tmp_path):
    votes.cast(tmp_path / "votes.npz", POLL, MODEL, X, chunk_size=20)
    with pytest.raises(ValueError, match="made with another chunk_size: 20 there, 40 here"):
        votes.cast(tmp_path / "votes.npz", POLL, MODEL, X, chunk_size=40)
    with pytest.raises(ValueError, match="pass at least 2"):
        votes.cast(tmp_path / "one.npz", POLL, MODEL, X, images_per_device=1)


def test_an_image_whose_logits_are_not_finite_abstains_and_counts_for_nothing(tmp_path):
    model_fn = jax.tree_util.Partial(lambda centres, x: jnp.where(x[:, 1:] > 1.2, jnp.nan, nearest(centres, x)), CENTRES)
    state = votes.cast(tmp_path / "votes.npz", POLL, model_fn, X, chunk_size=20)
    again = votes.cast(tmp_path / "votes.npz", POLL, model_fn, X, chunk_size=20)
    np.testing.assert_array_equal(again.estimation, state.estimation)
    summary = certification.summarize(POLL, state, np.array([0, 1, 2, 0, 0]), (0.0,))
    assert summary.abstained >= 1 / 5 and summary.samples == 4 / 5 * 2040 and POLL.certify(state).prediction[2] == -1
    others = certification.summarize(
        POLL, smoothing.VoteState(*(np.delete(part, 2, axis=0) for part in state)), np.array([0, 1, 0, 0]), (0.0,)
    )
    np.testing.assert_allclose(summary.shares, others.shares * 4 / 5)


def test_a_replayed_sequential_run_is_the_run_itself(tmp_path):
    poll = POLL._replace(grid=(0.0, 0.1, 0.2, 0.3))
    real = votes.cast(tmp_path / "sequential.npz", poll, MODEL, X, chunk_size=20)
    selection, estimations = votes.looks(tmp_path / "looks", POLL, MODEL, X, range(100, 2001, 100), chunk_size=20)
    assert (estimations.sum(axis=2) == np.arange(100, 2001, 100)[:, None]).all()
    replayed = votes.replay(poll, selection, estimations)
    np.testing.assert_array_equal(replayed.selection, real.selection)
    np.testing.assert_array_equal(replayed.estimation, real.estimation)
    drawn = real.estimation.sum(axis=1)
    assert drawn.min() < 2000 and len(set(drawn)) > 1


def test_known_votes_make_a_known_summary():
    selection = np.array([[9, 1], [9, 1], [1, 9], [6, 4]])
    estimation = np.array([[1000, 0], [990, 10], [0, 1000], [510, 490]])
    y = np.array([0, 0, 0, 0])
    poll = votes.Poll(sigma=0.5, num_selection=10, num_samples=1000)
    summary = certification.summarize(poll, smoothing.VoteState(selection, estimation), y, (0.0, 0.5, 1.2))
    full = 0.5 * scipy.stats.norm.ppf(0.001 ** (1 / 1000))
    less = 0.5 * scipy.stats.norm.ppf(scipy.stats.beta.ppf(0.001, 990, 11))
    assert summary.average_radius == pytest.approx((full + less) / 4, abs=1e-12)
    np.testing.assert_array_equal(summary.certified, [0.5, 0.5, 0.25])
    np.testing.assert_array_equal(summary.shares, [0.75, 0.5, 0.25, 0.25, 0.25])
    assert (summary.abstained, summary.samples) == (0.25, 1010)
    text = certification.describe(summary, poll, (0.0, 0.5, 1.2))
    assert f"{summary.average_radius:.4f}" in text and "50      50      25" in text and "1010 of 1010" in text


def test_alpha_may_be_that_of_the_whole_set(weights, whole, tmp_path, capsys):
    votes_file = shutil.copy(whole[0], tmp_path)  # known votes: nothing is drawn

    def said(*more):
        experiment.main(certify, "certify", [*command(weights, votes_file)[4:], *more])
        return capsys.readouterr().out.splitlines()

    together, each = said("--simultaneous", "--alpha", "0.96"), said("--alpha", "0.02")
    assert together[1:] == each[1:] != said("--alpha", "0.96")[1:]
    assert "alpha 0.96 for all at once" in together[0] and "alpha 0.02 for each" in each[0]


def test_images_are_spread_over_the_set():
    x = np.arange(10)
    np.testing.assert_array_equal(certification.spread(x, x, 4)[0], [0, 2, 5, 7])
    with pytest.raises(ValueError, match="between 1 and 10"):
        certification.spread(x, x, 11)
