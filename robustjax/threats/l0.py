"""The sparse threat: at most eps coordinates change, each as much as the box allows."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, prng
from robustjax.base import Array, Delta, Key
from robustjax.threats import ball


@base.node
class L0(ball.Ball):
    """{at most eps coordinates of delta are not zero}: few coordinates may change as much as the box allows.

    Attributes:
      eps: number of coordinates, where each channel of a pixel is one; a scalar or one per example [B].
      box: lower and upper bound of valid inputs; default (0., 1.).
      mask: True where the input may change; None for everywhere. More about both at `Ball`.
    """

    def __post_init__(self):
        ball.Ball.__post_init__(self)
        if jnp.ndim(self.eps) > 1:
            raise ValueError(f"L0's eps counts coordinates: expected a scalar or [B], got shape {jnp.shape(self.eps)}.")

    def init(self, key: Key, x: Array) -> Delta:
        """eps free coordinates at random, uniform between the bounds of the box (between -1 and 1 from x where it has none)."""
        key_chosen, key_share = prng.split(prng.example_keys(key, x.shape[0]), 2)
        chosen = arrays.top_k_mask(self._masked(prng.sample(jax.random.uniform, key_chosen, x)), self.eps)
        share = prng.sample(jax.random.uniform, key_share, x)
        low, high = self.delta_bounds(x)
        low, high = jnp.where(jnp.isfinite(low), low, -1.0), jnp.where(jnp.isfinite(high), high, 1.0)
        return self._masked(jnp.where(chosen, low + share * (high - low), 0.0))

    def project(self, delta: Delta, x: Array) -> Delta:
        """The nearest point of ball and box together: clipped, with the coordinates kept that would lose most if dropped."""
        delta = self._masked(delta)
        clipped = self._clip(delta, x)
        saved = jnp.square(delta) - jnp.square(delta - clipped)
        return jnp.where(arrays.top_k_mask(saved, self.eps), clipped, 0.0)

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """grad / |grad|_2 over the coordinates that are not at the side of the box that the gradient points to."""
        low, high = self.delta_bounds(x)
        free = jnp.where(grad > 0, delta < high, delta > low)
        return arrays.normalize(jnp.where(free, grad, 0.0), 2)

    def norm(self, delta: Delta) -> Array:
        """The number of coordinates that differ [B]."""
        return arrays.norm(delta, 0)

    def dual_norm(self, grad: Delta) -> Array:
        """max |grad_i| [B]: by convention that of l1, its convex envelope."""
        return arrays.norm(self._masked(grad), jnp.inf)

    def support(self, normal: Array, x: Array) -> Array:
        """The sum of the eps largest gains |normal_i| times the room of x_i: see `Ball.support`."""
        slope, room = ball.orthant(x, self, normal)
        gain = slope * jnp.where(slope > 0, room, 0.0)
        return jnp.sum(jnp.where(arrays.top_k_mask(gain, self.eps), gain, 0.0), axis=1)

    def interval(self, x: Array) -> tuple[Array, Array]:
        """Any coordinate may take any value of the box, unless eps is below 1."""
        low, high = self.delta_bounds(x)
        moves = arrays.per_example(self.radius() >= 1, x)
        return x + jnp.where(moves, low, 0.0), x + jnp.where(moves, high, 0.0)

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The delta of fewest coordinates in the box with <normal, delta> = offset; if there is none, the corner that comes closest.

        Args:
          x: inputs [B, ...]. normal: [B, ...]. offset: [B].
        """
        slope, room, goal, sign = ball.fold_to_orthant(x, self, normal, offset)
        return ball.spent_in_order(slope * jnp.where(slope > 0, room, 0.0), slope, room, goal, sign).reshape(x.shape)
