"""The Euclidean ball."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, prng
from robustjax.base import Array, Delta, Key
from robustjax.threats import ball


@base.node
class L2(ball.Ball):
    """{|delta|_2 <= eps}. Fields as in `Ball`."""

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

        near = arrays.ratio(goal, jnp.sum(squares, axis=1, keepdims=True))
        bounded = jnp.isfinite(room) & (slope > 0)
        far = jnp.max(jnp.where(bounded, room / jnp.where(bounded, slope, 1.0), 0.0), axis=1, keepdims=True)
        far = jnp.maximum(far, arrays.ratio(goal, jnp.sum(jnp.where(jnp.isfinite(room), 0.0, squares), axis=1, keepdims=True)))
        step, _ = ball.bisect(lambda step: reached(step) < goal, jnp.minimum(near, far), far)
        free = room > step * slope
        rest = goal - jnp.sum(jnp.where(free, 0.0, slope * jnp.where(free, 0.0, room)), axis=1, keepdims=True)
        free_squares = jnp.sum(jnp.where(free, squares, 0.0), axis=1, keepdims=True)
        step = jnp.where(free_squares > 0, arrays.ratio(rest, free_squares), far)
        return (sign * jnp.minimum(room, jnp.maximum(step, 0.0) * slope)).reshape(x.shape) * scale
