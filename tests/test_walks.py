"""Walks over a program: sound intervals forward, linear bounds backward, what depends on what, and errors that name their place."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from robustjax import graph


class Interval(NamedTuple):
    low: jax.Array
    high: jax.Array


def _ends(value):
    return value if isinstance(value, Interval) else Interval(value, value)


def _each_end(context, eqn, *values):
    # Nondecreasing in every input: also what only moves numbers around.
    if not any(isinstance(value, Interval) for value in values):
        return graph.bind(context, eqn, *values)
    low, high = (graph.bind(context, eqn, *ends) for ends in zip(*map(_ends, values), strict=True))
    return [Interval(*ends) for ends in zip(low, high, strict=True)]


def _sub(context, eqn, a, b):
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
    return [Interval(a_low - b_high, a_high - b_low)]


def _bilinear(context, eqn, a, b):
    """The centre moves by the product with the other's value, the radius by that with its absolute value."""
    if isinstance(a, Interval) and isinstance(b, Interval):
        return graph.no_rule(context, eqn, a, b)
    moving, fixed, order = (a, b, lambda x, w: (x, w)) if isinstance(a, Interval) else (b, a, lambda x, w: (w, x))
    (centre,) = graph.bind(context, eqn, *order((moving[0] + moving[1]) / 2, fixed))
    (radius,) = graph.bind(context, eqn, *order((moving[1] - moving[0]) / 2, jnp.abs(fixed)))
    return [Interval(centre - radius, centre + radius)]


def _unless_concrete(rule):
    def checked(context, eqn, *values):
        moves = any(isinstance(value, Interval) for value in values)
        return rule(context, eqn, *values) if moves else graph.bind(context, eqn, *values)

    return checked


_MONOTONE = (
    "add",
    "max",
    "tanh",
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "slice",
    "concatenate",
    "reduce_sum",
    "reduce_window_max",
)
_INTERVAL = dict.fromkeys(_MONOTONE, _each_end) | {
    "sub": _unless_concrete(_sub),
    "mul": _unless_concrete(_bilinear),
    "dot_general": _unless_concrete(_bilinear),
    "conv_general_dilated": _unless_concrete(_bilinear),
}


class _Square(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(x)


class _Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.tanh(linen.Dense(4)(linen.relu(linen.Dense(4)(x)))))


class _Convolutional(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=True)(linen.Conv(3, (2, 2))(x.reshape(-1, 2, 2, 1)))
        return linen.Dense(3)(linen.max_pool(linen.relu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1))


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.checkpoint(nnx.relu)(self.first(x)))


_WEIGHT = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)


def _plain(x):
    def step(x, shift):
        return jnp.tanh(x @ _WEIGHT + shift), x.sum(axis=1)

    x, sums = jax.lax.scan(step, x, jnp.arange(3.0))
    return jnp.concatenate([x, sums.T, 2.0 * x], axis=1)


def _linen(net):
    variables = net.init(jax.random.key(1), jnp.zeros((1, 4)))
    return lambda x: net.apply(variables, x)


_MODELS = {
    "a square layer": lambda: _linen(_Square()),
    "linen": lambda: _linen(_Dense()),
    "linen, convolutional": lambda: _linen(_Convolutional()),
    "nnx": lambda: _Nnx(nnx.Rngs(0)),
    "plain, with a scan": lambda: _plain,
}
_ROW = jax.ShapeDtypeStruct((1, 4), jnp.float32)


@pytest.mark.parametrize("max_unroll", [0, 3])
@pytest.mark.parametrize("name", _MODELS)
def test_intervals_hold_every_sample_and_no_example_sees_its_neighbours(name, max_unroll):
    model_fn = _MODELS[name]()
    program = graph.program(model_fn, _ROW, max_unroll=max_unroll)

    @jax.jit
    @jax.vmap
    def bounds(low, high):
        return jax.tree.map(lambda end: end[0], graph.forward(program, _INTERVAL, Interval(low[None], high[None])))

    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    low, high = map(np.asarray, bounds(x - 0.3, x + 0.3))
    samples = np.asarray(x) + 0.3 * np.random.default_rng(2).choice([-1.0, 1.0, 0.3], size=(400, 3, 4)).astype(np.float32)
    y = np.asarray(model_fn(samples.reshape(-1, 4))).reshape(400, 3, -1)
    assert (low - 1e-5 <= y).all() and (y <= high + 1e-5).all()
    alone = bounds(x[1:2] - 0.3, x[1:2] + 0.3)
    for batch, row in zip((low, high), alone, strict=True):
        np.testing.assert_allclose(batch[1:2], row, rtol=1e-5, atol=1e-6)
    at_point = bounds(x, x)
    for end in at_point:
        np.testing.assert_allclose(end, model_fn(x), rtol=1e-5, atol=1e-5)


