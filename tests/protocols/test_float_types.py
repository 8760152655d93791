"""Traced only: inputs of float32 or float64, logits of any float type, 64-bit mode, strict promotion and empty batches, all attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from test_attacks import CASES, EPS, bound

from robustjax import attacks, base, losses
from robustjax.threats import L2, Linf

D, C = 12, 4
_AUTO = base.bind(attacks.autoattack, threat=Linf(0.1), num_steps=3, num_queries=3)


def _forward(weight, x):
    return x.reshape(x.shape[0], D).astype(weight.dtype) @ weight


def _result(attack, float_type, logit_type, batch=3):
    x = jax.ShapeDtypeStruct((batch, 2, 2, 3), float_type)
    model_fn = Partial(_forward, jax.ShapeDtypeStruct((D, C), logit_type))
    return jax.eval_shape(attack, jax.random.key(0), model_fn, x, jax.ShapeDtypeStruct((batch,), jnp.int32))


def _attack(name, threat):
    return _AUTO if name == "autoattack" else bound(name, threat(EPS[threat]))


ALL = [*CASES, pytest.param("autoattack", Linf, id="autoattack")]


@pytest.mark.parametrize(("name", "threat"), ALL)
def test_results_have_the_type_of_the_inputs_whatever_the_logits_are(name, threat):
    for logit_type in (jnp.float32, jnp.bfloat16, jnp.float16):
        result = _result(_attack(name, threat), jnp.float32, logit_type)
        assert {result.x.dtype, result.delta.dtype, result.loss.dtype} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("name", "threat"), ALL)
def test_64_bit_mode_changes_no_type(name, threat):
    with jax.enable_x64(True):
        for float_type, logit_type in ((jnp.float32, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.float64, jnp.float64)):
            attack = jax.tree.map(lambda leaf: np.float64(leaf) if np.ndim(leaf) == 0 else leaf, _attack(name, threat))
            result = _result(attack, float_type, logit_type)
            assert {result.x.dtype, result.delta.dtype, result.loss.dtype} == {jnp.dtype(float_type)}


@pytest.mark.parametrize(("name", "threat"), ALL)
def test_strict_promotion_and_empty_batches_pass(name, threat):
    with jax.numpy_dtype_promotion("strict"):
        assert _result(_attack(name, threat), jnp.float32, jnp.float32).x.dtype == jnp.float32
    assert _result(_attack(name, threat), jnp.float32, jnp.float32, batch=0).x.shape == (0, 2, 2, 3)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_inputs_of_half_precision_are_refused_with_the_remedy(half):
    for name in ("pgd", "fab"):
        with pytest.raises(TypeError, match="cast inside the model"):
            _result(bound(name, L2(0.1)), half, half)


@pytest.mark.parametrize(
    "loss_fn", [losses.cross_entropy, losses.margin, losses.dlr, losses.runner_up, base.bind(losses.targeted_dlr, target=jnp.array([1, 1]))]
)
def test_losses_of_tied_masked_and_half_logits_are_finite_and_so_are_their_gradients(loss_fn):
    rows = [[1.0, 1.0, 1.0, 1.0, 1.0], [2.0, -np.inf, 1.0, -np.inf, 0.5]]
    for float_type in (jnp.float16, jnp.bfloat16, jnp.float32):
        logits, y = jnp.asarray(rows, float_type), jnp.array([0, 0], jnp.uint8)
        value, gradient = (
            loss_fn(logits, y),
            jax.grad(lambda z, y=y: jnp.where(jnp.isfinite(loss_fn(z, y)), loss_fn(z, y), 0.0).sum())(logits),
        )
        assert value.dtype == jnp.float32
        assert np.isfinite(gradient.astype(jnp.float32)).all()
    tied = jnp.ones((1, 5))
    assert float(losses.dlr(tied, jnp.array([0]))[0]) == 0.0


def test_divergences_ignore_masked_classes_in_value_and_gradient():
    clean, other = jnp.array([[1.0, 0.0, -jnp.inf]]), jnp.array([[0.0, 1.0, -jnp.inf]])
    alone = losses.kl(other[:, :2], jax.nn.log_softmax(clean[:, :2]))
    np.testing.assert_allclose(losses.kl(other, jax.nn.log_softmax(clean)), alone, rtol=1e-6)
    np.testing.assert_allclose(
        losses.soft_cross_entropy(other, jax.nn.softmax(clean)),
        losses.soft_cross_entropy(other[:, :2], jax.nn.softmax(clean[:, :2])),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        losses.smoothed_cross_entropy(other, jnp.array([0]), smoothing=0.1),
        losses.smoothed_cross_entropy(other[:, :2], jnp.array([0]), smoothing=0.1),
        rtol=1e-6,
    )
    for gradient in (
        jax.grad(lambda c: losses.kl(other, jax.nn.log_softmax(c)).sum())(clean),
        jax.grad(lambda o: losses.kl(o, jax.nn.log_softmax(clean)).sum())(other),
        jax.grad(lambda o: losses.soft_cross_entropy(o, jax.nn.softmax(clean)).sum())(other),
        jax.grad(lambda o: losses.smoothed_cross_entropy(o, jnp.array([0]), smoothing=0.1).sum())(other),
    ):
        assert np.isfinite(gradient).all() and gradient[0, 2] == 0.0


def test_labels_of_eight_bits_count_300_classes():
    logits = jnp.zeros((1, 300)).at[0, 259].set(5.0)
    assert float(losses.margin(logits, jnp.array([3], jnp.uint8))[0]) == 5.0
    assert bool(losses.misclassified(logits, jnp.array([3], jnp.uint8))[0])
