"""NaN is no class: whatever is not finite votes for nothing and certifies nothing; a class masked by -inf is no mistake."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import smoothing

KEY = jax.random.key(0)
SIGMA = 0.3
PLAN = {"sigma": SIGMA, "num_selection": 100, "num_samples": 1000}
VOTE = jax.jit(smoothing.vote, static_argnames=("num_selection", "num_samples", "chunk_size"))
# How far the first coordinate is from the half space below .2, where the models break: never, in a third of the samples, in all of them.
X = np.array([[9.0, 0.7], [0.3, 0.7], [-9.0, 0.7], [9.0, 0.7], [9.0, 0.2]], np.float32)
BROKEN = [False, True, True, False, False]


def classes(num_classes, x):
    """Class 1 where the second coordinate is above .4, else class 0."""
    score = 20.0 * (x[:, 1] - 0.4)
    return jnp.stack([-score, score] + [jnp.full_like(score, -50.0)] * (num_classes - 2), axis=1)


KINDS = ["nan", "nan, last", "all nan", "inf", "all -inf", None]


def broken(num_classes, kind, x):
    logits = classes(num_classes, x)
    wrong = [
        logits.at[:, 0].set(jnp.nan),
        logits.at[:, -1].set(jnp.nan),
        jnp.full_like(logits, jnp.nan),
        logits.at[:, 1].set(jnp.inf),
        jnp.full_like(logits, -jnp.inf),
        logits,
    ]
    return jnp.where(x[:, :1] < 0.2, jnp.stack(wrong)[kind], logits)


def breaking(kind, num_classes):
    return jax.tree_util.Partial(_BROKEN[num_classes], jnp.int32(KINDS.index(kind)))


_BROKEN = {num_classes: functools.partial(broken, num_classes) for num_classes in (2, 3, 40)}  # the same function is compiled once


@functools.cache
def cast(kind, num_classes):
    return VOTE(KEY, breaking(kind, num_classes), X, chunk_size=50, **PLAN)


@pytest.mark.parametrize("num_classes", [2, 3, 40])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_images_with_logits_that_are_not_finite_abstain_in_every_statistic(kind, num_classes):
    votes, sound = cast(kind, num_classes), cast(None, num_classes)
    for part, whole in zip(votes, sound, strict=True):
        np.testing.assert_array_equal(smoothing.not_finite(part), BROKEN)
        np.testing.assert_array_equal(np.asarray(part)[~np.array(BROKEN)], np.asarray(whole)[~np.array(BROKEN)])
    verdicts = {
        "certify": smoothing.certify(*votes, sigma=SIGMA),
        "planned": smoothing.certify(*votes, sigma=SIGMA, num_samples=1000),
        "two-sided": smoothing.certify_two_sided(*votes, sigma=SIGMA),
        "sequential": smoothing.certify_sequential(*votes, sigma=SIGMA, num_samples=1000),
    }
    for name, certificate in verdicts.items():
        np.testing.assert_array_equal(certificate.prediction, [1, -1, -1, 1, 0], name)
        np.testing.assert_array_equal(certificate.certified, ~np.array(BROKEN), name)
        np.testing.assert_array_equal(certificate.radius[BROKEN], 0.0)
    np.testing.assert_array_equal(verdicts["certify"].radius[0], smoothing.certify(*sound, sigma=SIGMA).radius[0])
    np.testing.assert_array_equal(smoothing.predict(votes.estimation), [1, -1, -1, 1, 0])
    more = smoothing.undecided(*votes, num_samples=2000, sigma=SIGMA, tolerance=0.0)
    np.testing.assert_array_equal(more, ~np.array(BROKEN), "more votes would change nothing")


def test_one_broken_set_is_enough_and_all_broken_images_abstain():
    votes, sound = cast("nan", 2), cast(None, 2)
    for mixed in ((votes.selection, sound.estimation), (sound.selection, votes.estimation)):
        np.testing.assert_array_equal(smoothing.certify(*mixed, sigma=SIGMA).prediction, [1, -1, -1, 1, 0])
    for verb in (smoothing.certify, smoothing.certify_two_sided, functools.partial(smoothing.certify_sequential, num_samples=1000)):
        assert not verb(votes.selection[1:3], votes.estimation[1:3], sigma=SIGMA).certified.any()
    nothing = smoothing.VoteState(votes.selection, np.where(np.array(BROKEN)[:, None], 0, votes.estimation))
    np.testing.assert_array_equal(smoothing.certify(*nothing, sigma=SIGMA).prediction, [1, -1, -1, 1, 0])


def test_a_broken_row_stays_broken_whatever_is_added():
    votes = np.asarray(cast("nan", 3).estimation)
    sound = np.asarray(cast(None, 3).estimation)
    added = np.int32(1000) * sound + votes
    np.testing.assert_array_equal(smoothing.not_finite(added), BROKEN)
    np.testing.assert_array_equal(smoothing.not_finite(np.int32(2000) * votes), BROKEN)
    assert not smoothing.certify(votes, added, sigma=SIGMA).certified[1:3].any()


def test_sampling_marks_broken_images_and_spends_no_more_votes_on_them():
    model_fn = breaking("nan", 3)
    x = X.copy()
    x[2, 0] = 0.3  # it is broken in some samples only: the first look, without noise, sees nothing
    plan = PLAN | {"num_step_samples": 100, "batch_size": 3, "chunk_size": 50}
    states = [jax.tree.map(np.copy, state) for state in smoothing.vote_dataset(KEY, model_fn, x, **plan)]
    last = states[-1]
    np.testing.assert_array_equal(smoothing.not_finite(last.selection), BROKEN)
    assert (last.estimation[BROKEN] == 0).all(), "broken in the first 100 samples"
    np.testing.assert_array_equal(smoothing.certify(*last, sigma=SIGMA).prediction, [1, -1, -1, 1, 0])
    for state in states[1::3]:  # cut anywhere
        *_, resumed = smoothing.vote_dataset(KEY, model_fn, x, **plan, state=state)
        jax.tree.map(np.testing.assert_array_equal, last, resumed)
    with pytest.raises(ValueError, match="logits are not finite"):
        next(smoothing.vote_dataset(KEY, model_fn, X, **plan))


def test_votes_broken_late_are_marked_in_the_middle_of_a_run():
    # One sample in 300 is broken: some image meets it after its selection, and its votes stop there.
    rare = jax.tree_util.Partial(lambda x: jnp.where(x[:, :1] < 0.2, jnp.nan, classes(3, x)))
    x = np.tile(np.array([[0.2 + 2.7 * SIGMA, 0.9]], np.float32), (8, 1))
    plan = {"sigma": SIGMA, "num_selection": 20, "num_samples": 400, "num_step_samples": 20, "batch_size": 8, "chunk_size": 20}
    *_, state = smoothing.vote_dataset(KEY, rare, x, **plan)
    late = smoothing.not_finite(state.estimation) & ~smoothing.not_finite(state.selection)
    assert late.any() and not late.all()
    certificate = smoothing.certify(*state, sigma=SIGMA, num_samples=400)
    broken = smoothing.not_finite(state.estimation) | smoothing.not_finite(state.selection)
    np.testing.assert_array_equal(certificate.certified, ~broken)


def test_soft_votes_count_only_finite_samples_and_are_refused():
    count = jax.jit(lambda model_fn: smoothing.count_soft(KEY, model_fn, X, sigma=SIGMA, num_samples=200, chunk_size=50))
    for kind in KINDS[:-1]:
        soft = count(breaking(kind, 3))
        np.testing.assert_array_equal(soft.drawn < 200, BROKEN)
        with pytest.raises(ValueError, match="not finite"):
            smoothing.certify_soft(cast(None, 3).selection, soft, 200, sigma=SIGMA)
    certificate = smoothing.certify_soft(cast("nan", 3).selection, count(breaking(None, 3)), 200, sigma=SIGMA)
    np.testing.assert_array_equal(certificate.prediction, [1, -1, -1, 1, 0])


def masked(num_classes, x):
    """The last class is no answer."""
    return classes(num_classes, x).at[:, -1].set(-jnp.inf)


@pytest.mark.parametrize("num_classes", [3, 41])
def test_a_class_masked_by_minus_infinity_has_no_votes_and_changes_none(num_classes):
    fewer, more = functools.partial(classes, num_classes - 1), functools.partial(masked, num_classes)
    x = np.random.default_rng(0).uniform(size=(4, 2)).astype(np.float32)
    few, many = (VOTE(KEY, jax.tree_util.Partial(f), x, chunk_size=50, **PLAN) for f in (fewer, more))
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(np.pad(one, ((0, 0), (0, 1))), other)
    options = {"sigma": SIGMA, "num_samples": 100, "chunk_size": 50}
    few, many = (smoothing.count_soft(KEY, f, x, **options) for f in (fewer, more))
    np.testing.assert_array_equal(many.drawn, 100)
    np.testing.assert_allclose(few.low, many.low[:, :-1], atol=100)
    plan = {"num_selection": 50, "num_samples": 100, "num_step_samples": 50, "batch_size": 4, "chunk_size": 50}
    *_, state = smoothing.vote_dataset(KEY, more, x, sigma=SIGMA, **plan)
    assert (state.estimation.sum(axis=1) == 100).all()


@pytest.mark.parametrize("gradient_free", [False, True])
def test_the_smoothed_model_of_a_masked_head_is_that_of_the_other_classes(gradient_free):
    x, keys = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 2)), jnp.float32), jax.random.split(KEY, 4)

    def slope(x, function, num_classes):
        smoothed = smoothing.soft(functools.partial(function, num_classes), sigma=SIGMA, num_samples=8, gradient_free=gradient_free)
        log_probs = smoothed.draw(keys)(x)
        return (jnp.arange(3.0)[None] * jnp.exp(log_probs)[:, :3]).sum(), log_probs

    of = jax.jit(jax.grad(slope, has_aux=True), static_argnums=(1, 2))
    (grad, log_probs), (expected_grad, expected) = of(x, masked, 4), of(x, classes, 3)
    np.testing.assert_allclose(log_probs[:, :3], expected, rtol=1e-5)
    assert (log_probs[:, 3] == -np.inf).all() and np.abs(expected_grad).max() > 0.1
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)