def test_intervals_of_a_square_layer_are_exact():
    kernel, bias = _WEIGHT, jnp.arange(4.0)[None]
    program = graph.program(lambda x: x @ kernel + bias, _ROW)
    x = jnp.asarray([[0.1, -0.2, 0.3, 0.4]])
    low, high = graph.forward(program, _INTERVAL, Interval(x - 0.5, x + 0.5))
    radius = 0.5 * jnp.abs(kernel).sum(axis=0)[None]
    np.testing.assert_allclose(low, x @ kernel + bias - radius, rtol=1e-5)
    np.testing.assert_allclose(high, x @ kernel + bias + radius, rtol=1e-5)


# --- backward: linear bounds of a network of two layers, as CROWN makes them ------------------------------------------------


class Linear(NamedTuple):
    """weight . variable + bias bounds the outputs from below."""

    weight: jax.Array  # [outputs, *shape of the variable]
    bias: jax.Array  # [outputs]


def _summed(a, b):
    return jax.tree.map(operator.add, a, b)


def _dot(context, eqn, arrived):
    kernel = context.values[eqn.inputs[1]]
    return [arrived._replace(weight=arrived.weight @ kernel.T), None]


def _add(context, eqn, arrived):
    shift = context.values[eqn.inputs[1]]
    return [arrived._replace(bias=arrived.bias + jnp.einsum("o...,...->o", arrived.weight, shift)), None]


def _relu(context, eqn, arrived):
    """slope x below and slope (x - low) above, by the sign of the coefficient."""
    low, high = context.values[eqn.inputs[0]]
    upper = jnp.where(low >= 0, 1.0, jnp.where(high <= 0, 0.0, high / (high - low)))
    lower = (high > -low).astype(jnp.float32)
    lower = jnp.where(low >= 0, 1.0, jnp.where(high <= 0, 0.0, lower))
    positive, negative = jnp.maximum(arrived.weight, 0), jnp.minimum(arrived.weight, 0)
    intercept = jnp.einsum("o...,...->o", negative, jnp.where((low < 0) & (high > 0), -upper * low, 0.0))
    return [Linear(positive * lower[None] + negative * upper[None], arrived.bias + intercept), None]


_CROWN = {"dot_general": _dot, "add": _add, "max": _relu}


def test_a_backward_walk_gives_the_linear_bound_of_crown():
    rng = np.random.default_rng(3)
    first, last, b, c = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 2), (6,), (2,)))
    program = graph.program(lambda x: jax.nn.relu(x @ first + b[None]) @ last + c[None], _ROW)
    x, eps = rng.normal(size=(1, 4)).astype(np.float32), 0.4
    values = graph.values(program, _INTERVAL, Interval(x - eps, x + eps))
    (bound,) = graph.backward(program, _CROWN, Linear(jnp.eye(2)[:, None], jnp.zeros(2)), values=values, add=_summed)
    bound = jax.tree.map(np.asarray, bound)

    # By hand.
    centre, radius = x[0] @ first + b, eps * np.abs(first).sum(axis=0)
    low, high = centre - radius, centre + radius
    assert ((low < 0) & (high > 0)).any()
    slope = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / (high - low)))
    below = np.where((low >= 0) | ((high > 0) & (high > -low)), 1.0, 0.0)
    weight = last.T
    through = np.where(weight > 0, weight * below, weight * slope)
    shift = (np.minimum(weight, 0) * np.where((low < 0) & (high > 0), -slope * low, 0.0)).sum(axis=1)
    np.testing.assert_allclose(bound.weight[:, 0], through @ first.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bound.bias, through @ b + shift + c, rtol=1e-4, atol=1e-5)

    samples = x + eps * rng.uniform(-1, 1, size=(1000, 4)).astype(np.float32)
    y = np.maximum(samples @ first + b, 0) @ last + c
    assert (samples @ bound.weight[:, 0].T + bound.bias <= y + 1e-4).all()
    lowest = x[0] @ bound.weight[:, 0].T - eps * np.abs(bound.weight[:, 0]).sum(axis=1) + bound.bias
    interval = graph.forward(program, _INTERVAL, Interval(x - eps, x + eps)).low[0]
    assert (lowest <= y.min(axis=0) + 1e-4).all() and (lowest > interval).any()


