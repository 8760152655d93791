"""Runs of experiments: a killed one goes on to the same end, the best epoch is kept, a broken loss is named and nothing is lost."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib import evaluation, experiment, models, runs
from robustjax import attacks, base, training
from robustjax.threats import Linf

pytestmark = pytest.mark.filterwarnings("ignore")
N, D, C = 64, 4, 3


def apply_fn(params, model_state, x, mode):
    del mode
    return x @ params, model_state


def data():
    x = jax.random.uniform(jax.random.key(0), (N, D))
    return np.asarray(x), np.asarray(jnp.argmax(x[:, :C], axis=1))


def plan(num_epochs=4, **changes):
    model = models.Model(apply_fn, jnp.zeros((D, C)), None)
    return runs.Plan(model, base.bind(training.natural, apply_fn=apply_fn), optax.sgd(0.5), num_epochs, 16)._replace(**changes)


@pytest.fixture(autouse=True)
def saved_every_epoch(monkeypatch):
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_SAVES", 0.0)


class KilledError(Exception):
    pass


def killed_after(num_epochs):
    epochs = []

    def score(state):
        epochs.append(state)
        if len(epochs) > num_epochs:
            raise KilledError
        return 0.0

    return score


def test_a_killed_run_resumes_to_the_same_end(tmp_path):
    whole = runs.train("run", plan(), *data(), experiment.Settings(out=str(tmp_path / "whole")))
    settings = experiment.Settings(out=str(tmp_path / "cut"))
    with pytest.raises(KilledError):
        runs.train("run", plan(score_fn=killed_after(2)), *data(), settings)
    resumed = runs.train("run", plan(), *data(), settings)
    jax.tree.map(np.testing.assert_array_equal, resumed.last, whole.last)
    assert int(resumed.last.num_steps) == 16
    with pytest.raises(ValueError, match="other settings"):
        runs.train("run", plan(num_epochs=5), *data(), settings)


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    trained = runs.train("run", plan(score_fn=lambda state: next(scores)), *data(), experiment.Settings(out=str(tmp_path)))
    assert (int(trained.best.num_steps), int(trained.last.num_steps)) == (8, 16)
    np.testing.assert_allclose(trained.scores, [0.1, 0.9, 0.3, 0.2])
    left = models.read(runs.weights_file(tmp_path, "run"), models.Model(apply_fn, jnp.zeros((D, C)), None))
    np.testing.assert_array_equal(left.params, trained.best.params)


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_the_last_good_checkpoint(tmp_path):
    def broken(params, model_state, key, x, y, *, start, count):
        loss, aux = training.natural(params, model_state, key, x, y, apply_fn=apply_fn)
        return jnp.where(count >= start, jnp.nan, loss), (aux[0], aux[1] | {"loss": jnp.where(count >= start, jnp.nan, loss)})

    settings = experiment.Settings(out=str(tmp_path))
    counted = plan(loss=base.bind(broken, start=10), schedule_fn=lambda loss, num_steps: base.bind(loss, count=num_steps))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 10 \(epoch 2\); last good checkpoint: epoch 2 in .*run"):
        runs.train("run", counted, *data(), settings)
    with pytest.raises(FloatingPointError, match=r"at step 10 \(epoch 2\); last good checkpoint: epoch 2 in .*run"):
        runs.train("run", counted, *data(), settings)  # from epoch 2, which is whole
    with pytest.raises(ValueError, match=r"other settings \(loss: "):
        runs.train("run", counted._replace(loss=base.bind(broken, start=100)), *data(), settings)


def scaled(factor):
    return base.bind(lambda *args: (lambda loss, aux: (factor * loss, aux))(*training.natural(*args, apply_fn=apply_fn)))


def halved(loss, num_steps, *, num_ramp_steps):
    del num_steps, num_ramp_steps
    return loss


X, Y = data()
CHANGES = {
    "learning rate": (lambda: (plan(optimizer=optax.sgd(0.4)), X, Y), ["optimizer"]),
    "schedule of it": (lambda: (plan(optimizer=optax.sgd(optax.linear_schedule(0.5, 0.1, 9))), X, Y), ["optimizer", "start"]),
    "optimizer": (lambda: (plan(optimizer=optax.adam(0.5)), X, Y), ["optimizer", "start"]),
    "loss": (lambda: (plan(loss=scaled(2.0)), X, Y), ["loss"]),
    "schedule of the loss": (lambda: (plan(schedule_fn=base.bind(halved, num_ramp_steps=3)), X, Y), ["schedule"]),
    "first weights": (lambda: (plan(model=models.Model(apply_fn, jnp.zeros((D, C)).at[0, 0].set(1e-6), None)), X, Y), ["start"]),
    "batch size": (lambda: (plan(batch_size=32), X, Y), ["batch_size", "loss"]),
    "number of epochs": (lambda: (plan(num_epochs=5), X, Y), ["num_epochs"]),
    "replays": (lambda: (plan(num_replays=2), X, Y), ["num_replays"]),
    "a pixel": (lambda: (plan(), X + np.float32(1e-6), Y), ["x"]),
    "labels": (lambda: (plan(), X, (Y + 1) % C), ["y"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    settings = experiment.Settings(out=str(tmp_path_factory.mktemp("finished")))
    runs.train("run", plan(), *data(), settings)
    return settings


@pytest.mark.parametrize(("make", "names"), CHANGES.values(), ids=CHANGES)
def test_a_run_of_something_else_is_refused_by_name(make, names, finished):
    with pytest.raises(ValueError, match=r"made with other settings .*Choose another folder, or delete it") as error:
        runs.train("run", *make(), finished)
    message = str(error.value).split("other settings (")[1].rpartition(")")[0]
    assert [part.split(": ")[0] for part in message.split("; ")] == names


def told(made):
    return runs.identity(made, training.init(made.model.params, made.model.model_state, made.optimizer), X, Y)


def test_losses_are_told_apart_by_what_closures_hold():
    assert told(plan(loss=scaled(1.0))) == told(plan(loss=scaled(1.0)))
    assert told(plan(loss=scaled(1.0)))["loss"] != told(plan(loss=scaled(2.0)))["loss"]


def identities():
    """Of a training and of an evaluation of a network of NNX."""
    model = models.build("linear", 0, C, (D,))
    ensemble = attacks.ensemble(Linf(0.1), num_steps=2, num_targets=1, num_queries=2)
    loss = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=training.inner_pgd(Linf(0.1), num_steps=2))
    made = plan(model=model, loss=loss, optimizer=runs.cosine_adam(0.1, N, 2, 16))
    model_fn = training.classifier(model.apply_fn, model.params, model.model_state)
    return told(made) | evaluation.identity(jax.random.key(0), ensemble, model_fn, X[:2], Y[:2])


def test_another_process_tells_the_same_by_the_same():
    code = "import json, test_training_runs; print(json.dumps(test_training_runs.identities()))"
    folder = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{folder.parents[1]}:{folder}", "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == identities()


def test_a_finished_run_whose_last_file_was_lost_in_a_kill_knows_its_seconds(tmp_path, monkeypatch):
    def killed(*_):
        raise KilledError

    settings = experiment.Settings(out=str(tmp_path))
    monkeypatch.setattr(models, "write", killed)
    with pytest.raises(KilledError):
        runs.train("run", plan(), *data(), settings)
    assert runs.seconds_per_epoch(tmp_path, "run") > 0


def test_data_outside_the_box_is_refused_before_anything_is_trained(tmp_path):
    attack = base.bind(attacks.fgsm, threat=Linf(0.1))
    loss = base.bind(training.adversarial, apply_fn=apply_fn, attack=attack)
    x, y = data()
    with pytest.raises(ValueError, match="leave the box"):
        runs.train("run", plan(loss=loss), 255 * x, y, experiment.Settings(out=str(tmp_path)))
