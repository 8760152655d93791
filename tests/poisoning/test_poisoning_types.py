"""Traced only: poisons have the type of the images, in 64-bit mode, with logits of half precision, and under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import base, bilevel, poisoning, training
from robustjax.threats import L2, Linf

D, C, N = 4, 3, 12
Y = jnp.arange(N) % C


def apply_fn(params, model_state, x, mode):
    del mode
    return x.astype(params["w"].dtype) @ params["w"], model_state


def _network(dtype):
    return {"w": jax.ShapeDtypeStruct((D, C), dtype)}


def _victim(theta, phi, batch):
    return jnp.mean(jnp.square(phi @ theta - batch)) + 0.1 * jnp.sum(jnp.square(theta))


PROBLEM = base.Bilevel(_victim, lambda theta, phi, batch: -jnp.sum(jnp.square(theta)))
CG = base.bind(bilevel.conjugate_gradient, num_steps=2)


def _solver(problem, number):
    return base.bind(bilevel.descend, inner_loss=problem.inner_loss, num_steps=2, step_size=number(0.1))


def _craft(x, number, made):
    options = {"threat": Linf(number(0.1), box=(-9.0, 9.0)), "optimizer": optax.sgd(number(0.1)), "num_steps": 2}
    return poisoning.craft_poisons(jax.random.key(0), x, gradient_fn=made, **options).x


def _response(x, y, params, number):
    gradient_fn = poisoning.response_gradient(PROBLEM, _solver(PROBLEM, number), jnp.zeros(N, x.dtype), linear_fn=CG)
    state = poisoning.Response(jnp.zeros(D, x.dtype), jnp.zeros(D, x.dtype))
    threat, optimizer = L2(number(0.1), box=(-9.0, 9.0)), optax.sgd(number(0.1))
    return poisoning.craft_poisons(
        jax.random.key(0), x, threat=threat, gradient_fn=gradient_fn, optimizer=optimizer, num_steps=2, state=state
    ).x


def _method(x, y, params, number):
    method = base.bind(bilevel.value_function, weight=number(10.0))
    return _craft(
        x, number, poisoning.method_gradient(PROBLEM, method, _solver(PROBLEM, number), jnp.zeros(D, x.dtype), jnp.zeros(N, x.dtype))
    )


def _differentiated(x, y, params, number):
    return _craft(
        x, number, poisoning.differentiated(lambda key, x: jnp.sum(jnp.square(apply_fn(params, None, x, "eval")[0].astype(x.dtype))))
    )


def _control(x, y, params, number):
    return poisoning.random_control(jax.random.key(0), x, L2(number(0.1), box=(-9.0, 9.0)))


def _task(x, y):
    return poisoning.Task(x, y, np.array([1, 3]), x[:1], y[1:2])


def _matching(x, y, params, number):
    return poisoning.gradient_matching(
        jax.random.key(0), _task(x, y), params=params, apply_fn=apply_fn, threat=Linf(number(0.1)), num_steps=2,
        learning_rate=number(0.1), num_restarts=2,
    ).x  # fmt: skip


def _metapoison(x, y, params, number):
    return poisoning.metapoison(
        jax.random.key(0), _task(x, y), apply_fn=apply_fn, threat=Linf(number(0.1)), num_steps=2,
        num_surrogates=2, init_fn=lambda key: {"w": jax.random.normal(key, (D, C), params["w"].dtype)}, optimizer=optax.sgd(number(0.1)),
        num_epochs=2, batch_size=4, step_size=number(0.1),
    ).x  # fmt: skip


def _frogs(x, y, params, number):
    options = {"step_size": number(0.1), "beta": number(0.1), "watermark": number(0.3), "num_steps": 2}
    features_fn = lambda x: apply_fn(params, None, x, "eval")[0]  # noqa: E731
    return poisoning.feature_collision(jax.random.key(0), _task(x, y), features_fn=features_fn, **options)


def _bullseye(x, y, params, number):
    features_fns = [lambda x: apply_fn(params, None, x, "eval")[0]]
    threat, learning_rate = Linf(number(0.1)), number(0.1)
    options = {"features_fns": features_fns, "threat": threat, "num_steps": 2, "learning_rate": learning_rate}
    return poisoning.bullseye(jax.random.key(0), _task(x, y), **options).x


def _lower(x, y, params, number):
    victim = poisoning.VictimTraining(
        apply_fn, lambda key: {"w": jax.random.normal(key, (D, C), params["w"].dtype)},
        base.bind(training.gaussian, apply_fn=apply_fn, sigma=number(0.1)), num_clean=4, learning_rate=number(0.1),
    )  # fmt: skip
    descent = poisoning.ResponseDescent(num_epochs=2, num_poison=2, learning_rate=number(0.1), linear_rate=number(0.1), damping=number(0.1))
    certificate = poisoning.SoftCertificate(number(0.1), num_noise=2)
    return poisoning.poison_certificates(
        jax.random.key(0), poisoning.Task(x, y, np.arange(4), x[:2], y[:2]), threat=Linf(number(0.1)), victim=victim,
        certificate=certificate, descent=descent,
    ).x  # fmt: skip


def _radius(x, y, params, number):
    certificate = poisoning.SoftCertificate(number(0.1), num_noise=2, beta=number(4.0), smoothing=number(1e-3))
    return poisoning.soft_radius(params, jax.random.key(0), x, y, apply_fn=apply_fn, certificate=certificate)


def _influence(x, y, params, number):
    return poisoning.influence(
        params, x, y, loss_fn=lambda params, x, y: jnp.square(apply_fn(params, None, x, "eval")[0][y].astype(x.dtype)),
        test_loss_fn=lambda params: jnp.sum(params["w"]).astype(x.dtype), linear_fn=CG, damping=number(0.1),
        regularizer_fn=lambda params: jnp.sum(jnp.square(params["w"])).astype(x.dtype),
    ).removal  # fmt: skip


def _weighted(x, y, params, number):
    problem = poisoning.weighted_examples(lambda theta, x, y: jnp.square(x @ theta))
    return bilevel.unrolled(problem, _solver(problem, number), jnp.zeros(N, x.dtype), jnp.ones(D, x.dtype), (x, y, x, y)).grad


def _game(x, y, params, number):
    problem = poisoning.penalized(lambda theta, poisons, batch: jnp.sum(jnp.square(poisons @ theta)), lambda theta, batch: jnp.sum(theta))
    found = poisoning.learn_regularization(
        problem, bilevel.unrolled, _solver(problem, number), x, number(-1.0), jnp.ones(D, x.dtype), poison_step=number(0.1),
        strength_step=number(0.1), num_steps=2, bounds=(number(-8.0), number(8.0)),
    )  # fmt: skip
    return found.poisons, found.log_strength, found.theta


CASES = {
    case.__name__[1:]: case
    for case in (
        _response, _method, _differentiated, _control, _matching, _metapoison, _frogs, _bullseye, _lower, _radius, _influence, _weighted,
        _game,
    )
}  # fmt: skip


def _check(name, dtype, number, network_type=None):
    x, params = jax.ShapeDtypeStruct((N, D), dtype), _network(network_type or dtype)
    y = jax.ShapeDtypeStruct((N,), jnp.int32)
    made = jax.eval_shape(lambda x, y, params: CASES[name](x, y, params, number), x, y, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", CASES)
def test_results_have_the_type_of_the_images(name):
    _check(name, jnp.float32, float)
    if name != "influence":  # whose steps are those of the parameters
        _check(name, jnp.float32, float, jnp.bfloat16)
    with jax.enable_x64(True):
        for number in (float, np.float64):
            _check(name, jnp.float32, number)
            _check(name, jnp.float64, number)


# optax's Adam, which the others descend with, does not itself.
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("matching", "bullseye", "lower")])
def test_strict_promotion_passes(name):
    with jax.numpy_dtype_promotion("strict"):
        _check(name, jnp.float32, float)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_images_of_half_precision_are_refused_with_the_remedy(half):
    for name in ("matching", "metapoison", "frogs", "bullseye", "lower", "differentiated", "control"):
        with pytest.raises((ValueError, TypeError), match="cast inside the model"):
            _check(name, half, float)
