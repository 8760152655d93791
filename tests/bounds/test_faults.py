"""Models on which bounds were once wrong, missing or no numbers: one idea each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import bounds, threats

METHODS = {"interval": bounds.interval, "crown": bounds.crown, "alpha_crown": functools.partial(bounds.alpha_crown, num_steps=2)}
WIDE = (-9.0, 9.0)
_RANDOM = np.random.default_rng(0)
_X, _W1, _W2 = _RANDOM.uniform(size=(2, 3)), _RANDOM.normal(size=(3, 4)), _RANDOM.normal(size=(4, 2))
_IMAGE, _KERNEL = _RANDOM.uniform(size=(1, 5, 5, 2)), _RANDOM.normal(size=(3, 3, 2, 2))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def hidden(x):
    return (x - 0.5) @ _W1


def holds(model_fn, x, threat, methods=METHODS, is_finite=True, num=200):
    """No sample leaves the bounds."""

    @jax.jit
    def run(x, threat):
        def one(key):
            delta = threat.init(key, x)
            corner = threat.project(100.0 * jnp.sign(jax.random.normal(key, x.shape, x.dtype)), x)
            return jnp.stack([model_fn(threat.apply(x, each)) for each in (delta, corner)])

        return jax.vmap(one)(jax.random.split(jax.random.key(0), num)), {name: methods[name](model_fn, x, threat) for name in methods}

    samples, found = run(x, threat)
    low, high = samples.min(axis=(0, 1)), samples.max(axis=(0, 1))
    assert (low < high).any()
    for name, (lower, upper) in found.items():
        assert (lower <= low + 1e-9).all() and (high <= upper + 1e-9).all(), name
        assert not is_finite or np.isfinite(upper - lower).all(), name


FUNCTIONS = {  # of one variable, spelled in several equations
    "a jump to another line": lambda x: jnp.where(x > 0.1, x + 1, x),
    "a jump from a number": lambda x: jnp.where(x >= 0, 1.0, 0.5 * x),
    "a point alone": lambda x: jnp.where(x == 0, 5.0, x),
    "hard shrinkage": lambda x: jnp.where(jnp.abs(x) > 0.2, x, 0.0),
    "a predicate as a factor": lambda x: x * (x > 0.2),
    "a curve that jumps": lambda x: jnp.where(x < 0.25, jnp.exp(x) * x, jnp.sin(x) * x),
    "a step as a factor": lambda x: x * jnp.floor(3 * x),
    "a sign as a factor": lambda x: (x + 1) * jnp.sign(x),
    "an integer as a factor": lambda x: x * (4 * x).astype(int).astype(x.dtype),
    "a detached factor": lambda x: x * jax.lax.stop_gradient(jnp.exp(2 * x)),
    "two thresholds": lambda x: jnp.where(x < -0.2, -0.2, jnp.where(x > 0.3, 0.7, x)),
    "three cases": lambda x: jax.lax.select_n((x > 0).astype(int) + (x > 0.3), x, 2 * x, 0.7 + 0 * x),
    "a boolean of a number": lambda x: jnp.where(x.astype(bool), x, 1.0),
    "a kink far away": lambda x: jnp.where(x > -1e17, 2 * x + 1e17, x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_variable_that_jumps_or_hides_its_derivative(name):
    function = FUNCTIONS[name]
    methods = {name: METHODS[name] for name in ("interval", "crown")}
    x, eps = np.linspace(-0.617, 0.593, 13)[:, None], np.tile([0.01, 0.3, 2.0], 13)
    x = np.repeat(x, 3, axis=0)
    share = np.linspace(-1.0, 1.0, 401)
    inside = x + eps[:, None] * share
    inside = np.concatenate([inside, np.clip(np.zeros_like(x), x - eps[:, None], x + eps[:, None])], axis=1)

    @jax.jit
    def run(x, inside, eps):
        values = function(inside)
        return values, {name: methods[name](function, x, threats.Linf(eps, box=WIDE)) for name in methods}

    values, found = run(x, inside, eps)
    for method, (lower, upper) in found.items():
        assert (lower <= values + 1e-9).all(), method
        assert (values <= upper + 1e-9).all(), method
        assert np.isfinite(upper - lower).all(), method


def test_what_continues_stays_tight_where_it_is_selected():
    """The two sides of an ELU meet: its planes over pieces lie within some 0.001 of it, as without a comparison."""
    function = lambda x: jnp.where(x > 0, x, jnp.expm1(x))  # noqa: E731
    lower, upper = jax.jit(bounds.interval, static_argnums=0)(function, np.array([[0.1]]), threats.Linf(0.5, box=WIDE))
    np.testing.assert_allclose((lower[0, 0], upper[0, 0]), (np.expm1(-0.4), 0.6), atol=2e-3)


def test_numbers_beyond_the_end_of_a_gather_count():
    take = lambda x: jnp.take(jax.nn.relu(hidden(x)), jnp.array([0, 3, 9]), axis=1, mode="fill", fill_value=-5.0)  # noqa: E731
    holds(take, _X, threats.Linf(0.3), {"crown": bounds.crown, "hybrid": functools.partial(bounds.zonotope, kind="hybrid")})


def test_a_function_of_weights_alone_is_a_number():
    methods = {name: METHODS[name] for name in ("interval", "crown")}
    holds(lambda x: jax.nn.relu(hidden(x) * jax.nn.silu(jnp.asarray(_W1[0]))[None]) @ _W2, _X, threats.Linf(0.3), methods)


def test_booleans_and_integers_of_the_input_are_no_affine_tail():
    methods = {"interval": bounds.interval}
    for function in (lambda h: h > 0, lambda h: jnp.floor(4 * h).astype(int)):
        holds(lambda x, function=function: function(hidden(x)).astype(x.dtype) @ _W2 @ _W2.T, _X, threats.Linf(0.4), methods)


@pytest.mark.parametrize(
    "function", [lambda n: n & 1, lambda n: n | 1, lambda n: (100 * n).astype(jnp.int8), lambda n: jax.lax.div(n, jnp.full_like(n, 3))]
)
def test_integers_whose_order_is_lost_are_refused(function):
    with pytest.raises(ValueError, match="no rule for the primitive"):
        bounds.interval(lambda x: function((8 * hidden(x)).astype(int)).astype(x.dtype), _X, threats.Linf(0.3))


@pytest.mark.parametrize("threat", [threats.Linf(0.5, box=WIDE), threats.L2(0.5, box=WIDE)], ids=["linf", "l2"])
def test_infinite_planes_bound_nothing_and_are_numbers(threat):
    def model(x):
        h = hidden(x)
        return jax.nn.relu(h[:, ::-1] / h) @ _W2 + jax.nn.relu(h) @ _W2

    holds(model, _X, threat, is_finite=False)


@pytest.mark.parametrize("ball", [threats.L2, threats.Linf, threats.L1])
def test_a_radius_per_coordinate_goes_through_windows(ball):
    def model(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(x, jnp.asarray(_KERNEL), (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(h - 0.1).sum(axis=(1, 2))

    eps = np.random.default_rng(1).uniform(size=_IMAGE.shape) * (0.1 if ball is threats.Linf else 0.5)
    holds(model, _IMAGE, ball(jnp.asarray(eps)), {"crown": bounds.crown})


def test_a_function_that_is_registered_is_bounded_by_every_method(monkeypatch):
    relaxations = bounds.relaxations
    monkeypatch.delitem(relaxations.UNARY, "sinh", raising=False)
    with pytest.raises(ValueError, match=r"no rule for the primitive 'sinh'.*relaxations.UNARY\['sinh'\]"):
        bounds.crown(lambda x: jnp.sinh(hidden(x)), _X, threats.Linf(0.1))
    # Its second derivative grows with |x|.
    curvature = lambda lower, upper: jnp.sinh(jnp.maximum(-lower, upper))  # noqa: E731
    sinh = relaxations.Unary(
        lambda params, lower, upper: (jnp.sinh(lower), jnp.sinh(upper)),
        lambda params, lower, upper: relaxations.smooth(jnp.sinh, curvature(lower, upper), lower, upper, 17),
    )
    monkeypatch.setitem(relaxations.UNARY, "sinh", sinh)
    holds(lambda x: jnp.sinh(hidden(x)), _X, threats.Linf(0.1), {name: METHODS[name] for name in ("interval", "crown")})
