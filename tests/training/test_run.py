"""Training: steps go down, adversarial training helps, a run cut in two equals the whole, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks, base, losses, training
from robustjax.threats import Latent, Linf

N, D, C = 96, 8, 3
KEY = jax.random.key(0)
OPTIMIZER = optax.adam(0.05)
fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))


def apply_fn(params, model_state, x, mode):
    counted = model_state + 1 if mode == "train" else model_state
    return jnp.tanh(x @ params["hidden"]) @ params["head"], counted


def problem():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"hidden": 0.3 * jax.random.normal(keys[0], (D, 16)), "head": 0.3 * jax.random.normal(keys[1], (16, C))}
    x = jax.random.uniform(keys[2], (N, D))
    y = jnp.argmax(x[:, :C] + 0.05 * jax.random.normal(keys[3], (N, C)), axis=1)
    return training.init(params, jnp.int32(0), OPTIMIZER), x, y


def steps(eps=None):
    if eps is None:
        return training.step(base.bind(training.natural, apply_fn=apply_fn), OPTIMIZER)
    attack = base.bind(attacks.pgd, threat=Linf(eps), step_size=eps / 2, num_steps=4)
    return training.step(base.bind(training.adversarial, apply_fn=apply_fn, attack=attack), OPTIMIZER)


def test_natural_training_learns_and_counts():
    state, x, y = problem()
    state, metrics = fit(state, KEY, x, y, step_fn=steps(), num_epochs=20, batch_size=32)
    assert metrics["loss"].shape == (60,) and int(state.num_steps) == 60
    assert int(state.model_state) == 60, "the statistics of every training forward pass are kept, and of no other"
    assert float(metrics["loss"][-3:].mean()) < 0.5 * float(metrics["loss"][:3].mean())


def test_adversarial_training_is_more_robust_than_natural():
    state, x, y = problem()
    attack = jax.jit(base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.03, num_steps=10))
    accuracy = {}
    for name, step_fn in (("natural", steps()), ("robust", steps(0.1))):
        trained, _ = fit(state, KEY, x, y, step_fn=step_fn, num_epochs=40, batch_size=32)
        model_fn = training.classifier(apply_fn, trained.params, trained.model_state)
        accuracy[name] = 1 - float(attack(KEY, model_fn, x, y).success.mean())
    assert accuracy["robust"] > accuracy["natural"] + 0.05


def test_the_gradient_is_taken_at_the_attacked_inputs_alone():
    state, x, y = problem()
    attack = base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.05, num_steps=2, delta=0.0)
    loss = lambda params: training.adversarial(  # noqa: E731
        params, state.model_state, KEY, x, y, apply_fn=apply_fn, attack=attack
    )[0]
    x_adv = attack(KEY, training.classifier(apply_fn, state.params, state.model_state), x, y).x
    fixed = lambda params: losses.cross_entropy(apply_fn(params, 0, x_adv, "train")[0], y).mean()  # noqa: E731
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.grad(loss)(state.params), jax.grad(fixed)(state.params))


def test_a_cut_run_equals_the_whole():
    state, x, y = problem()
    whole, _ = fit(state, KEY, x, y, step_fn=steps(0.1), num_epochs=3, batch_size=32)
    cut, _ = fit(state, KEY, x, y, step_fn=steps(0.1), num_epochs=1, batch_size=32)
    cut, _ = fit(cut, KEY, x, y, step_fn=steps(0.1), num_epochs=2, batch_size=32)
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_new_eps_does_not_trace_again():
    state, x, y = problem()
    fit(state, KEY, x, y, step_fn=steps(0.1), num_epochs=1, batch_size=32)
    before = fit._cache_size()
    fit(state, KEY, x, y, step_fn=steps(0.2), num_epochs=1, batch_size=32)
    assert fit._cache_size() == before


def test_wrong_sizes_are_named():
    state, x, y = problem()
    with pytest.raises(ValueError, match="as many labels"):
        training.fit(state, KEY, x, y[:-1], step_fn=steps(), num_epochs=1, batch_size=32)
    with pytest.raises(ValueError, match="larger than the data set"):
        training.fit(state, KEY, x, y, step_fn=steps(), num_epochs=1, batch_size=N + 1)


def test_eps_ramps_inside_one_program():
    state, x, y = problem()
    attack = base.bind(attacks.pgd, threat=Linf(0.2), step_size=0.1, num_steps=1, delta=0.0)
    seen = base.bind(training.adversarial, apply_fn=apply_fn, attack=attacks.restarts(attack, 1))
    for num_steps, factor in ((0, 0.25), (2, 0.75), (3, 1.0), (9, 1.0)):
        plain = attacks.parts(training.eps_ramp(seen, jnp.int32(num_steps), num_ramp_steps=4).get("attack"))[0]
        np.testing.assert_allclose(plain.get("threat").eps, 0.2 * factor, rtol=1e-6)
        np.testing.assert_allclose(plain.get("step_size"), 0.1 * factor, rtol=1e-6)
    ramped = training.step(seen, OPTIMIZER, base.bind(training.eps_ramp, num_ramp_steps=6))
    before = fit._cache_size()
    first, _ = fit(state, KEY, x, y, step_fn=ramped, num_epochs=1, batch_size=32)
    fit(first, KEY, x, y, step_fn=ramped, num_epochs=1, batch_size=32)
    assert fit._cache_size() == before + 1


def test_what_would_spoil_a_run_is_named_before_it():
    state, x, y = problem()

    def loss(threat, **hyper):
        attack = base.bind(attacks.pgd, threat=threat, step_size=0.1, num_steps=1, **hyper)
        return base.bind(training.adversarial, apply_fn=apply_fn, attack=attack)

    training.check(loss(Linf(0.1)), x)
    with pytest.raises(ValueError, match="leave the box"):
        training.fit(state, KEY, 255 * x, y, step_fn=training.step(loss(Linf(0.1)), OPTIMIZER), num_epochs=1, batch_size=32)
    with pytest.raises(ValueError, match="starts at random in a ball of radius 0"):
        training.check(loss(Linf(0.0)), x)
    training.check(loss(Linf(0.0), delta=0.0), x)
    with pytest.raises(ValueError, match="leave the box"):
        training.check(base.bind(training.free, apply_fn=apply_fn, threat=Linf(0.1)), x - 1)
    on = base.bind(attacks.fgsm, threat=Latent(apply_fn, Linf(0.1, box=(-2.0, 2.0))))
    dual = base.bind(training.dual_manifold, apply_fn=apply_fn, attack=loss(Linf(0.1)).get("attack"), latent_attack=on)
    training.check(dual, training.Coded(x, 2 * x))
    with pytest.raises(ValueError, match=r"leave the box \(-2.0, 2.0\)"):
        training.check(dual, training.Coded(x, 4 * x))


def test_overfitting_shows_where_a_single_step_misleads():
    x = jnp.full((8, 2), 0.5)
    y = jnp.zeros(8, int)

    def wavy(x):  # FGSM at the crest steps over it; PGD finds the valley between
        bump = jnp.cos(40.0 * (x[:, 0] - 0.5) + 0.3)
        return jnp.stack([bump + 0.2, jnp.zeros(len(x))], axis=1)

    signs = training.catastrophic_overfitting(KEY, jax.tree_util.Partial(wavy), x, y, threat=Linf(0.15), step_size=0.02, num_steps=20)
    assert signs.fgsm_accuracy == 1.0 and signs.pgd_accuracy == 0.0 and signs.gap == 1.0 and signs.cosine < 0.9
