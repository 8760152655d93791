"""Planes around functions of one variable: sound on a dense grid, tight where a formula says how tight, finite everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from robustjax.bounds import relaxations
from robustjax.bounds.relaxations import Planes

_SHARE = np.unique(np.concatenate([np.linspace(0, 1, 401), np.geomspace(1e-9, 1e-2, 20), 1 - np.geomspace(1e-9, 1e-2, 20)]))


def _power(y):
    return lambda x: np.sign(x) ** (y % 2) * np.exp(y * np.log(np.abs(x))) if y < 0 else x**y


# name of the case: primitive or helper, its parameters, the function in float64, where it is defined, the largest |x| that is tried
_CASES = {
    "tanh": ("tanh", {}, np.tanh, "all", 1e6),
    "logistic": ("logistic", {}, scipy.special.expit, "all", 1e6),
    "erf": ("erf", {}, scipy.special.erf, "all", 1e6),
    "erfc": ("erfc", {}, scipy.special.erfc, "all", 1e6),
    "exp": ("exp", {}, np.exp, "all", 50.0),
    "exp2": ("exp2", {}, np.exp2, "all", 50.0),
    "expm1": ("expm1", {}, np.expm1, "all", 50.0),
    "log": ("log", {}, np.log, "positive", 1e6),
    "log1p": ("log1p", {}, np.log1p, "above -1", 1e6),
    "sqrt": ("sqrt", {}, np.sqrt, "not negative", 1e6),
    "rsqrt": ("rsqrt", {}, lambda x: 1 / np.sqrt(x), "positive", 1e6),
    "cbrt": ("cbrt", {}, np.cbrt, "all", 1e6),
    "square": ("square", {}, np.square, "all", 1e6),
    "abs": ("abs", {}, np.abs, "all", 1e6),
    "sign": ("sign", {}, np.sign, "all", 1e6),
    "sin": ("sin", {}, np.sin, "all", 1e3),
    "cos": ("cos", {}, np.cos, "all", 1e3),
    "floor": ("floor", {}, np.floor, "all", 1e6),
    "ceil": ("ceil", {}, np.ceil, "all", 1e6),
    "round": ("round", {"rounding_method": jax.lax.RoundingMethod.TO_NEAREST_EVEN}, np.round, "all", 1e6),
    "atan": ("atan", {}, np.arctan, "all", 1e6),
    "asinh": ("asinh", {}, np.arcsinh, "all", 1e6),
    **{f"x^{y}": ("integer_pow", {"y": y}, _power(y), "all", 1e4) for y in (0, 1, 2, 3, 4, 5)},
    **{f"x^{y}": ("integer_pow", {"y": y}, _power(y), "one sign", 1e4) for y in (-1, -2, -3)},
    "reciprocal": (relaxations.reciprocal, {}, lambda x: 1 / x, "one sign", 1e6),
    "x^0.5": (relaxations.power(0.5), {}, np.sqrt, "not negative", 1e6),
    "x^1.7": (relaxations.power(1.7), {}, lambda x: np.maximum(x, 0) ** 1.7, "not negative", 1e4),
    "x^-0.7": (relaxations.power(-0.7), {}, lambda x: x**-0.7, "positive", 1e6),
    "x^2.0": (relaxations.power(2.0), {}, np.square, "all", 1e6),
    "max(x, 0.3)": (relaxations.maximum_with(0.3), {}, lambda x: np.maximum(x, 0.3), "all", 1e6),
    "min(x, 0.3)": (relaxations.minimum_with(0.3), {}, lambda x: np.minimum(x, 0.3), "all", 1e6),
    "clamp(x, -0.5, 1)": (relaxations.clamp_to(-0.5, 1.0), {}, lambda x: np.clip(x, -0.5, 1.0), "all", 1e6),
}
_STEPS = ("sign", "floor", "ceil", "round")
_CONVEX = ("exp", "exp2", "expm1", "square", "abs", "x^2", "x^4", "x^1.7", "x^2.0", "rsqrt", "x^-0.7", "x^-2")
_CONCAVE = ("log", "log1p", "sqrt", "x^0.5")


@functools.cache
def _functions(case):
    name, params, reference, domain, largest = _CASES[case]
    unary = relaxations.UNARY[name] if isinstance(name, str) else name

    def bounds(lower, upper):
        return unary.planes_fn(params, lower, upper), unary.range_fn(params, lower, upper)

    return jax.jit(bounds), reference, domain, largest


def _inside(domain, lower, upper, dtype):
    if domain == "all":
        return lower, upper
    if domain == "one sign":
        width, start = upper - lower, np.maximum(np.abs(lower), dtype(1e-3))
        positive = lower > 0
        return np.where(positive, start, -start - width), np.where(positive, start + width, -start)
    floor = {"positive": 1e-3, "not negative": 0.0, "above -1": -1 + 1e-3}[domain]
    start = np.maximum(lower, dtype(floor))
    return start, np.maximum(upper, start)


def _intervals(domain, largest, dtype):
    rng = np.random.default_rng(0)
    start = rng.normal(size=240) * 10 ** rng.uniform(-3, 1.2, 240)
    random = start, start + 10 ** rng.uniform(-7, 1.2, 240)
    special = [(0, 0), (1, 1), (-2, -2), (0.1, 0.1), (0, 1e-7), (-1e-7, 0), (-1e-7, 1e-7), (1, 1 + 1e-7), (3, 3 + 1e-6), (-1, 1), (-20, 20)]
    special += [(0, 5), (-5, 0), (0, 1e-3), (-1e-3, 1e-5), (-1e-5, 1e-3), (-30, 0.1), (-0.1, 30), (20, 40), (-40, -20), (2, 3), (-3, -2)]
    special += [
        (-0.5, 1),
        (0.3, 0.3),
        (-8, 9),
        (0.5, 1.5),
        (-1e3, 1e3),
        (-largest, largest),
        (0, largest),
        (-largest, 0),
        (largest / 2, largest),
    ]
    special += [(-largest, 1), (-1, largest), (-np.pi / 2, np.pi / 2), (0, np.pi), (-np.pi, np.pi), (1.0, 7.0), (6.2, 6.4), (-7.9, -4.7)]
    lower, upper = (
        np.clip(np.concatenate([a, b]), -largest, largest).astype(dtype) for a, b in zip(random, np.array(special).T, strict=True)
    )
    lower, upper = _inside(domain, lower, upper, dtype)
    return lower.astype(dtype), upper.astype(dtype)


@functools.cache
def _sampled(case, dtype):
    bounds, reference, domain, largest = _functions(case)
    lower, upper = _intervals(domain, largest, dtype)
    with jax.enable_x64(dtype is np.float64):
        planes, (low, high) = jax.tree.map(np.asarray, bounds(lower, upper))
    assert all(a.dtype == dtype and a.shape == lower.shape for a in (*planes, low, high))
    wide_lower, wide_upper = lower.astype(np.float64)[:, None], upper.astype(np.float64)[:, None]
    x = np.clip(wide_lower + (wide_upper - wide_lower) * _SHARE, wide_lower, wide_upper)
    x[:, -1] = upper
    return lower, upper, Planes(*(a.astype(np.float64) for a in planes)), low.astype(np.float64), high.astype(np.float64), x, reference(x)


def _unit(dtype):
    return 1e-12 if dtype is np.float64 else 8 * np.finfo(np.float32).eps


def _scale(lower, upper, slope, bias, values):
    tiny = np.finfo(np.float32).tiny / np.finfo(np.float32).eps  # XLA rounds what is below the smallest normal number to zero
    return tiny + np.maximum(np.abs(values).max(axis=1), np.maximum(np.abs(slope) * np.maximum(np.abs(lower), np.abs(upper)), np.abs(bias)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", _CASES)
def test_planes_hold_the_function_on_a_dense_grid(case, dtype):
    lower, upper, planes, _, _, x, values = _sampled(case, dtype)
    assert all(np.isfinite(a).all() for a in planes)
    below = values - (planes.lower_slope[:, None] * x + planes.lower_bias[:, None])
    above = planes.upper_slope[:, None] * x + planes.upper_bias[:, None] - values
    for gap, slope, bias in ((below, planes.lower_slope, planes.lower_bias), (above, planes.upper_slope, planes.upper_bias)):
        tolerance = _unit(dtype) * _scale(lower, upper, slope, bias, values)
        worst = (gap.min(axis=1) + tolerance).argmin()
        assert (gap >= -tolerance[:, None]).all(), (lower[worst], upper[worst], gap[worst].min(), slope[worst], bias[worst])
        degenerate = lower == upper
        assert (gap[degenerate] <= tolerance[degenerate, None]).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", _CASES)
def test_the_range_contains_and_touches_the_extremes(case, dtype):
    lower, upper, _, low, high, _, values = _sampled(case, dtype)
    # An argument's rounding moves these by more than a few units; XLA takes exp2 of x for exp of a product.
    size, far = np.abs(values).max(axis=1), np.maximum(np.abs(lower), np.abs(upper))
    size = size + far if case in ("sin", "cos") else size * (1 + np.minimum(far, 100)) if case in ("exp2", "erfc") else size
    unit = _unit(dtype) * (size + 1e-31)
    assert (low <= values.min(axis=1) + unit).all() and (high >= values.max(axis=1) - unit).all()
    # An extreme inside lies at most half a step of the grid, 1 / 800 of the width, from a sampled point.
    has_vertex = case in ("sin", "cos", "square", "abs", "x^2", "x^4", "x^2.0")
    step = ((upper - lower) / 800).astype(np.float64) if has_vertex else np.zeros(len(lower))
    bend = {"square": step**2, "x^2": step**2, "x^2.0": step**2, "abs": step, "x^4": step**4, "sin": step**2, "cos": step**2}.get(
        case, step
    )
    assert (low >= values.min(axis=1) - unit - bend).all() and (high <= values.max(axis=1) + unit + bend).all()


_ENDS = np.array(
    [
        *[(-np.inf, np.inf), (-np.inf, 1), (-np.inf, -2), (-1, np.inf), (2, np.inf), (0, np.inf), (-np.inf, 0), (-2, -1), (-1, 2), (0, 1)],
        *[(-1, 0), (0, 0), (-3e38, 3e38), (-1e30, 1e-10), (-1e-10, 1e30), (1e-38, 1e-37), (1e-18, 1e-17), (-1e-30, 1e-30), (87, 88.5)],
        *[(-1e20, 1e20), (1e20, 1e21)],
    ],
    np.float32,
)


@pytest.mark.parametrize("case", _CASES)
def test_infinite_and_forbidden_ends_give_no_nan(case):
    bounds, reference, *_ = _functions(case)
    lower, upper = _ENDS.T
    planes, (low, high) = jax.tree.map(np.asarray, bounds(lower, upper))
    for a in (*planes, low, high):
        assert not np.isnan(a).any(), (lower[np.isnan(a)], upper[np.isnan(a)])
    assert np.isfinite(planes.lower_slope).all() and np.isfinite(planes.upper_slope).all()
    largest = np.float64(np.finfo(np.float32).max)
    x = np.clip(lower, -largest, largest).astype(np.float64)[:, None] * (1 - _SHARE) + np.clip(upper, -largest, largest)[:, None] * _SHARE
    with np.errstate(all="ignore"):
        values = reference(x)
        line_low = planes.lower_slope[:, None] * x + planes.lower_bias[:, None].astype(np.float64)
        line_high = planes.upper_slope[:, None] * x + planes.upper_bias[:, None].astype(np.float64)
        products = np.abs(x) * np.maximum(np.abs(planes.lower_slope), np.abs(planes.upper_slope))[:, None]
        tolerance = 1e-5 * np.where(np.isfinite(values), np.maximum(np.abs(values), products), 0) + 1e-6
        undefined = np.isnan(values)
        assert (undefined | (line_low <= values + tolerance)).all() and (undefined | (line_high >= values - tolerance)).all()
        assert (undefined | (low[:, None] <= values + tolerance)).all() and (undefined | (high[:, None] >= values - tolerance)).all()
    forbidden = undefined[:, 1:-1].any(axis=1)
    assert (low[forbidden] == -np.inf).all() and (high[forbidden] == np.inf).all()
    assert (planes.lower_bias[forbidden] == -np.inf).all() and (planes.upper_bias[forbidden] == np.inf).all()
    assert (planes.lower_slope[forbidden] == 0).all() and (planes.upper_slope[forbidden] == 0).all()
    # Where the range is finite, so are the planes.
    assert np.isfinite(planes.lower_bias[np.isfinite(low)]).all() and np.isfinite(planes.upper_bias[np.isfinite(high)]).all()


def test_bounded_functions_keep_their_range_over_the_whole_line():
    for case, low, high in (
        ("tanh", -1, 1),
        ("logistic", 0, 1),
        ("erf", -1, 1),
        ("sin", -1, 1),
        ("cos", -1, 1),
        ("clamp(x, -0.5, 1)", -0.5, 1),
    ):
        planes, range_ = jax.tree.map(np.asarray, _functions(case)[0](_ENDS[:, 0], _ENDS[:, 1]))
        assert [a[0] for a in planes] == [0, low, 0, high] and [a[0] for a in range_] == [low, high]


@pytest.mark.parametrize("case", [case for case in _CASES if case in ("reciprocal", "x^-1", "x^-3", "log", "rsqrt", "sqrt")])
def test_an_interval_outside_of_the_domain_bounds_nothing(case):
    planes, (low, high) = jax.tree.map(
        np.asarray, _functions(case)[0](np.full(len(_ENDS), -1, np.float32), np.full(len(_ENDS), 2, np.float32))
    )
    assert (planes.lower_slope == 0).all() and (planes.upper_slope == 0).all()
    for down, up in ((planes.lower_bias, planes.upper_bias), (low, high)):
        assert (down == -np.inf).all() and (up == np.inf).all()


_DERIVED = [
    case for case in _CASES if case not in ("x^0", "x^1", "x^2", "x^4", "x^5", "x^-3", "x^0.5", "x^2.0", "reciprocal", "ceil", "expm1")
]


@pytest.mark.parametrize("case", _DERIVED)
def test_derivatives_are_those_of_finite_differences(case):
    bounds, _, domain, _ = _functions(case)
    # As many intervals as in the other tests: one program.
    num, shift, rng = len(_intervals("all", 1.0, np.float64)[0]), 0.1 * (domain not in ("all", "one sign")), np.random.default_rng(1)
    start = rng.normal(size=num) * 2
    lower, upper = _inside(domain, start, start + 10 ** rng.uniform(-0.7, 0.7, num), np.float64)
    lower, upper, step = lower + shift, upper + 1.5 * shift, 1e-6
    with jax.enable_x64(True):
        derivative_by = jax.jit(lambda lower, upper, *tangent: jax.jvp(bounds, (lower, upper), tangent)[1])
        for a, b in ((np.ones(num), np.zeros(num)), (np.zeros(num), np.ones(num))):
            exact = jax.tree.leaves(derivative_by(lower, upper, a, b))
            moved = [jax.tree.leaves(bounds(lower + c * step * a, upper + c * step * b)) for c in (1, -1, 0)]
            for derivative, above, below, middle in zip(*jax.tree.map(np.asarray, (exact, *moved)), strict=True):
                size = 1 + np.abs(derivative)
                is_smooth = np.abs(above - 2 * middle + below) <= 1e-3 * step * size  # no kink between the three
                assert is_smooth.mean() >= 0.9
                wrong = is_smooth & (np.abs((above - below) / (2 * step) - derivative) > 2e-4 * size)
                assert not wrong.any(), (lower[wrong], upper[wrong], derivative[wrong], ((above - below) / (2 * step))[wrong])


@pytest.mark.parametrize("case", _DERIVED)
def test_derivatives_are_finite_everywhere(case):
    bounds, _, domain, largest = _functions(case)
    lower, upper = _intervals(domain, largest, np.float32)
    ends = np.where(np.abs(_ENDS) < 1e-36, 0, _ENDS)  # there derivatives themselves overflow
    lower, upper = np.concatenate([lower, ends[:, 0]]), np.concatenate([upper, ends[:, 1]])

    @jax.jit
    def derivatives(lower, upper):
        outputs, pull = jax.vjp(bounds, lower, upper)
        leaves, tree = jax.tree.flatten(outputs)
        chosen = [jnp.stack([jnp.full_like(lower, i == j) for i in range(len(leaves))]) for j in range(len(leaves))]
        return jax.vmap(pull)(jax.tree.unflatten(tree, chosen))  # one output after the other

    for a in np.concatenate(derivatives(lower, upper)):
        bad = ~np.isfinite(a)
        assert not bad.any(), (lower[bad], upper[bad], np.asarray(a)[bad])


@pytest.mark.parametrize("case", _CONVEX + _CONCAVE)
def test_the_chord_meets_both_ends_and_the_tangent_is_the_best_at_the_middle(case):
    lower, upper, planes, _, _, _, values = _sampled(case, np.float64)
    chord, tangent = (planes[2:], planes[:2]) if case in _CONVEX else (planes[:2], planes[2:])
    for end, value in ((lower, values[:, 0]), (upper, values[:, -1])):
        np.testing.assert_array_less(
            np.abs(chord[0] * end + chord[1] - value), 1e-12 * (1e-300 + _scale(lower, upper, *chord, values)) + 1e-300
        )
    middle = 0.5 * lower + 0.5 * upper
    value = _CASES[case][2](middle)
    assert (np.abs(tangent[0] * middle + tangent[1] - value) <= 1e-12 * _scale(lower, upper, *tangent, values)).all()


@pytest.mark.parametrize("case", ["tanh", "logistic", "erf", "atan"])
def test_planes_have_no_larger_area_than_those_of_deeppoly(case):
    lower, upper, planes, _, _, _, values = _sampled(case, np.float64)
    slope_of = {
        "tanh": lambda x: 1 - np.tanh(x) ** 2,
        "logistic": lambda x: scipy.special.expit(x) * scipy.special.expit(-x),
        "erf": lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)),
        "atan": lambda x: 1 / (1 + x**2),
    }[case]
    first, last, width = values[:, 0], values[:, -1], upper - lower
    least = np.minimum(slope_of(lower), slope_of(upper))
    chord = (last - first) / np.where(width > 0, width, 1)
    high = np.where(upper <= 0, first + chord * width / 2, last - least * width / 2)  # at the middle: area over width
    low = np.where(lower >= 0, first + chord * width / 2, first + least * width / 2)
    middle = 0.5 * lower + 0.5 * upper
    own_high, own_low = planes.upper_slope * middle + planes.upper_bias, planes.lower_slope * middle + planes.lower_bias
    assert (own_high <= high + 1e-12).all() and (own_low >= low - 1e-12).all()
    crossing = (lower < -0.01) & (upper > 0.01) & (upper < 20) & (lower > -20)
    assert ((high - low) - (own_high - own_low))[crossing].mean() > 0.1


def test_relu_has_the_planes_of_the_textbook():
    lower, upper = np.array([-3.0, -1, -2, 1, -1, 0, -1]), np.array([1.0, 3, 2, 2, -0.5, 1, 0])
    unstable = (lower < 0) & (upper > 0)
    chord = np.where(unstable, upper / (upper - lower), lower >= 0)
    slopes = {"adaptive": chord > 0.5, "parallel": chord, "zero": np.zeros(7), "one": np.ones(7), "array": np.full(7, 0.3)}
    for name, expected in slopes.items():
        planes = relaxations.relu(jnp.asarray(lower), jnp.asarray(upper), slope=jnp.asarray([0.3]) if name == "array" else name)
        np.testing.assert_allclose(planes.upper_slope, chord, rtol=1e-6)
        np.testing.assert_allclose(planes.upper_bias, np.where(unstable, -chord * lower, 0), rtol=1e-6)
        np.testing.assert_allclose(planes.lower_slope, np.where(unstable, expected, lower >= 0), rtol=1e-6)
        np.testing.assert_array_equal(planes.lower_bias, 0)
        if name == "parallel":
            np.testing.assert_array_equal(planes.lower_slope, planes.upper_slope)


@functools.partial(jax.jit, static_argnames="name")
def _relu(name, lower, upper):
    return relaxations.relu(lower, upper, slope=name)


@pytest.mark.parametrize("name", ["adaptive", "parallel", "zero", "one"])
def test_relu_is_sound_at_any_scale_with_finite_derivatives(name):
    lower, upper = _intervals("all", 1e30, np.float32)
    lower, upper = np.concatenate([lower, _ENDS[:, 0]]), np.concatenate([upper, _ENDS[:, 1]])
    planes, pull = jax.vjp(functools.partial(_relu, name), lower, upper)
    for a in (*planes[:3], *pull(jax.tree.map(jnp.ones_like, planes))):
        assert np.isfinite(a).all()
    assert not np.isnan(planes.upper_bias).any()
    ends = np.stack([lower, upper, np.clip(0, lower, upper)]).astype(np.float64)
    ends = np.clip(ends, -1e37, 1e37)
    planes = [np.asarray(a, np.float64) for a in planes]
    low, high, value = planes[0] * ends + planes[1], planes[2] * ends + planes[3], np.maximum(ends, 0)
    tolerance = 1e-6 * np.maximum(value.max(axis=0), np.abs(planes[2] * ends).max(axis=0))
    assert (low <= value + tolerance).all() and (high >= value - tolerance).all()


def test_the_slope_of_relu_can_be_learnt_and_mistakes_are_told():
    lower, upper = jnp.array([-1.0, -1.0]), jnp.array([2.0, -0.5])
    gradient = jax.grad(lambda alpha: relaxations.relu(lower, upper, slope=alpha).lower_slope.sum())(jnp.array([0.5, 0.5]))
    np.testing.assert_array_equal(gradient, [1.0, 0.0])
    with pytest.raises(ValueError, match="adaptive"):
        relaxations.relu(lower, upper, slope="steep")
    with pytest.raises(ValueError, match="broadcast"):
        relaxations.relu(lower, upper, slope=jnp.ones(3))
    with pytest.raises(ValueError, match="num_points"):
        relaxations.smooth(jnp.sin, 1.0, lower, upper, 1)
    with pytest.raises(TypeError, match="exponent"):
        relaxations.power(jnp.ones(3))


def test_smooth_holds_any_function_of_bounded_curvature():
    bounds = jax.jit(lambda lower, upper, curvature: relaxations.smooth(lambda x: x * jnp.sin(x), curvature, lower, upper, 33))
    with jax.enable_x64(True):
        lower, upper = _intervals("all", 20.0, np.float64)
        curvature = 2 + np.maximum(np.abs(lower), np.abs(upper))
        planes = [np.asarray(a)[:, None] for a in bounds(lower, upper, curvature)]
        slopes = jax.tree.leaves(jax.jvp(bounds, (lower, upper, curvature), (np.ones_like(lower),) * 3)[1])
    x = lower[:, None] + (upper - lower)[:, None] * _SHARE
    values = x * np.sin(x)
    tolerance = 1e-12 * (1 + np.abs(values).max(axis=1, keepdims=True))
    assert (planes[0] * x + planes[1] <= values + tolerance).all() and (planes[2] * x + planes[3] >= values - tolerance).all()
    # As loose as the chord's slope allows, but for curvature h^2 / 8 and half a step.
    widening = (curvature * ((upper - lower) / 32) ** 2 / 8)[:, None]
    rest = values - planes[0] * x
    assert ((planes[3] - planes[1])[:, 0] <= np.ptp(rest, axis=1) + 3 * widening[:, 0] + tolerance[:, 0]).all()
    assert all(np.isfinite(a).all() for a in slopes)
    infinite = relaxations.smooth(jnp.sin, 1.0, jnp.array([-jnp.inf, 0.0]), jnp.array([0.0, jnp.inf]), 9)
    np.testing.assert_array_equal(infinite, [[0, 0], [-np.inf, -np.inf], [0, 0], [np.inf, np.inf]])


@pytest.mark.parametrize("case", ["sin", "cos", "tanh", "erfc", "cbrt", "x^3", "abs", "exp", "clamp(x, -0.5, 1)", "max(x, 0.3)"])
def test_no_line_encloses_a_smaller_area(case):
    # Of all lines above a function, the lowest at the middle is as high there as the concave hull; a sine up to half a period.
    rng, num = np.random.default_rng(2), len(_intervals("all", 1.0, np.float64)[0])
    lower = rng.uniform(-20, 20, num) if case in ("sin", "cos") else rng.uniform(-3, 1, num)
    upper = lower + rng.uniform(0.01, 3.1, num)
    with jax.enable_x64(True):
        planes = jax.tree.map(np.asarray, _functions(case)[0](lower, upper)[0])
    values = _CASES[case][2](lower[:, None] + (upper - lower)[:, None] * np.linspace(0, 1, 401))
    left, right = np.meshgrid(np.arange(0, 200), np.arange(201, 401), indexing="ij")
    weight = (200 - left) / (right - left)
    hulls = [np.append((1 - weight) * v[left] + weight * v[right], v[200]) for v in values]
    middle, size = 0.5 * (lower + upper), 1e-4 * (1 + np.ptp(values, axis=1))
    # The hull of the grid lies inside that of the function by the square of a step, or by a step at a kink.
    size = size + (upper - lower) / 400 * (case in ("abs", "cbrt", "clamp(x, -0.5, 1)", "max(x, 0.3)"))
    assert (np.abs(planes.upper_slope * middle + planes.upper_bias - [hull.max() for hull in hulls]) <= size).all()
    assert (np.abs(planes.lower_slope * middle + planes.lower_bias - [hull.min() for hull in hulls]) <= size).all()


@pytest.mark.parametrize("case", ["tanh", "exp", "log", "sin", "x^3"])
def test_the_slope_over_a_short_interval_is_the_derivative(case):
    # A quotient of rounded differences would be wrong in the first digit.
    num = len(_intervals("all", 1.0, np.float32)[0])
    lower = np.linspace(0.6, 0.7, num, dtype=np.float32)
    upper = lower + np.geomspace(1e-7, 1e-4, num, dtype=np.float32)
    derivative = {"tanh": 1 / np.cosh(lower) ** 2, "exp": np.exp(lower), "log": 1 / lower, "sin": np.cos(lower), "x^3": 3 * lower**2}[case]
    planes = _functions(case)[0](lower, upper)[0]
    for slope in (planes.lower_slope, planes.upper_slope):
        np.testing.assert_allclose(slope, derivative, rtol=1e-3)


def test_planes_are_vectorised_over_any_shape():
    lower, upper = np.linspace(-2, 1, 24, dtype=np.float32), np.linspace(-1, 3, 24, dtype=np.float32)
    for case in ("tanh", "sin", "clamp(x, -0.5, 1)"):
        bounds = _functions(case)[0]
        flat, mapped = bounds(lower, upper), jax.jit(jax.vmap(bounds))(lower.reshape(2, 3, 4), upper.reshape(2, 3, 4))
        for a, b in zip(*map(jax.tree.leaves, (flat, mapped)), strict=True):
            np.testing.assert_allclose(a.reshape(2, 3, 4), b, rtol=1e-6, atol=1e-6)
