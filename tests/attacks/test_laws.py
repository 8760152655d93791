"""Laws over the whole family of attacks: the scale of a loss, mirror images, and what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import arrays, attacks, base, losses
from robustjax.threats import L0, L1, L2, Linf

KEY = jax.random.key(0)
B, D, C = 4, 6, 4
_RNG = np.random.default_rng(0)
_HIDDEN, _HEAD = _RNG.normal(size=(D, 8)).astype(np.float32), _RNG.normal(size=(8, C)).astype(np.float32)


def _network(mirrored, x):
    x = jnp.where(mirrored, 1.0 - x, x)
    return jnp.tanh((x - 0.5) @ _HIDDEN) @ _HEAD


def _broken(y, x):
    """Right everywhere; the gradient of an example whose first feature is 1/2 is NaN there, its logits are not."""
    bad = jnp.where(x[:, 0] == 0.5, jnp.sqrt(jnp.abs(x[:, 0] - x[:, 0])), 0.0)
    return 10.0 * jax.nn.one_hot(y, C) + 0.0 * x.sum(axis=1, keepdims=True) + bad[:, None]


def _network_or_broken(is_broken, mirrored, y, x):
    return jax.lax.cond(is_broken, lambda: _broken(y, x), lambda: _network(mirrored, x))


@functools.cache
def _data():
    x = np.random.default_rng(3).uniform(0.2, 0.8, size=(B, D)).astype(np.float32)
    x[0, 0], x[1, 1] = 0.0, 1.0
    return x, np.asarray(jax.jit(_network)(False, x)).argmax(axis=1)


def _times(logits, y, *, value_fn, scale):
    return scale * value_fn(logits, y)


# Attacks that follow a direction or compare losses. The penalty methods (C&W, L-BFGS, EAD, ALMA, sigma-zero) weigh a loss against a norm.
SCALE_FREE = {
    "fgsm-linf": (base.bind(attacks.fgsm), Linf(0.1)),
    "fgsm-l2": (base.bind(attacks.fgsm), L2(0.3)),
    "fgsm-l1": (base.bind(attacks.fgsm), L1(0.3)),
    "pgd-l2": (base.bind(attacks.pgd, step_size=0.1, num_steps=3), L2(0.3)),
    "pgd-l1": (base.bind(attacks.pgd, step_size=0.1, num_steps=3), L1(0.3)),
    "pgd-l0": (base.bind(attacks.pgd, step_size=0.3, num_steps=3), L0(2.0)),
    "mi_fgsm": (base.bind(attacks.mi_fgsm, step_size=0.05, num_steps=3), Linf(0.1)),
    "apgd-linf": (base.bind(attacks.apgd, num_steps=9), Linf(0.1)),
    "apgd-l2": (base.bind(attacks.apgd, num_steps=9), L2(0.3)),
    "apgd-l1": (base.bind(attacks.apgd, num_steps=9), L1(0.3)),
    "ddn": (base.bind(attacks.ddn, num_steps=9), L2(jnp.inf)),
    "fmn-linf": (base.bind(attacks.fmn, num_steps=9), Linf(jnp.inf)),
    "fmn-l2": (base.bind(attacks.fmn, num_steps=9), L2(jnp.inf)),
    "fmn-l2-rescaled": (base.bind(attacks.fmn, num_steps=9, rescaled=True), L2(jnp.inf)),
    "fmn-l1": (base.bind(attacks.fmn, num_steps=9), L1(jnp.inf)),
    "fmn-l0": (base.bind(attacks.fmn, num_steps=9), L0(jnp.inf)),
    "square": (base.bind(attacks.square, num_queries=9), Linf(0.1)),
    "fab-linf": (base.bind(attacks.fab, num_steps=4), Linf(jnp.inf)),
    "fab-l2": (base.bind(attacks.fab, num_steps=4), L2(jnp.inf)),
    "fab-l1": (base.bind(attacks.fab, num_steps=4), L1(jnp.inf)),
    "deepfool-linf": (base.bind(attacks.deepfool, num_steps=4), Linf(jnp.inf)),
    "deepfool-l2": (base.bind(attacks.deepfool, num_steps=4), L2(jnp.inf)),
}


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_a_loss_changes_no_attack(name):
    attack, threat = SCALE_FREE[name]
    by_boundary = attack.function in (attacks.fab, attacks.deepfool)
    argument, value_fn = ("boundary_fn", losses.differences) if by_boundary else ("loss_fn", losses.margin)
    x, y = _data()

    @jax.jit
    def run(scale):
        scaled = base.bind(_times, value_fn=value_fn, scale=scale)
        return base.bind(attack, threat=threat, **{argument: scaled})(KEY, Partial(_network, False), x, y)

    plain = run(1.0)
    for scale in (2.0**-66, 2.0**66):  # 1.4e-20 and 7.4e19: powers of two round nothing
        other = run(scale)
        np.testing.assert_allclose(other.delta, plain.delta, atol=1e-6)
        np.testing.assert_array_equal(other.success, plain.success)


def _saturated(scale, x):
    return scale * _network(False, x)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (base.bind(attacks.ddn, num_steps=40), L2(jnp.inf)),
        (base.bind(attacks.pgd, step_size=0.05, num_steps=20), L2(0.5)),
        (base.bind(attacks.apgd, num_steps=40), L2(0.5)),
    ],
    ids=["ddn", "pgd", "apgd"],
)
def test_l2_attacks_do_not_stop_where_the_cross_entropy_is_saturated(attack, threat):
    # At 40 times the logits the gradient of the cross-entropy has norms down to 1e-20, but never the wrong direction.
    x, y = _data()
    run = jax.jit(lambda scale: base.bind(attack, threat=threat)(KEY, Partial(_saturated, scale), x, y))
    np.testing.assert_array_equal(run(10.0).success, run(1.0).success)
    assert run(10.0).success.all()


MIRRORED = SCALE_FREE | {
    "carlini_wagner": (base.bind(attacks.carlini_wagner, num_binary_search_steps=3, num_steps=9, learning_rate=0.1), L2(jnp.inf)),
    "carlini_wagner_linf": (
        base.bind(attacks.carlini_wagner_linf, num_rounds=3, num_steps=9, learning_rate=0.1, init_weight=1.0),
        Linf(jnp.inf),
    ),
    "carlini_wagner_l0": (base.bind(attacks.carlini_wagner_l0, num_rounds=3, num_steps=9, learning_rate=0.1), L0(jnp.inf)),
    "lbfgs": (base.bind(attacks.lbfgs, num_binary_search_steps=3, num_steps=9), L2(jnp.inf)),
    "ead": (base.bind(attacks.ead, num_binary_search_steps=3, num_steps=9, init_weight=1.0), L1(jnp.inf)),
    "alma-l2": (base.bind(attacks.alma, num_steps=19), L2(jnp.inf)),
    "alma-l1": (base.bind(attacks.alma, num_steps=19, init_distance=0.5), L1(jnp.inf)),
    "sigma_zero": (base.bind(attacks.sigma_zero, num_steps=9), L0(jnp.inf)),
}
_RANDOM = ("pgd-l2", "pgd-l1", "pgd-l0", "apgd-linf", "apgd-l2", "apgd-l1")  # unless they start at x


@jax.jit
def _attacked(attack, is_broken, mirrored, x, y):
    # One program for both laws below: the first asks the network, the second what has no gradient.
    return attack(KEY, Partial(_network_or_broken, is_broken, mirrored, y), x, y)


def _from_x(name):
    attack, threat = MIRRORED.get(name, (base.bind(attacks.rs_fgsm), Linf(0.1)))
    return base.bind(attack, threat=threat, **({"delta": 0.0} if name in _RANDOM else {}))


@pytest.mark.parametrize("name", [name for name in MIRRORED if name != "square"])
def test_mirror_images_are_attacked_alike(name):
    x, y = _data()
    plain, mirror = _attacked(_from_x(name), False, False, x, y), _attacked(_from_x(name), False, True, 1 - x, y)
    np.testing.assert_allclose(mirror.delta, -plain.delta, atol=2e-3)
    np.testing.assert_array_equal(mirror.success, plain.success)


@pytest.mark.parametrize("order", [0, 1, 2, np.inf])
def test_the_gradient_of_every_norm_at_zero_is_zero(order):
    norm = functools.partial(arrays.norm, order=order)
    for slopes in jax.jit(lambda x: (jax.jacrev(norm)(x), jax.jacfwd(norm)(x)))(np.zeros((2, 3), np.float32)):
        np.testing.assert_array_equal(slopes, 0.0)


@pytest.mark.parametrize("order", [1, 2, jnp.inf])
def test_norms_and_directions_hold_at_any_scale(order):
    x = np.array([[3.0, -4.0, 0.0], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]], np.float32)
    both = jax.jit(lambda x: (arrays.normalize(x, order), arrays.norm(x, order)))
    plain, norm = map(np.asarray, both(x))
    for scale in (1e-36, 1e-20, 1e20, 1e37):
        scaled_plain, scaled_norm = both(np.float32(scale) * x)
        np.testing.assert_allclose(scaled_plain, plain, rtol=1e-5)
        np.testing.assert_allclose(scaled_norm, scale * norm, rtol=1e-5)
    np.testing.assert_array_equal(plain[2], 0.0)


# --- what is not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MIRRORED, "rs_fgsm"])
def test_nan_is_no_success_and_a_gradient_that_is_not_finite_is_no_robustness(name):
    x, y = _data()
    x = np.concatenate([x[:3], np.full((1, D), 0.5, np.float32)])
    result = _attacked(_from_x(name), True, False, x, y)
    assert np.isfinite(result.x).all()
    assert not result.success.any()
    if name not in ("square", "rs_fgsm"):
        assert np.isnan(result.loss[3]) or "deepfool" in name or "fab" in name, "nothing is known of that example"
