"""Flax modules in training: Flax's own statistics, three modes, the numbers of an apply_fn written by hand, mistakes by name."""

import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from robustjax import attacks, base, evaluate, training
from robustjax.threats import Linf

N, B, D, W, C = 48, 16, 6, 8, 3
KEY = jax.random.key(0)
X = np.random.default_rng(1).uniform(size=(N, D)).astype(np.float32)
Y = X[:, :C].argmax(axis=1)
OPTIMIZER = optax.sgd(0.1)
fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))


def passed(model, x, mode, state=None):
    """(logits, model_state) of one pass, compiled."""
    run = jax.jit(model.apply_fn, static_argnums=3)
    return run(model.params, model.model_state if state is None else state, x, mode)


class LinenNet(linen.Module):
    rate: float = 0.0

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(W)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = linen.Dropout(self.rate, deterministic=not train)(x)
        return linen.Dense(C)(x)


class NnxNet(nnx.Module):
    def __init__(self, rate=0.0, *, rngs):
        self.hidden, self.head = nnx.Linear(D, W, rngs=rngs), nnx.Linear(W, C, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(W, momentum=0.9, rngs=rngs), nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def linen_model(rate=0.0):
    net = LinenNet(rate)
    return training.from_linen(net, net.init(KEY, X[:1], train=False), key=jax.random.key(2) if rate else None)


def nnx_net(rate=0.0):
    """With the weights of the Linen module."""
    net, params = NnxNet(rate, rngs=nnx.Rngs(0)), linen_model().params
    for layer, name in ((net.hidden, "Dense_0"), (net.norm, "BatchNorm_0"), (net.head, "Dense_1")):
        nnx.update(layer, params[name])
    return net


def nnx_model(rate=0.0):
    return training.from_nnx(nnx_net(rate))


def statistics(model_state):
    """(mean, variance) of either's model_state."""
    norm = model_state["norm"] if "norm" in model_state else model_state["batch_stats"]["BatchNorm_0"]
    return np.asarray(norm["mean"]), np.asarray(norm["var"])


def hidden(params):
    return params["hidden"] if "hidden" in params else params["Dense_0"]


KINDS = pytest.mark.parametrize("make", [linen_model, nnx_model], ids=["linen", "nnx"])


@KINDS
def test_one_pass_leaves_the_statistics_of_the_closed_form(make):
    model = make()
    logits, state = passed(model, X, "train")
    before = X @ np.asarray(hidden(model.params)["kernel"])
    mean, var = statistics(state)
    np.testing.assert_allclose(mean, 0.1 * before.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(var, 0.9 + 0.1 * before.var(axis=0), atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(model.model_state)
    batch_logits, kept = model.apply_fn(model.params, model.model_state, X, "batch")
    assert kept is model.model_state
    np.testing.assert_allclose(batch_logits, logits, atol=1e-6)
    eval_logits, kept = model.apply_fn(model.params, state, X, "eval")
    assert kept is state
    assert not np.allclose(eval_logits, logits, atol=1e-3)
    np.testing.assert_allclose(passed(model, X[:1], "eval", state)[0], eval_logits[:1], atol=1e-6, err_msg="blind to the batch")


def test_eval_and_train_are_the_modules_own():
    net, model = LinenNet(), linen_model()
    variables = {"params": model.params, **model.model_state}
    np.testing.assert_array_equal(net.apply(variables, X, train=False), model.apply_fn(model.params, model.model_state, X, "eval")[0])
    logits, updated = net.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, model.apply_fn(model.params, model.model_state, X, "train")[0])
    jax.tree.map(np.testing.assert_array_equal, updated, model.apply_fn(model.params, model.model_state, X, "train")[1])

    net = nnx_net()
    model = training.from_nnx(net)
    net.eval()
    np.testing.assert_array_equal(net(X), model.apply_fn(model.params, model.model_state, X, "eval")[0])
    net.train()
    np.testing.assert_array_equal(net(X), model.apply_fn(model.params, model.model_state, X, "train")[0])
    _, updated = model.apply_fn(model.params, model.model_state, X, "train")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net, nnx.BatchStat)["norm"], nnx.filter_state(updated, nnx.BatchStat)["norm"])


