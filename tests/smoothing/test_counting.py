"""Votes: their distribution on a linear classifier is known; no chunk, batch, mesh, resumption or stop changes a count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from robustjax import attacks, parallel, prng, smoothing
from robustjax.smoothing import noise, radii
from robustjax.threats import L2

KEY = jax.random.key(0)
D, SIGMA = 6, 0.4
WEIGHT = np.array([1.0, -2.0, 0.5, 0.0, 1.0, 3.0], np.float32)
count = jax.jit(smoothing.count_predictions, static_argnames=("num_samples", "chunk_size", "noise_fn"))
count_soft = jax.jit(smoothing.count_soft, static_argnames=("num_samples", "chunk_size", "noise_fn"))
noisy = jax.jit(smoothing.counting.noisy, static_argnums=(3, 4))


def linear(weight, x):
    return jnp.stack([jnp.zeros(len(x)), x @ weight], axis=1)


MODEL = jax.tree_util.Partial(linear, WEIGHT)
X = (0.5 + 0.2 * np.random.default_rng(1).normal(size=(5, D))).astype(np.float32)


def test_votes_of_a_linear_classifier_are_binomial_with_the_probability_of_the_closed_form():
    counts = np.asarray(count(KEY, MODEL, X, sigma=SIGMA, num_samples=20_000, chunk_size=1000))
    assert counts.dtype == np.int32 and (counts.sum(axis=1) == 20_000).all()
    p = scipy.stats.norm.cdf(X @ WEIGHT / (SIGMA * np.linalg.norm(WEIGHT)))
    for votes, probability in zip(counts[:, 1], p, strict=True):  # false alarm of one test below 1e-6
        assert scipy.stats.binomtest(int(votes), 20_000, float(probability)).pvalue > 1e-6


def test_ties_of_logits_go_to_the_lower_class():
    tied = jax.tree_util.Partial(lambda w, x: jnp.stack([w * x[:, 0], 1.0 + 0.0 * x[:, 0], 1.0 + 0.0 * x[:, 0]], axis=1), jnp.float32(0.0))
    np.testing.assert_array_equal(count(KEY, tied, X, sigma=SIGMA, num_samples=12, chunk_size=4), np.tile([[0, 12, 0]], (5, 1)))


@pytest.mark.parametrize("num_classes", [2, 10, 40])
def test_the_unrolled_prediction_is_argmax(num_classes):
    logits = np.random.default_rng(0).integers(-2, 3, (200, 2, num_classes)).astype(np.float32)  # many ties
    logits[::7, :, num_classes // 2] = np.nan
    logits[::14, :, 0] = np.nan
    logits[1::9] = -np.inf
    ours, theirs = jax.jit(lambda logits: (smoothing.counting.leader(logits), logits.argmax(axis=-1)))(logits)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_classes", [2, 10, 40])
def test_votes_of_finite_logits_are_counts_of_argmax(num_classes):
    weight = np.round(2 * np.random.default_rng(3).normal(size=(D, num_classes))).astype(np.float32)
    tied = jax.tree_util.Partial(lambda w, x: jnp.round(x @ w), weight)
    samples, _ = noisy(jax.random.split(KEY, 5), X, SIGMA, 200)
    predicted = np.asarray(jax.jit(lambda samples: tied(samples.reshape(-1, D)).argmax(axis=1))(samples)).reshape(5, 200)
    expected = [np.bincount(row, minlength=num_classes) for row in predicted]
    votes = count(jax.random.split(KEY, 5), tied, X, sigma=SIGMA, num_samples=200, chunk_size=40)
    np.testing.assert_array_equal(votes, expected)


def test_votes_over_a_mesh_gather_nothing():
    mesh = parallel.data_mesh(4)
    keys, x = parallel.shard_batch((jax.random.split(KEY, 8), np.ones((8, D), np.float32)), mesh)
    lowered = count.lower(keys, parallel.replicate(MODEL, mesh), x, sigma=SIGMA, num_samples=8, chunk_size=4)
    program = lowered.compile().as_text()
    assert "all-gather" not in program and "all-reduce" not in program and "collective" not in program


def test_neither_chunk_nor_batch_nor_interruption_changes_a_count():
    whole = count(KEY, MODEL, X, sigma=SIGMA, num_samples=60, chunk_size=60)
    np.testing.assert_array_equal(whole, count(KEY, MODEL, X, sigma=SIGMA, num_samples=60, chunk_size=6))
    first = count(KEY, MODEL, X, sigma=SIGMA, num_samples=20, chunk_size=20)
    rest = count(KEY, MODEL, X, sigma=SIGMA, num_samples=40, chunk_size=20, first_sample=20)
    np.testing.assert_array_equal(whole, first + rest)
    keys = jax.random.split(jax.random.key(3), 5)
    together = count(keys, MODEL, X, sigma=SIGMA, num_samples=60, chunk_size=20)
    np.testing.assert_array_equal(together[1:3], count(keys[1:3], MODEL, X[1:3], sigma=SIGMA, num_samples=60, chunk_size=20))
    mesh = parallel.data_mesh(4)
    sharded = parallel.shard_batch((keys[:4], X[:4]), mesh)
    np.testing.assert_array_equal(together[:4], count(sharded[0], MODEL, sharded[1], sigma=SIGMA, num_samples=60, chunk_size=20))


def test_a_new_sigma_or_start_does_not_trace_again():
    count(KEY, MODEL, X, sigma=0.1, num_samples=12, chunk_size=4, first_sample=0)
    before = count._cache_size()
    count(KEY, MODEL, X, sigma=0.2, num_samples=12, chunk_size=4, first_sample=12)
    count(jax.random.key(9), MODEL, X + 0.1, sigma=0.3, num_samples=12, chunk_size=4, first_sample=24)
    assert count._cache_size() == before
    at = lambda sigma: smoothing.count_predictions(KEY, MODEL, X, sigma=sigma, num_samples=12, chunk_size=4)  # noqa: E731
    curve = jax.jit(jax.vmap(at))(np.array([0.1, 0.2], np.float32))
    np.testing.assert_array_equal(curve[0], count(KEY, MODEL, X, sigma=0.1, num_samples=12, chunk_size=4))


@pytest.mark.parametrize(
    ("noise_fn", "distribution"),
    [
        (noise.gaussian, scipy.stats.norm(scale=0.5)),
        (noise.laplace, scipy.stats.laplace(scale=0.5 / 2**0.5)),
        (noise.uniform, scipy.stats.uniform(-0.5 * 3**0.5, 3**0.5)),
    ],
)
def test_noise_has_its_distribution(noise_fn, distribution):
    drawn = np.asarray(jax.jit(noise_fn)(KEY, np.full(20_000, 0.25, np.float32), 0.5)) - 0.25
    assert scipy.stats.kstest(drawn, distribution.cdf).pvalue > 1e-6
    assert np.std(drawn) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("noise_fn", [noise.gaussian, noise.laplace, noise.uniform, noise.splitting])
def test_noise_on_narrow_inputs_is_that_of_float32_rounded(noise_fn):
    # Drawn in bfloat16, a normal takes 128 values, none beyond 2.6 standard deviations.
    x, run = np.full(20_000, 0.5, jnp.bfloat16), jax.jit(noise_fn)
    drawn = run(KEY, x, np.float32(0.3))
    assert drawn.dtype == jnp.bfloat16
    np.testing.assert_array_equal(drawn, np.asarray(run(KEY, x.astype(np.float32), np.float32(0.3))).astype(jnp.bfloat16))
    samples, _ = noisy(KEY[None], x[None], 0.3, 1, noise_fn)
    key = jax.random.fold_in(KEY, 0)
    np.testing.assert_array_equal(samples[0, 0], run(key, x, np.float32(0.3)), "sigma is not rounded to the type of x")
    with pytest.raises(ValueError, match="floating type, got uint8"):
        noise_fn(KEY, jnp.zeros(3, jnp.uint8), 0.3)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_splitting_noise_gives_the_middle_of_a_random_cell_that_holds_x(sigma):
    length = 2 * 3**0.5 * sigma
    x = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    keys = jax.random.split(KEY, 500)
    split_of = jax.jit(jax.vmap(noise.splitting, (0, None, None)))
    drawn = np.asarray(split_of(keys, x, sigma))
    assert drawn.min() >= 0 and drawn.max() <= 1
    # P(x and x' fall into different cells) = min(|x - x'| / length, 1) when they share the split: what the certificate rests on.
    others = jax.random.split(jax.random.key(5), 20_000)
    low, high = (np.asarray(split_of(others, np.full(1, value, np.float32), sigma)) for value in (0.3, 0.45))
    differ = int((low != high).sum())
    assert scipy.stats.binomtest(differ, 20_000, 0.15 / length).pvalue > 1e-6
    if length >= 1:  # Levine & Feizi's closed form for large lambda
        split = length * np.asarray(jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (1,))))(keys))[:, 0]
        value = np.asarray(split_of(keys, np.full(1, 0.4, np.float32), sigma))[:, 0]
        np.testing.assert_allclose(value, ((split < 0.4) + np.minimum(split, 1)) / 2, atol=1e-6)


def test_soft_votes_bracket_the_sums_and_add_up():
    run = functools.partial(count_soft, KEY, MODEL, X, sigma=SIGMA, temperature=0.5)
    votes = run(num_samples=40, chunk_size=10)
    samples, _ = noisy(prng.example_keys(KEY, 5), X, SIGMA, 40)
    logits = np.asarray(samples).reshape(5, 40, D) @ WEIGHT
    probs = scipy.special.softmax(np.stack([0 * logits, logits], axis=-1) / 0.5, axis=-1)
    low, high, squares = (np.asarray(part) * smoothing.SOFT_UNIT for part in votes[:3])
    slack = 40 * smoothing.SOFT_UNIT + 1e-4
    for bound, total, sign in ((low, probs.sum(1), 1), (high, probs.sum(1), -1), (squares, (probs**2).sum(1), -1)):
        assert (sign * (total - bound) >= -1e-4).all() and (sign * (total - bound) <= slack).all()
    coarse = jax.tree_util.Partial(lambda w, x: linear(w, x).astype(jnp.bfloat16), WEIGHT)
    low = count_soft(KEY, coarse, X, sigma=SIGMA, num_samples=40, chunk_size=10).low
    assert (low.sum(axis=1) <= 40 / smoothing.SOFT_UNIT).all(), "probabilities rounded to 8 bits may sum to more than 1"
    parts = [run(num_samples=20, chunk_size=20), run(num_samples=20, chunk_size=5, first_sample=20)]
    jax.tree.map(np.testing.assert_array_equal, votes, jax.tree.map(np.add, *parts))


def test_soft_votes_of_a_model_that_is_not_always_finite_are_no_certificate():
    weight = np.array([[8.0, -8.0], [0.0, 0.0]], np.float32)
    broken = jax.tree_util.Partial(lambda w, x: jnp.where(x[:, :1] < 0.6, jnp.nan, x @ w), weight)
    x = np.array([[0.6, 0.5]], np.float32)
    soft = count_soft(KEY, broken, x, sigma=0.25, num_samples=1000, chunk_size=100)
    assert 0.3 < float(soft.low.sum()) * smoothing.SOFT_UNIT / 1000 < 0.7
    with pytest.raises(ValueError, match="not finite"):
        smoothing.certify_soft(np.array([[90, 10]]), soft, 1000, sigma=0.25)


def test_too_few_samples_are_refused_however_many_classes_there_are():
    # With 1,000 classes the roundings of low and high are farther apart than six samples of a hundred; the count is exact.
    many = jax.tree_util.Partial(
        lambda w, x: jnp.concatenate([x @ w, jnp.zeros((len(x), 998))], axis=1), np.eye(6, 2, dtype=np.float32) * 9
    )
    soft = count_soft(KEY, many, X, sigma=SIGMA, num_samples=100, chunk_size=50)
    np.testing.assert_array_equal(soft.drawn, 100)
    selection = np.tile([[90, 10] + [0] * 998], (5, 1))
    smoothing.certify_soft(selection, soft, 100, sigma=SIGMA)
    with pytest.raises(ValueError, match="num_samples=94"):
        smoothing.certify_soft(selection, soft, 94, sigma=SIGMA)


NOISES = {  # of a half space x_1 > t, the noise and the radius that is exact for it
    "laplace": (noise.laplace, radii.laplace_l1),
    "uniform": (noise.uniform, radii.uniform_l1),
    "splitting": (noise.splitting, radii.uniform_l1),
    "gaussian": (noise.gaussian, radii.gaussian_l2),
}


@pytest.mark.parametrize("name", NOISES)
def test_a_certificate_of_any_noise_ends_before_the_half_space_does_and_not_long_before(name):
    noise_fn, radius_fn = NOISES[name]
    sigma = 0.3
    distance = 0.7 - 3**0.5 * sigma if name == "splitting" else 0.2  # its cell's middle is beyond .5 where the cell begins below x
    half_space = jax.tree_util.Partial(lambda t, x: jnp.stack([t - x[:, 0], x[:, 0] - t], axis=1), jnp.float32(0.5))
    x = np.array([[0.7, 0.3]], np.float32)
    run = functools.partial(count, model_fn=half_space, x=x, sigma=sigma, noise_fn=noise_fn)
    selection = run(jax.random.key(2), num_samples=100, chunk_size=100)
    estimation = run(jax.random.key(3), num_samples=20_000, chunk_size=2000)
    certificate = smoothing.certify(selection, estimation, sigma=sigma, alpha=1e-3, radius_fn=radius_fn)
    assert certificate.prediction[0] == 1 and 0.9 * distance < certificate.radius[0] < distance


def test_the_smoothed_model_is_the_mean_softmax_and_its_gradients_are_those_of_the_mean():
    smoothed = smoothing.soft(MODEL, sigma=SIGMA, num_samples=30)
    keys = jax.random.split(KEY, 5)
    samples, _ = noisy(keys, X, SIGMA, 30)
    noise_of = np.asarray(samples) - X[:, None]

    def mean(weight, x):
        return jax.nn.softmax(linear(weight, (x[:, None] + noise_of).reshape(-1, D))).reshape(5, 30, 2).mean(axis=1)

    def ours(weight, x):
        model_fn = jax.tree_util.Partial(linear, weight)
        return jnp.exp(smoothing.soft(model_fn, sigma=SIGMA, num_samples=30).draw(keys)(x))

    def with_slopes(probs_fn):
        def total(weight, x):
            probs = probs_fn(weight, x)
            return probs[:, 1].sum(), probs

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(WEIGHT, X)

    (by_weight, by_x), probs = with_slopes(ours)
    (expected_by_weight, expected_by_x), expected = with_slopes(mean)
    np.testing.assert_allclose(probs, expected, rtol=1e-5)
    np.testing.assert_allclose(by_weight, expected_by_weight, atol=1e-5)
    np.testing.assert_allclose(by_x, expected_by_x, atol=1e-5)
    with pytest.raises(ValueError, match="is random"):
        smoothed(X)


def test_the_gradient_free_form_is_steins_and_agrees_with_the_models_in_the_mean():
    keys = jax.random.split(KEY, 5)

    def probability(x, free):
        smoothed = smoothing.soft(MODEL, sigma=SIGMA, num_samples=40_000, gradient_free=free)
        return jnp.exp(smoothed.draw(keys)(x))[:, 1].sum()

    forms = [jax.jit(jax.grad(probability), static_argnums=1)(X, free) for free in (False, True)]
    # A standard error is at most 1 / (SIGMA sqrt(40,000)) = .0125; five of them for 30 values.
    np.testing.assert_allclose(forms[0], forms[1], atol=0.0625)
    hard = jax.tree_util.Partial(lambda w, x: 1e6 * jnp.sign(linear(w, x)), WEIGHT)  # no gradient of its own
    free = smoothing.soft(hard, sigma=SIGMA, num_samples=20_000, gradient_free=True)
    grad = jax.jit(jax.grad(lambda x: jnp.exp(free.draw(keys)(x))[:, 1].sum()))(X)
    size = np.linalg.norm(WEIGHT)
    density = scipy.stats.norm.pdf(X @ WEIGHT / (SIGMA * size)) / (SIGMA * size)
    np.testing.assert_allclose(grad, density[:, None] * WEIGHT, atol=0.05)


def test_attacks_reach_the_smoothed_model_with_fresh_and_with_kept_noise():
    smoothed = smoothing.soft(MODEL, sigma=SIGMA, num_samples=20)
    y = (X @ WEIGHT > 0).astype(int)
    for model_fn in (smoothed, smoothed.draw(jax.random.split(KEY, 5))):
        result = jax.jit(
            functools.partial(
                attacks.pgd, threat=L2(0.3, box=(-9.0, 9.0)), step_size=0.1, num_steps=4, delta=0.0, keep_fn=attacks.keep_last
            )
        )(KEY, model_fn, X, y)
        expected = -0.3 * np.where(y == 1, 1, -1)[:, None] * WEIGHT / np.linalg.norm(WEIGHT)
        np.testing.assert_allclose(result.delta, expected, atol=1e-5)


def sampled(state=None, model_fn=MODEL, **changes):
    options = {"sigma": SIGMA, "num_selection": 10, "num_samples": 200, "num_step_samples": 20, "batch_size": 3, "chunk_size": 10}
    return smoothing.vote_dataset(KEY, model_fn, np.asarray(X), **(options | changes), state=state)


def test_sampling_does_not_depend_on_batch_mesh_or_where_it_was_cut():
    rule = functools.partial(smoothing.undecided, num_samples=200, sigma=SIGMA, alpha=0.05, grid=(0.0, 0.2, 0.4))
    for undecided_fn in (None, rule):
        *_, whole = sampled(undecided_fn=undecided_fn)
        for changes in ({"batch_size": 5}, {"batch_size": 4, "mesh": parallel.data_mesh(2)}, {"chunk_size": 5}, {"batch_size": 20}):
            *_, other = sampled(undecided_fn=undecided_fn, **changes)
            jax.tree.map(np.testing.assert_array_equal, whole, other)
        for cut in (1, 3, 6):
            kept = None
            for number, state in enumerate(sampled(undecided_fn=undecided_fn)):
                kept = jax.tree.map(np.copy, state)
                if number == cut:
                    break
            *_, resumed = sampled(kept, undecided_fn=undecided_fn)
            jax.tree.map(np.testing.assert_array_equal, whole, resumed)
        drawn = whole.estimation.sum(axis=1)
        assert (drawn == 200).all() if undecided_fn is None else drawn.min() < 200


def test_a_stopped_image_has_the_first_votes_of_the_whole():
    rule = functools.partial(smoothing.undecided, num_samples=200, sigma=SIGMA, alpha=0.05, grid=(0.0, 0.2, 0.4))
    *_, stopped = sampled(undecided_fn=rule)
    keys = prng.fold_in(prng.example_keys(KEY, 5), 1)
    for row, drawn in enumerate(stopped.estimation.sum(axis=1)):
        alone = count(keys[row : row + 1], MODEL, X[row : row + 1], sigma=SIGMA, num_samples=int(drawn), chunk_size=20)
        np.testing.assert_array_equal(alone[0], stopped.estimation[row])


def test_both_sets_of_votes_come_from_one_key():
    run = jax.jit(smoothing.vote, static_argnames=("num_selection", "num_samples", "chunk_size"))
    votes = run(KEY, MODEL, X, sigma=SIGMA, num_selection=10, num_samples=200, chunk_size=10)
    *_, driven = sampled()
    for one, other in zip(votes, driven, strict=True):
        np.testing.assert_array_equal(one, other)
    doubled = run(KEY, MODEL, X, sigma=SIGMA, num_selection=200, num_samples=200, chunk_size=10)
    assert (doubled.selection != doubled.estimation).any(), "they are drawn apart"
    assert smoothing.certify(*votes, sigma=SIGMA, alpha=0.05, num_samples=200).certified.any()


@pytest.fixture(scope="module")
def whole():
    *_, state = sampled()
    return state


@pytest.mark.parametrize("name", ["sigma", "num_selection", "num_samples", "num_step_samples", "noise_fn", "key", "model", "data"])
def test_votes_of_another_plan_are_refused_by_name(name, whole):
    changes = {"sigma": 2 * SIGMA, "num_selection": 20, "num_samples": 400, "num_step_samples": 40, "noise_fn": noise.laplace}
    key, x, model_fn = KEY, np.asarray(X), MODEL
    if name == "key":
        key = jax.random.key(1)
    if name == "data":
        x = x + np.float32(1e-6)
    if name == "model":
        model_fn = jax.tree_util.Partial(linear, WEIGHT * (1 + 1e-6))
    plan = {"sigma": SIGMA, "num_selection": 10, "num_samples": 200, "num_step_samples": 20, "batch_size": 3, "chunk_size": 10}
    plan |= {name: changes[name]} if name in changes else {}
    with pytest.raises(ValueError, match=rf"another {name}\b.*\. Pass what it was begun with"):
        next(smoothing.vote_dataset(key, model_fn, x, **plan, state=whole))


def test_a_model_is_known_by_what_its_closures_hold(whole):
    of = lambda weight: lambda x: linear(weight, x)  # noqa: E731
    *_, state = sampled(model_fn=of(WEIGHT))
    next(sampled(state, model_fn=of(WEIGHT)))
    for other in (of(2 * WEIGHT), lambda x: -linear(WEIGHT, x)):
        with pytest.raises(ValueError, match="another model"):
            next(sampled(state, model_fn=other))


def test_a_finished_state_is_its_own_resumption_and_survives_a_copy_of_its_leaves(whole):
    copied = jax.tree.map(np.array, whole)
    *_, again = sampled(copied, batch_size=4, chunk_size=5, mesh=parallel.data_mesh(2))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    selection, estimation = whole
    assert selection is whole.selection and estimation is whole.estimation
    assert smoothing.certify(*whole, sigma=SIGMA, fingerprint=whole.fingerprint).certified.any()
    with pytest.raises(ValueError, match=r"cast under sigma=0\.4, not under sigma=0\.5"):
        smoothing.certify(*whole, sigma=0.5, fingerprint=whole.fingerprint)


def test_nothing_in_is_nothing_out():
    run = jax.jit(smoothing.vote, static_argnames=("num_selection", "num_samples", "chunk_size"))
    votes = run(KEY, MODEL, X[:0], sigma=SIGMA, num_selection=10, num_samples=200, chunk_size=10)
    (state,) = smoothing.vote_dataset(
        KEY, MODEL, np.asarray(X[:0]), sigma=SIGMA, num_samples=200, num_selection=10, num_step_samples=20, batch_size=3, chunk_size=10
    )
    for part in (*votes, *state):
        assert part.shape == (0, 2) and part.dtype == np.int32
    assert smoothing.count_soft(KEY, MODEL, X[:0], sigma=SIGMA, num_samples=10, chunk_size=5).low.shape == (0, 2)
    for certificate in (
        smoothing.certify(*state, sigma=SIGMA),
        smoothing.certify_two_sided(*state, sigma=SIGMA),
        smoothing.certify_sequential(*state, sigma=SIGMA, num_samples=200),
    ):
        assert [part.shape for part in certificate] == [(0,)] * 3
    assert smoothing.predict(state.estimation).shape == (0,)
    assert smoothing.undecided(*state, num_samples=200, sigma=SIGMA, grid=(0.0,)).shape == (0,)
    for free in (False, True):
        smoothed = smoothing.soft(MODEL, sigma=SIGMA, num_samples=3, gradient_free=free)
        assert smoothed.draw(jax.random.split(KEY, 0))(X[:0]).shape == (0, 2)
