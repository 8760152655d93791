"""Laws of every attack x threat: eager = jit = vmap, feasible, differentiable, blind to its neighbours, traced once."""

import collections
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, loops, losses
from robustjax.attacks import kinds
from robustjax.threats import L0, L1, L2, Latent, Linf

B, D, C = 3, 12, 4
EPS = {Linf: 0.1, L2: 0.4, L1: 0.8, L0: 3.0}
ATTACKS = {
    "fgsm": (base.bind(attacks.fgsm), (Linf, L2, L1)),
    "r_fgsm": (base.bind(attacks.r_fgsm, alpha=0.03), (Linf,)),
    "rs_fgsm": (base.bind(attacks.rs_fgsm), (Linf, L2)),
    "bim": (base.bind(attacks.bim, step_size=0.03, num_steps=3), (Linf, L2)),
    "mi_fgsm": (base.bind(attacks.mi_fgsm, step_size=0.03, num_steps=3), (Linf, L2)),
    "pgd": (base.bind(attacks.pgd, step_size=0.1, num_steps=3), (Linf, L2, L1, L0)),
    "apgd": (base.bind(attacks.apgd, num_steps=9), (Linf, L2, L1)),
    "apgd_dlr": (base.bind(attacks.apgd, num_steps=9, loss_fn=losses.dlr), (Linf,)),
    "apgd_t": (attacks.over_targets(base.bind(attacks.apgd, num_steps=5), 2), (Linf,)),
    "fab": (base.bind(attacks.fab, num_steps=4), (Linf, L2, L1)),
    "fab_t": (attacks.over_targets(base.bind(attacks.fab, num_steps=4), 2), (L2,)),
    "square": (base.bind(attacks.square, num_queries=20), (Linf, L2, L1)),
    "deepfool": (base.bind(attacks.deepfool, num_steps=4), (Linf, L2)),
    "ddn": (base.bind(attacks.ddn, num_steps=6), (L2,)),
    "fmn": (base.bind(attacks.fmn, num_steps=6), (Linf, L2, L1, L0)),
    "alma": (base.bind(attacks.alma, num_steps=12), (L2, L1)),
    "carlini_wagner": (
        base.bind(attacks.carlini_wagner, num_binary_search_steps=2, num_steps=8, learning_rate=0.1, init_weight=1.0),
        (L2,),
    ),
    "carlini_wagner_linf": (base.bind(attacks.carlini_wagner_linf, num_rounds=3, num_steps=8, learning_rate=0.1, init_weight=1.0), (Linf,)),
    "carlini_wagner_l0": (base.bind(attacks.carlini_wagner_l0, num_rounds=3, num_steps=8, learning_rate=0.3), (L0,)),
    "lbfgs": (base.bind(attacks.lbfgs, num_binary_search_steps=3, num_steps=8, init_weight=0.1), (L2,)),
    "ead": (base.bind(attacks.ead, num_binary_search_steps=2, num_steps=8, learning_rate=0.1, init_weight=1.0), (L1, L2)),
    "sigma_zero": (base.bind(attacks.sigma_zero, num_steps=8), (L0,)),
    "restarts": (attacks.restarts(base.bind(attacks.pgd, step_size=0.05, num_steps=2), 2), (Linf,)),
}
UNTRIED = {"apgd_l1", "autoattack", "n_fgsm"}  # what apgd is in L1, a combination of others, an attack that leaves its ball
ENTIRE = ("apgd", "fab", "square", "fmn", "carlini_wagner", "lbfgs")
CASES = [pytest.param(name, threat, id=f"{name}-{threat.__name__}") for name, (_, kinds) in ATTACKS.items() for threat in kinds]


@functools.cache
def model():
    return jax.tree_util.Partial(forward, np.random.default_rng(3).normal(size=(D, C)).astype(np.float32))


def forward(weights, x):
    return jnp.tanh(x.reshape(x.shape[0], -1)) @ weights