def by_hand_linen():
    net, model = LinenNet(), linen_model()

    def apply_fn(params, model_state, x, mode):
        variables = {"params": params, **model_state}
        if mode == "eval":
            return net.apply(variables, x, train=False), model_state
        logits, updated = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, updated if mode == "train" else model_state

    return model._replace(apply_fn=apply_fn)


def by_hand_nnx():
    net, graphs = nnx_net(), {}
    for mode, switch in (("train", net.train), ("eval", net.eval)):
        switch()
        graphs[mode], params, rest = nnx.split(net, nnx.Param, ...)

    def apply_fn(params, model_state, x, mode):
        merged = nnx.merge(graphs["eval" if mode == "eval" else "train"], params, model_state, copy=True)
        logits = merged(x)
        return logits, nnx.split(merged, nnx.Param, ...)[2] if mode == "train" else model_state

    return training.Model(apply_fn, params, rest)


def trained(model, craft_mode="batch"):
    attack = base.bind(attacks.fgsm, threat=Linf(0.05))
    loss = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack, craft_mode=craft_mode)
    state = training.init(model.params, model.model_state, OPTIMIZER)
    return fit(state, KEY, X, Y, step_fn=training.step(loss, OPTIMIZER), num_epochs=2, batch_size=B)


def test_adversarial_training_gives_the_numbers_of_an_apply_fn_written_by_hand_in_linen_and_nnx():
    runs = {make.__name__: trained(make()) for make in (linen_model, by_hand_linen, nnx_model, by_hand_nnx)}
    for ours, by_hand in (("linen_model", "by_hand_linen"), ("nnx_model", "by_hand_nnx")):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), runs[ours], runs[by_hand]))
    (left, left_metrics), (right, right_metrics) = runs["linen_model"], runs["nnx_model"]
    np.testing.assert_allclose(left_metrics["loss"], right_metrics["loss"], atol=1e-5)
    np.testing.assert_allclose(statistics(left.model_state), statistics(right.model_state), atol=1e-5)
    assert np.abs(statistics(left.model_state)[0]).max() > 1e-3


@KINDS
def test_dropout_is_fresh_in_every_pass_and_carried_on_beside_batchnorm(make):
    model = make(rate=0.5)
    first, state = passed(model, X, "train")
    second, _ = passed(model, X, "train", state)
    assert not np.allclose(first, second, atol=1e-3)
    batch, _ = passed(model, X, "batch")
    np.testing.assert_allclose(batch, first, atol=1e-6)
    np.testing.assert_allclose(passed(model, X, "eval")[0], passed(make(), X, "eval")[0], atol=1e-6)
    state, _ = trained(model)
    assert jax.tree.structure(state.model_state) == jax.tree.structure(model.model_state)
    classifier = training.classifier(model.apply_fn, state.params, state.model_state)
    *_, found = evaluate.evaluate(KEY, {"fgsm": base.bind(attacks.fgsm, threat=Linf(0.0))}, classifier, X, np.asarray(Y), batch_size=N)
    np.testing.assert_array_equal(found.correct, classifier(X).argmax(axis=1) == Y)


def test_a_linen_module_draws_what_it_draws_by_its_own_apply():
    net, model = LinenNet(0.5), linen_model(0.5)
    key_pass, key_next = jax.random.split(model.model_state["rngs"])
    variables = {"params": model.params, "batch_stats": model.model_state["batch_stats"]}
    logits, _ = net.apply(variables, X, train=True, mutable=["batch_stats"], rngs={"dropout": key_pass})
    ours, state = model.apply_fn(model.params, model.model_state, X, "train")
    np.testing.assert_array_equal(ours, logits)
    assert state["rngs"] == key_next


class ByCall(linen.Module):
    flag: str
    positive: bool

    @linen.compact
    def __call__(self, x, **kwargs):
        return linen.Dense(C)(linen.BatchNorm(use_running_average=kwargs[self.flag] != self.positive, momentum=0.9)(x))


def switched(name, positive):
    """A module whose __call__ has the switch `name`."""
    scope = {"linen": linen, "C": C}
    average = f"not {name}" if positive else name
    exec(
        f"class Net(linen.Module):\n @linen.compact\n def __call__(self, x, {name}):\n"
        f"  return linen.Dense(C)(linen.BatchNorm(use_running_average={average}, momentum=0.9)(x))",
        scope,
    )
    return scope["Net"]()


