"""Training for smoothing: every formula by hand from the same noise, its edges, and the noise that attack and loss share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from flax import linen, nnx
from jax.tree_util import Partial

from robustjax import attacks, base, losses, parallel, prng, smoothing, training
from robustjax.smoothing import counting
from robustjax.threats import L2
from robustjax.training import _smooth_adv

B, D, C, S = 8, 6, 3, 4
KEY = jax.random.key(0)
SIGMA, EPS = 0.3, 0.2
PGD = base.bind(attacks.pgd, threat=L2(EPS), step_size=2 * EPS / 3, num_steps=3, delta=0.0)
NOISE = {"sigma": SIGMA, "num_noise": S}


def apply_fn(params, model_state, x, mode):
    counted = model_state + 1 if mode == "train" else model_state
    return jnp.tanh(x @ params["hidden"] + params["bias"][None]) @ params["head"], counted


def make_params(scale=1.0):
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "hidden": jax.random.normal(keys[0], (D, 8)),
        "bias": 0.1 * jax.random.normal(keys[1], (8,)),
        "head": scale * jax.random.normal(keys[2], (8, C)),
    }


PARAMS = make_params()
X = jax.random.uniform(jax.random.key(2), (B, D))
Y = jnp.argmax(apply_fn(PARAMS, 0, X, "eval")[0], axis=1).at[:2].set(jnp.array([1, 2]))  # most of them right


def by_hand(params, x):
    """log softmax at x [..., D] in float64."""
    weight = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    logits = np.tanh(np.asarray(x, np.float64) @ weight["hidden"] + weight["bias"]) @ weight["head"]
    return scipy.special.log_softmax(logits, axis=-1)


_noisy = jax.jit(counting.noisy, static_argnums=3)


def copies(key, x=X, num_noise=S):
    return np.asarray(_noisy(prng.example_keys(key, B), x, SIGMA, num_noise)[0])


def cross_entropy(log_probs):
    """Of [B, S, C] to Y, averaged over everything."""
    return -log_probs[np.arange(B)[:, None], np.arange(log_probs.shape[1]), np.asarray(Y)[:, None]].mean()


def divergence(p, log_q):
    """KL(p || q) along the last axis, 0 log 0 being 0."""
    return (scipy.special.xlogy(p, p) - np.where(p > 0, p * log_q, 0.0)).sum(axis=-1)


def given(key, model_fn, x, y, *, x_adv):
    del key, model_fn, y
    return base.AttackResult(x_adv, x_adv - x, jnp.zeros(len(x)), jnp.zeros(len(x), bool))


def slopes(value_fn, name, grad):
    """How fast a float64 formula of the parameters rises along a random direction of one of them, and what the gradient says."""
    direction = np.random.default_rng(0).normal(size=PARAMS[name].shape)
    ends = [value_fn(PARAMS | {name: np.asarray(PARAMS[name], np.float64) + step * direction}) for step in (1e-5, -1e-5)]
    return (ends[0] - ends[1]) / 2e-5, (np.asarray(grad[name]) * direction).sum()


def finite(grad):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_gaussian_and_stability():
    log_probs = by_hand(PARAMS, copies(KEY))
    compiled = jax.jit(lambda loss_fn: loss_fn(PARAMS, 0, KEY, X, Y))
    loss, (state, metrics) = compiled(base.bind(training.gaussian, apply_fn=apply_fn, **NOISE))
    np.testing.assert_allclose(loss, cross_entropy(log_probs), rtol=1e-5)
    assert state == 1 and metrics["loss"] == loss
    clean = by_hand(PARAMS, X)
    change = -(np.exp(clean)[:, None] * log_probs).sum(axis=-1).mean()
    loss, (state, _) = compiled(base.bind(training.stability, apply_fn=apply_fn, weight=2.0, **NOISE))
    np.testing.assert_allclose(loss, -clean[np.arange(B), Y].mean() + 2.0 * change, rtol=1e-5)
    assert state == 2
    laplace, _ = compiled(base.bind(training.gaussian, apply_fn=apply_fn, noise_fn=smoothing.noise.laplace, **NOISE))
    assert not np.isclose(laplace, cross_entropy(log_probs), rtol=1e-3)


def consistency(params, weight=5.0, entropy_weight=0.5):
    log_probs = by_hand(params, copies(KEY))
    mean = np.exp(log_probs).mean(axis=1)
    spread = divergence(mean[:, None], log_probs).mean()
    return cross_entropy(log_probs) + weight * spread + entropy_weight * scipy.special.entr(mean).sum(axis=1).mean()


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_consistency_also_where_probabilities_are_zero(scale):
    params = make_params(scale)
    if scale > 1:
        assert (np.exp(np.float32(by_hand(params, copies(KEY)))) == 0).any()
    bound = base.bind(training.consistency, apply_fn=apply_fn, weight=5.0, **NOISE)
    loss, grad = jax.jit(jax.value_and_grad(lambda p: bound(p, 0, KEY, X, Y)[0]))(params)
    np.testing.assert_allclose(loss, consistency(params), rtol=1e-5)
    assert finite(grad)


def macer(params, weight, beta, gamma):
    logits = by_hand(params, copies(KEY))  # up to a constant per copy
    mean = np.exp(logits).mean(axis=1)
    sharp = scipy.special.softmax(beta * logits, axis=-1).mean(axis=1)
    second, first = np.sort(sharp, axis=1)[:, -2:].T
    margin = scipy.stats.norm.ppf(first) - scipy.stats.norm.ppf(second)
    counted = (sharp.argmax(axis=1) == np.asarray(Y)) & (margin <= gamma)
    hinge = np.where(counted, gamma - margin, 0.0)
    return -np.log(mean[np.arange(B), Y]).mean() + weight * SIGMA / 2 * hinge.sum() / B, counted


def test_macer_and_its_gradient_against_finite_differences():
    options = {"weight": 3.0, "beta": 2.0, "gamma": 1.5}
    bound = base.bind(training.macer, apply_fn=apply_fn, **NOISE, **options)
    (loss, (_, metrics)), grad = jax.jit(jax.value_and_grad(lambda p: bound(p, 0, KEY, X, Y), has_aux=True))(PARAMS)
    value, counted = macer(PARAMS, **options)
    assert 0 < counted.sum() < B, "some examples are right and near the boundary, others are not"
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    assert metrics["radius"] > 0
    for name in PARAMS:
        expected, found = slopes(lambda params: macer(params, **options)[0], name, grad)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_macer_drops_what_is_wrong_or_saturated_and_has_no_nan():
    probs = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [1.0, 0.0, 0.0], [1.0, 1e-45, 0.0], [0.4, 0.4, 0.2], [0.9, 1e-39, 0.1]], np.float32)

    def hinge(probs, y):
        margin, counted = training.radius_margin(probs, y)
        return jnp.where(counted, 8.0 - margin, 0.0).sum(), (margin, counted)

    (_, (margin, counted)), grad = jax.jit(jax.value_and_grad(hinge, has_aux=True))(probs, np.zeros(6, int))
    np.testing.assert_array_equal(counted, [True, False, False, False, True, True])
    np.testing.assert_allclose(margin[0], scipy.stats.norm.ppf(0.7) - scipy.stats.norm.ppf(0.2), rtol=1e-5)
    assert margin[4] == 0 and np.isfinite(margin).all() and np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[1:4], 0.0)
    assert not training.radius_margin(probs[4:5], jnp.array([1]))[1][0], "a tie belongs to the first class"
    slope = jax.jit(jax.grad(lambda p: training.macer(p, 0, KEY, X, Y, apply_fn=apply_fn, weight=3.0, **NOISE)[0]))
    for scale in (0.0, 1e4):
        assert finite(slope(make_params(scale)))


def test_smooth_mix():
    _, key_noise, key_mix = jax.random.split(KEY, 3)
    x_adv = jnp.clip(X + 0.3, max=1.0)
    bound = base.bind(training.smooth_mix, apply_fn=apply_fn, attack=base.bind(given, x_adv=x_adv), weight=5.0, **NOISE)
    (loss, (state, _)), grad = jax.jit(jax.value_and_grad(lambda p: bound(p, 0, KEY, X, Y), has_aux=True))(PARAMS)
    share = np.array([jax.random.uniform(k, (), X.dtype, 0.0, 0.5) for k in prng.example_keys(key_mix, B)], np.float64)[:, None]

    def mixed(params):
        log_probs = by_hand(params, copies(key_noise))
        clean = np.exp(log_probs).mean(axis=1)
        target = (1 - share) * clean + share / C
        x_mix = jnp.asarray(X + np.float32(share) * (x_adv - X))
        apart = divergence(target[:, None], by_hand(params, copies(key_noise, x_mix))).mean(axis=1)
        right = clean.argmax(axis=1) == np.asarray(Y)
        assert 0 < right.sum() < B
        return cross_entropy(log_probs) + 5.0 * (right * apart).mean()

    np.testing.assert_allclose(loss, mixed(PARAMS), rtol=1e-5)
    assert state == 2 and finite(grad)
    expected, found = slopes(mixed, "head", grad)  # the soft label moves with the parameters, as in the reference
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    sharp = jax.jit(jax.grad(lambda p: bound(p, 0, KEY, X, Y)[0]))(make_params(1e4))
    assert finite(sharp)


def test_smooth_mix_runs_without_a_ball():
    free = base.bind(attacks.pgd, threat=L2(jnp.inf), step_size=0.5, num_steps=3, delta=0.0, keep_fn=attacks.keep_last)
    craft = functools.partial(_smooth_adv.craft_smoothed, free, KEY, prng.example_keys(KEY, B), apply_fn)
    x_adv = np.asarray(jax.jit(lambda x: craft(PARAMS, 0, x, Y, "eval", SIGMA, S))(X))
    size = np.linalg.norm(x_adv - X, axis=1)
    assert size.max() > 0.5 and x_adv.min() >= 0 and x_adv.max() <= 1


def masked_fn(params, model_state, x, mode):
    logits, model_state = apply_fn(params, model_state, x, mode)
    return jnp.concatenate([logits, jnp.full((len(x), 1), -jnp.inf)], axis=1), model_state


LOSSES = {
    "gaussian": training.gaussian,
    "stability": base.bind(training.stability, weight=2.0),
    "consistency": base.bind(training.consistency, weight=5.0),
    "macer": base.bind(training.macer, weight=3.0, beta=2.0),
    "smooth_mix": base.bind(training.smooth_mix, weight=5.0, attack=PGD),
    "smooth_adv": base.bind(training.smooth_adv, attack=PGD),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_that_the_head_masks_changes_neither_loss_nor_gradient(name):
    @functools.partial(jax.jit, static_argnums=1)
    def both(params, head_fn):
        bound = base.bind(LOSSES[name], apply_fn=head_fn, **NOISE)
        return jax.value_and_grad(lambda params: bound(params, 0, KEY, X, Y)[0])(params)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), both(PARAMS, masked_fn), both(PARAMS, apply_fn))


def test_smooth_adv_is_the_loss_at_the_attacked_inputs_under_the_noise_of_the_attack():
    seen = []

    def watch(key, model_fn, x, y):
        del key
        logits = model_fn(x)
        np.testing.assert_array_equal(logits, base.draw(model_fn, jax.random.split(jax.random.key(9), B))(x), "kept in every step")
        seen.append(np.asarray(logits, np.float64))
        return given(None, None, x, y, x_adv=x + 0.1)

    key_noise = jax.random.split(KEY)[1]
    loss, (state, _) = training.smooth_adv(PARAMS, 0, KEY, X, Y, apply_fn=apply_fn, attack=watch, **NOISE)
    np.testing.assert_allclose(loss, cross_entropy(by_hand(PARAMS, copies(key_noise, X + 0.1))), rtol=1e-5)
    np.testing.assert_allclose(seen[0], np.log(np.exp(by_hand(PARAMS, copies(key_noise))).mean(axis=1)), rtol=1e-4, atol=1e-5)
    assert state == 1


_craft = jax.jit(lambda attack, keys: _smooth_adv.craft_smoothed(attack, KEY, keys, apply_fn, PARAMS, 0, X, Y, "eval", SIGMA, S))


def crafted(attack, keys=None):
    return np.asarray(_craft(attack, prng.example_keys(jax.random.key(3), B) if keys is None else keys))


def test_fresh_noise_gives_another_attack_than_kept_noise():
    keys = prng.example_keys(jax.random.key(3), B)
    model_fn = training.classifier(apply_fn, PARAMS, 0)
    smoothed = smoothing.soft(model_fn, sigma=SIGMA, num_samples=S)
    kept = crafted(PGD)
    attack = jax.jit(lambda model_fn: PGD(KEY, model_fn, X, Y).x)
    np.testing.assert_allclose(kept, attack(smoothed.draw(keys)), atol=1e-6)
    assert np.abs(kept - attack(smoothed)).max() > 1e-3
    assert np.abs(kept - crafted(PGD, prng.example_keys(jax.random.key(4), B))).max() > 1e-3


def test_what_is_attacked_is_the_log_of_the_mean_probability():
    keys = prng.example_keys(jax.random.key(3), B)
    x_adv = crafted(PGD)
    assert L2(EPS).within(x_adv - X).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    risk = lambda x: -np.log(np.exp(by_hand(PARAMS, counting.noisy(keys, x, SIGMA, S)[0])).mean(axis=1)[np.arange(B), Y])  # noqa: E731
    assert (risk(x_adv) > risk(X)).all()
    one_step = np.asarray(crafted(base.bind(PGD, step_size=1e-2, num_steps=1, keep_fn=attacks.keep_last)) - X)
    ascent = np.zeros((B, D))
    for i in range(D):
        step = np.zeros((1, D), np.float32)
        step[0, i] = 1e-2
        ascent[:, i] = risk(X + step) - risk(X - step)
    cosine = (one_step * ascent).sum(axis=1) / np.linalg.norm(one_step, axis=1) / np.linalg.norm(ascent, axis=1)
    inside = (np.abs(np.asarray(X) - 0.5) < 0.49).all(axis=1)
    assert inside.sum() > 2 and (cosine[inside] > 0.99).all()


def hard_fn(params, model_state, x, mode):
    del mode
    return 1e3 * jnp.sign(jnp.stack([jnp.zeros(len(x)), (x - 0.5) @ params], axis=1)), model_state


def test_the_gradient_free_variant_attacks_a_model_without_gradients():
    weight = jnp.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5])
    x = 0.5 + 0.05 * jax.random.normal(jax.random.key(5), (B, D))
    y = ((x - 0.5) @ weight > 0).astype(int)
    attack = base.bind(PGD, threat=L2(EPS), num_steps=1, step_size=EPS, keep_fn=attacks.keep_last)
    keys = prng.example_keys(KEY, B)
    run = jax.jit(
        lambda free: _smooth_adv.craft_smoothed(attack, KEY, keys, hard_fn, weight, None, x, y, "eval", SIGMA, 4000, free), static_argnums=0
    )
    np.testing.assert_array_equal(run(False), x)
    moved = np.asarray(run(True) - x)
    expected = -np.where(np.asarray(y) == 1, 1, -1)[:, None] * np.asarray(weight / jnp.linalg.norm(weight))
    # A sample mean of 4,000 directions has an angle of about sqrt(D / 4000) / .4 = .1 to their expectation: five of them.
    np.testing.assert_array_less(np.cos(0.5), (moved * expected).sum(axis=1) / np.linalg.norm(moved, axis=1))


def test_ddn_finds_the_distance_of_the_smoothed_boundary():
    weight = jnp.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5])
    linear_fn = lambda params, state, x, mode: (jnp.stack([jnp.zeros(len(x)), (x - 0.5) @ params], axis=1), state)  # noqa: E731
    x = 0.5 + 0.05 * jax.random.normal(jax.random.key(5), (B, D))
    y = ((x - 0.5) @ weight > 0).astype(int)
    keys = prng.example_keys(KEY, B)
    ddn = base.bind(attacks.ddn, threat=L2(EPS), num_steps=60, init_eps=0.1)
    x_adv = jax.jit(lambda x: _smooth_adv.craft_smoothed(ddn, KEY, keys, linear_fn, weight, None, x, y, "eval", SIGMA, 64))(x)
    smoothed = smoothing.soft(Partial(lambda w, x: linear_fn(w, None, x, "eval")[0], weight), sigma=SIGMA, num_samples=64).draw(keys)
    assert (smoothed(x_adv).argmax(axis=1) != smoothed(x).argmax(axis=1))[smoothed(x).argmax(axis=1) == y].all()
    margin = np.abs(losses.margin(smoothed(x_adv), y))
    assert margin.max() < 0.05, "just beyond the boundary of this noise"


def test_ddn_is_shortened_to_eps_which_warm_up_scales():
    weight = jnp.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5])
    linear_fn = lambda params, state, x, mode: (jnp.stack([jnp.zeros(len(x)), (x - 0.5) @ params], axis=1), state)  # noqa: E731
    x = 0.5 + 0.3 * jnp.tile(jnp.sign(weight), (B, 1))
    y, keys = jnp.ones(B, int), prng.example_keys(KEY, B)

    @jax.jit
    def size(eps):
        ddn = base.bind(attacks.ddn, threat=L2(eps), num_steps=60, init_eps=0.1)
        return jnp.linalg.norm(_smooth_adv.craft_smoothed(ddn, KEY, keys, linear_fn, weight, None, x, y, "eval", SIGMA, 64) - x, axis=1)

    whole = size(10.0)
    assert float(whole.min()) > 0.3  # the boundary is farther than both eps
    for eps in (0.05, 0.2):
        np.testing.assert_allclose(size(eps), eps, rtol=1e-5)


def test_warm_up_scales_the_attack():
    bound = base.bind(training.smooth_adv, apply_fn=apply_fn, attack=PGD, **NOISE)
    step_fn = training.step(bound, optax.sgd(0.0), schedule_fn=base.bind(training.eps_ramp, num_ramp_steps=4))
    run = jax.jit(step_fn)
    state = training.init(PARAMS, jnp.int32(0), optax.sgd(0.0))
    grown = []
    for _ in range(5):
        state, metrics = run(state, KEY, X, Y)
        grown.append(float(metrics["loss"]))
    quarter = base.bind(bound, attack=base.bind(PGD, threat=L2(EPS / 4), step_size=EPS / 6))
    value = jax.jit(lambda loss_fn: loss_fn(PARAMS, 0, KEY, X, Y)[0])
    np.testing.assert_allclose(grown[0], value(quarter), rtol=1e-5)
    np.testing.assert_allclose(grown[3:], value(bound), rtol=1e-5)
    assert grown[0] < grown[1] < grown[2] < grown[3] and run._cache_size() == 1


def denoiser_fn(params, model_state, x, mode):
    return 0.5 + (x - 0.5) @ params, model_state + 1 if mode == "train" else model_state


DENOISER = 0.5 * jnp.eye(D) + 0.05
FROZEN = training.classifier(apply_fn, PARAMS, 0)


def test_the_three_objectives_of_a_denoiser():
    noisy = np.asarray(copies(KEY, num_noise=1)[:, 0], np.float64)
    restored = 0.5 + (noisy - 0.5) @ np.asarray(DENOISER, np.float64)
    seen = by_hand(PARAMS, restored)
    own = by_hand(PARAMS, X).argmax(axis=1)
    other = training.classifier(apply_fn, make_params(-1.0), 0)
    other_seen = by_hand(make_params(-1.0), restored)
    other_own = by_hand(make_params(-1.0), X).argmax(axis=1)
    rows = np.arange(B)
    error = ((restored - np.asarray(X)) ** 2).mean()
    for objective, model_fns, expected in (
        ("denoising", (), error),
        ("stability", (FROZEN,), -seen[rows, own].mean()),
        ("classification", (FROZEN,), -seen[rows, Y].mean()),
        ("stability", (FROZEN, other), -(seen[rows, own].mean() + other_seen[rows, other_own].mean()) / 2),
    ):
        bound = base.bind(training.denoise, apply_fn=denoiser_fn, sigma=SIGMA, objective=objective, model_fns=model_fns)
        run = jax.jit(jax.value_and_grad(lambda p, bound=bound: bound(p, 0, KEY, X, Y), has_aux=True))
        (loss, (state, metrics)), grad = run(DENOISER)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["error"], error, rtol=1e-5)
        assert state == 1 and finite(grad) and np.abs(grad).max() > 0


def test_a_denoiser_trains_by_the_same_step_on_four_devices_as_on_one():
    bound = base.bind(training.denoise, apply_fn=denoiser_fn, sigma=SIGMA, objective="stability", model_fns=(FROZEN,))
    run = jax.jit(training.step(bound, optax.sgd(0.1)))
    state = training.init(DENOISER, jnp.int32(0), optax.sgd(0.1))
    one, _ = run(state, KEY, X, Y)
    mesh = parallel.data_mesh(4)
    several, _ = run(parallel.replicate(state, mesh), KEY, *parallel.shard_batch((X, Y), mesh))
    np.testing.assert_allclose(one.params, several.params, atol=1e-6)
    assert np.abs(one.params - DENOISER).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "sharpness"}, "unknown objective 'sharpness'"),
        ({"objective": "stability"}, r"pass model_fns=\(model_fn,\)"),
        ({"apply_fn": lambda params, state, x, mode: (x[:, :2], state)}, "they must agree"),
    ],
)
def test_wrong_denoising_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        training.denoise(DENOISER, 0, KEY, X, Y, **({"apply_fn": denoiser_fn, "sigma": SIGMA} | changes))


def test_a_denoised_model_is_the_classifier_behind_the_denoiser_and_crosses_jit():
    model_fn = smoothing.denoised(FROZEN, base.bind(lambda x, weight: 0.5 + (x - 0.5) @ weight, weight=DENOISER))
    whole = jax.jit(lambda model_fn, x: model_fn(x))(model_fn, X)
    np.testing.assert_allclose(whole, FROZEN(0.5 + (X - 0.5) @ DENOISER), rtol=1e-5)
    counts = smoothing.count_predictions(KEY, model_fn, X, sigma=SIGMA, num_samples=8, chunk_size=4)
    assert (counts.sum(axis=1) == 8).all()


def test_one_step_of_diffusion_with_the_true_noise_gives_the_input_back():
    alpha_bars = jnp.cumprod(1.0 - jnp.linspace(1e-4, 0.02, 1000))
    strength = np.sqrt((1 - np.asarray(alpha_bars, np.float64)) / np.asarray(alpha_bars, np.float64))
    asked = []

    def oracle(x_t, time, *, x):
        asked.append(int(time))
        alpha_bar = alpha_bars[time]
        return (x_t - jnp.sqrt(alpha_bar) * (2.0 * x - 1.0)) / jnp.sqrt(1.0 - alpha_bar)

    for sigma in (0.05, 0.25, 1.0, 1e6):
        denoiser = smoothing.diffusion_denoiser(base.bind(oracle, x=X), alpha_bars, sigma=sigma)
        noisy = X + min(sigma, 1.0) * jax.random.normal(KEY, X.shape)
        np.testing.assert_allclose(denoiser(noisy), X, atol=2e-4)
        enough = np.flatnonzero(strength >= 2 * sigma * (1 - 1e-6))
        assert asked[-1] == (enough[0] if len(enough) else 999)
    silent = smoothing.diffusion_denoiser(lambda x_t, time: jnp.zeros_like(x_t), alpha_bars, sigma=0.25)
    np.testing.assert_allclose(silent(X + 3.0), 1.0)  # clipped to the box
    jitted = jax.jit(lambda denoiser, x: denoiser(x))
    np.testing.assert_allclose(jitted(silent, X), X, atol=1e-5)


class _Module(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(D, C, rngs=rngs)
        self.norm = nnx.BatchNorm(C, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_votes_of_nnx_and_linen_models_are_those_of_their_weights():
    module = _Module(nnx.Rngs(0))
    module.eval()
    kernel, bias = module.dense.kernel[...], module.dense.bias[...]
    net = linen.Dense(C)
    count = functools.partial(smoothing.count_predictions, KEY, sigma=SIGMA, num_samples=32, chunk_size=8)
    votes = [
        jax.jit(lambda model_fn: count(model_fn, X))(model_fn)
        for model_fn in (
            module,
            Partial(net.apply, {"params": {"kernel": kernel, "bias": bias}}),
            Partial(lambda w, b, x: x @ w + b[None], kernel, bias),
        )
    ]
    np.testing.assert_array_equal(votes[0], votes[2])
    np.testing.assert_array_equal(votes[1], votes[2])
    *_, state = smoothing.vote_dataset(
        KEY, module, np.asarray(X), sigma=SIGMA, num_selection=8, num_samples=32, num_step_samples=16, batch_size=4, chunk_size=8
    )
    assert (state.estimation.sum(axis=1) == 32).all()
