"""A killed run goes on from its orbax checkpoint bit for bit, whatever its method keeps between steps: the adversary's state too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from experiments.lib import experiment, files, models, runs
from robustjax import attacks, base, training
from robustjax.threats import Linf

pytestmark = pytest.mark.filterwarnings("ignore")
N, D, C, B = 24, 4, 3, 8
THREAT = Linf(0.1)
X = np.asarray(jax.random.uniform(jax.random.key(0), (N, D)))
Y = np.asarray(jnp.argmax(X[:, :C], axis=1))


def apply_fn(params, model_state, x, mode):
    return (x - 0.5) @ params, model_state


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dropout(0.5, deterministic=not train)(linen.BatchNorm(use_running_average=not train)(x))
        return linen.Dense(C)(x)


class NnxNet(nnx.Module):
    def __init__(self):
        self.norm, self.dropout = nnx.BatchNorm(D, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.head = nnx.Linear(D, C, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.head(self.dropout(self.norm(x)))


def of_linen():
    return training.from_linen(LinenNet(), LinenNet().init(jax.random.key(1), X[:1], False), key=jax.random.key(2))


def plain():
    return models.Model(apply_fn, 0.1 * jax.random.normal(jax.random.key(3), (D, C)), None)


def plan(model, loss, optimizer, **changes):
    loss = base.bind(loss, apply_fn=model.apply_fn)
    return runs.Plan(model, loss, optimizer, num_epochs=3, batch_size=B)._replace(**changes)


def attacked(loss, **options):
    return base.bind(loss, attack=base.bind(attacks.pgd, threat=THREAT, step_size=0.05, num_steps=2), **options)


# What a method keeps between steps beside the parameters of the network, and its plan.
METHODS = {
    "free: the perturbation, and Adam's moments": (
        lambda state: (state.params.delta, state.opt_state),
        lambda: plan(
            plain(),
            base.bind(training.free, threat=THREAT),
            training.free_optimizer(optax.adam(0.1), THREAT, 0.1),
            num_replays=2,
            first_params=lambda params: training.FreeParams(params, jnp.zeros((B, D))),
        ),
    ),
    "TRADES: eps that grows, the average of perturbed weights": (
        lambda state: (state.num_steps, training.average(state.opt_state)),
        lambda: plan(
            plain(),
            attacked(training.trades, beta=2.0, weights_fn=base.bind(training.awp, gamma=0.1)),
            training.averaged(optax.sgd(0.5, momentum=0.9)),
            schedule_fn=base.bind(training.eps_ramp, num_ramp_steps=8),
        ),
    ),
    "Linen: statistics, and the key of Dropout, which the attack meets": (
        lambda state: state.model_state,
        lambda: plan(of_linen(), attacked(training.adversarial, craft_mode="batch"), optax.sgd(0.5)),
    ),
    "NNX: statistics, and the streams of Dropout, which the attack meets": (
        lambda state: (state.model_state["norm"], state.model_state["dropout"]["rngs"]["count"]),
        lambda: plan(training.from_nnx(NnxNet()), attacked(training.adversarial, craft_mode="batch"), optax.sgd(0.5)),
    ),
}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_bit_for_bit_with_all_that_its_method_keeps(name, tmp_path, monkeypatch):
    kept_of, make_plan = METHODS[name]
    kept = []

    def score(state):
        if kept:
            raise KilledError
        kept.append(jax.tree.map(lambda leaf: np.asarray(files.stored(leaf)), kept_of(state)))
        return 0.0

    def train(folder, **changes):
        return runs.train("run", make_plan()._replace(**changes), X, Y, experiment.Settings(out=str(tmp_path / folder))).last

    whole = jax.tree.map(files.stored, train("whole"))
    with pytest.raises(KilledError), monkeypatch.context() as often:
        often.setattr(runs, "_SECONDS_BETWEEN_SAVES", 0.0)
        train("cut", score_fn=score)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(files.stored, train("cut")), whole)
    same = [np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (kept[0], kept_of(whole))), strict=True)]
    assert not any(same), "all of it changes from step to step, so that a run without it would end elsewhere"
