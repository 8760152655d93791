"""The maximum-norm ball."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, prng
from robustjax.base import Array, Delta, Key
from robustjax.threats import ball


@base.node
class Linf(ball.Ball):
    """{|delta_i| <= eps}: every coordinate may change a little.

    Attributes:
      eps: radius in the unit of x, such as 8 / 255; a scalar, one per example [B], or one per coordinate.
      box: lower and upper bound of valid inputs; default (0., 1.).
      mask: True where the input may change; None for everywhere. More about all three at `Ball`.

    Raises:
      ValueError: a number eps that is finite and wider than a box of numbers, such as 8 for 8/255.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> rj.Linf(0.125).project(jnp.array([[0.5, -0.5, 0.0625]]), jnp.array([[0.5, 0.5, 1.0]]))  # the last is at its bound already
      Array([[ 0.125, -0.125,  0.   ]], dtype=float32)
    """

    def __post_init__(self):
        ball.Ball.__post_init__(self)
        lower, upper = self.box
        numbers = all(isinstance(value, int | float | np.generic) for value in (self.eps, lower, upper))
        if numbers and upper - lower < self.eps < float("inf"):
            raise ValueError(
                f"eps={self.eps} is wider than the box {self.box}: pass it in the unit of x, such as {self.eps} / 255, or pixels up to 255 "
                "with box=(0, 255); eps=inf stands for no limit."
            )

    def init(self, key: Key, x: Array) -> Delta:
        """Uniform in the ball, then clipped to the box."""
        keys = prng.example_keys(key, x.shape[0])
        unit = prng.sample(jax.random.uniform, keys, x)
        return self._clip(self._stretched(2.0 * unit - 1.0, x), x)

    def project(self, delta: Delta, x: Array) -> Delta:
        """The nearest admissible perturbation, in every norm."""
        low, high = self.delta_bounds(x)
        eps = self._eps(x)
        return jnp.clip(delta, min=jnp.maximum(-eps, low), max=jnp.minimum(eps, high))

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """sign(grad), times eps if it is per coordinate."""
        del x, delta
        return self.from_unit(jnp.sign(grad))

    def norm(self, delta: Delta) -> Array:
        """max |delta_i| [B]."""
        return arrays.norm(self.to_unit(delta), jnp.inf)

    def dual_norm(self, grad: Delta) -> Array:
        """sum |grad_i| [B]."""
        return arrays.norm(self.from_unit(self._masked(grad)), 1)

    def support(self, normal: Array, x: Array) -> Array:
        """sum |normal_i| min(eps, room of x_i): see `Ball.support`."""
        slope, room = ball.orthant(x, self, normal)
        reach = jnp.minimum(room, jnp.reshape(self.radius().astype(slope.dtype), (-1, 1)))
        return jnp.sum(slope * jnp.where(slope > 0, reach, 0.0), axis=1)

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The smallest delta in the box with <normal, delta> = offset; if there is none, the corner that comes closest.

        Args:
          x: inputs [B, ...]. normal: [B, ...]. offset: [B].
        """
        scale = self.from_unit(jnp.ones_like(x))
        slope, room, goal, sign = ball.fold_to_orthant(x, self, normal, offset)
        slope, room = slope * arrays.flatten_examples(scale), arrays.ratio(room, arrays.flatten_examples(scale))

        def reached(size):
            return jnp.sum(slope * jnp.minimum(room, size), axis=1, keepdims=True)

        # The smallest size whose delta, sign * min(room, size), reaches the hyperplane: bisected between 0 and a size that is enough.
        far = jnp.max(jnp.where(jnp.isfinite(room) & (slope > 0), room, 0.0), axis=1, keepdims=True)
        open_slope = jnp.sum(jnp.where(jnp.isfinite(room), 0.0, slope), axis=1, keepdims=True)
        far = jnp.maximum(far, jnp.where(open_slope > 0, goal / jnp.where(open_slope > 0, open_slope, 1.0), 0.0))
        size, _ = ball.bisect(lambda size: reached(size) < goal, jnp.zeros_like(goal), far)
        # Which coordinates are at their bound is now known; the rest solves a linear equation for the exact size.
        free = room > size
        rest = goal - jnp.sum(jnp.where(free, 0.0, slope * jnp.where(free, 0.0, room)), axis=1, keepdims=True)
        free_slope = jnp.sum(jnp.where(free, slope, 0.0), axis=1, keepdims=True)
        size = jnp.where(free_slope > 0, rest / jnp.where(free_slope > 0, free_slope, 1.0), far)
        return (sign * jnp.minimum(room, jnp.maximum(size, 0.0))).reshape(x.shape) * scale
