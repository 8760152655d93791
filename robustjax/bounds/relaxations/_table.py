"""The relaxation of each primitive of one variable, and of powers."""

import functools
import math

import jax
import jax.numpy as jnp

from robustjax.base import Array
from robustjax.bounds.relaxations import _curves, _piecewise, _smooth
from robustjax.bounds.relaxations._curves import Curve
from robustjax.bounds.relaxations.planes import Unary

_CONVEX, _CONCAVE = math.inf, -math.inf


def power(exponent: float) -> Unary:
    """x to a fixed power: of x >= 0, or of any x if the exponent is whole, but of one sign only if it is negative.

    Args:
      exponent: a number; not traced, for the shape of the curve depends on it.

    Returns:
      The relaxation; its params are not used. Where x may leave the domain, range and planes are infinite.

    Raises:
      TypeError: the exponent is no number.
    Guarantee:
      each plane holds on the whole interval up to rounding of its own slope and bias; of all lines it encloses the smallest area.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | float):
        raise TypeError(f"expected exponent as a number, got {exponent!r} of type {type(exponent).__name__}; the curve depends on it.")
    if float(exponent).is_integer():
        return _curves.unary(lambda params: _integer_power(int(exponent)))
    curve = Curve(
        lambda x: jnp.power(x, exponent),
        lambda x: exponent * jnp.power(x, exponent - 1),
        turn=_CONCAVE if 0 < exponent < 1 else _CONVEX,
        contains=_is_not_negative,
    )
    return _curves.unary(functools.partial(_fixed, curve))


def _fixed(curve, params):
    return curve


def _is_not_negative(lower: Array, upper: Array) -> Array:
    return lower >= 0


def _has_one_sign(lower, upper):
    return (lower > 0) | (upper < 0)


def _integer_power(y):
    def derivative(x):
        return jnp.zeros_like(x) if y == 0 else y * jax.lax.integer_pow(x, y - 1)

    is_even = y % 2 == 0
    return Curve(
        lambda x: jax.lax.integer_pow(x, y),
        derivative,
        turn=_CONVEX if is_even else 0.0,
        is_reversed=not is_even,
        has_vertex=is_even and y > 0,
        contains=_has_one_sign if y < 0 else Curve._field_defaults["contains"],
    )


reciprocal: Unary = power(-1)  # 1 / x of an x of one sign


def _tanh_derivative(x):
    tail = jnp.exp(-2 * jnp.abs(x))
    return 4 * tail / jnp.square(1 + tail)


def _logistic_derivative(x):
    tail = jnp.exp(-jnp.abs(x))
    return tail / jnp.square(1 + tail)


def _erf_derivative(x):
    return 2 / math.sqrt(math.pi) * jnp.exp(-jnp.square(x))


_CURVES = {
    "tanh": Curve(jnp.tanh, _tanh_derivative),
    "logistic": Curve(jax.lax.logistic, _logistic_derivative),
    "erf": Curve(jax.lax.erf, _erf_derivative),
    "erfc": Curve(jax.lax.erfc, lambda x: -_erf_derivative(x), is_reversed=True),
    "atan": Curve(jnp.arctan, lambda x: 1 / (1 + jnp.square(x))),
    "asinh": Curve(jnp.arcsinh, lambda x: jax.lax.rsqrt(1 + jnp.square(x))),
    "cbrt": Curve(jnp.cbrt, lambda x: 1 / (3 * jnp.square(jnp.cbrt(x)))),
    "exp": Curve(jnp.exp, jnp.exp, _CONVEX),
    "exp2": Curve(jnp.exp2, lambda x: math.log(2) * jnp.exp2(x), _CONVEX),
    "expm1": Curve(jnp.expm1, jnp.exp, _CONVEX),
    "log": Curve(jnp.log, lambda x: 1 / x, _CONCAVE, contains=_is_not_negative),
    "log1p": Curve(jnp.log1p, lambda x: 1 / (1 + x), _CONCAVE, contains=lambda lower, upper: lower >= -1),
    "sqrt": Curve(jnp.sqrt, lambda x: 0.5 * jax.lax.rsqrt(x), _CONCAVE, contains=_is_not_negative),
    "rsqrt": Curve(jax.lax.rsqrt, lambda x: -0.5 * jax.lax.rsqrt(x) / x, _CONVEX, contains=_is_not_negative),
    "abs": Curve(jnp.abs, jnp.sign, _CONVEX, has_vertex=True),
}

UNARY: dict[str, Unary] = {  # by the name of the primitive
    **{name: _curves.unary(functools.partial(_fixed, curve)) for name, curve in _CURVES.items()},
    "integer_pow": _curves.unary(lambda params: _integer_power(params["y"])),
    "square": power(2),
    "sin": _smooth.sine(jnp.sin, jnp.cos),
    "cos": _smooth.sine(jnp.cos, lambda x: -jnp.sin(x)),
    "sign": _piecewise.step(lambda params: jnp.sign),
    "floor": _piecewise.step(lambda params: jnp.floor),
    "ceil": _piecewise.step(lambda params: jnp.ceil),
    "round": _piecewise.step(lambda params: lambda x: jax.lax.round(x, params["rounding_method"])),
}
