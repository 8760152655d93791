"""Zonotopes: equal to linear bounds where theory says so, and the order of the kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib import bounded_models
from robustjax import bounds, threats

KINDS = ("deepz", "hybrid", "box", "switch", "smooth")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("build", "kinds"),
    [(lambda key: bounded_models.mlp(key, 72, 12, 10, 8, 3), KINDS), (bounded_models.residual, KINDS[:2])],
    ids=["dense", "residual"],
)
def test_parallel_lines_give_the_same_bounds_forward_and_backward(build, kinds):
    """DeepZ = Fast-Lin (Wong & Kolter's dual); with errors in a radius the same lines are looser, and those of "smooth" still more."""
    x, threat = jax.random.uniform(jax.random.key(1), (3, 6, 6, 2), jnp.float64), threats.Linf(0.1)
    wider = {kind: [] for kind in kinds}

    @jax.jit
    def found(seed):
        model_fn = build(seed)
        each = {kind: bounds.zonotope(model_fn, x, threat, kind=kind) for kind in kinds}
        return each, bounds.crown(model_fn, x, threat, slope="parallel"), jax.vmap(model_fn)(corners)

    is_upper = jax.random.bernoulli(jax.random.key(2), shape=(100, *x.shape))
    corners = jnp.where(is_upper, *(end[None] for end in reversed(threat.interval(x))))
    for seed in range(4):
        each, parallel, outputs = found(jnp.asarray(seed))
        for one, other in zip(each["deepz"], parallel, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
        for kind in kinds:
            assert (each[kind].lower <= outputs.min(axis=0) + 1e-9).all() and (each[kind].upper >= outputs.max(axis=0) - 1e-9).all()
            wider[kind].append(float(jnp.mean(each[kind].upper - each[kind].lower)))
    mean = {kind: np.mean(widths) for kind, widths in wider.items()}
    assert mean["deepz"] < mean["hybrid"] < mean.get("smooth", np.inf)


def test_one_unit_is_what_the_formulas_say():
    """x in [-1, 3]: the slope 3/4 with +-3/8; 0 with [0, 3]; 1 with [0, 1]; the mean of both strips with weights 3/4 and 1/4."""
    x = jnp.ones((1, 1), jnp.float64)
    threat = threats.Linf(2.0, box=(-10.0, 10.0))
    strips = {"deepz": (-0.75, 3), "hybrid": (-0.75, 3), "box": (0, 3), "switch": (-1, 4), "smooth": (-0.75, 3.75)}
    for kind, expected in strips.items():
        found = bounds.zonotope(jax.nn.relu, x, threat, kind=kind)
        np.testing.assert_allclose(np.concatenate(found).ravel(), expected, atol=1e-12)
    for kind, loss in (("deepz", 0.0), ("hybrid", 2 * 0.375)):  # relu(x) - relu(x): noises cancel, radii do not
        zero = bounds.zonotope(_difference_with_itself, x, threat, kind=kind)
        np.testing.assert_allclose(np.concatenate(zero).ravel(), [-loss, loss], atol=1e-12)


def _difference_with_itself(x):
    y = jax.nn.relu(x)
    return y - y


def test_products_and_quotients_hold_their_range():
    x = jnp.array([[1.0, 2.0, 0.5]], jnp.float64)
    threat = threats.Linf(0.25, box=(-10.0, 10.0))
    corners = jnp.stack(jnp.meshgrid(*[jnp.array([-0.25, 0.0, 0.25])] * 3), axis=-1).reshape(-1, 3)

    def model_fn(x):
        parts = x[:, :1] * x[:, 1:2] * x[:, 2:], x[:, :1] / x[:, 1:2] - 2.0 / x, jnp.einsum("bi,bj->bij", x, x), x * x
        return jnp.concatenate([part.reshape(x.shape[0], -1) for part in parts], axis=1)

    outputs = model_fn(x + corners)
    least, greatest = outputs.min(axis=0), outputs.max(axis=0)
    for found in jax.jit(lambda x: [bounds.zonotope(model_fn, x, threat, kind=kind) for kind in ("deepz", "hybrid", "smooth")])(x):
        assert (found.lower[0] <= least + 1e-12).all() and (found.upper[0] >= greatest - 1e-12).all()
        assert (found.upper[0] - found.lower[0] <= 2.0 * (greatest - least)).all()


def test_what_has_no_rule_or_is_no_kind_is_refused():
    x, threat = jnp.ones((1, 4), jnp.float64), threats.Linf(0.1)
    with pytest.raises(ValueError, match="no rule for the primitive 'sort'"):
        bounds.zonotope(lambda x: jnp.sort(x, axis=1), x, threat)
    with pytest.raises(ValueError, match="expected kind as one of deepz, hybrid, box, switch, smooth; got 'zono'"):
        bounds.zonotope(lambda x: x, x, threat, kind="zono")


def test_a_chunk_at_a_time_gives_the_same():
    x = jax.random.uniform(jax.random.key(1), (3, 6, 6, 2), jnp.float64)
    model_fn = bounded_models.mlp(3, 72, 6, 3)
    whole, cut = (jax.jit(functools.partial(bounds.zonotope, model_fn, chunk_size=size))(x, threats.L2(0.2)) for size in (None, 2))
    np.testing.assert_allclose(whole, cut, rtol=1e-12)