def test_a_walk_backward_adds_what_arrives_twice_and_gives_nothing_where_nothing_does():
    def function(x, name, y):
        return {"sum": x * 2.0 + x * 3.0, "other": y}

    program = graph.program(function, jnp.ones(3), "static", jnp.ones(3))
    rules = {
        "mul": lambda context, eqn, arrived: [arrived * context.values[eqn.inputs[1]], None],
        "add": lambda context, eqn, arrived: [arrived, arrived],
    }
    values = graph.values(program, {}, jnp.ones(3), "static", jnp.ones(3))
    arrived = graph.backward(program, rules, {"sum": jnp.ones(3), "other": None}, values=values)
    np.testing.assert_array_equal(arrived[0], 5 * np.ones(3))
    assert arrived[1:] == (None, None)


# --- what a program holds ----------------------------------------------------------------------------------------------------


def _names(program):
    return [eqn.primitive.name for eqn, _ in graph.walk(program)]


def test_calls_are_inlined_unless_they_are_kept_and_what_no_output_needs_is_left_out():
    @jax.jit
    def inner(x):
        return jnp.sin(x)

    def function(x):
        jnp.cos(x)
        return jax.checkpoint(inner)(jax.nn.relu(inner(x)))

    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert _names(graph.program(function, x)) == ["sin", "max", "sin"]
    kept = graph.program(function, x, keep={"inner"} | graph.CUSTOM_DERIVATIVES)
    assert [eqn.function for eqn in kept.equations] == ["inner", "relu", "inner"]
    assert "cos" not in _names(kept)
    variables = [variable for eqn in graph.program(function, x).equations for variable in eqn.outputs]
    assert len(set(variables)) == len(variables) == 3


def test_an_effect_is_not_left_out(capfd):
    def function(x):
        jax.debug.print("seen")
        return x

    graph.rewrite(function, {})(jnp.ones(3))
    jax.effects_barrier()
    assert "seen" in capfd.readouterr().out


@pytest.mark.parametrize("reverse", [False, True])
def test_a_short_scan_is_unrolled_on_request(reverse):
    def function(x):
        carry, ys = jax.lax.scan(lambda c, a: (jnp.sin(c) + a, c * a), x[0], x, reverse=reverse)
        return carry + ys

    x = jnp.asarray([0.3, -0.2, 0.7])
    assert "scan" in _names(graph.program(function, x, max_unroll=2))
    program = graph.program(function, x, max_unroll=3)
    assert "scan" not in _names(program)
    np.testing.assert_allclose(graph.forward(program, {}, x), function(x), rtol=1e-6)


def test_the_constants_of_inner_functions_are_found():
    table = jnp.arange(3.0)
    inner = jax.jit(lambda x: x + table)

    def function(x):
        return jax.lax.cond(x[0] > 0, lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=2)[0], lambda x: x, x)

    found = graph.constants(graph.program(function, jnp.ones(3))).values()
    assert any(np.shape(value) == (3,) and (np.asarray(value) == table).all() for value in found)


# --- dependence --------------------------------------------------------------------------------------------------------------


def _late_carry(x, y):
    # x reaches the second number of the carry in the second step only.
    def step(carry, _):
        return (carry[0] + x, carry[0], carry[2] + y), None

    return jax.lax.scan(step, (0.0 * y, 0.0 * y, y), None, length=3)[0]


def _late_loop(x, y):
    return jax.lax.fori_loop(0, y.astype(int), lambda i, c: (c[0] + x, c[0], c[2] + y), (0.0 * y, 0.0 * y, y))


def _length_of_loop(x, y):
    return (*jax.lax.while_loop(lambda c: c[0] < x, lambda c: (c[0] + 1, 2 * c[1]), (0.0 * y, y)), y)


def _branches(x, y):
    return jax.lax.cond(y > 0, lambda x, y: (x, y, y), lambda x, y: (y, x, y), x, y)


def _choice(x, y):
    return (*jax.lax.cond(x > 0, lambda y: (y, 2 * y), lambda y: (-y, 3 * y), y), y)


def _calls(x, y):
    return jax.jit(lambda x, y: (jax.nn.relu(x), jax.checkpoint(jnp.sin)(x), jax.nn.relu(y)))(x, y)


