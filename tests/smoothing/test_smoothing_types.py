"""Inputs are float32 or float64 and keep their type, logits may be of any floating type: traced only, in every mode of jax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, smoothing, training
from robustjax.smoothing import noise
from robustjax.threats import L2

NOISE = {"sigma": 0.25, "num_noise": 2}
COUNT = {"sigma": 0.25, "num_samples": 4, "chunk_size": 2}
PGD = base.bind(attacks.pgd, threat=L2(0.1), step_size=0.05, num_steps=2, delta=0.0)


def apply_fn(params, model_state, x, mode):
    return x.astype(params.dtype) @ params, model_state


def denoiser_fn(params, model_state, x, mode):
    return (x.astype(params.dtype) @ params)[:, :1] + x.astype(params.dtype), model_state


def trained(loss, **options):
    def run(key, weight, x, y):
        bound = base.bind(loss, apply_fn=apply_fn, **(NOISE | options))
        (value, _), grad = jax.value_and_grad(lambda weight: bound(weight, None, key, x, y), has_aux=True)(weight)
        assert grad.dtype == weight.dtype
        return value

    return run


def denoised(key, weight, x, y, objective):
    model_fn = base.bind(lambda x, *, weight: apply_fn(weight, None, x, "eval")[0], weight=weight)
    bound = base.bind(training.denoise, apply_fn=denoiser_fn, sigma=0.25, objective=objective, model_fns=(model_fn,))
    return bound(weight, None, key, x, y)[0]


def voted(verb):
    def run(key, weight, x, y):
        return verb(key, base.bind(lambda x, *, weight: apply_fn(weight, None, x, "eval")[0], weight=weight), x)

    return run


def smoothed(key, model_fn, x, **options):
    drawn = smoothing.soft(model_fn, sigma=0.25, num_samples=2, temperature=0.5, **options).draw(jax.random.split(key, len(x)))
    return jax.value_and_grad(lambda x: drawn(x).sum())(x)


def restored(key, model_fn, x):
    schedule = np.linspace(0.999, 0.1, 20)
    noise_of = lambda x, time: model_fn(x)[:, :1] + x.astype(model_fn(x).dtype)  # noqa: E731
    return smoothing.diffusion_denoiser(noise_of, schedule, sigma=0.25)(x)


VERBS = {
    "count_predictions": (voted(functools.partial(smoothing.count_predictions, **COUNT)), "int32"),
    "count_predictions, first_sample": (voted(functools.partial(smoothing.count_predictions, first_sample=4, **COUNT)), "int32"),
    "count_predictions, sigma of each": (
        voted(functools.partial(smoothing.count_predictions, **(COUNT | {"sigma": np.full(3, 0.25)}))), "int32",
    ),
    **{
        f"count_predictions, {name}": (
            voted(functools.partial(smoothing.count_predictions, noise_fn=getattr(noise, name), **COUNT)), "int32",
        )
        for name in ("laplace", "uniform", "splitting")
    },
    "count_soft": (voted(functools.partial(smoothing.count_soft, temperature=0.5, **COUNT)), "int32"),
    "vote": (voted(functools.partial(smoothing.vote, num_selection=2, **COUNT)), "int32"),
    "soft": (voted(smoothed), "float"),
    "soft, gradient_free": (voted(functools.partial(smoothed, gradient_free=True)), "float"),
    "diffusion_denoiser": (voted(restored), "float"),
    "gaussian": (trained(training.gaussian), "float"),
    "stability": (trained(training.stability, weight=2.0), "float"),
    "consistency": (trained(training.consistency, weight=5.0), "float"),
    "macer": (trained(training.macer, weight=3.0), "float"),
    "smooth_mix": (trained(training.smooth_mix, weight=5.0, attack=PGD), "float"),
    "smooth_adv": (trained(training.smooth_adv, attack=PGD), "float"),
    **{
        f"denoise, {objective}": (functools.partial(denoised, objective=objective), "float")
        for objective in ("denoising", "stability", "classification")
    },
}  # fmt: skip

MODES = {  # whether x64 is on, jax's promotion, the types of x, of the parameters (and so of the logits) and of the labels
    "float32": (False, "standard", "float32", "float32", "int32"),
    "strict": (False, "strict", "float32", "float32", "int32"),
    "strict, bfloat16 logits": (False, "strict", "float32", "bfloat16", "int32"),
    "bfloat16 logits, small labels": (False, "standard", "float32", "bfloat16", "uint8"),
    "float16 logits": (False, "standard", "float32", "float16", "int32"),
    "x64": (True, "standard", "float32", "float32", "int32"),
    "x64, float64": (True, "standard", "float64", "float64", "int64"),
    "x64, float64 and bfloat16 logits": (True, "standard", "float64", "bfloat16", "int64"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VERBS)
def test_types_go_through(name, mode):
    verb, result = VERBS[name]
    x64, promotion, x_type, logit_type, y_type = MODES[mode]
    with jax.enable_x64(x64), jax.numpy_dtype_promotion(promotion):
        shapes = jax.ShapeDtypeStruct((4, 4), logit_type), jax.ShapeDtypeStruct((3, 4), x_type), jax.ShapeDtypeStruct((3,), y_type)
        found = jax.eval_shape(verb, jax.random.key(0), *shapes)
    types = {leaf.dtype.name for leaf in jax.tree.leaves(found)}
    if result == "int32":
        assert types == {"int32"}
    elif x_type == "float32":
        assert types == {"float32"}
    else:
        assert types <= {x_type, logit_type, "float32"} - {"bfloat16"}


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name in VERBS if VERBS[name][1] != "int32" and name != "diffusion_denoiser"])
def test_inputs_of_half_precision_are_refused_where_small_changes_of_them_count(name, narrow):
    shapes = jax.ShapeDtypeStruct((4, 4), narrow), jax.ShapeDtypeStruct((3, 4), narrow), jax.ShapeDtypeStruct((3,), "int32")
    with pytest.raises(TypeError, match=rf"float32 or float64, got {narrow}; .*cast inside the model"):
        jax.eval_shape(VERBS[name][0], jax.random.key(0), *shapes)


def test_votes_of_inputs_in_half_precision_round_noisy_inputs_as_a_first_layer_would():
    weight, x = jnp.eye(4, dtype=jnp.bfloat16), jnp.full((3, 4), 0.5, jnp.bfloat16)
    options = {"sigma": 0.25, "num_samples": 40, "chunk_size": 20}
    votes = smoothing.count_predictions(jax.random.key(0), lambda x: x @ weight, x, **options)
    rounding = lambda x: x.astype(jnp.bfloat16) @ weight  # noqa: E731
    np.testing.assert_array_equal(votes, smoothing.count_predictions(jax.random.key(0), rounding, x.astype(jnp.float32), **options))


def test_losses_of_half_precision_logits_are_those_of_the_logits_in_float32():
    weight = jax.random.normal(jax.random.key(1), (4, 4)).astype(jnp.bfloat16)
    x, y = jax.random.uniform(jax.random.key(2), (8, 4)), jnp.arange(8) % 4
    wide = lambda params, state, x, mode: (apply_fn(params, state, x, mode)[0].astype(jnp.float32), state)  # noqa: E731
    for loss, options in (
        (training.macer, {"weight": 3.0}), (training.consistency, {"weight": 5.0}), (training.stability, {"weight": 2.0}),
    ):  # fmt: skip
        values = [loss(weight, None, jax.random.key(0), x, y, apply_fn=f, **NOISE, **options)[0] for f in (apply_fn, wide)]
        np.testing.assert_array_equal(*values)
