"""An evaluation that is killed between attacks goes on where it stopped, to the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib import evaluation
from robustjax import attacks, base
from robustjax.threats import Linf

KEY = jax.random.key(0)


def problem():
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, jax.random.normal(jax.random.key(1), (20, 5)))
    x = np.asarray(jax.random.uniform(jax.random.key(2), (9, 20), minval=0.3, maxval=0.7))
    return model_fn, x, np.asarray(model_fn(x).argmax(axis=1))


def killed(key, model_fn, x, y, *, threat):
    raise KeyboardInterrupt


def test_a_killed_evaluation_resumes(tmp_path):
    weak = base.bind(attacks.fgsm, threat=Linf(0.01))
    strong = base.bind(attacks.pgd, threat=Linf(0.05), step_size=0.02, num_steps=3)
    whole = evaluation.run(tmp_path / "whole", KEY, {"weak": weak, "strong": strong}, *problem(), batch_size=4, eps=0.05)
    cut = {"weak": weak, "strong": base.bind(killed, threat=Linf(0.05))}
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(tmp_path / "cut", KEY, cut, *problem(), batch_size=4, eps=0.05)
    counted = {"weak": base.bind(killed, threat=Linf(0.01)), "strong": strong}  # the first attack is not run again
    resumed = evaluation.run(tmp_path / "cut", KEY, counted, *problem(), batch_size=4, eps=0.05)
    for name in ("correct", "success", "loss", "x"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert (whole.success == 1).any() and bool(jnp.any(whole.x != problem()[1]))
    with pytest.raises(ValueError, match="other settings"):
        evaluation.run(tmp_path / "cut", KEY, counted, *problem(), batch_size=4, eps=0.1)
