"""The linear and the integer program: between linear bounds and the truth, and exact where theory says so."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from robustjax import bounds, threats


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


_X = np.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (2, 3)))
_CROWN = {slope: jax.jit(functools.partial(bounds.crown, slope=slope)) for slope in ("adaptive", "parallel")}
_EXACT = functools.partial(bounds.linear_program, integer=True)


def forward(ws, bs, x):
    for w, b in zip(ws[:-1], bs[:-1], strict=True):
        x = jax.nn.relu(x @ w + b[None])
    return x @ ws[-1] + bs[-1][None]


def tiny(seed):
    """A network 3-4-3-2 of ReLUs, which is compiled once for all seeds, and its weights."""
    rng = np.random.default_rng(seed)
    sizes = (3, 4, 3, 2)
    ws = [rng.normal(size=shape) for shape in itertools.pairwise(sizes)]
    bs = [0.3 * rng.normal(size=size) for size in sizes[1:]]
    return jax.tree_util.Partial(forward, ws, bs), ws, bs


def samples(model_fn, eps):
    """The extremes over random points and corners of the maximum-norm ball."""
    noise = np.random.default_rng(5).uniform(-1.0, 1.0, (1000, *_X.shape))
    noise[:500] = np.sign(noise[:500])
    outputs = model_fn((_X[None] + eps * noise).reshape(-1, 3)).reshape(1000, *_X.shape[:1], -1)
    return outputs.min(axis=0), outputs.max(axis=0)


def brute_force(ws, bs, low, high, l1=None):
    """The extremes over every pattern of signs, on which the network is affine: one linear program each."""
    found = []
    for pattern in itertools.product([0.0, 1.0], repeat=sum(b.size for b in bs[:-1])):
        signs, matrix, offset, rows, limits = list(pattern), np.eye(3), np.zeros(3), [], []
        for w, b in zip(ws[:-1], bs[:-1], strict=True):
            matrix, offset = matrix @ w, offset @ w + b
            active, signs = np.array(signs[: b.size]), signs[b.size :]
            rows.append(((1 - 2 * active)[None] * matrix).T)
            limits.append((2 * active - 1) * offset)
            matrix, offset = matrix * active[None], offset * active
        matrix, offset = matrix @ ws[-1], offset @ ws[-1] + bs[-1]
        rows, limits = np.concatenate(rows), np.concatenate(limits)
        if l1 is not None:  # sum of +-(x - middle) <= eps for all signs
            corners = np.array([*itertools.product([-1.0, 1.0], repeat=3)])
            rows, limits = np.concatenate([rows, corners]), np.concatenate([limits, corners @ l1[0] + l1[1]])
        box = np.stack([low, high], axis=1)
        if scipy.optimize.linprog(np.zeros(3), rows, limits, bounds=box).status != 0:
            continue
        ends = [[sign * scipy.optimize.linprog(sign * column, rows, limits, bounds=box).fun for sign in (1, -1)] for column in matrix.T]
        found.append(np.array(ends) + offset[:, None])
    found = np.array(found)
    return found[:, :, 0].min(axis=0), found[:, :, 1].max(axis=0)


@pytest.mark.parametrize("ball", ["linf", "l1"])
def test_the_integer_program_is_brute_force_over_patterns_of_signs(ball):
    threat = {"linf": threats.Linf(0.2), "l1": threats.L1(0.3)}[ball]
    model_fn, ws, bs = tiny(1)
    found = _EXACT(model_fn, _X[:1], threat)
    low, high = (np.asarray(end)[0] for end in threat.interval(jnp.asarray(_X[:1])))
    expected = brute_force(ws, bs, low, high, (_X[0], 0.3) if ball == "l1" else None)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-6)


def test_the_programs_lie_between_linear_bounds_and_the_truth():
    """CROWN with both slopes <= the linear program <= the integer one <= what samples reach."""
    threat = threats.Linf(0.2)
    gained = []
    for seed in range(3):
        model_fn, _, _ = tiny(seed)
        relaxed, exact = bounds.linear_program(model_fn, _X, threat), _EXACT(model_fn, _X, threat)
        low, high = samples(model_fn, 0.2)
        for slope in ("adaptive", "parallel"):
            outer = _CROWN[slope](model_fn, _X, threat)
            assert (outer.lower <= relaxed.lower + 1e-7).all() and (relaxed.upper <= outer.upper + 1e-7).all()
            gained.append(float(jnp.max(relaxed.lower - outer.lower)))
        assert (relaxed.lower <= exact.lower + 1e-6).all() and (exact.upper <= relaxed.upper + 1e-6).all()
        assert (exact.lower <= low + 1e-6).all() and (high <= exact.upper + 1e-6).all()
    assert max(gained) > 1e-3  # somewhere it is tighter


def test_where_no_unit_is_unstable_the_linear_program_is_exact():
    model_fn, _, _ = tiny(2)
    threat = threats.Linf(1e-4)
    relaxed, linear = bounds.linear_program(model_fn, _X, threat), _CROWN["adaptive"](model_fn, _X, threat)
    exact = _EXACT(model_fn, _X, threat)
    for one, two, three in zip(relaxed, linear, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9)
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_every_kind_of_equation_has_its_constraints():
    """Leaky ReLU, a concave kink, minimum, largest of several, a curve and a product: sound, and no looser than CROWN."""
    w1, w2 = np.random.default_rng(3).normal(size=(3, 4)), np.random.default_rng(4).normal(size=(10, 2))

    def model_fn(x):
        a = x @ w1
        kinks = jax.nn.leaky_relu(a[:, :2], 0.1), -jax.nn.leaky_relu(-a[:, 2:], 2.0), jnp.minimum(a[:, :1], a[:, 1:2])
        parts = jnp.max(a, axis=1, keepdims=True), jnp.tanh(a[:, :3]), a[:, :1] * a[:, 3:]
        return jnp.concatenate([*kinks, *parts], axis=1) @ w2

    threat = threats.Linf(0.2)
    relaxed, exact, outer = (
        method(model_fn, _X, threat) for method in (bounds.linear_program, _EXACT, jax.jit(bounds.crown, static_argnums=0))
    )
    low, high = samples(model_fn, 0.2)
    for found in (relaxed, exact):
        assert (found.lower <= low + 1e-6).all() and (high <= found.upper + 1e-6).all()
        assert (outer.lower <= found.lower + 1e-6).all() and (found.upper <= outer.upper + 1e-6).all()
    assert float(jnp.max(exact.lower - relaxed.lower)) > 1e-4


def test_margins_by_the_program_are_tighter_than_differences_of_its_logits():
    model_fn, _, _ = tiny(1)
    threat, y = threats.Linf(0.1), jnp.argmax(model_fn(_X), axis=1)
    merged = bounds.margins(model_fn, _X, y, threat, _EXACT)
    apart = bounds.logit_margins(_EXACT(model_fn, _X, threat), y)
    assert (bounds.worst(merged, y) > bounds.worst(apart, y)).all()
    assert (np.asarray(merged.lower)[np.arange(2), np.asarray(y)] == 0).all()


def test_a_program_without_time_still_bounds():
    model_fn, _, _ = tiny(0)
    exact, hasty = _EXACT(model_fn, _X[:1], threats.Linf(0.2)), _EXACT(model_fn, _X[:1], threats.Linf(0.2), time_limit=1e-9)
    assert (hasty.lower <= exact.lower + 1e-6).all() and (hasty.upper >= exact.upper - 1e-6).all()
    assert jnp.isfinite(hasty.upper - hasty.lower).all()


def test_what_is_too_large_or_traced_is_refused():
    model_fn, _, _ = tiny(0)
    with pytest.raises(ValueError, match="more than max_variables=8 variables"):
        bounds.linear_program(model_fn, _X, threats.Linf(0.1), max_variables=8)
    with pytest.raises(ValueError, match="time_limit > 0"):
        bounds.linear_program(model_fn, _X, threats.Linf(0.1), time_limit=0.0)
    with pytest.raises(TypeError, match="on the host"):
        jax.jit(lambda x: bounds.linear_program(model_fn, x, threats.Linf(0.1)))(_X)
