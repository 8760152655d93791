"""The Euclidean ball."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, prng
from robustjax.base import Array, Delta, Key
from robustjax.threats import ball


@base.node
class L2(ball.Ball):
    """{|delta|_2 <= eps}: the change may be spread or concentrated.

    Attributes:
      eps: radius in the unit of x; a scalar, one per example [B], or one per coordinate.
      box: lower and upper bound of valid inputs; default (0., 1.).
      mask: True where the input may change; None for everywhere. More about all three at `Ball`.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> threat = rj.L2(0.5, box=(-jnp.inf, jnp.inf))
      >>> threat.project(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))), threat.norm(jnp.array([[3.0, 4.0]]))
      (Array([[0.3, 0.4]], dtype=float32), Array([5.], dtype=float32))
    """

    def init(self, key: Key, x: Array) -> Delta:
        """Uniform in the ball of the free coordinates, then clipped to the box.

        The first n of n + 2 normals on the sphere are uniform in the ball (Voelker et al., 2017).
        """
        keys = prng.example_keys(key, x.shape[0])
        key_ball, key_rest = prng.split(keys, 2)
        normals = self._masked(prng.sample(jax.random.normal, key_ball, x))
        rest = jax.vmap(lambda k: jax.random.normal(k, (2,), jnp.result_type(x)))(key_rest)
        length = jnp.sqrt(arrays.sum_examples(jnp.square(normals)) + jnp.square(rest).sum(axis=1))
        unit = normals / arrays.per_example(length, x)
        return self._clip(self._stretched(unit, x), x)

    def project(self, delta: Delta, x: Array) -> Delta:
        """Scaled into the ball, then clipped to the box: admissible, and the nearest point wherever one of the two suffices."""
        delta = self._masked(delta)
        size = arrays.norm(self.to_unit(delta), 2)
        radius = self.radius().astype(jnp.result_type(x))
        outside = size > radius
        factor = jnp.where(outside, radius / jnp.where(outside, size, 1.0), 1.0)
        return self._clip(delta * arrays.per_example(factor, x), x)

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """grad / |grad|_2 and zero where grad is zero; in the geometry of delta / eps if eps is per coordinate."""
        del x, delta
        return self.from_unit(arrays.normalize(self.from_unit(grad), 2))

    def norm(self, delta: Delta) -> Array:
        """sqrt(sum delta_i^2) [B]."""
        return arrays.norm(self.to_unit(delta), 2)

    def dual_norm(self, grad: Delta) -> Array:
        """sqrt(sum grad_i^2) [B]."""
        return arrays.norm(self.from_unit(self._masked(grad)), 2)

    def support(self, normal: Array, x: Array) -> Array:
        """The dual value min over mu of sum max over t <= room (slope t - mu t^2 / 2) + mu eps^2 / 2: see `Ball.support`.

        Any mu > 0 gives an upper bound, so that an inexact one errs on the safe side.
        """
        slope, room = ball.orthant(x, self, normal)
        radius = jnp.broadcast_to(jnp.reshape(self.radius().astype(slope.dtype), (-1, 1)), (x.shape[0], 1))
        scale = arrays.scale_of(slope)[:, None]
        slope = slope / scale
        binds = (radius > 0) & jnp.isfinite(radius)
        unit = jnp.where(binds, radius, 1.0)  # lengths in units of the radius
        slope_, room_ = jax.lax.stop_gradient((slope, room / unit))
        moving = slope_ > 0

        def length(step):  # of the maximiser min(room, step * slope), where step = 1 / mu
            return jnp.sqrt(jnp.sum(jnp.square(jnp.where(moving, jnp.minimum(room_, step * slope_), 0.0)), axis=1, keepdims=True))

        squares = jnp.square(slope_)
        bounded = moving & jnp.isfinite(room_)
        near = arrays.ratio(1.0, jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True)))
        far = jnp.max(jnp.where(bounded, room_ / jnp.where(bounded, slope_, 1.0), 0.0), axis=1, keepdims=True)
        endless = jnp.sum(jnp.where(moving & ~bounded, squares, 0.0), axis=1, keepdims=True)
        far = jnp.maximum(far, arrays.ratio(1.0, jnp.sqrt(endless)))
        fits = (length(jnp.inf) <= 1.0) | ~binds  # the whole box lies in the ball
        step, _ = ball.bisect(lambda step: length(step) < 1.0, jnp.minimum(near, far), far)
        step = jnp.where(step > 0, step, 1.0)
        at = jax.lax.stop_gradient(jnp.where(moving, jnp.minimum(room_, step * slope_), 0.0)) * unit
        at = jnp.where(moving, jnp.minimum(room, at), 0.0)
        dual = jnp.sum(slope * at - jnp.square(at) / (2.0 * step * unit), axis=1) + (jnp.square(radius) / (2.0 * step * unit))[:, 0]
        whole = jnp.sum(slope * jnp.where(moving, jnp.where(radius > 0, room, 0.0), 0.0), axis=1)
        return scale[:, 0] * jnp.where(fits[:, 0], whole, jnp.where(binds[:, 0], dual, 0.0))

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The smallest delta in the box with <normal, delta> = offset; if there is none, the corner that comes closest.

        Args:
          x: inputs [B, ...]. normal: [B, ...]. offset: [B].
        """
        scale = self.from_unit(jnp.ones_like(x))
        slope, room, goal, sign = ball.fold_to_orthant(x, self, normal, offset)
        slope, room = slope * arrays.flatten_examples(scale), arrays.ratio(room, arrays.flatten_examples(scale))
        squares = jnp.square(slope)

        def reached(step):
            return jnp.sum(slope * jnp.minimum(room, step * slope), axis=1, keepdims=True)

        # The smallest step whose delta, sign * min(room, step * slope), reaches the hyperplane: bisected between the step that would do
        # without a box and one that is enough with it.
        near = arrays.ratio(goal, jnp.sum(squares, axis=1, keepdims=True))
        bounded = jnp.isfinite(room) & (slope > 0)
        far = jnp.max(jnp.where(bounded, room / jnp.where(bounded, slope, 1.0), 0.0), axis=1, keepdims=True)
        far = jnp.maximum(far, arrays.ratio(goal, jnp.sum(jnp.where(jnp.isfinite(room), 0.0, squares), axis=1, keepdims=True)))
        step, _ = ball.bisect(lambda step: reached(step) < goal, jnp.minimum(near, far), far)
        # Which coordinates are at their bound is now known; the rest solves a linear equation for the exact step.
        free = room > step * slope
        rest = goal - jnp.sum(jnp.where(free, 0.0, slope * jnp.where(free, 0.0, room)), axis=1, keepdims=True)
        free_squares = jnp.sum(jnp.where(free, squares, 0.0), axis=1, keepdims=True)
        step = jnp.where(free_squares > 0, arrays.ratio(rest, free_squares), far)
        return (sign * jnp.minimum(room, jnp.maximum(step, 0.0) * slope)).reshape(x.shape) * scale