@functools.cache
def data():
    """Inputs, the labels that the model gives them, and a key each."""
    x = np.random.default_rng(4).uniform(0.2, 0.8, size=(B, 2, 2, 3)).astype(np.float32)
    return x, predictions(model(), x), jax.random.split(jax.random.key(5), B)


predictions = jax.jit(lambda model_fn, x: model_fn(x).argmax(axis=1))
norms = jax.jit(lambda ball, x, delta: (ball.apply(x, delta), ball.norm(delta), ball.within(delta)))


def bound(name, threat):
    attack = ATTACKS[name][0]
    if attack.get("attack") is not None:
        return base.bind(attack, attack=base.bind(attack.get("attack"), threat=threat))
    return base.bind(attack, threat=threat)


traces = collections.Counter()  # of what runs, by the attack and its threat


@jax.jit
def jitted(attack, model_fn, x, y, keys):
    traces[jax.tree.structure(attack)] += 1
    return attack(keys, model_fn, x, y)


def test_every_attack_is_in_the_table():
    public = {
        name for name in attacks.__all__ if list(inspect.signature(getattr(attacks, name)).parameters)[:4] == ["key", "model_fn", "x", "y"]
    }
    tried = {part.function.__name__ for attack, _ in ATTACKS.values() for part in attacks.parts(attack)}
    missing = public - tried - UNTRIED
    assert not missing, (
        f"add {missing} to ATTACKS in tests/protocols/test_attacks.py, each bound to a few steps, with the threats it works in; "
        "an attack that couples the examples of a batch goes into UNTRIED instead."
    )
    assert not tried & UNTRIED, "what is in ATTACKS is not UNTRIED"


@pytest.mark.parametrize("name", ATTACKS)
def test_the_kind_of_an_attack_is_what_its_results_say(name):
    x, y, _ = data()
    attack = bound(name, ATTACKS[name][1][0](EPS[ATTACKS[name][1][0]]))
    info = jax.eval_shape(attack, jax.random.key(0), model(), x, y).info
    (function,) = {part.function for part in attacks.parts(attack)}
    for has_it, kind, names in (
        (info.norm is not None, "MINIMUM_NORM", kinds.MINIMUM_NORM),
        (info.num_queries is not None, "BLACK_BOX", kinds.BLACK_BOX),
    ):
        verb = "add it to" if has_it else "take it out of"
        assert has_it == (function in names), f"{function.__name__}: {verb} {kind} in robustjax/attacks/kinds.py."


# Four laws run two programs of an attack: the batch, and one of its examples alone, mapped over eps and differentiated.


def grid(threat):
    return np.array([2.0, EPS[threat]] if threat is L0 else [0.5 * EPS[threat], EPS[threat]], np.float32)


