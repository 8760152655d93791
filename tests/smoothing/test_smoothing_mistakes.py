"""What a user can get wrong in smoothing: each mistake is named by this library, with what was expected, what it got and the remedy."""

import functools

import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import base, smoothing, training
from robustjax.smoothing import noise, radii

KEY = jax.random.key(0)
X, Y = jnp.full((3, 4), 0.5), jnp.array([0, 1, 2])
WEIGHT = jnp.eye(4, 3)


def linear(weight, x):
    return x @ weight


MODEL = Partial(linear, WEIGHT)
COUNT = {"sigma": 0.1, "num_samples": 10, "chunk_size": 5}
CAST = {"sigma": 0.1, "num_selection": 10, "num_samples": 20, "num_step_samples": 10, "batch_size": 3, "chunk_size": 5}
SELECTION, ESTIMATION = np.tile([[9, 1, 0]], (3, 1)), np.tile([[90, 10, 0]], (3, 1))
FEW = np.tile([[8, 2, 0]], (3, 1))
CERTIFICATE = base.Certificate(np.arange(3), np.ones(3), np.ones(3, bool))
SOFT = smoothing.SoftVotes(*(np.tile([[16384 * 50, 0, 0]], (3, 1)) for _ in range(3)), np.full(3, 50))
PLAN = {"num_samples": 100, "sigma": 0.1}


def count(key=KEY, model_fn=MODEL, x=X, **changes):
    return smoothing.count_predictions(key, model_fn, x, **(COUNT | changes))


def sample(key=KEY, model_fn=MODEL, x=X, **changes):
    return list(smoothing.vote_dataset(key, model_fn, np.asarray(x), **(CAST | changes)))


def halved(state):
    return smoothing.VoteState(state.selection[:2], state.estimation[:2], state.fingerprint)


def certify(selection=SELECTION, estimation=ESTIMATION, verb=smoothing.certify, **changes):
    return verb(selection, estimation, **({"sigma": 0.5} | changes))


def apply_fn(params, model_state, x, mode):
    return x @ params, model_state


def train(loss, x=X, y=Y, **changes):
    options = {"apply_fn": apply_fn, "sigma": 0.1, "num_noise": 2} | changes
    return loss(WEIGHT, None, KEY, x, y, **options)


def denoise(x=X, y=Y, **changes):
    return training.denoise(jnp.eye(4), None, KEY, x, y, **({"apply_fn": apply_fn, "sigma": 0.1} | changes))


MACER = functools.partial(training.macer, weight=1.0)
STABILITY = functools.partial(training.stability, weight=1.0)
CONSISTENCY = functools.partial(training.consistency, weight=1.0)
MIX = functools.partial(training.smooth_mix, weight=1.0, attack=lambda key, model_fn, x, y: base.AttackResult(x, 0 * x, x[:, 0], y > 0))


def smoothed(x=X, **changes):
    return smoothing.soft(MODEL, **({"sigma": 0.1, "num_samples": 2} | changes)).draw(jax.random.split(KEY, 3))(x)


