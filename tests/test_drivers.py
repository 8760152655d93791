"""What the drivers do to a model: it runs rewritten on CPU unless that is switched off, and nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, drivers, evaluate, graph, loops, lowering, parallel, smoothing, threats, training

N, C = 10, 3
KEY = jax.random.key(0)
X = np.asarray(jax.random.uniform(jax.random.key(1), (N, 6, 6, 1)))
THREAT = threats.Linf(0.15)


def forward(weights, x, layout="HWIO"):
    """A pooled network, its kernels in the layout of Flax, or all of it in that of PyTorch."""
    numbers = ("NHWC", "HWIO", "NHWC")
    if layout == "OIHW":
        x, numbers = x.transpose(0, 3, 1, 2), ("NCHW", "OIHW", "NCHW")
    window = (1, 2, 2, 1) if layout == "HWIO" else (1, 1, 2, 2)
    x = jnp.tanh(jax.lax.conv_general_dilated(x - 0.5, weights["conv"], (1, 1), "SAME", dimension_numbers=numbers))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x if layout == "HWIO" else x.transpose(0, 2, 3, 1)
    return x.reshape(len(x), -1) @ weights["head"]


@base.node
class Noisy:
    """A randomised model."""

    weights: dict
    keys: jax.Array | None = None

    def __call__(self, x):
        noise = 0.0 if self.keys is None else jax.vmap(lambda key: 0.05 * jax.random.normal(key, x.shape[1:]))(self.keys)
        return forward(self.weights, x + noise)

    def draw(self, keys):
        return Noisy(self.weights, keys)


def weights(layout):
    key_conv, key_head = jax.random.split(jax.random.key(2))
    conv = jax.random.normal(key_conv, (3, 3, 1, 4))
    return {"conv": conv if layout == "HWIO" else conv.transpose(3, 2, 0, 1), "head": jax.random.normal(key_head, (36, C))}


MODELS = {
    "plain": Partial(forward, weights("HWIO")),
    "in PyTorch's layout": Partial(functools.partial(forward, layout="OIHW"), weights("OIHW")),
    "randomised": Noisy(weights("HWIO")),
    "bound, randomised inside": base.bind(lambda x, *, model_fn: model_fn(x), model_fn=Noisy(weights("HWIO"))),
}
Y = np.asarray(MODELS["plain"](X).argmax(axis=1))


def convolutions(function, *args):
    names = {eqn.primitive.name for eqn, _ in graph.walk(graph.program(function, *args))}
    return names & {"robustjax_convolution", "conv_general_dilated"}


def plan(**options):
    return {"pgd": base.bind(attacks.pgd, threat=THREAT, step_size=0.06, num_steps=3, **options)}


def evaluated(model_fn, suite=None, **options):
    *_, state = evaluate.evaluate(KEY, suite or plan(), model_fn, X, Y, batch_size=4, survivors_only=False, **options)
    return state


def agree(ours, theirs):
    assert 0 < (ours.success == 1).sum() < ours.success.size
    np.testing.assert_array_equal(ours.success, theirs.success)
    np.testing.assert_allclose(ours.loss, theirs.loss, atol=1e-5)
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_rewrites_the_model_unless_told_not_to_and_finds_the_same(name):
    seen = []

    def spied(key, model_fn, x, y):
        seen.append(convolutions(base.draw(model_fn, jax.random.split(key[0], len(x))), x))
        return plan()["pgd"](key, model_fn, x, y)

    found = [evaluated(MODELS[name], {"spied": spied}, rewritten=rewritten) for rewritten in (True, False)]
    agree(*found)
    traced = [names for names in seen if names]  # without those of a stand-in, from which an attack is told
    assert traced == [{"robustjax_convolution"}, {"conv_general_dilated"}]


def test_a_rewritten_evaluation_is_the_same_over_devices_and_from_the_host():
    expected = evaluated(MODELS["plain"], rewritten=False)
    agree(evaluated(MODELS["plain"], mesh=parallel.data_mesh(4)), expected)
    agree(evaluated(MODELS["plain"], plan(loop_fn=loops.host)), expected)


def test_a_state_is_told_by_the_model_that_was_given_and_resumes_with_either_choice():
    model_fn = MODELS["plain"]
    identity = evaluate.identity(KEY, plan(), model_fn, X, Y)
    for first, second in ((True, False), (False, True)):
        states = evaluate.evaluate(KEY, plan(), model_fn, X, Y, batch_size=4, survivors_only=False, rewritten=first)
        cut = [next(states) for _ in range(3)][-1]
        assert cut.fingerprint.keys() == identity.keys()
        for name, value in identity.items():
            np.testing.assert_array_equal(cut.fingerprint[name], value)
        agree(evaluated(model_fn, rewritten=second, state=cut), evaluated(model_fn))


def test_what_its_owner_has_rewritten_stays_as_it_is():
    model_fn = MODELS["plain"]
    for own in (lowering.rewrite(model_fn), base.bind(lambda x, *, model_fn: model_fn(x), model_fn=lowering.rewrite(model_fn))):
        assert drivers.lowered(own, rewritten=True) is own
    assert isinstance(drivers.lowered(model_fn, rewritten=True), lowering.Rewritten)
    assert drivers.lowered(model_fn, rewritten=False) is model_fn


def apply_fn(params, model_state, x, mode):
    return forward(params, x), model_state


def denoiser_fn(params, model_state, x, mode):
    return x * params["head"][0, 0], model_state


FREE = training.free_optimizer(optax.sgd(0.1), THREAT, 0.05)
RUNS = {  # (loss, optimizer, parameters)
    "adversarial": (base.bind(training.adversarial, apply_fn=apply_fn), optax.sgd(0.1), weights("HWIO")),
    "free": (
        base.bind(training.free, apply_fn=apply_fn, threat=THREAT),
        FREE,
        training.FreeParams(weights("HWIO"), jnp.zeros((5, 6, 6, 1))),
    ),
    "denoise": (
        base.bind(training.denoise, apply_fn=denoiser_fn, sigma=0.1, objective="stability", model_fns=(MODELS["plain"],)),
        optax.sgd(0.1),
        weights("HWIO"),
    ),
}
fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))


@pytest.mark.parametrize("name", RUNS)
def test_a_training_step_rewrites_its_networks_unless_told_not_to_and_learns_the_same(name):
    loss, optimizer, params = RUNS[name]
    seen = []

    def spied(key, model_fn, x, y):
        seen.append(convolutions(model_fn, x))
        return plan()["pgd"](key, model_fn, x, y)

    loss = base.bind(loss, attack=spied) if name == "adversarial" else loss
    state = training.init(params, None, optimizer)
    trained, programs = [], []
    for rewritten in (True, False):
        step_fn = training.step(loss, optimizer, rewritten=rewritten)
        step_fn = training.replay(step_fn, 2) if name == "free" else step_fn
        programs.append(convolutions(step_fn, state, KEY, X[:5], Y[:5]))
        trained.append(fit(state, KEY, X, Y, step_fn=step_fn, num_epochs=2, batch_size=5))
    assert programs == [{"robustjax_convolution"}, {"conv_general_dilated"}]
    assert all(names in programs for names in seen)
    ours, theirs = trained
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)
    learnt = jax.tree.map(lambda new, old: np.abs(new - old).max(), ours[0].params, params)
    assert max(jax.tree.leaves(learnt)) > 1e-3


def test_networks_that_their_owner_has_rewritten_stay_so_in_a_step():
    own = lowering.rewrite(apply_fn)
    seen = []

    def spied(params, model_state, key, x, y, *, apply_fn):
        seen.append(apply_fn)
        return training.natural(params, model_state, key, x, y, apply_fn=apply_fn)

    optimizer = optax.sgd(0.1)
    step_fn = training.step(base.bind(spied, apply_fn=own), optimizer)
    jax.eval_shape(step_fn, training.init(weights("HWIO"), None, optimizer), KEY, X, Y)
    assert isinstance(seen[0], lowering.Rewritten) and not isinstance(seen[0].function.get("function"), lowering.Rewritten)


count = jax.jit(smoothing.count_predictions, static_argnames=("num_samples", "chunk_size", "rewritten"))
soft = jax.jit(smoothing.count_soft, static_argnames=("num_samples", "chunk_size", "rewritten"))
VOTES = {"sigma": 0.8, "num_samples": 40, "chunk_size": 20}


@pytest.mark.parametrize("name", MODELS)
def test_votes_are_drawn_from_the_rewritten_model_unless_told_not_to_and_are_the_same(name):
    bound = base.bind(smoothing.count_predictions, **VOTES)
    ours, theirs = (count(KEY, MODELS[name], X, rewritten=rewritten, **VOTES) for rewritten in (True, False))
    assert (ours > 0).sum(axis=1).max() > 1
    np.testing.assert_array_equal(ours, theirs)
    for rewritten, names in ((True, {"robustjax_convolution"}), (False, {"conv_general_dilated"})):
        assert convolutions(base.bind(bound, rewritten=rewritten), KEY, MODELS[name], jnp.asarray(X)) == names


def test_every_sampler_has_the_choice_and_a_run_of_votes_resumes_with_the_other():
    model_fn = MODELS["in PyTorch's layout"]
    whole, plain = (smoothing.vote(KEY, model_fn, X, num_selection=20, rewritten=rewritten, **VOTES) for rewritten in (True, False))
    jax.tree.map(np.testing.assert_array_equal, list(whole), list(plain))
    soft_votes = [soft(KEY, model_fn, X, rewritten=rewritten, **VOTES) for rewritten in (True, False)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=40), *soft_votes)  # in units of 2**-14, rounded 40 times
    options = VOTES | {"num_selection": 20, "num_step_samples": 20, "batch_size": 5}
    for first, second in ((True, False), (False, True)):
        states = smoothing.vote_dataset(KEY, model_fn, X, rewritten=first, **options)
        cut = [next(states) for _ in range(4)][-1]
        *_, state = smoothing.vote_dataset(KEY, model_fn, X, rewritten=second, state=cut, **options)
        jax.tree.map(np.testing.assert_array_equal, list(state), list(whole))