@functools.cache
def of_one_example(name, threat):
    """Results of the second example by itself for each eps, and the gradients of a function of them in the model's weights."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
    @functools.partial(jax.grad, argnums=1, has_aux=True)
    def of_eps(eps, model_fn, x, y, keys):
        result = bound(name, threat(eps))(keys, model_fn, x, y)
        return jnp.sum(jnp.sin(result.x)) + jnp.sum(losses.margin(model_fn(result.x), y)), result

    return of_eps(grid(threat), model(), *(value[1:2] for value in data()))


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_result_is_feasible_and_as_reported(name, threat):
    x, y, keys = data()
    ball = threat(grid(threat)[1])
    result = jitted(bound(name, ball), model(), x, y, keys)
    chex.assert_shape([result.loss, result.success], (B,))
    chex.assert_equal_shape([result.x, x])
    assert (result.x >= 0).all() and (result.x <= 1).all()
    applied, norm, within = map(np.asarray, norms(ball, x, result.delta))
    np.testing.assert_allclose(result.x, applied, atol=1e-7)
    fooled, loss = np.asarray(predictions(model(), result.x) != y), np.asarray(result.loss)
    minimum_norm = np.isneginf(loss).any() or np.allclose(-loss, norm)
    if minimum_norm:
        np.testing.assert_array_equal(result.success, fooled & within)
    else:
        assert within.all()
        np.testing.assert_array_equal(result.success, fooled)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_vmap_over_eps_equals_a_loop_and_a_new_eps_does_not_trace_again(name, threat):
    _, mapped = of_one_example(name, threat)
    for index, eps in enumerate(grid(threat)):
        attack = bound(name, threat(eps))
        one = jitted(attack, model(), *data())
        np.testing.assert_array_equal(one.success[1:2], mapped.success[index])
        np.testing.assert_allclose(one.delta[1:2], mapped.delta[index], atol=2e-4)
    assert traces[jax.tree.structure(attack)] == 1


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_an_example_never_sees_its_neighbours(name, threat):
    # With neighbours of other values, other labels and other keys; the test above has it without any.
    attack, (x, y, keys) = bound(name, threat(grid(threat)[1])), data()
    is_second = np.arange(B) == 1
    changed = (
        np.where(is_second[:, None, None, None], x, 1 - x),
        np.where(is_second, y, (y + 1) % C),
        jax.random.split(jax.random.key(6), B).at[1].set(keys[1]),
    )
    together, among_others = jitted(attack, model(), x, y, keys), jitted(attack, model(), *changed)
    np.testing.assert_array_equal(among_others.delta[1], together.delta[1])
    assert among_others.success[1] == together.success[1]
    assert (among_others.delta[0] != together.delta[0]).any() or not (together.delta[0] != 0).any()


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_reverse_mode_gradient_is_finite(name, threat):
    gradient, _ = of_one_example(name, threat)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("name", ENTIRE)
def test_all_loops_agree(name):
    x, y, keys = data()
    attack = bound(name, L2(grid(L2)[1]))
    expected = jitted(attack, model(), x, y, keys)
    host = base.bind(attack, loop_fn=loops.host)(keys, model(), x, y)
    early = jitted(base.bind(attack, loop_fn=loops.while_), model(), x, y, keys)
    np.testing.assert_allclose(host.delta, expected.delta, atol=1e-5)
    np.testing.assert_array_equal(early.success, expected.success)


def test_eager_equals_jit():
    x, y, keys = data()
    for name in ("pgd", "fmn"):
        attack = bound(name, Linf(grid(Linf)[1]))
        np.testing.assert_allclose(attack(keys, model(), x, y).delta, jitted(attack, model(), x, y, keys).delta, atol=1e-6)


def test_mask_and_per_coordinate_eps_reach_every_attack():
    mask = np.zeros((1, 2, 2, 3), bool)
    mask[:, 0] = True
    for name, threat in (("pgd", Linf), ("apgd", L2), ("apgd", L1), ("fab", L2), ("square", Linf), ("carlini_wagner", L2), ("fmn", L0)):
        result = jitted(bound(name, threat(EPS[threat], mask=mask)), model(), *data())
        assert (result.delta[:, 1] == 0).all(), name
    eps = np.full((1, 2, 2, 3), 0.1, np.float32)
    eps[0, 0, 0] = 0.0
    for name in ("pgd", "apgd", "fab", "fmn"):
        result = jitted(bound(name, Linf(eps)), model(), *data())
        assert (result.delta[:, 0, 0] == 0).all(), name


NOT_LATENT = ("rs_fgsm", "fab", "fab_t", "square")  # they need the ball of the inputs themselves


def _decoder(z):
    return jnp.tile(z, 3).reshape(z.shape[0], 2, 2, 3)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_threat_of_codes_is_decoded_wherever_the_model_is_asked(name, threat):
    def result():
        attack = bound(name, Latent(_decoder, threat(EPS[threat], box=(-1.0, 1.0))))
        return jax.eval_shape(attack, jax.random.key(0), model(), np.zeros((B, 4), np.float32), data()[1])

    if name in NOT_LATENT:
        with pytest.raises(ValueError, match="works in"):
            result()
    else:
        assert (result().x.shape, result().delta.shape) == ((B, 2, 2, 3), (B, 4))