MISTAKES = {
    # votes
    "sigma 0": (lambda: count(sigma=0), "sigma must be positive and finite, got 0"),
    "sigma negative for one image": (lambda: count(sigma=jnp.array([0.1, -0.1, 0.1])), "sigma must be positive"),
    "sigma nan": (lambda: count(sigma=np.nan), "sigma must be positive and finite, got nan"),
    "sigma inf": (lambda: sample(sigma=np.inf), "sigma must be positive and finite, got inf"),
    "sigma missing": (lambda: count(sigma=None), "sigma must be positive and finite, got None"),
    "sigma of another batch": (lambda: count(sigma=np.full(5, 0.1)), "sigma", "3 inputs", "(5,)"),
    "no samples": (lambda: count(num_samples=0), "num_samples=0", ">= 1"),
    "half a sample": (lambda: count(num_samples=10.0), "num_samples", "integer", "10.0"),
    "no chunks": (lambda: count(chunk_size=0), "chunk_size=0", ">= 1"),
    "chunks that do not fit": (lambda: count(num_samples=25, chunk_size=10), "num_samples=25", "chunk_size=10", "num_samples=20"),
    "chunks that do not fit both": (
        lambda: smoothing.vote(KEY, MODEL, X, sigma=0.1, num_samples=10_000, chunk_size=500),
        "chunk_size=500", "num_selection=100 and num_samples=10000", "e.g. 100",
    ),
    "no static names": (
        lambda: jax.jit(smoothing.vote)(KEY, MODEL, X, sigma=0.1, num_samples=100, chunk_size=10), "chunk_size", "static_argnames",
    ),
    "a start that is no number of samples": (lambda: count(first_sample=0.5), "first_sample", "0.5"),
    "a negative start": (lambda: count(first_sample=-5), "first_sample", "-5"),
    "integer inputs": (lambda: count(x=jnp.zeros((3, 4), jnp.uint8)), "floating", "uint8", "/ 255"),
    "a list of inputs": (lambda: count(x=[[0.5] * 4] * 3), "array", "list"),
    "one number": (lambda: count(x=jnp.float32(0.5)), "[B, ...]", "leading axis"),
    "a number as key": (lambda: count(key=0), "key", "jax.random.key(0)"),
    "half a raw key": (lambda: count(key=jnp.zeros(1, jnp.uint32)), "raw data of a key", "(1,)"),
    "keys of another batch": (lambda: count(key=jax.random.split(KEY, 5)), "[3]", "(5,)"),
    "one output": (lambda: count(model_fn=Partial(linear, WEIGHT[:, :1])), "at least 2 classes", "(15, 1)", "zeros_like"),
    "logits and state": (lambda: count(model_fn=lambda x: (linear(WEIGHT, x), None)), "logits", "tuple", "[0]"),
    "a dictionary": (lambda: count(model_fn=lambda x: {"logits": linear(WEIGHT, x)}), "logits", "dict"),
    "logits of rank 3": (lambda: count(model_fn=lambda x: linear(WEIGHT, x)[:, None]), "logits [B, C]", "(15, 1, 3)"),
    "logits of another batch": (lambda: count(model_fn=lambda x: linear(WEIGHT, x)[:2]), "[15, C]", "(2, 3)"),
    "labels for logits": (lambda: count(model_fn=lambda x: linear(WEIGHT, x).argmax(axis=1)), "logits [B, C]", "(15,)"),
    "too many soft votes": (
        lambda: smoothing.count_soft(KEY, MODEL, X, sigma=0.1, num_samples=200_000, chunk_size=10), "num_samples=200000", "31 bits",
    ),
    "a cold temperature": (lambda: smoothing.count_soft(KEY, MODEL, X, temperature=0.0, **COUNT), "temperature must be positive"),
    "no model": (lambda: count(model_fn=None), "expected a model", "None"),
    "weights for a model": (lambda: sample(model_fn=WEIGHT), "expected a model"),
    "the name of a noise": (lambda: count(noise_fn="gaussian"), "noise_fn as a function", "'gaussian'"),
    "noise of another shape": (lambda: count(noise_fn=lambda key, x, sigma: x[:2]), "noise_fn made (2,)", "(4,)", "keep shape"),
    "noise of another type": (lambda: count(noise_fn=lambda key, x, sigma: x > sigma), "noise_fn made", "bool", "keep shape and type"),
    "noise of length 0": (lambda: noise.splitting(KEY, X[0], 0.0), "sigma must be positive"),
    "noise of one sigma for each feature": (lambda: noise.gaussian(KEY, X[0], np.full(4, 0.1)), "one sigma", "(4,)", "vmap"),
    "noise on bytes": (lambda: noise.gaussian(KEY, jnp.zeros(4, jnp.uint8), 0.1), "floating type", "uint8", "/ 255"),
    # a data set
    "several keys": (lambda: sample(key=jax.random.split(KEY, 3)), "one key", "(3,)"),
    "no key": (lambda: sample(key=7), "key", "7"),
    "sigma of every image": (lambda: sample(sigma=np.full(3, 0.1)), "one sigma", "(3,)"),
    "steps that do not fit": (lambda: sample(num_step_samples=15), "num_step_samples=15", "num_samples=20"),
    "chunks that do not fit steps": (lambda: sample(chunk_size=4), "chunk_size=4", "e.g. 10"),
    "no batch": (lambda: sample(batch_size=0), "batch_size=0", ">= 1"),
    "a rule of one answer": (lambda: sample(undecided_fn=lambda selection, estimation: np.array(True)), "undecided_fn", "3 images", "()"),
    "answers for a rule": (lambda: sample(undecided_fn=np.ones(3, bool)), "undecided_fn as a function", "ndarray"),
    "a broken model": (lambda: sample(model_fn=Partial(linear, WEIGHT * jnp.nan)), "not finite", "parameters"),
    "a broken model, resumed": (
        lambda: sample(model_fn=Partial(linear, WEIGHT * jnp.nan), state=sample(model_fn=Partial(linear, WEIGHT * jnp.nan))), "not finite",
    ),
    "a state without a fingerprint": (lambda: sample(state=smoothing.VoteState(SELECTION, 0 * SELECTION)), "fingerprint", "save"),
    "votes for a state": (lambda: sample(state=(SELECTION, ESTIMATION)), "VoteState", "tuple"),
    "half a state": (lambda: sample(state=halved(sample()[-1])), "cannot resume", "whole"),
    # bounds
    "12 of 10": (lambda: smoothing.binomial_lower(12, 10, 0.001), "12 votes of 10"),
    "12 of 10, above": (lambda: smoothing.binomial_upper(np.array([3, 12]), 10, 0.001), "12 votes of 10"),
    "12 of 10, any time": (lambda: smoothing.anytime_lower(12, 10, 0.001), "12 votes of 10"),
    "12 of 10, stopped": (lambda: smoothing.lower_bound(12, 10, num_samples=100), "12 votes of 10"),
    "samples of a row": (lambda: smoothing.binomial_lower(ESTIMATION[:2], np.full(2, 100), 0.001), "broadcast", "(2, 3)", "keepdims"),
    "traced votes": (lambda: jax.jit(lambda votes: smoothing.binomial_lower(votes, 10, 0.001))(jnp.ones(3)), "host", "outside jit"),
    "fewer than no votes": (lambda: smoothing.binomial_lower(-1, 10, 0.001), "-1 votes of 10"),
    "votes nan": (lambda: smoothing.binomial_lower(np.nan, 10, 0.001), "nan votes of 10"),
    "endless votes": (lambda: smoothing.binomial_lower(5, np.inf, 0.001), "of inf"),
    "more than planned": (lambda: smoothing.lower_bound(10, 20, num_samples=10), "20 votes", "num_samples=10"),
    "a mean beyond 1": (lambda: smoothing.hoeffding_lower(50.0, 0.1, 100, 0.001), "mean in [0, 1]", "50"),
    "a variance of one sample": (lambda: smoothing.bernstein_lower(0.5, 0.1, 1, 0.001), "at least 2 samples"),
    "alpha 0": (lambda: certify(alpha=0.0), "alpha must lie in (0, 1), got 0.0"),
    "alpha 1": (lambda: smoothing.predict(ESTIMATION, alpha=1.0), "alpha must lie in (0, 1), got 1.0"),
    "alpha in percent": (lambda: smoothing.binomial_lower(5, 10, 5), "alpha must lie in (0, 1), got 5"),
    "alpha of every image": (lambda: smoothing.anytime_lower(5, 10, np.full(3, 0.001)), "alpha must lie in (0, 1)", "one number"),
    "alpha text": (lambda: certify(alpha="0.001"), "alpha must lie in (0, 1)"),
    "alpha nan": (lambda: smoothing.bonferroni(np.nan, 10), "alpha must lie in (0, 1)"),
    "no statements": (lambda: smoothing.bonferroni(0.001, 0), "num_examples=0"),
    "no confidence": (lambda: smoothing.failures(100, 0.001, 99.9), "confidence must lie in (0, 1)", "99.9"),
    # certificates
    "votes as shares": (lambda: certify(ESTIMATION / 100), "integers", "float64"),
    "votes of one image": (lambda: certify(SELECTION[0], ESTIMATION[0]), "[B, C]", "(3,)"),
    "one class": (lambda: certify(SELECTION[:, :1], ESTIMATION[:, :1]), "C >= 2", "(3, 1)"),
    "no votes": (lambda: certify(0 * SELECTION), "at least one vote"),
    "negative votes": (lambda: certify(SELECTION - [[0, 1, 1]]), "no negative ones"),
    "votes of other images": (lambda: certify(SELECTION[:2]), "same inputs and classes", "(2, 3)", "(3, 3)"),
    "votes of other classes": (lambda: certify(SELECTION, ESTIMATION[:, :2]), "same inputs and classes"),
    "the same votes": (lambda: certify(ESTIMATION), "different keys"),
    "numbers that differ": (lambda: certify(estimation=ESTIMATION * [[1], [1], [2]]), "100 to 200", "certify_sequential"),
    "numbers that differ, predicted": (lambda: smoothing.predict(ESTIMATION * [[1], [1], [2]]), "100 to 200"),
    "not the planned number": (lambda: certify(num_samples=2000), "expected 2000 votes", "100 to 100"),
    "certified sigma 0": (lambda: certify(sigma=0.0), "sigma must be positive"),
    "certified sigma inf": (lambda: certify(sigma=np.inf), "sigma must be positive and finite"),
    "certified sigma of another batch": (lambda: certify(sigma=np.ones(2)), "sigma", "3 inputs", "(2,)"),
    "certified sigma of other votes": (lambda: certify(fingerprint={"sigma": np.array(0.25)}), "sigma=0.25", "sigma=0.5"),
    "certified in jit": (lambda: jax.jit(lambda votes: certify(votes, votes))(jnp.asarray(ESTIMATION)), "host", "outside jit"),
    "a state for a fingerprint": (lambda: certify(fingerprint=smoothing.VoteState(SELECTION, ESTIMATION)), "fingerprint", "VoteState"),
    "no radius": (lambda: certify(radius_fn=None), "radius_fn as a function"),
    "one radius for all": (lambda: certify(radius_fn=lambda p_lower, sigma: 1.0), "radius_fn gave 1.0", "3 inputs"),
    "a radius that is nan": (lambda: certify(radius_fn=lambda p_lower, sigma: p_lower * np.nan), "radius_fn gave", "nan"),
    "nothing to certify": (lambda: certify(estimation=FEW - [[1, 0, 0]]), "num_samples=9", "num_samples=10"),
    "nothing to certify, two-sided": (
        lambda: certify(estimation=FEW, verb=smoothing.certify_two_sided), "num_samples=10", "num_samples=11",
    ),
    "nothing to certify, sequential": (
        lambda: certify(estimation=FEW, verb=smoothing.certify_sequential, num_samples=10), "num_samples=10", "num_samples=11",
    ),
    "more drawn than planned": (lambda: certify(verb=smoothing.certify_sequential, num_samples=50), "100 votes", "num_samples=50"),
    "hard votes for soft ones": (lambda: smoothing.certify_soft(SELECTION, ESTIMATION, 100, sigma=0.5), "SoftVotes", "ndarray", "certify"),
    "another number of soft votes": (lambda: smoothing.certify_soft(SELECTION, SOFT, 60, sigma=0.5), "num_samples=60", "not finite"),
    "a rule without a plan": (lambda: smoothing.undecided(SELECTION, ESTIMATION, num_samples=0, sigma=0.1), "num_samples=0"),
    "a rule for other votes": (lambda: smoothing.undecided(SELECTION[:2], ESTIMATION, **PLAN), "(2, 3)", "(3, 3)"),
    "a rule, one tolerance": (lambda: smoothing.undecided(SELECTION, ESTIMATION, tolerance=-0.1, **PLAN), "tolerance >= 0", "-0.1"),
    "a rule for a grid that falls": (lambda: smoothing.undecided(SELECTION, ESTIMATION, grid=(0.5, 0.0), **PLAN), "increase"),
    # curves
    "one-hot labels": (lambda: smoothing.certified_accuracy(CERTIFICATE, np.eye(3, dtype=int), (0.0,)), "(3, 3)", "argmax"),
    "labels in a column": (lambda: smoothing.average_radius(CERTIFICATE, np.zeros((3, 1), int)), "(3, 1)", "[:, 0]"),
    "labels first": (lambda: smoothing.average_radius(Y, CERTIFICATE), "Certificate first", "labels second"),
    "labels as text": (lambda: smoothing.average_radius(CERTIFICATE, ["a", "b", "c"]), "integer labels"),
    "labels as floats": (lambda: smoothing.average_radius(CERTIFICATE, np.zeros(3)), "integer labels", "float"),
    "labels of other images": (lambda: smoothing.certified_accuracy(CERTIFICATE, np.zeros(2, int), (0.0,)), "[3]", "(2,)"),
    "a grid that falls": (lambda: smoothing.certified_accuracy(CERTIFICATE, Y, (0.5, 0.25)), "increase", "(0.5, 0.25)"),
    "a grid with nan": (lambda: smoothing.certified_accuracy(CERTIFICATE, Y, (0.0, np.nan)), "increase", "nan"),
    "a negative radius": (lambda: smoothing.certified_accuracy(CERTIFICATE, Y, (-0.5, 0.0)), "radii >= 0"),
    "one radius": (lambda: smoothing.certified_accuracy(CERTIFICATE, Y, 0.5), "grid", "0.5"),
    "an average of nothing": (lambda: smoothing.average_radius(smoothing.certify(*[SELECTION[:0]] * 2, sigma=0.5), Y[:0]), "at least one"),
    "p beyond 1": (lambda: radii.gaussian_l2(1.2, 0.5), "[0, 1]", "1.2"),
    "p nan": (lambda: radii.laplace_l1(np.array([0.9, np.nan]), 0.5), "[0, 1]", "nan"),
    "a radius of no noise": (lambda: radii.uniform_l1(0.9, 0.0), "sigma must be positive"),
    "no norm": (lambda: radii.gaussian_lp(0.9, 0.5, order=0.5, num_features=4), "order=0.5"),
    "no features": (lambda: radii.uniform_linf(0.9, 0.5, num_features=0), "num_features=0"),
    # models
    "soft, no samples": (lambda: smoothed(num_samples=0), "num_samples=0"),
    "soft, sigma negative": (lambda: smoothed(sigma=-0.1), "sigma must be positive"),
    "soft, temperature": (lambda: smoothed(temperature=0.0), "temperature must be positive"),
    "soft, half precision": (lambda: smoothed(X.astype(jnp.bfloat16)), "bfloat16", "inside the model"),
    "soft, other noise without gradients": (lambda: smoothed(gradient_free=True, noise_fn=noise.laplace), "Gaussian noise"),
    "soft, keys of another batch": (
        lambda: smoothing.soft(MODEL, sigma=0.1, num_samples=2).draw(jax.random.split(KEY, 5))(X), "one per example [3]", "(5,)",
    ),
    "soft, logits of one sample": (lambda: smoothing.log_mean_softmax(X), "[B, S, C]", "(3, 4)"),
    "soft, without a draw": (lambda: smoothing.soft(MODEL, sigma=0.1, num_samples=2)(X), "random", "draw(keys)"),
    "no classifier": (lambda: smoothing.denoised(WEIGHT, MODEL), "model_fn", "function"),
    "no denoiser": (lambda: smoothing.denoised(MODEL, {"w": WEIGHT}), "denoiser", "dict"),
    "a denoiser of another shape": (lambda: smoothing.denoised(MODEL, MODEL)(X), "(3, 3)", "(3, 4)"),
    "betas for alpha_bars": (lambda: smoothing.diffusion_denoiser(MODEL, jnp.linspace(1e-4, 0.02, 9), sigma=0.1), "fall", "cumprod"),
    "alpha_bars to 0": (lambda: smoothing.diffusion_denoiser(MODEL, jnp.linspace(1.0, 0.0, 9), sigma=0.1), "(0, 1]", "[0."),
    "diffusion, sigma 0": (lambda: smoothing.diffusion_denoiser(MODEL, jnp.linspace(0.9, 0.1, 9), sigma=0.0), "sigma must be positive"),
    # training
    "no noise": (lambda: train(training.gaussian, num_noise=0), "num_noise=0"),
    "trained sigma": (lambda: train(CONSISTENCY, sigma=np.inf), "sigma must be positive"),
    "trained in half precision": (lambda: train(training.gaussian, X.astype(jnp.float16)), "float16", "inside the model"),
    "trained on bytes": (lambda: train(MACER, jnp.zeros((3, 4), jnp.uint8)), "uint8", "/ 255"),
    "gaussian, labels in a column": (lambda: train(training.gaussian, y=Y[:, None]), "(3, 1)", "[:, 0]"),
    "stability, one-hot": (lambda: train(STABILITY, y=jnp.eye(3, dtype=int)), "(3, 3)", "argmax"),
    "consistency, other labels": (lambda: train(CONSISTENCY, y=Y[:2]), "[3]", "(2,)"),
    "macer, one-hot": (lambda: train(MACER, y=jnp.eye(3, dtype=int)), "(3, 3)", "argmax"),
    "smooth_mix, labels in a column": (lambda: train(MIX, y=Y[:, None]), "(3, 1)", "[:, 0]"),
    "macer, one output": (lambda: train(MACER, apply_fn=lambda params, state, x, mode: (x @ params[:, :1], state)), "at least 2 classes"),
    "macer, a dictionary": (lambda: train(MACER, apply_fn=lambda params, state, x, mode: ({"z": x}, state)), "logits", "dict"),
    "unknown objective": (lambda: denoise(objective="sharpness"), "unknown objective 'sharpness'", "denoising"),
    "nothing to look through": (lambda: denoise(objective="stability"), "model_fns=(model_fn,)"),
    "denoised to another shape": (lambda: denoise(apply_fn=lambda params, state, x, mode: (x[:, :2], state)), "(3, 2)", "must agree"),
    "denoised, one-hot": (lambda: denoise(y=jnp.eye(3, dtype=int), objective="classification", model_fns=(MODEL,)), "(3, 3)", "argmax"),
    "denoised in half precision": (lambda: denoise(X.astype(jnp.bfloat16)), "bfloat16", "inside the model"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name):
    mistakes.check(*MISTAKES[name])
