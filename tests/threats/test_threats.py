"""Laws of the norm balls, and their projections against independent solvers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from robustjax import threats

_SHAPE = (3, 2, 3)
_BALLS = {"Linf": threats.Linf, "L2": threats.L2, "L1": threats.L1, "L0": threats.L0}
_ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1, "L0": 0}
_RNG = np.random.default_rng(0)
_X = _RNG.uniform(0.1, 0.9, _SHAPE).astype(np.float32)
_DELTA = (1.5 * _RNG.normal(size=_SHAPE)).astype(np.float32)
_MASK = np.array([[[True, False, True], [True, True, False]]])
_EPS = {
    "scalar": 0.5,
    "per example": np.array([0.05, 0.5, 2.0], np.float32),
    "per coordinate": _RNG.uniform(0.05, 0.8, (1, 2, 3)).astype(np.float32),
}
_COUNTS = {"scalar": 2, "per example": np.array([0, 1, 4])}
_BOXES = {
    "default": (0.0, 1.0),
    "wide": (-8.0, 8.0),
    "infinite": (-np.inf, np.inf),
    "per coordinate": (
        _RNG.uniform(-0.5, 0.1, (1, 2, 3)).astype(np.float32),
        np.where(_RNG.uniform(size=(1, 2, 3)) < 0.3, np.inf, _RNG.uniform(0.9, 1.5, (1, 2, 3))).astype(np.float32),
    ),
}
_MASKS = {"no mask": None, "mask": _MASK}


_project = jax.jit(lambda threat, delta, x: threat.project(delta, x))
_init = jax.jit(lambda threat, key, x: threat.init(key, x))
_steepest = jax.jit(lambda threat, grad, x: threat.steepest(grad, x, jnp.zeros_like(x)))
_hyperplane = jax.jit(lambda threat, x, normal, offset: threat.hyperplane(x, normal, offset))


def _threat(kind, eps, box=(0.0, 1.0), mask=None, **options):
    # Of two forms, so that few are compiled: numbers and no mask, or arrays and a mask.
    if mask is not None or np.ndim(box[0]):
        mask = np.ones((1, *_SHAPE[1:]), bool) if mask is None else mask
        box = tuple(np.broadcast_to(np.asarray(bound, np.float32), mask.shape) for bound in box)
    return _BALLS[kind](eps, box=box, mask=mask, **options)


def _settings():
    for kind, box, mask in itertools.product(_BALLS, _BOXES, _MASKS):
        for eps in _COUNTS if kind == "L0" else _EPS:
            yield pytest.param(kind, eps, box, mask, id=f"{kind}, eps {eps}, box {box}, {mask}")


def _size(kind, delta, eps):
    if np.ndim(eps) > 1:
        delta, eps = delta / eps, 1.0
    return np.linalg.norm(delta.reshape(len(delta), -1), _ORDERS[kind], axis=1), eps


def _assert_admissible(kind, delta, eps, box, mask, x=_X):
    delta = np.asarray(delta, np.float64)
    assert np.isfinite(delta).all()
    size, radius = _size(kind, delta, eps)
    assert (size <= radius * (1 + threats.RTOL)).all()
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), x.shape) for bound in box)
    moved = np.asarray(x + delta.astype(np.float32))
    slack = 0.0 if box is _BOXES["default"] else 1e-6 * np.maximum(1, np.abs(moved))
    assert (moved >= low - slack).all()
    assert (moved <= high + slack).all()
    if mask is not None:
        assert not np.where(mask, 0, delta).any()


@pytest.mark.parametrize(("kind", "eps", "box", "mask"), list(_settings()))
def test_projections_and_starts_are_admissible_and_projecting_twice_is_projecting_once(kind, eps, box, mask):
    eps, box, mask = (_COUNTS if kind == "L0" else _EPS)[eps], _BOXES[box], _MASKS[mask]
    threat = _threat(kind, eps, box, mask)
    projected = _project(threat, _DELTA, _X)
    for delta in (projected, _init(threat, jax.random.key(1), _X)):
        _assert_admissible(kind, delta, eps, box, mask)
        np.testing.assert_allclose(threat.norm(delta), _size(kind, np.asarray(delta), eps)[0], rtol=1e-5)
        np.testing.assert_array_equal(threat.apply(_X, delta), _X + np.asarray(delta))
        assert threat.within(delta).all()
        assert np.abs(delta).max() > 0
    np.testing.assert_allclose(_project(threat, projected, _X), projected, rtol=3e-6, atol=1e-7)
    np.testing.assert_array_equal(_project(threat, np.zeros_like(_X), _X), 0.0)


@pytest.mark.parametrize("mask", _MASKS)
@pytest.mark.parametrize("kind", _BALLS)
def test_an_infinite_eps_leaves_the_box_and_a_zero_eps_leaves_x(kind, mask):
    mask = _MASKS[mask]
    clipped = np.clip(_DELTA, -_X, 1 - _X) * (1 if mask is None else mask)
    threat, nothing = (_threat(kind, eps, _BOXES["default"], mask) for eps in (np.inf, 0.0))
    projected = _project(threat, _DELTA, _X)
    np.testing.assert_allclose(projected, clipped, rtol=1e-6)
    np.testing.assert_array_equal(_project(threat, projected, _X), projected)
    assert threat.within(projected).all()
    _assert_admissible(kind, _init(threat, jax.random.key(1), _X), np.inf, _BOXES["default"], mask)
    np.testing.assert_array_equal(_project(nothing, _DELTA, _X), 0.0)
    np.testing.assert_array_equal(_init(nothing, jax.random.key(1), _X), 0.0)


def test_the_default_box_is_never_left_by_a_rounding():
    x = np.random.default_rng(1).uniform(0, 1, (50, 400)).astype(np.float32)
    for direction in (-5.0, 5.0):
        for kind in _BALLS:
            moved = x + np.asarray(_project(_BALLS[kind](jnp.float32(1e6)), np.full_like(x, direction), x))
            np.testing.assert_array_equal(moved, 1.0 if direction > 0 else 0.0)


@pytest.mark.parametrize("kind", _BALLS)
def test_an_input_outside_the_box_may_stay_but_moves_no_further_out(kind):
    projected = _project(_BALLS[kind](jnp.float32(2.0)), np.array([[0.5, -0.5]], np.float32), np.array([[1.5, 0.5]], np.float32))
    np.testing.assert_array_equal(projected, [[0.0, -0.5]])


def _nearest(delta, eps, low, high, weight, order):
    # Over p - q = z with p, q >= 0: sum weight (p + q) <= eps (l1), or bounds alone (linf).
    n = len(delta)
    if order == np.inf:
        bounds = [(max(-eps / w, lo), min(eps / w, hi)) for w, lo, hi in zip(weight, low, high, strict=True)]
        found = scipy.optimize.lsq_linear(np.eye(n), delta, tuple(zip(*bounds, strict=True)), tol=1e-14)
        return found.x
    split = np.concatenate([np.eye(n), -np.eye(n)])
    bounds = [(0, hi if np.isfinite(hi) else None) for hi in high] + [(0, -lo if np.isfinite(lo) else None) for lo in low]
    limit = {"type": "ineq", "fun": lambda s: eps - weight @ (s[:n] + s[n:]), "jac": lambda s: -np.concatenate([weight, weight])}
    found = scipy.optimize.minimize(
        lambda s: 0.5 * np.sum((s @ split - delta) ** 2),
        np.zeros(2 * n),
        jac=lambda s: split @ (s @ split - delta),
        bounds=bounds,
        constraints=[limit],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert found.success, found.message
    return found.x @ split


@pytest.mark.parametrize("mask", _MASKS)
@pytest.mark.parametrize("box", _BOXES)
@pytest.mark.parametrize("kind", ["Linf", "L1"])
def test_the_projection_is_the_nearest_point_of_ball_and_box(kind, box, mask):
    for eps in _EPS.values():
        projected = np.asarray(_project(_threat(kind, eps, _BOXES[box], _MASKS[mask]), _DELTA, _X)).reshape(3, -1)
        low, high = (np.broadcast_to(np.asarray(bound, np.float64), _SHAPE) - _X for bound in _BOXES[box])
        for row in range(3):
            free = np.ones(6, bool) if _MASKS[mask] is None else _MASKS[mask].ravel()
            weight = 1 / eps.ravel().astype(float) if np.ndim(eps) > 1 else np.ones(6)
            radius = 1.0 if np.ndim(eps) > 1 else float(np.broadcast_to(eps, (3,))[row])
            arguments = (values.reshape(-1).astype(float)[free] for values in (_DELTA[row], low[row], high[row], weight))
            delta, lower, upper, weight = arguments
            expected = np.zeros(6)
            unit = weight if kind == "L1" else np.ones_like(weight)  # the nearest in units of eps
            nearest = _nearest(unit * delta, radius, unit * lower, unit * upper, weight / unit, _ORDERS[kind])
            expected[free] = nearest / unit
            np.testing.assert_allclose(projected[row], expected, atol=2e-5)


def test_the_l0_projection_is_the_best_of_all_subsets():
    rng = np.random.default_rng(2)
    x, delta = rng.uniform(0, 1, (20, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    for mask in (None, np.array([[True, True, False, True, True]])):
        clipped = np.clip(delta, -x, 1 - x) * (1 if mask is None else mask)
        for k in range(6):
            projected = np.asarray(_project(threats.L0(k, mask=mask), delta, x))
            kept = [np.isin(np.arange(5), subset) for subset in itertools.combinations(range(5), k)]
            best = np.min([((np.where(subset, clipped, 0) - delta) ** 2).sum(1) for subset in kept], axis=0)
            np.testing.assert_allclose(((projected - delta) ** 2).sum(1), best, rtol=1e-5)


def test_the_l2_projection_is_the_nearest_point_wherever_ball_or_box_suffices():
    wide = np.asarray(threats.L2(0.5, box=(-9.0, 9.0)).project(_DELTA, _X))
    norms = np.linalg.norm(_DELTA.reshape(3, -1), axis=1)[:, None, None]
    np.testing.assert_allclose(wide, _DELTA * np.minimum(1, 0.5 / norms), rtol=1e-5)
    np.testing.assert_allclose(threats.L2(9.0).project(_DELTA, _X), np.clip(_DELTA, -_X, 1 - _X), rtol=1e-6)


_NORMAL = _RNG.normal(size=(4, 5)).astype(np.float32)
_NORMAL[1, 2] = _NORMAL[2, 0] = 0.0
_FLAT_X = _RNG.uniform(0.1, 0.9, (4, 5)).astype(np.float32)
_FLAT_MASK = np.array([[True, True, True, False, True]])
_FLAT_BOXES = {
    "default": (0.0, 1.0),
    "infinite": (-np.inf, np.inf),
    "half infinite": (np.array([[-np.inf, 0.0, -1.0, 0.0, -np.inf]], np.float32), np.array([[1.0, np.inf, 1.0, np.inf, 1.0]], np.float32)),
}


def _smallest(order, normal, offset, low, high):
    n = len(normal)
    if order == 2:
        found = scipy.optimize.minimize(
            lambda d: 0.5 * d @ d,
            np.zeros(n),
            jac=lambda d: d,
            bounds=[tuple(side / abs(offset) if np.isfinite(side) else None for side in sides) for sides in zip(low, high, strict=True)],
            constraints=[{"type": "eq", "fun": lambda d: normal @ d - np.sign(offset), "jac": lambda d: normal}],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        assert found.success, found.message
        return abs(offset) * np.linalg.norm(found.x)
    columns = n if order == 1 else 1  # |d| <= t, one t per coordinate for l1 and one for all for linf
    spread = np.eye(n) if order == 1 else np.ones((n, 1))
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(n), np.ones(columns)]),
        A_ub=np.block([[np.eye(n), -spread], [-np.eye(n), -spread]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.concatenate([normal, np.zeros(columns)])[None],
        b_eq=[offset],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * columns],
    )
    assert found.status == 0, found.message
    return found.fun


@pytest.mark.parametrize("mask", _MASKS)
@pytest.mark.parametrize("box", _FLAT_BOXES)
@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_the_hyperplane_is_reached_by_the_smallest_step_or_the_closest_corner(kind, box, mask):
    mask = None if _MASKS[mask] is None else _FLAT_MASK
    arrays = mask is not None or np.ndim(_FLAT_BOXES[box][0])
    bounds = tuple(np.broadcast_to(np.float32(bound), (1, 5)) for bound in _FLAT_BOXES[box]) if arrays else _FLAT_BOXES[box]
    threat = _BALLS[kind](0.1, box=bounds, mask=np.ones((1, 5), bool) if arrays and mask is None else mask)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), (4, 5)) - _FLAT_X for bound in _FLAT_BOXES[box])
    if mask is not None:
        low, high = np.where(mask, low, 0), np.where(mask, high, 0)
    solved = 0
    for offset in (0.0, 0.02, -0.3, 0.7, -30.0, 30.0):
        delta = np.asarray(_hyperplane(threat, _FLAT_X, _NORMAL, np.full(4, offset, np.float32)), np.float64)
        assert np.isfinite(delta).all()
        assert (delta >= low - 1e-6).all()
        assert (delta <= high + 1e-6).all()
        assert not delta[_NORMAL == 0].any()
        for row in range(4):
            normal = _NORMAL[row].astype(float)
            slope = normal * np.sign(offset)
            corner = np.where(slope > 0, high[row], np.where(slope < 0, low[row], 0.0))
            if np.abs(slope[slope != 0] @ corner[slope != 0]) > abs(offset) * (1 + 1e-6):
                solved += 1
                np.testing.assert_allclose(normal @ delta[row], offset, rtol=1e-5, atol=1e-6)
                size = np.linalg.norm(delta[row], _ORDERS[kind])
                np.testing.assert_allclose(size, _smallest(_ORDERS[kind], normal, offset, low[row], high[row]), rtol=2e-5, atol=1e-6)
            else:
                np.testing.assert_allclose(delta[row], corner, rtol=1e-5)
    assert solved >= 8


@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_a_hyperplane_without_a_slope_is_not_approached(kind):
    for box in _FLAT_BOXES.values():
        delta = _hyperplane(_BALLS[kind](0.1, box=box), _FLAT_X, np.zeros_like(_NORMAL), np.ones(4, np.float32))
        np.testing.assert_array_equal(delta, 0.0)


@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_the_gradient_of_the_hyperplane_step_is_finite(kind):
    threat = _BALLS[kind](0.1)
    gradient = jax.jit(jax.grad(lambda *args: jnp.sum(threat.hyperplane(*args) ** 2), (0, 1, 2)))(_FLAT_X, _NORMAL, jnp.full(4, 0.2))
    assert all(np.isfinite(leaf).all() for leaf in gradient)


def _unit_ball_samples(kind, num_samples, size):
    directions = np.random.default_rng(3).normal(size=(num_samples, size))
    directions[: num_samples // 2] *= np.random.default_rng(4).uniform(size=(num_samples // 2, size)) < 0.3
    directions[:size] = np.eye(size)
    directions[-1] = 1.0
    sizes = np.linalg.norm(directions, _ORDERS[kind], axis=1, keepdims=True)
    return directions / np.where(sizes > 0, sizes, 1)


@pytest.mark.parametrize("per_coordinate", [False, True])
@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_steepest_maximises_the_linear_form_over_the_unit_ball_and_dual_norm_is_the_maximum(kind, per_coordinate):
    scale = _EPS["per coordinate"] if per_coordinate else np.ones((1, 2, 3))
    options = {"top_fraction": 0.0} if kind == "L1" else {}
    threat = _BALLS[kind](_EPS["per coordinate"] if per_coordinate else 0.5, box=(-9.0, 9.0), **options)
    grad = _DELTA.astype(np.float64)
    step = np.asarray(_steepest(threat, _DELTA, _X))
    np.testing.assert_allclose(_size(kind, step / scale, 1.0)[0], 1.0, rtol=1e-5)
    best = (grad * step).sum((1, 2))
    others = np.einsum("sd,bd->bs", _unit_ball_samples(kind, 1000, 6), (grad * scale).reshape(3, -1))
    assert (others.max(axis=1) <= best * (1 + 1e-5)).all()
    assert (others.max(axis=1) >= 0.3 * best).all()
    np.testing.assert_allclose(threat.dual_norm(_DELTA), best, rtol=1e-5)
    masked = threat.replace(mask=_MASK)
    np.testing.assert_allclose(masked.dual_norm(_DELTA), threat.dual_norm(_DELTA * _MASK), rtol=1e-6)


@pytest.mark.parametrize("kind", _BALLS)
def test_steepest_is_zero_where_the_gradient_is(kind):
    for eps in (2.0,) if kind == "L0" else _EPS.values():
        step = _steepest(_BALLS[kind](eps), np.zeros_like(_X), _X)
        np.testing.assert_array_equal(step, 0.0)


@pytest.mark.parametrize("kind", ["L1", "L0"])
def test_sparse_steps_go_where_the_box_leaves_room(kind):
    x, grad = jnp.array([[1.0, 0.0, 0.5]]), jnp.array([[3.0, -2.0, 0.1]])
    options = {"top_fraction": 0.0} if kind == "L1" else {}
    np.testing.assert_allclose(_steepest(_BALLS[kind](1.0, **options), grad, x), [[0.0, 0.0, 1.0]], rtol=1e-6)


def test_l1_moves_the_asked_fraction_of_coordinates():
    grad = np.random.default_rng(5).normal(size=(2, 40)).astype(np.float32)
    for fraction, moved in ((0.0, 1), (0.05, 2), (0.5, 20), (1.0, 40)):
        step = np.asarray(_steepest(threats.L1(1.0, box=(-9.0, 9.0), top_fraction=fraction), grad, np.zeros_like(grad)))
        np.testing.assert_array_equal((step != 0).sum(1), moved)
        np.testing.assert_allclose(np.abs(step).sum(1), 1.0, rtol=1e-6)
        assert (step * grad >= 0).all()


@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_starts_are_uniform_in_the_ball(kind):
    # Radius of a uniform point in three dimensions: P(r <= t eps) = t^3. Kolmogorov-Smirnov, false alarm 1e-4 per test.
    delta = np.asarray(_init(_BALLS[kind](0.7, box=(-1.0, 1.0)), jax.random.key(7), np.zeros((4000, 3), np.float32))) / 0.7
    radius = np.linalg.norm(delta, _ORDERS[kind], axis=1)
    assert scipy.stats.kstest(radius, lambda t: np.clip(t, 0, 1) ** 3).pvalue > 1e-4
    signs, counts = np.unique(np.sign(delta), axis=0, return_counts=True)
    assert len(signs) == 8
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    share = np.abs(delta[:, 0]) / radius
    marginal = {
        "L2": lambda t: np.clip(t, 0, 1),  # a coordinate of the unit sphere in three dimensions
        "L1": lambda t: 1 - (1 - np.clip(t, 0, 1)) ** 2,  # a coordinate of the flat simplex in three dimensions
    }
    if kind in marginal:
        assert scipy.stats.kstest(share, marginal[kind]).pvalue > 1e-4
    else:
        assert scipy.stats.kstest(delta[:, 0], "uniform", args=(-1, 2)).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["L2", "L1"])
def test_starts_under_a_mask_are_uniform_in_the_ball_of_the_free_coordinates(kind):
    mask = np.array([[True, False, True, True, False]])
    threat = _BALLS[kind](0.7, box=(-1.0, 1.0), mask=mask)
    delta = np.asarray(_init(threat, jax.random.key(8), np.zeros((4000, 5), np.float32))) / 0.7
    radius = np.linalg.norm(delta, _ORDERS[kind], axis=1)
    assert scipy.stats.kstest(radius, lambda t: np.clip(t, 0, 1) ** 3).pvalue > 1e-4  # false alarm 1e-4


@pytest.mark.parametrize("kind", _BALLS)
def test_the_start_of_an_example_depends_on_its_key_alone(kind):
    threat, keys = _BALLS[kind](jnp.float32(2.0)), jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(_init(threat, keys, _X)[1:2], _init(threat, keys[1:2], _X[1:2]), rtol=1e-6)
    alike = _init(threat, keys, np.full_like(_X, 0.5))
    assert not np.allclose(alike[0], alike[1])


@pytest.mark.parametrize(("eps", "mask"), [("scalar", "no mask"), ("per example", "mask"), ("per coordinate", "no mask")])
@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_the_gradient_of_the_projection_is_that_of_finite_differences(kind, eps, mask):
    def value(delta, eps, x):
        projected = _BALLS[kind](eps, mask=_MASKS[mask]).project(delta, x)
        return jnp.sum(jnp.sin(projected + np.arange(18.0).reshape(_SHAPE)))

    with jax.enable_x64(True):
        arguments = [np.asarray(a, np.float64) for a in (_DELTA, _EPS[eps], _X)]
        both = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
        for which, leaf in enumerate(both(*arguments)[1]):
            assert np.isfinite(leaf).all()
            direction = np.random.default_rng(which).normal(size=arguments[which].shape)
            shifted = [[a + sign * direction if i == which else a for i, a in enumerate(arguments)] for sign in (1e-6, -1e-6)]
            numeric = (both(*shifted[0])[0] - both(*shifted[1])[0]) / 2e-6
            np.testing.assert_allclose(np.sum(leaf * direction), numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", _BALLS)
def test_gradients_are_finite_at_corners(kind):
    delta = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, -1, 0, 0.5]], np.float32)

    def value(delta, eps, x):
        threat = _BALLS[kind](eps)
        return jnp.sum(threat.project(delta, x)) + jnp.sum(threat.norm(delta)) + jnp.sum(threat.dual_norm(delta))

    gradient = jax.jit(jax.grad(value, (0, 1, 2)))
    for eps in (0.0, 1.0, np.inf):
        for leaf in gradient(delta, eps, np.array([[0, 1, 0.5, 0.5]] * 3, np.float32)):
            assert np.isfinite(leaf).all(), eps


@pytest.mark.parametrize("kind", _BALLS)
def test_a_negative_radius_an_empty_box_and_a_malformed_eps_raise(kind):
    for eps in (-0.1, -1, np.nan):
        with pytest.raises(ValueError, match="eps"):
            _BALLS[kind](eps)
    for box in ((1.0, 0.0), (0.5, 0.5), (0, 0)):
        with pytest.raises(ValueError, match="lower < upper"):
            _BALLS[kind](0.1, box=box)
    if kind == "L0":
        with pytest.raises(ValueError, match="counts"):
            threats.L0(np.ones((1, 2, 3)))


@pytest.mark.parametrize("kind", _BALLS)
def test_a_threat_is_a_pytree_that_maps_over_eps_in_one_trace(kind):
    traces = []

    @jax.jit
    def curve(grid):
        def one(eps):
            traces.append(eps)
            threat = _BALLS[kind](eps)
            return threat.project(_DELTA, _X), threat.steepest(_DELTA, _X, jnp.zeros(_SHAPE)), threat.init(jax.random.key(0), _X)

        return jax.vmap(one)(grid)

    grid = np.array([0.0, 1.0, 3.0], np.float32)
    batched = curve(grid)
    assert len(traces) == 1
    alone = [_BALLS[kind](jnp.float32(eps)) for eps in grid]
    alone = [(_project(threat, _DELTA, _X), _steepest(threat, _DELTA, _X), _init(threat, jax.random.key(0), _X)) for threat in alone]
    for row, expected in enumerate(alone):
        jax.tree.map(lambda a, b, row=row: np.testing.assert_allclose(a[row], b, rtol=1e-5, atol=1e-6), batched, expected)
    mapped = jax.jit(jax.vmap(lambda threat: threat.project(_DELTA, _X), (_axes(kind),)))(_BALLS[kind](grid))
    np.testing.assert_allclose(mapped, batched[0], atol=1e-6)


def _axes(kind):
    threat = _BALLS[kind](0.0)
    return jax.tree.unflatten(jax.tree.structure(threat), [0] + [None] * (len(jax.tree.leaves(threat)) - 1))


def test_jit_tells_the_balls_apart():
    projected = [np.asarray(_project(_BALLS[kind](1.0, box=(-9.0, 9.0)), _DELTA, _X)) for kind in ("Linf", "L2", "L0")]
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(projected, 2))


@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_resized_balls_have_the_new_radius_and_the_largest_norm_is_that_of_the_far_corner(kind):
    corner = np.maximum(_X, 1 - _X)
    for eps in _EPS.values():
        threat = _BALLS[kind](eps)
        np.testing.assert_allclose(threat.max_norm(_X), _size(kind, corner, eps)[0], rtol=1e-5)
        smaller = threat.with_radius(jnp.array([0.1, 0.2, 0.3]))
        np.testing.assert_allclose(threat.norm(_project(smaller, _DELTA, _X)), [0.1, 0.2, 0.3], rtol=1e-5)


@pytest.mark.parametrize("kind", _BALLS)
def test_the_gradient_of_apply_vanishes_off_the_mask(kind):
    gradient = jax.grad(lambda delta: jnp.sum(_BALLS[kind](1.0, mask=_MASK).apply(_X, delta)))(_DELTA)
    np.testing.assert_array_equal(gradient, np.broadcast_to(_MASK, _SHAPE).astype(float))


@pytest.mark.parametrize("kind", _BALLS)
def test_numpy_arrays_of_float64_are_taken_as_the_float_type_that_jax_has(kind):
    threat, x = _BALLS[kind](1), _X.astype(np.float64)
    for delta in (threat.init(jax.random.key(0), x), threat.project(_DELTA.astype(np.float64), x)):
        assert delta.dtype == jnp.result_type(x)
