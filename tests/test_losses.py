"""Closed forms and laws of the losses per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from robustjax import base, losses

_RNG = np.random.default_rng(0)
_LOGITS = _RNG.normal(size=(6, 5)).astype(np.float32) * 3
_Y = _RNG.integers(0, 5, 6)
_TARGET = (_Y + 1) % 5
_PROBS = _RNG.dirichlet(np.ones(5), 6).astype(np.float32)

_LABEL_LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin,
    "runner_up": losses.runner_up,
    "dlr": losses.dlr,
    "targeted_dlr": base.bind(losses.targeted_dlr, target=_TARGET),
    "targeted_margin": base.bind(losses.targeted_margin, target=_TARGET),
    "targeted": losses.targeted(losses.cross_entropy),
}
_ALL = {name: (loss_fn, _Y) for name, loss_fn in _LABEL_LOSSES.items()} | {
    "soft_cross_entropy": (losses.soft_cross_entropy, _PROBS),
    "kl": (losses.kl, np.log(_PROBS)),
}


def _others(row):
    return np.delete(_LOGITS[row], _Y[row])


def _long_hand(name, row):
    z, y, target = _LOGITS[row].astype(np.float64), _Y[row], _TARGET[row]
    ordered = np.sort(z)[::-1]
    log_softmax = scipy.special.log_softmax(z)
    return {
        "cross_entropy": -log_softmax[y],
        "margin": _others(row).max() - z[y],
        "runner_up": np.delete(log_softmax, y).max(),
        "dlr": (_others(row).max() - z[y]) / (ordered[0] - ordered[2]),
        "targeted_dlr": (z[target] - z[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2),
        "targeted_margin": z[target] - z[y],
        "targeted": log_softmax[y],
        "soft_cross_entropy": -(_PROBS[row] * log_softmax).sum(),
        "kl": scipy.stats.entropy(_PROBS[row], scipy.special.softmax(z)),
    }[name]


@pytest.mark.parametrize("name", _ALL)
def test_every_loss_equals_its_formula(name):
    loss_fn, y = _ALL[name]
    values = loss_fn(jnp.asarray(_LOGITS), jnp.asarray(y))
    assert values.shape == (6,)
    np.testing.assert_allclose(values, [_long_hand(name, row) for row in range(6)], rtol=2e-5, atol=1e-6)


def test_differences_are_those_to_the_label_and_minus_infinity_at_it():
    values = losses.differences(jnp.asarray(_LOGITS), jnp.asarray(_Y))
    rows = np.arange(6)
    assert (np.asarray(values)[rows, _Y] == -np.inf).all()
    np.testing.assert_allclose(values.max(axis=1), losses.margin(_LOGITS, _Y))
    columns = losses.target_difference(jnp.asarray(_LOGITS), _Y, target=_TARGET)
    np.testing.assert_allclose(columns, np.asarray(values)[rows, _TARGET][:, None], rtol=1e-6)
    np.testing.assert_allclose(losses.goal_differences(jnp.asarray(_LOGITS), _TARGET)[:, 0], -losses.margin(_LOGITS, _TARGET))


def test_margin_is_positive_exactly_where_the_model_errs():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32))
    y = jnp.asarray(np.random.default_rng(2).integers(0, 4, 200))
    wrong = losses.misclassified(logits, y)
    assert 0 < wrong.sum() < 200
    for loss_fn in (losses.margin, losses.dlr):
        np.testing.assert_array_equal(loss_fn(logits, y) > 0, wrong)
    np.testing.assert_array_equal(losses.goal_differences(logits, y)[:, 0] > 0, losses.classified_as(logits, y))
    np.testing.assert_array_equal(losses.classified_as(logits, y), ~wrong)
    assert not losses.never(logits, y).any()


def test_dlr_ignores_scale_and_shift_of_the_logits():
    for name in ("dlr", "targeted_dlr"):
        loss_fn = _LABEL_LOSSES[name]
        np.testing.assert_allclose(loss_fn(7.0 * _LOGITS - 3.0, jnp.asarray(_Y)), loss_fn(jnp.asarray(_LOGITS), jnp.asarray(_Y)), rtol=1e-4)


def test_dlr_of_too_few_classes_raises_and_names_margin():
    y = jnp.zeros(2, int)
    with pytest.raises(ValueError, match=r"losses\.dlr.*3.*losses\.margin"):
        losses.dlr(jnp.ones((2, 2)), y)
    with pytest.raises(ValueError, match=r"losses\.targeted_dlr.*4.*losses\.margin"):
        losses.targeted_dlr(jnp.ones((2, 3)), y, target=y)


@pytest.mark.parametrize("name", _LABEL_LOSSES)
@pytest.mark.parametrize(
    ("logits", "y"),
    [
        (np.ones((6, 5), np.float32), np.zeros(5, int)),
        (np.ones((6, 5), np.float32), np.zeros((6, 5), np.float32)),
        (np.ones((6, 5), np.float32), np.zeros((6, 1), int)),
        (np.ones((6, 5), np.float32), np.zeros(6, np.float32)),
        (np.ones((6, 5, 5), np.float32), np.zeros(6, int)),
    ],
)
def test_wrong_shapes_and_types_of_labels_raise(name, logits, y):
    with pytest.raises(ValueError, match=r"expected (logits|integer labels)"):
        _LABEL_LOSSES[name](jnp.asarray(logits), jnp.asarray(y))


@pytest.mark.parametrize("loss_fn", [losses.soft_cross_entropy, losses.kl])
def test_label_distributions_of_another_shape_raise(loss_fn):
    with pytest.raises(ValueError, match="expected"):
        loss_fn(jnp.ones((2, 3)), jnp.ones((2, 4)))


def _extreme(size):
    signs = np.array([[1, -1, 0, 0, 0], [-1, 1, 1, -1, 0], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    return jnp.asarray(size * signs, jnp.float32)


@pytest.mark.parametrize("name", _ALL)
def test_values_and_gradients_are_never_nan_at_huge_logits(name):
    loss_fn, y = _ALL[name]
    check = jax.jit(jax.value_and_grad(lambda z: loss_fn(z, jnp.asarray(y)).sum()))
    for size in (1e4, 1e30):
        logits = _extreme(size)
        value, gradient = check(logits)
        assert not np.isnan(value), size
        assert not np.isnan(gradient).any(), size


def test_kl_is_zero_at_equality_and_positive_elsewhere():
    logits = jnp.asarray(_LOGITS)
    np.testing.assert_allclose(losses.kl(logits, jax.nn.log_softmax(logits)), 0.0, atol=1e-6)
    assert (losses.kl(logits, jnp.log(_PROBS)) > 1e-3).all()


@pytest.mark.parametrize("bottom", [-2e2, -1e30, -np.inf])
def test_kl_and_both_its_gradients_are_finite_where_probabilities_underflow(bottom):
    log_probs = jnp.array([[0.0, bottom, bottom], [np.log(0.5), np.log(0.5), bottom]], jnp.float32)
    logits = jnp.array([[0.0, 1.0, -1e4], [1e4, 0.0, -1e4]])
    value, gradients = jax.value_and_grad(lambda z, p: losses.kl(z, p).sum(), (0, 1))(logits, log_probs)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    p, q = np.array([1.0, 0.0, 0.0]), scipy.special.softmax([0.0, 1.0, -1e4])
    np.testing.assert_allclose(losses.kl(logits, log_probs)[0], scipy.stats.entropy(p, q), rtol=1e-5)


def test_the_gradient_of_kl_in_its_logits_is_softmax_minus_probs():
    logits, log_probs = jnp.asarray(_LOGITS), jnp.log(_PROBS)
    gradient = jax.grad(lambda z: losses.kl(z, log_probs).sum())(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - _PROBS, atol=1e-6)


def test_soft_cross_entropy_at_one_hot_is_cross_entropy():
    logits, y = jnp.concatenate([_LOGITS, 1e4 * _LOGITS]), jnp.tile(_Y, 2)
    soft, soft_grad = jax.value_and_grad(lambda z: losses.soft_cross_entropy(z, jax.nn.one_hot(y, 5)).sum())(logits)
    hard, hard_grad = jax.value_and_grad(lambda z: losses.cross_entropy(z, y).sum())(logits)
    np.testing.assert_allclose(soft, hard, rtol=1e-6)
    np.testing.assert_allclose(soft_grad, hard_grad, atol=1e-6)


def test_targeted_is_minus_the_loss_and_a_pytree_that_keeps_its_arrays_traced():
    logits, y = jnp.asarray(_LOGITS), jnp.asarray(_Y)
    np.testing.assert_array_equal(losses.targeted(losses.dlr)(logits, y), -losses.dlr(logits, y))
    loss_fn = losses.targeted(base.bind(losses.targeted_margin, target=jnp.asarray(_TARGET)))
    assert len(jax.tree.leaves(loss_fn)) == 1
    np.testing.assert_allclose(jax.jit(lambda f: f(logits, y))(loss_fn), -losses.targeted_margin(logits, y, target=_TARGET))


def test_label_smoothing_is_cross_entropy_to_smoothed_labels():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    y = jnp.arange(5) % 4
    soft = 0.9 * jax.nn.one_hot(y, 4) + 0.1 / 4
    np.testing.assert_allclose(losses.smoothed_cross_entropy(logits, y, smoothing=0.1), losses.soft_cross_entropy(logits, soft), rtol=1e-5)
