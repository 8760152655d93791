"""Rewriting a function so that XLA:CPU differentiates its convolutions and max-pools fast inside loops (jax-ml/jax#12868).

Autodiff's gradient of a convolution has a layout that XLA:CPU runs on a slow path inside `scan` and `while_loop` (1.7 to 15
times), and the gradient of max-pooling is slow everywhere. `rewrite` replaces both, in any model or training loss:

* A convolution is the trilinear form T(x, w, y) = <conv(x, w), y>. Its three contractions (the convolution, the gradient in x
  and the gradient in w) are one primitive each, bilinear in their two arguments, and the derivative of any of them is another
  of the three: grad, jvp, vmap and higher orders all stay on fast forms. Few channels, where XLA:CPU is at its slowest also
  outside loops, are spread over wider windows.
* Max-pooling remembers the first maximum of each window, and its derivative is a selection by that mask.
"""

import jax

from robustjax import base, graph
from robustjax.lowering import convolutions, pools

__all__ = ["Rewritten", "bind", "original", "rewrite"]

_RULES: dict[str, graph.Rule] = {"conv_general_dilated": convolutions.rule, "reduce_window_max": pools.rule}


@base.node
class Rewritten:
    """A function evaluated by the rules of this package: see `rewrite`. Of a randomised model, `base.draw` draws what is inside."""

    function: base.Configured

    def __call__(self, *args, **kwargs):
        return graph.rewrite(self.function, _RULES)(*args, **kwargs)


def rewrite(function, platform: str | None = None):
    """The same function with fast gradients on CPU.

    Args:
      function: any function of arrays: a model (a callable pytree stays one), an `apply_fn` with its parameters, a training loss.
      platform: "cpu" rewrites, any other returns the function itself; None asks for JAX's default backend.

    Returns:
      A callable pytree. Convolutions of any padding, stride, dilation, grouping and layout, and max-pools of float arrays, are
      replaced; those inside a custom_jvp or custom_vjp stay as they are, and so do convolutions with batch_group_count.

    Guarantee:
      values and gradients agree with those of the function to rounding.
    """
    if (platform or jax.default_backend()) != "cpu":
        return function
    return Rewritten(base.bind(_call, function=function))


def original(function):
    """The function that `rewrite` was given; any other function as it is."""
    return function.function.get("function") if isinstance(function, Rewritten) else function


def bind(context, eqn: graph.Equation, *values) -> list:
    """A `graph.Rule` that evaluates an equation in the form that is fast on JAX's default backend."""
    rules = _RULES if jax.default_backend() == "cpu" else {}
    return rules.get(eqn.primitive.name, graph.bind)(context, eqn, *values)


def _call(*args, function, **kwargs):
    return function(*args, **kwargs)
