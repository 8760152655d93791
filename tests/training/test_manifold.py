"""On the manifold: closed forms on linear decoders, exact warps, inversion, and training on codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, losses, manifolds, training
from robustjax.threats import L2, Latent, Linf

B, K, D, C = 6, 4, 9, 3
KEY = jax.random.key(0)


def space():
    components = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (D, K)))[0].T
    return manifolds.Pca(jnp.full(D, 0.5), components, jnp.linspace(1.0, 0.2, K))


def linear():
    return jax.tree_util.Partial(lambda w, x: x @ w, jax.random.normal(jax.random.key(2), (D, 2)))


@pytest.mark.parametrize(
    ("ball", "dual"), [(0.3, 1), (Linf(0.3, box=(-9.0, 9.0)), 1), (L2(0.3, box=(-9.0, 9.0)), 2)], ids=["eps", "linf", "l2"]
)
def test_on_manifold_attacks_reach_the_closed_form_of_a_linear_model(ball, dual):
    decoder, model_fn = space(), linear()
    code, y = jax.random.normal(jax.random.key(3), (B, K)), jnp.zeros(B, int)
    slope = (decoder.components * decoder.scale[:, None]) @ (model_fn.args[0][:, 1] - model_fn.args[0][:, 0])
    clean = losses.margin(model_fn(decoder(code)), y)
    expected = clean + 0.3 * jnp.linalg.norm(slope, dual)
    threat = Latent(decoder, ball)
    for attack in (
        base.bind(attacks.fgsm, threat=threat),
        base.bind(attacks.pgd, threat=threat, step_size=0.1, num_steps=20),
        base.bind(attacks.apgd, threat=threat, num_steps=20),
    ):
        result = jax.jit(base.bind(attack, loss_fn=losses.margin))(KEY, model_fn, code, y)
        np.testing.assert_allclose(result.loss, expected, rtol=1e-4)
        np.testing.assert_allclose(result.x, decoder(code + result.delta), atol=1e-6)
        assert result.x.shape == (B, D) and threat.within(result.delta).all()
    closest = attacks.fmn(KEY, model_fn, code, y, threat=Latent(decoder, L2(jnp.inf, box=(-9.0, 9.0))), num_steps=60)
    distance = np.where(clean > 0, 0.0, -clean / jnp.linalg.norm(slope))
    np.testing.assert_allclose(-closest.loss, distance, rtol=0.05, atol=1e-6)


def test_pca_round_trip():
    decoder = space()
    code = jax.random.normal(KEY, (B, K))
    np.testing.assert_allclose(decoder.encode(decoder(code)), code, atol=1e-5)


def test_warp_zero_is_identity_a_shift_moves_and_a_turn_turns():
    image = jax.random.uniform(KEY, (1, 9, 9, 2))
    code = manifolds.warp_code(image)
    warp = lambda theta: manifolds.affine_warp(code.at[0, :6].set(jnp.array(theta)), image_shape=(9, 9, 2))  # noqa: E731
    np.testing.assert_allclose(warp([0.0] * 6), image, atol=1e-6)
    np.testing.assert_allclose(warp([0.25, 0, 0, 0, 0, 0])[:, :, 1:], image[:, :, :-1], atol=1e-5)  # one of four pixels each side
    np.testing.assert_allclose(warp([0, -0.5, 0, 0, 0, 0])[:, :-2], image[:, 2:], atol=1e-5)
    turned = warp([0, 0, 0, 0, 0, jnp.pi / 2])[0]
    assert min(float(jnp.abs(turned - jnp.rot90(image[0], turns)).max()) for turns in (1, 3)) < 1e-4
    with pytest.raises(ValueError, match="expected codes"):
        manifolds.affine_warp(code[:, :-1], image_shape=(9, 9, 2))


def test_an_attack_on_warps_moves_the_image_and_no_pixel_value():
    image = jax.random.uniform(KEY, (2, 8, 8, 1))
    code = manifolds.warp_code(image)
    decoder = base.bind(manifolds.affine_warp, image_shape=(8, 8, 1))
    free = (jnp.arange(code.shape[1]) < 6)[None]
    threat = Latent(decoder, Linf(0.2, box=(-jnp.inf, jnp.inf), mask=free))
    model_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jax.random.normal(KEY, (64, 3)))
    attack = base.bind(attacks.pgd, threat=threat, step_size=0.05, num_steps=8)
    result = jax.jit(attack)(KEY, model_fn, code, jnp.zeros(2, int))
    assert np.abs(result.delta[:, 6:]).max() == 0 and 0 < np.abs(result.delta[:, :6]).max() <= 0.2 * (1 + 1e-5)
    assert (result.loss >= losses.cross_entropy(model_fn(image), jnp.zeros(2, int))).all()


def test_inversion_finds_codes_and_names_a_wrong_decoder():
    decoder = space()
    code = jax.random.normal(KEY, (B, K))
    invert = jax.jit(lambda x: manifolds.invert(KEY, decoder, x, num_codes=K, num_steps=300, learning_rate=0.1, num_restarts=2))
    found = invert(decoder(code))
    np.testing.assert_allclose(found.code, code, atol=1e-2)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-2)
    away = decoder(code) + (1.0 - decoder.components.T @ (decoder.components @ jnp.ones(D)))[None]  # off the space: the nearest code
    np.testing.assert_allclose(invert(away).code, code, atol=1e-2)
    with pytest.raises(ValueError, match="must agree"):
        manifolds.invert(KEY, decoder, jnp.zeros((B, D + 1)), num_codes=K, num_steps=1, learning_rate=0.1)


def apply_fn(params, model_state, x, mode):
    del mode
    return x @ params, model_state


@pytest.mark.parametrize("form", [training.dual_manifold, base.bind(training.dual_manifold_trades, beta=1.0)], ids=["half", "trades"])
def test_dual_manifold_losses_name_a_decoder_of_another_shape(form):
    decoder = space()
    code = jax.random.normal(KEY, (B, K))
    latent = base.bind(attacks.fgsm, threat=Latent(decoder, 0.1))
    attack = base.bind(attacks.fgsm, threat=Linf(0.1, box=(-9.0, 9.0)))
    wrong = training.Coded(decoder(code)[:, :-1], code)
    loss = base.bind(form, apply_fn=apply_fn, attack=attack, latent_attack=latent)
    with pytest.raises(ValueError, match=r"expected a decoder that makes \[B, 8\] of the codes \(6, 4\), got \(6, 9\).*must agree"):
        jax.eval_shape(loss, jnp.zeros((D - 1, C)), None, KEY, wrong, jnp.zeros(B, int))


def test_dual_manifold_is_the_mean_of_its_halves():
    decoder = space()
    code, y = jax.random.normal(KEY, (B, K)), jnp.arange(B) % C
    params = jax.random.normal(jax.random.key(4), (D, C))
    attack = base.bind(attacks.fgsm, threat=Linf(0.1, box=(-9.0, 9.0)))
    latent = base.bind(attacks.fgsm, threat=Latent(decoder, 0.1))
    both = base.bind(training.dual_manifold, apply_fn=apply_fn, attack=attack, latent_attack=latent)
    loss, _ = both(params, None, KEY, training.Coded(decoder(code), code), y)
    off, on = (
        training.adversarial(params, None, KEY, inputs, y, apply_fn=apply_fn, attack=each)[0]
        for inputs, each in ((decoder(code), attack), (code, latent))
    )
    np.testing.assert_allclose(loss, 0.5 * off + 0.5 * on, rtol=1e-5)