class ByField(linen.Module):
    train: bool = False

    @linen.compact
    def __call__(self, x):
        return linen.Dense(C)(linen.BatchNorm(use_running_average=not self.train, momentum=0.9)(x))


class ByCallNnx(nnx.Module):
    def __init__(self):
        self.norm, self.head = nnx.BatchNorm(D, momentum=0.9, rngs=nnx.Rngs(0)), nnx.Linear(D, C, rngs=nnx.Rngs(0))

    def __call__(self, x, *, training=False):
        return self.head(self.norm(x, use_running_average=not training))


SWITCHES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}


def _linen(net, kwargs, **options):
    return training.from_linen(net, net.init(KEY, X[:1], **kwargs), **options)


MODELS = {name: functools.partial(lambda n, p: _linen(switched(n, p), {n: not p}), name, positive) for name, positive in SWITCHES.items()}
MODELS |= {
    "field": lambda: _linen(ByField(), {}),
    "layer": lambda: _linen(linen.BatchNorm(momentum=0.9), {"use_running_average": True}),
    "by name": lambda: _linen(ByCall("phase", True), {"phase": False}, train_kwargs={"phase": True}, eval_kwargs={"phase": False}),
    "nnx": lambda: training.from_nnx(ByCallNnx()),
    "nnx sequential": lambda: training.from_nnx(nnx.Sequential(nnx.BatchNorm(D, momentum=0.9, rngs=nnx.Rngs(0)), nnx.relu)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_usual_switch_is_found(name):
    model = MODELS[name]()
    _, state = passed(model, X, "train")
    means = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "mean" in jax.tree_util.keystr(path)]
    assert len(means) == 1
    np.testing.assert_allclose(means[0], 0.1 * X.mean(axis=0), atol=1e-6)
    one, both = (passed(model, x, "eval", state)[0] for x in (X[:1], X))
    np.testing.assert_allclose(one, both[:1], atol=1e-6)


def test_models_without_state_have_none():
    net = linen.Dense(C)
    models = (
        training.from_linen(net, flax.core.freeze(net.init(KEY, X[:1]))),
        training.from_nnx(nnx.Linear(D, C, rngs=nnx.Rngs(0))),
    )
    for model in models:
        assert not jax.tree.leaves(model.model_state)
        state, _ = trained(model, craft_mode="eval")
        assert jax.tree.structure(state.model_state) == jax.tree.structure(model.model_state)
    assert models[0].apply_fn(models[0].params, None, X, "train")[0].shape == (N, C)


def test_an_nnx_module_stays_as_it_is():
    net = nnx_net(0.5)
    net.train()
    before = jax.tree.map(jnp.copy, nnx.state(net, nnx.BatchStat))
    model = training.from_nnx(net)
    state, _ = trained(model)
    assert not net.norm.use_running_average and not net.dropout.deterministic
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(net, nnx.BatchStat))
    nnx.update(net, state.params, state.model_state)
    net.eval()
    np.testing.assert_allclose(net(X), model.apply_fn(state.params, state.model_state, X, "eval")[0], atol=1e-6)


class Sowing(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train)(x)
        self.sow("intermediates", "normed", x)
        return linen.Dense(C)(x)


def test_intermediates_are_no_state():
    variables = Sowing().init(KEY, X[:1], mutable=True)
    assert "intermediates" in variables
    state, _ = trained(training.from_linen(Sowing(), variables))
    assert state.model_state.keys() == {"batch_stats"}


class Frozen(linen.Module):
    average: bool

    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=self.average)(x)


