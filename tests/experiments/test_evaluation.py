"""Evaluations that are killed after an attack go on with the next, and never as an evaluation of something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib import checkpoint, evaluation
from robustjax import attacks, base, losses
from robustjax.threats import Linf

KEY = jax.random.key(0)
WEIGHT = jax.random.normal(jax.random.key(1), (20, 5))
MODEL = jax.tree_util.Partial(lambda w, x: x @ w, WEIGHT)
X = np.asarray(jax.random.uniform(jax.random.key(2), (9, 20), minval=0.3, maxval=0.7))
Y = np.asarray(MODEL(X).argmax(axis=1))
WEAK = base.bind(attacks.fgsm, threat=Linf(0.01))
STRONG = base.bind(attacks.pgd, threat=Linf(0.05), step_size=0.02, num_steps=3)
ATTACKS = {"weak": WEAK, "strong": STRONG}


def run(folder, attacks=ATTACKS, model_fn=MODEL, x=X, y=Y, key=KEY, targets=None, eps=0.05):
    return evaluation.run(folder, key, attacks, model_fn, x, y, batch_size=4, targets=targets, eps=eps)


def assert_equal(state, other):
    for name, part in state._asdict().items():
        jax.tree.map(np.testing.assert_array_equal, part, getattr(other, name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_a_killed_evaluation_resumes(whole, tmp_path, monkeypatch):
    save, evaluate, resumed_at = checkpoint.Checkpoints.save, evaluation.evaluate.evaluate, []

    def killed(self, step, state, **about):
        save(self, step, state, **about)
        raise KeyboardInterrupt

    def watched(*args, state, **options):
        resumed_at.append(state)
        return evaluate(*args, state=state, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    monkeypatch.setattr(evaluation.evaluate, "evaluate", watched)
    assert_equal(run(tmp_path), whole[1])
    (kept,) = resumed_at
    assert not kept.pending(0, survivors_only=True).any() and kept.pending(1, survivors_only=True).any()
    assert (whole[1].success == 1).any() and bool(jnp.any(whole[1].x != X))


def test_a_finished_evaluation_is_read_back(whole):
    assert_equal(run(whole[0]), whole[1])


def scaled(factor):
    return base.bind(STRONG, loss_fn=lambda logits, y: factor * losses.cross_entropy(logits, y))


def closed_over(weight):
    return lambda x: x @ weight


CHANGES = {
    "a weight of the model": ({"model_fn": jax.tree_util.Partial(MODEL.func, WEIGHT.at[0, 0].add(1e-6))}, ["model"]),
    "a pixel": ({"x": np.where(np.arange(180).reshape(9, 20) == 7, X + np.float32(1e-6), X)}, ["x"]),
    "the order of images": ({"x": X[::-1], "y": Y[::-1]}, ["x", "y"]),
    "a label": ({"y": np.where(np.arange(9) == 3, (Y + 1) % 5, Y)}, ["y"]),
    "targets": ({"targets": Y}, ["targets"]),
    "eps": ({"attacks": {"weak": WEAK, "strong": base.bind(STRONG, threat=Linf(0.06))}}, ["attack strong"]),
    "the number of steps": ({"attacks": {"weak": WEAK, "strong": base.bind(STRONG, num_steps=4)}}, ["attack strong"]),
    "the loss": ({"attacks": {"weak": WEAK, "strong": base.bind(STRONG, loss_fn=losses.margin)}}, ["attack strong"]),
    "both attacks by name": ({"attacks": {"weak": STRONG, "strong": WEAK}}, ["attack strong", "attack weak"]),
    "their order": ({"attacks": {"strong": STRONG, "weak": WEAK}}, ["attacks"]),
    "the key": ({"key": jax.random.key(1)}, ["key"]),
    "what it is said to belong to": ({"eps": 0.06}, ["eps"]),
    "model and key": ({"model_fn": closed_over(np.asarray(WEIGHT)), "key": jax.random.key(1)}, ["key", "model"]),
}


@pytest.mark.parametrize(("change", "names"), CHANGES.values(), ids=CHANGES)
def test_an_evaluation_of_something_else_is_refused_by_name(change, names, whole):
    with pytest.raises(ValueError, match=r"made with other settings .*Choose another folder, or delete it") as error:
        run(whole[0], **change)
    message = str(error.value).split("other settings (")[1].rpartition(")")[0]
    assert [part.split(": ")[0] for part in message.split("; ")] == names


def test_what_closures_hold_is_told_apart():
    plain = {"attacks": ATTACKS, "model_fn": closed_over(np.asarray(WEIGHT)), "x": X, "y": Y}
    first = evaluation.identity(KEY, **plain)
    assert evaluation.identity(KEY, **plain | {"model_fn": closed_over(np.array(WEIGHT))}) == first
    assert evaluation.identity(KEY, **plain | {"model_fn": closed_over(2 * np.asarray(WEIGHT))})["model"] != first["model"]
    one, same, other = (evaluation.identity(KEY, **plain | {"attacks": {"strong": scaled(f)}})["attack strong"] for f in (1.0, 1.0, 2.0))
    assert one == same != other