@pytest.mark.parametrize("keep", [(), graph.CUSTOM_DERIVATIVES | graph.CHECKPOINTS | {"jit", "pjit"}], ids=["inlined", "kept"])
@pytest.mark.parametrize("function", [_late_carry, _late_loop, _length_of_loop, _branches, _choice, _calls], ids=lambda f: f.__name__)
def test_what_depends_on_an_input_is_found_through_loops_and_branches(function, keep):
    number = jax.ShapeDtypeStruct((), jnp.float32)
    program = graph.program(function, number, number, keep=keep)
    x, y = program.inputs
    assert [output in graph.depends(program, [x]) for output in program.outputs] == [True, True, False]
    of_y = [output in graph.depends(program, [y]) for output in program.outputs]
    assert of_y == ([False, False, True] if function is _calls else [True, True, True])


def test_a_variable_of_a_body_depends_in_a_later_step_too():
    def function(x):
        return jax.lax.scan(lambda c, a: ((a, jnp.round(c[0])), None), (jnp.float32(0), jnp.float32(0)), x)[0][1]

    program = graph.program(function, jnp.ones(3))
    found = graph.depends(program, program.inputs)
    assert [eqn.primitive.name for eqn, _ in graph.walk(program) if not found.isdisjoint(eqn.inputs)] == ["scan", "round"]


# --- errors ------------------------------------------------------------------------------------------------------------------


class _Unusual(linen.Module):
    @linen.compact
    def __call__(self, x):
        return jax.lax.erf_inv(linen.Dense(4)(x))  # this line is named


def _line_of(text):
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, 1) if text in line)


def test_a_missing_rule_names_the_primitive_its_line_and_the_remedy():
    program = graph.program(_linen(_Unusual()), _ROW)
    with pytest.raises(ValueError, match=r"no rule for the primitive 'erf_inv'.*\{\*\*rules, 'erf_inv': rule\}") as error:
        graph.forward(program, _INTERVAL, Interval(-jnp.ones((1, 4)), jnp.ones((1, 4))))
    line = _line_of("# this line is named")
    assert f"{__file__}:{line} in _Unusual.__call__" in str(error.value)
    doubled = _INTERVAL | {"erf_inv": _each_end}
    assert graph.forward(program, doubled, Interval(jnp.zeros((1, 4)), jnp.zeros((1, 4)))).low.shape == (1, 4)


def _gelu(x):
    return jax.lax.scan(lambda x, _: (jax.nn.gelu(x, approximate=False), None), x, None, length=2)[0]  # and this one


def test_a_missing_rule_inside_a_library_names_the_line_that_calls_the_library():
    x = Interval(-jnp.ones((1, 4)), jnp.ones((1, 4)))
    rules = _INTERVAL | {"neg": _unless_concrete(lambda context, eqn, x: [Interval(-x.high, -x.low)])}
    for max_unroll in (0, 2):
        program = graph.program(_gelu, _ROW, max_unroll=max_unroll)
        with pytest.raises(ValueError, match=f"'erfc?', which comes from {__file__}:{_line_of('# and this one')} in _gelu"):
            graph.forward(program, rules, x)
    program = graph.program(_linen(linen.Sequential([linen.Dense(4), jax.lax.erf_inv])), _ROW)
    with pytest.raises(ValueError, match=f"'dot_general', which comes from {__file__}:.*, inside Sequential/layers_0"):
        graph.forward(program, {}, x)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cond", lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)),
        ("cond", lambda x: jax.lax.cond(jnp.float32(1.0) + x[0] * 0 > 0, lambda x: x, lambda x: jnp.ones(4), x)),
        ("while", lambda x: jax.lax.while_loop(lambda c: c[0] < 1, lambda c: c + 1, x)),
        ("while", lambda x: jax.lax.fori_loop(0, jnp.argmax(jnp.ones(3)), lambda i, c: c + x, jnp.zeros(4))),
        ("scan", lambda x: jax.lax.scan(lambda c, _: (c + x, None), jnp.zeros(4), None, length=2)[0]),
    ],
)
def test_a_loop_that_turns_abstract_is_named(name, function):
    rules = _INTERVAL | dict.fromkeys(("lt", "gt", "convert_element_type"), _each_end)
    program = graph.program(function, jnp.ones(4))
    with pytest.raises(ValueError, match=f"no rule for the primitive '{name}'"):
        graph.forward(program, rules, Interval(jnp.zeros(4), jnp.ones(4)))


def test_a_walk_backward_without_a_rule_is_named():
    program = graph.program(lambda x: jnp.sin(x), jnp.ones(3))
    with pytest.raises(ValueError, match=r"no rule for the primitive 'sin'.*each of eqn\.inputs"):
        graph.backward(program, {}, jnp.ones(3))
