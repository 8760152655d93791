"""Every training loss: its formula by hand, finite gradients, one trace, and on four devices what it is on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import NamedSharding, PartitionSpec

from robustjax import attacks, base, bounds, losses, parallel, training
from robustjax.threats import L2, Latent, Linf

B, D, C = 16, 6, 3
KEY = jax.random.key(0)
EPS = 0.1
PGD = base.bind(attacks.pgd, threat=Linf(EPS), step_size=0.04, num_steps=3)
FGSM = base.bind(attacks.fgsm, threat=Linf(EPS))


def apply_fn(params, model_state, x, mode):
    counted = model_state + 1 if mode == "train" else model_state
    return jnp.tanh(x @ params["hidden"] + params["bias"][None]) @ params["head"], counted


_logits = jax.jit(lambda params, x: apply_fn(params, 0, x, "eval")[0])


def decoder(code, *, basis):
    return 0.5 + code @ basis


value_and_grad = jax.jit(lambda loss, params, key, x, y: jax.value_and_grad(loss, has_aux=True)(params, jnp.int32(0), key, x, y))
value = jax.jit(lambda loss, params, x, y: loss(params, 0, KEY, x, y)[0])
slope = jax.jit(lambda loss, params, x, y: jax.grad(lambda params: loss(params, 0, KEY, x, y)[0])(params))


@functools.cache
def problem():
    keys = jax.random.split(jax.random.key(1), 5)
    params = {
        "hidden": jax.random.normal(keys[0], (D, 8)),
        "bias": 0.1 * jax.random.normal(keys[1], (8,)),
        "head": jax.random.normal(keys[2], (8, C)),
    }
    code = 0.1 * jax.random.normal(keys[3], (B, 2))
    return params, code, jnp.arange(B) % C


DECODER = base.bind(decoder, basis=jax.random.normal(jax.random.key(2), (2, D)))
LATENT = base.bind(attacks.pgd, threat=Latent(DECODER, 0.1), step_size=0.04, num_steps=3)
NOISE = {"sigma": 0.25, "num_noise": 3}
SMOOTH_PGD = base.bind(attacks.pgd, threat=L2(EPS), step_size=0.07, num_steps=3, delta=0.0)
CERTIFIED = {"apply_fn": apply_fn, "threat": Linf(EPS), "kappa": 0.5}
DDN = base.bind(attacks.ddn, threat=L2(EPS), num_steps=3, init_eps=EPS)
LOSSES = {
    "natural": base.bind(training.natural, apply_fn=apply_fn),
    "madry": base.bind(training.adversarial, apply_fn=apply_fn, attack=PGD),
    "rs_fgsm": base.bind(training.adversarial, apply_fn=apply_fn, attack=base.bind(attacks.rs_fgsm, threat=Linf(EPS))),
    "n_fgsm": base.bind(training.adversarial, apply_fn=apply_fn, attack=base.bind(attacks.n_fgsm, threat=Linf(EPS))),
    "madry_l2": base.bind(training.adversarial, apply_fn=apply_fn, attack=base.bind(PGD, threat=L2(EPS))),
    "mixed": base.bind(training.mixed, apply_fn=apply_fn, attack=FGSM),
    "trades": base.bind(training.trades, apply_fn=apply_fn, attack=base.bind(PGD, delta=attacks.small_noise), beta=6.0),
    "trades_restarts": base.bind(training.trades, apply_fn=apply_fn, attack=attacks.restarts(PGD, 2), beta=1.0, target_detached=True),
    "mart": base.bind(training.mart, apply_fn=apply_fn, attack=PGD, beta=5.0),
    "grad_align": base.bind(training.grad_align, apply_fn=apply_fn, attack=FGSM, threat=Linf(EPS), align_weight=0.2),
    "awp": base.bind(training.adversarial, apply_fn=apply_fn, attack=PGD, weights_fn=base.bind(training.awp, gamma=0.01)),
    "trades_awp": base.bind(training.trades, apply_fn=apply_fn, attack=PGD, beta=6.0, weights_fn=base.bind(training.awp, gamma=0.005)),
    "on_manifold": base.bind(training.adversarial, apply_fn=apply_fn, attack=LATENT),
    "dual_manifold": base.bind(training.dual_manifold, apply_fn=apply_fn, attack=PGD, latent_attack=LATENT),
    "dual_manifold_trades": base.bind(training.dual_manifold_trades, apply_fn=apply_fn, attack=PGD, latent_attack=LATENT, beta=6.0),
    "gaussian": base.bind(training.gaussian, apply_fn=apply_fn, **NOISE),
    "stability": base.bind(training.stability, apply_fn=apply_fn, weight=2.0, **NOISE),
    "smooth_adv": base.bind(training.smooth_adv, apply_fn=apply_fn, attack=SMOOTH_PGD, **NOISE),
    "smooth_adv_ddn": base.bind(training.smooth_adv, apply_fn=apply_fn, attack=DDN, **NOISE),
    "smooth_adv_gradient_free": base.bind(training.smooth_adv, apply_fn=apply_fn, attack=SMOOTH_PGD, gradient_free=True, **NOISE),
    "macer": base.bind(training.macer, apply_fn=apply_fn, weight=4.0, **NOISE),
    "consistency": base.bind(training.consistency, apply_fn=apply_fn, weight=5.0, **NOISE),
    "ibp": base.bind(training.certified, bound_fn=bounds.interval, **CERTIFIED),
    "crown_ibp": base.bind(training.certified, bound_fn=base.bind(bounds.crown_ibp, beta=0.5), **CERTIFIED),
    "wong_kolter": base.bind(training.certified, bound_fn=base.bind(bounds.crown, slope="parallel"), **CERTIFIED),
    "ibp_of_codes": base.bind(training.certified, bound_fn=bounds.interval, **CERTIFIED | {"threat": LATENT.get("threat")}),
    "sabr": base.bind(training.sabr, apply_fn=apply_fn, threat=Linf(EPS), attack=PGD, box_ratio=0.4),
    "sabr_of_codes": base.bind(training.sabr, apply_fn=apply_fn, threat=LATENT.get("threat"), attack=LATENT, box_ratio=0.4),
    "mtl_ibp": base.bind(training.mtl_ibp, apply_fn=apply_fn, threat=Linf(EPS), attack=PGD, alpha=0.5),
    "cc_ibp": base.bind(training.cc_ibp, apply_fn=apply_fn, threat=Linf(EPS), attack=PGD, alpha=0.5),
    "exp_ibp": base.bind(training.exp_ibp, apply_fn=apply_fn, threat=Linf(EPS), attack=PGD, alpha=0.5),
    "smooth_mix": base.bind(training.smooth_mix, apply_fn=apply_fn, attack=SMOOTH_PGD, weight=5.0, **NOISE),
}
NUM_FORWARDS = {"dual_manifold_trades": 3} | dict.fromkeys(
    ("mixed", "trades", "trades_restarts", "mart", "trades_awp", "dual_manifold", "stability", "smooth_mix"), 2
)


@functools.cache
def data(name):
    _, code, y = problem()
    x = DECODER(code)
    return code if name in ("on_manifold", "ibp_of_codes", "sabr_of_codes") else training.Coded(x, code) if "dual" in name else x, y


@pytest.mark.parametrize("name", LOSSES)
def test_face(name):
    params, (x, y) = problem()[0], data(name)
    (loss, (model_state, metrics)), grad = value_and_grad(LOSSES[name], params, KEY, x, y)
    assert loss.shape == () and metrics["loss"].shape == () and 0 <= float(metrics["accuracy"]) <= 1
    assert int(model_state) == NUM_FORWARDS.get(name, 1), "statistics of the documented forward passes, and of no attack"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    num_programs = value_and_grad._cache_size()
    value_and_grad(LOSSES[name], params, jax.random.key(5), x, y)
    assert value_and_grad._cache_size() == num_programs
    mesh = parallel.data_mesh(4)
    sharded = value_and_grad(LOSSES[name], parallel.replicate(params, mesh), KEY, *parallel.shard_batch((x, y), mesh))
    np.testing.assert_allclose(sharded[0][0], loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sharded[1], grad)


@pytest.mark.parametrize("name", ["madry", "mixed", "trades", "mart"])
def test_an_attack_that_does_nothing_leaves_the_formula_on_clean_inputs(name):
    params, (x, y) = problem()[0], data(name)
    still = base.bind(LOSSES[name], attack=base.bind(PGD, threat=Linf(0.0), step_size=0.0))
    logits = np.asarray(_logits(params, x), np.float64)
    log_probs = scipy.special.log_softmax(logits, axis=1)
    rows = np.arange(B)
    expected = -log_probs[rows, y]
    if name == "mart":
        wrong = np.where(np.eye(C)[np.asarray(y)] == 1, -np.inf, log_probs).max(axis=1)
        expected = expected - np.log(1.0001 - np.exp(wrong))
    np.testing.assert_allclose(value(still, params, x, y), expected.mean(), rtol=1e-4)


def given(key, model_fn, x, y, *, x_adv, **_):
    del key, model_fn, y
    return base.AttackResult(x_adv, x_adv - x, jnp.zeros(len(x)), jnp.zeros(len(x), bool))


def test_formulas_on_given_adversarial_inputs():
    params, (x, y) = problem()[0], data("madry")
    x_adv = x + 0.3 * jax.random.normal(jax.random.key(7), x.shape)
    attack = base.bind(given, x_adv=x_adv)
    clean, attacked = (scipy.special.log_softmax(np.asarray(_logits(params, a), np.float64), axis=1) for a in (x, x_adv))
    rows = np.arange(B)
    divergence = np.sum(np.exp(clean) * (clean - attacked), axis=1)
    wrong = np.where(np.eye(C)[np.asarray(y)] == 1, -np.inf, attacked).max(axis=1)
    boosted = -attacked[rows, y] - np.log(1.0001 - np.exp(wrong))
    expected = {
        "madry": -attacked[rows, y],
        "mixed": -0.5 * attacked[rows, y] - 0.5 * clean[rows, y],
        "trades": -clean[rows, y] + 6.0 * divergence,
        "mart": boosted + 5.0 * divergence * (1 - np.exp(clean[rows, y])),
    }
    for name, values in expected.items():
        loss = value(base.bind(LOSSES[name], attack=attack), params, x, y)
        np.testing.assert_allclose(loss, values.mean(), rtol=1e-5, err_msg=name)


def test_trades_detaches_its_target_if_asked():
    params, (x, y) = problem()[0], data("madry")
    attack = base.bind(given, x_adv=x + 0.3)
    gradients = [slope(base.bind(LOSSES["trades"], attack=attack, target_detached=detached), params, x, y) for detached in (False, True)]
    log_probs = jax.nn.log_softmax(_logits(params, x))

    def by_hand(params):
        divergence = losses.kl(apply_fn(params, 0, x + 0.3, "eval")[0], log_probs).mean()
        return losses.cross_entropy(apply_fn(params, 0, x, "eval")[0], y).mean() + 6.0 * divergence

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[1], jax.jit(jax.grad(by_hand))(params))
    assert not np.allclose(gradients[0]["head"], gradients[1]["head"], atol=1e-3)


def test_trades_attacks_the_divergence_and_stands_extreme_logits():
    params, (x, y) = problem()[0], data("madry")
    strong = base.bind(LOSSES["trades"], attack=base.bind(PGD, num_steps=10))
    none = base.bind(LOSSES["trades"], attack=base.bind(PGD, num_steps=1, step_size=0.0))
    assert value(strong, params, x, y) > value(none, params, x, y) + 0.05
    sharp = params | {"head": 1e4 * params["head"]}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope(strong, sharp, x, y)))


def test_awp_moves_matrices_by_gamma_uphill_and_nothing_else():
    params, (x, y) = problem()[0], data("madry")
    risk = jax.jit(lambda params: (losses.cross_entropy(apply_fn(params, 0, x, "eval")[0], y).mean(), None))
    awp = jax.jit(functools.partial(training.awp, risk, gamma=0.01))
    moved = awp(params)
    np.testing.assert_array_equal(moved["bias"], params["bias"])
    for name in ("hidden", "head"):
        np.testing.assert_allclose(np.linalg.norm(moved[name] - params[name]), 0.01 * np.linalg.norm(params[name]), rtol=1e-3)
    assert risk(moved)[0] > risk(params)[0]
    through = jax.jit(jax.grad(lambda params: risk(awp(params))[0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), through, jax.jit(jax.grad(lambda p: risk(p)[0]))(moved))
    flat = lambda params: (0.0 * params["head"].sum(), None)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, training.awp(flat, params, gamma=0.01), params)


def test_average_follows_the_ramped_decay():
    optimizer = optax.chain(training.averaged(optax.sgd(0.1), decay=0.5))
    params, state = jnp.array([1.0, -2.0]), optimizer.init(jnp.array([1.0, -2.0]))
    expected = np.array([1.0, -2.0])
    for step in range(1, 6):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * np.asarray(params)
    np.testing.assert_allclose(training.average(state), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="keeps no average"):
        training.average(optax.sgd(0.1).init(params))


def test_statistics_are_those_of_training_passes():
    params, (x, _) = problem()[0], data("madry")
    assert int(training.batch_norm_statistics(apply_fn, params, jnp.int32(0), x, batch_size=5)) == 3


def test_alignment_is_one_on_a_linear_loss_and_drops_flat_examples():
    x = jax.random.uniform(KEY, (B, D))
    y = jnp.zeros(B, int)
    weights = jax.random.normal(jax.random.key(3), (D, C))
    linear = jax.tree_util.Partial(lambda w, x: x @ w, weights)
    difference = losses.targeted(lambda z, y: z[:, 0] - z[:, 1])
    value = jax.jit(lambda model_fn: training.alignment(KEY, model_fn, x, y, threat=Linf(0.1), loss_fn=difference))(linear)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)

    def partly_flat(w, x):  # no gradient in the first half of the batch
        return jnp.where((jnp.arange(B) < B // 2)[:, None], 0.0, jnp.tanh(x @ w))

    def through(w, model):
        return training.alignment(KEY, jax.tree_util.Partial(model, w), x, y, threat=Linf(0.1))

    both = jax.jit(jax.value_and_grad(through), static_argnums=1)
    value, grad = both(weights, partly_flat)
    half, _ = both(weights, lambda w, x: jnp.tanh(x @ w))
    assert 0 < value < 1 and 0 < half < 1 and np.isfinite(grad).all() and np.abs(grad).max() > 0
    value, grad = both(weights, lambda w, x: 0.0 * (x @ w))
    assert value == 1.0 and np.isfinite(grad).all()


def test_n_fgsm_steps_from_larger_noise_without_projection():
    x = jnp.full((B, D), 0.5)
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, jax.random.normal(KEY, (D, C)))
    y = jnp.zeros(B, int)
    result = jax.jit(base.bind(attacks.n_fgsm, threat=Linf(0.05)))(KEY, model_fn, x, y)
    size = np.abs(np.asarray(result.delta))
    assert 0.1 < size.max() <= 0.15 * (1 + 1e-5), "noise of 2 eps and a step of eps"
    uphill = jax.jit(jax.grad(lambda d: losses.cross_entropy(model_fn(x + d), y).sum()))(result.delta)
    noise = np.asarray(result.delta) - 0.05 * np.sign(uphill)
    assert 0.09 < np.abs(noise).max() <= 0.1 * (1 + 1e-4)


def test_small_noise_starts_inside_the_threat():
    params, (x, y) = problem()[0], data("madry")
    model_fn = training.classifier(apply_fn, params, None)
    start = base.bind(attacks.pgd, threat=Linf(EPS), step_size=0.0, num_steps=1, delta=base.bind(attacks.small_noise, scale=10.0))
    size = np.abs(jax.jit(start)(KEY, model_fn, x, y).delta).max(axis=1)
    assert (size <= EPS * (1 + 1e-6)).all() and size.min() > 0.09


def test_sharded_fit_equals_one_device():
    params, (x, y) = problem()[0], data("madry")
    optimizer = optax.sgd(0.1)  # Adam would make a step of the rounding of a gradient near zero
    mesh = parallel.data_mesh(4)
    place = lambda batch: jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))  # noqa: E731
    ends = []
    for place_fn in (None, place):
        run = jax.jit(
            lambda state, place_fn=place_fn: training.fit(
                state, KEY, x, y, step_fn=training.step(LOSSES["trades"], optimizer), num_epochs=2, batch_size=8, place_fn=place_fn
            )
        )
        ends.append(run(training.init(params, jnp.int32(0), optimizer))[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *ends)
