"""The support function of balls cut by a box, against linear programs, brute force and a bisection in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from robustjax import base, threats

_RNG = np.random.default_rng(0)
_X = _RNG.uniform(0.0, 1.0, (40, 6)).astype(np.float32)
_X[0], _X[1, :3] = 0.0, 1.0
_NORMAL = _RNG.normal(size=(40, 6)).astype(np.float32) * 10.0 ** _RNG.integers(-8, 9, (40, 1))
_NORMAL[2] = 0.0
_NORMAL[:, 5] *= _RNG.integers(0, 2, 40)
_EPS = np.float32([[0.5, 0.05, 0.1, 0.0, 0.2, 0.4]])
_MASK = np.array([[True, True, False, True, True, True]])
_BOXES = {"unit": (0.0, 1.0), "none": (-np.inf, np.inf), "half": (np.where(np.arange(6) < 3, 0.0, -np.inf)[None], np.inf)}


def _reference(kind, normal, low, high, eps, radius):
    slope, room = np.abs(normal).astype(float), np.where(normal > 0, high, -low).astype(float)
    slope = slope * eps
    room = np.where(eps > 0, room / np.where(eps > 0, eps, 1.0), 0.0)
    room = np.where(slope > 0, room, 0.0)
    if kind is threats.Linf:
        return np.sum(slope * np.minimum(room, radius))
    if kind is threats.L0:
        gains = slope * np.where(slope > 0, room, 0.0)
        return max(sum(gains[list(chosen)]) for chosen in itertools.combinations(range(6), int(radius)))
    if kind is threats.L1:
        bounds = [(0.0, min(r, 1e6)) for r in room]
        scale = slope.max() or 1.0
        return -scale * scipy.optimize.linprog(-slope / scale, A_ub=np.ones((1, 6)), b_ub=[radius], bounds=bounds).fun
    if not slope.any():
        return 0.0
    slope, scale = slope / slope.max(), slope.max()
    if np.linalg.norm(room) <= radius:
        return scale * slope @ room
    low_step, high_step = 0.0, 1e9
    for _ in range(200):
        step = (low_step + high_step) / 2
        low_step, high_step = (step, high_step) if np.linalg.norm(np.minimum(room, step * slope)) < radius else (low_step, step)
    return scale * slope @ np.minimum(room, low_step * slope)


@pytest.mark.parametrize("box", _BOXES)
@pytest.mark.parametrize("is_uneven", [False, True])
@pytest.mark.parametrize("kind", [threats.Linf, threats.L2, threats.L1, threats.L0])
def test_support_is_the_maximum_over_ball_and_box(kind, is_uneven, box):
    if kind is threats.L0 and (is_uneven or box != "unit"):
        pytest.skip("eps counts coordinates, and a coordinate without a side is endless")
    radius = 2 if kind is threats.L0 else 0.7
    threat = kind(_EPS if is_uneven else radius, box=_BOXES[box], mask=_MASK)
    found = jax.jit(lambda threat, normal, x: threat.support(normal, x))(threat, _NORMAL, _X)
    low, high = (np.broadcast_to(bound, _X.shape) for bound in threat.delta_bounds(_X))
    eps = _EPS[0] if is_uneven else np.ones(6)
    expected = [_reference(kind, *row, eps, 1.0 if is_uneven else radius) for row in zip(_NORMAL * _MASK, low, high, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=3e-5)
    # No admissible perturbation does better.
    delta = threat.project(2.0 * _RNG.normal(size=_X.shape).astype(np.float32), _X)
    products = np.sum(_NORMAL.astype(float) * np.asarray(delta), axis=1)
    assert (products <= np.asarray(found) * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", [threats.Linf, threats.L2, threats.L1])
def test_the_derivative_of_the_support_is_the_maximiser(kind):
    normal, x = jnp.asarray(_NORMAL[3:4] / np.abs(_NORMAL[3]).max()), jnp.asarray(_X[3:4])
    for eps in (0.3, jnp.inf, jnp.asarray(_EPS)):
        threat = kind(eps)
        value, at = jax.value_and_grad(lambda normal, threat=threat: threat.support(normal, x)[0])(normal)
        np.testing.assert_allclose(jnp.sum(normal * at), value, rtol=1e-4)
        assert threat.norm(at) <= threat.radius() * (1 + 1e-3)
    slope = jax.grad(lambda eps: kind(eps).support(normal, x)[0])(0.21)
    above, below = (kind(eps).support(normal, x)[0] for eps in (0.212, 0.208))
    np.testing.assert_allclose(slope, (above - below) / 0.004, rtol=0.02)


def test_a_radius_of_zero_and_an_infinite_one():
    for kind in (threats.Linf, threats.L2, threats.L1):
        np.testing.assert_array_equal(kind(0.0).support(_NORMAL, _X), 0.0)
        low, high = kind(jnp.inf).delta_bounds(_X)
        np.testing.assert_allclose(kind(jnp.inf).support(_NORMAL, _X), np.sum(np.maximum(_NORMAL * low, _NORMAL * high), axis=1), rtol=1e-5)


def test_l0_reaches_a_hyperplane_with_the_fewest_coordinates():
    normal, x = jnp.float32([[1.0, 3.0, 0.5, 2.0]]), jnp.full((1, 4), 0.5)
    delta = threats.L0(4).hyperplane(x, normal, jnp.float32([2.0]))
    np.testing.assert_allclose(delta, [[0.0, 0.5, 0.0, 0.25]], atol=1e-6)


@pytest.mark.parametrize("kind", [threats.Linf, threats.L2, threats.L1, threats.L0])
def test_balls_are_norm_threats(kind):
    assert isinstance(kind(1), base.NormThreat)
    assert isinstance(threats.Latent(lambda z: z, kind(1)), base.NormThreat)
