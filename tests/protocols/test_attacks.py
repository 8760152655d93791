"""Laws of every attack x threat: eager = jit = vmap, feasible, differentiable, blind to its neighbours, traced once."""

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


def model():
    weights = jax.random.normal(jax.random.key(3), (D, C))
    return jax.tree_util.Partial(forward, weights)


def forward(weights, x):
    return jnp.tanh(x.reshape(x.shape[0], -1)) @ weights


def data():
    x = jax.random.uniform(jax.random.key(4), (B, 2, 2, 3), minval=0.2, maxval=0.8)
    return x, model()(x).argmax(axis=1)


def bound(name, threat):
    attack = ATTACKS[name][0]
    if attack.get("attack") is not None:
        return base.bind(attack, attack=base.bind(attack.get("attack"), threat=threat))
    return base.bind(attack, threat=threat)


def run(attack, model_fn, x, y, key=None):
    return attack(jax.random.key(5) if key is None else key, model_fn, x, y)


jitted = jax.jit(run)


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
    x, y = data()
    attack = bound(name, ATTACKS[name][1][0](EPS[ATTACKS[name][1][0]]))
    info = jax.eval_shape(attack, jax.random.key(0), model(), x, y).info
    (function,) = {part.function for part in attacks.parts(attack)}
    for has_it, kind, names in (
        (info.norm is not None, "MINIMUM_NORM", kinds.MINIMUM_NORM),
        (info.num_queries is not None, "BLACK_BOX", kinds.BLACK_BOX),
    ):
        verb = "add it to" if has_it else "take it out of"
        assert has_it == (function in names), f"{function.__name__}: {verb} {kind} in robustjax/attacks/kinds.py."


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_result_is_feasible_and_as_reported(name, threat):
    x, y = data()
    ball = threat(EPS[threat])
    result = jitted(bound(name, ball), model(), x, y)
    chex.assert_shape([result.loss, result.success], (B,))
    chex.assert_equal_shape([result.x, x])
    assert bool((result.x >= 0).all() & (result.x <= 1).all())
    np.testing.assert_allclose(result.x, ball.apply(x, result.delta), atol=1e-7)
    fooled = model()(result.x).argmax(axis=1) != y
    minimum_norm = bool(jnp.isin(result.loss, jnp.array([-jnp.inf])).any() | jnp.allclose(-result.loss, ball.norm(result.delta)))
    if minimum_norm:
        np.testing.assert_array_equal(result.success, fooled & ball.within(result.delta))
    else:
        assert bool(ball.within(result.delta).all())
        np.testing.assert_array_equal(result.success, fooled)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_vmap_over_eps_equals_a_loop_and_a_new_eps_does_not_trace_again(name, threat):
    x, y = data()
    traces = []

    @jax.jit
    def single(eps, model_fn):
        traces.append(eps)
        return run(bound(name, threat(eps)), model_fn, x, y)

    grid = jnp.array([0.5, 1.0]) * EPS[threat] if threat is not L0 else jnp.array([2.0, 3.0])
    mapped = jax.jit(jax.vmap(lambda eps, model_fn: run(bound(name, threat(eps)), model_fn, x, y), (0, None)))(grid, model())
    for index, eps in enumerate(grid):
        one = single(eps, model())
        np.testing.assert_array_equal(one.success, mapped.success[index])
        np.testing.assert_allclose(one.delta, mapped.delta[index], atol=2e-4)
    assert len(traces) == 1


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_an_example_never_sees_its_neighbours(name, threat):
    x, y = data()
    keys = jax.random.split(jax.random.key(6), B)
    attack = bound(name, threat(EPS[threat]))
    together = jitted(attack, model(), x, y, keys)
    alone = jitted(attack, model(), x[1:2], y[1:2], keys[1:2])
    np.testing.assert_allclose(together.delta[1], alone.delta[0], atol=1e-5)
    assert bool(together.success[1] == alone.success[0])


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_reverse_mode_gradient_is_finite(name, threat):
    x, y = data()

    @jax.jit
    @jax.grad
    def through(model_fn, eps):
        result = run(bound(name, threat(eps)), model_fn, x, y)
        return jnp.sum(jnp.sin(result.x)) + jnp.sum(losses.margin(model_fn(result.x), y))

    chex.assert_tree_all_finite(through(model(), EPS[threat]))


@pytest.mark.parametrize("name", ENTIRE)
def test_all_loops_agree(name):
    x, y = data()
    attack = bound(name, L2(EPS[L2]))
    expected = jitted(attack, model(), x, y)
    host = run(base.bind(attack, loop_fn=loops.host), model(), x, y)
    early = jitted(base.bind(attack, loop_fn=loops.while_), model(), x, y)
    np.testing.assert_allclose(host.delta, expected.delta, atol=1e-5)
    np.testing.assert_array_equal(early.success, expected.success)


def test_eager_equals_jit():
    x, y = data()
    for name in ("pgd", "fmn"):
        attack = bound(name, Linf(EPS[Linf]))
        np.testing.assert_allclose(run(attack, model(), x, y).delta, jitted(attack, model(), x, y).delta, atol=1e-6)


def test_mask_and_per_coordinate_eps_reach_every_attack():
    x, y = data()
    mask = jnp.zeros((1, 2, 2, 3), bool).at[:, 0].set(True)
    for name, threat in (("pgd", Linf), ("apgd", L2), ("apgd", L1), ("fab", L2), ("square", Linf), ("carlini_wagner", L2), ("fmn", L0)):
        result = jitted(bound(name, threat(EPS[threat], mask=mask)), model(), x, y)
        assert bool((result.delta[:, 1] == 0).all()), name
    eps = jnp.full((1, 2, 2, 3), 0.1).at[0, 0, 0].set(0.0)
    for name in ("pgd", "apgd", "fab", "fmn"):
        result = jitted(bound(name, Linf(eps)), model(), x, y)
        assert bool((result.delta[:, 0, 0] == 0).all()), name


NOT_LATENT = ("rs_fgsm", "fab", "fab_t", "square")  # they need the ball of the inputs themselves


def _decoder(z):
    return jnp.tile(z, 3).reshape(z.shape[0], 2, 2, 3)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_threat_of_codes_is_decoded_wherever_the_model_is_asked(name, threat):
    def result():
        attack = bound(name, Latent(_decoder, threat(EPS[threat], box=(-1.0, 1.0))))
        return jax.eval_shape(attack, jax.random.key(0), model(), jnp.zeros((B, 4)), data()[1])

    if name in NOT_LATENT:
        with pytest.raises(ValueError, match="works in"):
            result()
    else:
        assert (result().x.shape, result().delta.shape) == ((B, 2, 2, 3), (B, 4))