class Pair(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(C)(x), x


class PairNnx(nnx.Module):
    def __call__(self, x):
        return x, x


class AlwaysTraining(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        switch = {"use_running_average": False} if isinstance(self.layer, nnx.BatchNorm) else {"deterministic": False}
        return self.layer(x, **switch)


class Masked(nnx.Module):
    def __call__(self, x, mask):
        return x * mask


def variables(net, **kwargs):
    return net.init(KEY, X[:1], **kwargs)


def applied(model, mode="eval"):
    return lambda: model().apply_fn(*model()[1:], X, mode)


DENSE = linen.Dense(C)
MISTAKES = {
    "a mode": (ValueError, applied(linen_model, "test"), ("('eval', 'batch', 'train')", "'test'")),
    "a mode of NNX": (ValueError, applied(nnx_model, "predict"), ("('eval', 'batch', 'train')", "'predict'")),
    "parameters for variables": (
        ValueError, lambda: training.from_linen(DENSE, variables(DENSE)["params"]), ("'params'", "bias", "whole dictionary"),
    ),
    "no variables": (TypeError, lambda: training.from_linen(DENSE, jnp.ones(3)), ("module.init", "dictionary")),
    "NNX as Linen": (TypeError, lambda: training.from_linen(nnx_net(), {}), ("Linen", "NnxNet", "training.from_nnx")),
    "Linen as NNX": (TypeError, lambda: training.from_nnx(DENSE), ("NNX", "Dense", "training.from_linen")),
    "a class": (TypeError, lambda: training.from_linen(LinenNet, {}), ("class LinenNet", "instance")),
    "a class of NNX": (TypeError, lambda: training.from_nnx(NnxNet), ("class NnxNet", "instance")),
    "a tuple": (TypeError, applied(lambda: training.from_linen(Pair(), variables(Pair()))), ("Pair", "tuple", "logits")),
    "a tuple of NNX": (TypeError, applied(lambda: training.from_nnx(PairNnx())), ("PairNnx", "tuple", "logits")),
    "statistics without a switch": (
        ValueError, lambda: training.from_linen(Frozen(True), variables(Frozen(True))), ("Frozen", "batch_stats", "use_running_average"),
    ),
    "a key without a switch": (ValueError, lambda: training.from_linen(DENSE, variables(DENSE), key=KEY), ("Dense", "key", "switch")),
    "BatchNorm that stays in training": (
        ValueError,
        applied(lambda: training.from_linen(Frozen(False), variables(Frozen(False)), train_kwargs={}, eval_kwargs={})),
        ("Frozen", "'eval'", "eval_kwargs"),
    ),
    "BatchNorm of NNX that stays in training": (
        ValueError,
        applied(lambda: training.from_nnx(AlwaysTraining(nnx.BatchNorm(D, rngs=nnx.Rngs(0))))),
        ("AlwaysTraining", "layer.mean", ".eval()"),
    ),
    "Dropout of NNX that stays in training": (
        ValueError, applied(lambda: training.from_nnx(AlwaysTraining(nnx.Dropout(0.5, rngs=nnx.Rngs(0))))), ("layer.rngs.count", ".eval()"),
    ),
    "Dropout that stays in training": (
        ValueError,
        applied(lambda: training.from_linen(linen.Dropout(0.5), {"params": {}}, train_kwargs={"deterministic": False},
                                            eval_kwargs={"deterministic": False})),
        ("Dropout", "'eval'", "dropout"),
    ),
    "Dropout without a key": (
        ValueError,
        applied(lambda: training.from_linen(LinenNet(0.5), variables(LinenNet(0.5), train=False)), "train"),
        ("dropout", "'train'", "key=jax.random.key"),
    ),
    "a number as a key": (
        TypeError,
        lambda: training.from_linen(LinenNet(0.5), variables(LinenNet(0.5), train=False), key=0),
        ("key", "0", "jax.random.key"),
    ),
    "several keys": (
        ValueError,
        lambda: training.from_linen(LinenNet(0.5), variables(LinenNet(0.5), train=False), key=jax.random.split(KEY, 3)),
        ("one key", "(3,)"),
    ),
    "parameters without statistics": (
        ValueError,
        applied(lambda: training.from_linen(LinenNet(), {"params": linen_model().params})),
        ("LinenNet", "batch_stats", "module.init"),
    ),
    "a state of another model": (ValueError, lambda: linen_model().apply_fn(linen_model().params, None, X, "eval"), ("batch_stats", "[]")),
    "an argument more": (ValueError, lambda: training.from_nnx(Masked()), ("Masked", "mask", "train_kwargs")),
    "one of two": (ValueError, lambda: training.from_nnx(Masked(), train_kwargs={"mask": 1.0}), ("train_kwargs", "eval_kwargs")),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    kind, call, words = MISTAKES[name]
    with pytest.raises(kind) as caught:
        call()
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
