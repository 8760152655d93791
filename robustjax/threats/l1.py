"""The l1 ball, projected exactly together with the box."""

import jax
import jax.numpy as jnp

from robustjax import arrays, base, prng
from robustjax.base import Array, Delta, Key
from robustjax.threats import ball

_COARSE = 0.25  # of the radius: how near the threshold is first bracketed,
_NUM_FINE = 18  # and the bisections for what is left, to a millionth of the radius


@base.node
class L1(ball.Ball):
    """{sum |delta_i| <= eps}: few coordinates may change a lot.

    Attributes:
      eps: radius in the unit of x; a scalar, one per example [B], or one per coordinate.
      box: lower and upper bound of valid inputs; default (0., 1.).
      mask: True where the input may change; None for everywhere. More about all three at `Ball`.
      top_fraction: the fraction of coordinates that `steepest` moves at once (at least one). Strictly, steepest ascent moves one;
        a hundredth is the convention (Tramer & Boneh, 2019).
    """

    top_fraction: float = 0.01

    def init(self, key: Key, x: Array) -> Delta:
        """Uniform in the ball of the free coordinates, then clipped to the box.

        n of n + 1 exponentials divided by their sum are uniform in the simplex and its interior; signs are fair coins.
        """
        key_ball, key_rest = prng.split(prng.example_keys(key, x.shape[0]), 2)
        laplace = self._masked(prng.sample(jax.random.laplace, key_ball, x))
        rest = jax.vmap(lambda k: jax.random.exponential(k, (), jnp.result_type(x)))(key_rest)
        unit = laplace / arrays.per_example(arrays.norm(laplace, 1) + rest, x)
        return self._clip(self._stretched(unit, x), x)

    def project(self, delta: Delta, x: Array) -> Delta:
        """The nearest point of ball and box together: soft-thresholding clipped to the box, its threshold bisected, then solved exactly.

        With eps per coordinate the nearest in units of eps. The nearest to rounding up to about a million eps away; from farther away it is
        still admissible.
        """
        low, high = (arrays.flatten_examples(jnp.broadcast_to(self.to_unit(bound), x.shape)) for bound in self.delta_bounds(x))
        d = arrays.flatten_examples(self.to_unit(self._masked(delta)))
        room = jnp.where(d > 0, high, -low)
        size = arrays.absolute(d)
        radius = jnp.broadcast_to(jnp.reshape(self.radius().astype(jnp.result_type(x)), (-1, 1)), (x.shape[0], 1))

        # The threshold t is sought from above, as s = top - t, and then as the distance r that s lies beyond the last coordinate to start
        # moving: what must be exact, however far delta is outside the ball, is r, which is of the size of eps.
        top = jax.lax.stop_gradient(jnp.max(size, axis=1, keepdims=True, initial=0.0))
        gap = top - size
        unshrunk = jnp.minimum(size, room)
        inside = jnp.sum(unshrunk, axis=1, keepdims=True) <= radius
        radius = jnp.where(inside, 0.0, radius)  # may be infinite there
        gap_, room_, radius_ = jax.lax.stop_gradient((gap, room, radius))

        def falls_short(ahead):
            return jnp.sum(jnp.clip(ahead, min=0.0, max=room_), axis=1, keepdims=True) < radius_

        least = jnp.minimum(radius_ / max(arrays.size(x), 1), top)  # no smaller s uses up the radius
        width = jnp.where(inside, jnp.inf, _COARSE * radius_)  # nothing to seek inside
        low, high = ball.bracket(lambda s: falls_short(s - gap_), least, top, width)
        last = jnp.max(jnp.where(gap <= high, gap, 0.0), axis=1, keepdims=True, initial=0.0)
        ahead = last - gap
        r, _ = ball.bisect(lambda r: falls_short(jax.lax.stop_gradient(ahead) + r), low - last, high - last, _NUM_FINE)
        saturated = ahead + r >= room
        moving = (ahead + r > 0) & ~saturated
        rest = radius - jnp.sum(jnp.where(saturated, room, jnp.where(moving, ahead, 0.0)), axis=1, keepdims=True)
        exact = arrays.ratio(rest, jnp.sum(moving, axis=1, keepdims=True).astype(rest.dtype), r)
        moved = jnp.where(inside, unshrunk, jnp.clip(ahead + exact, min=0.0, max=room))
        return self.from_unit((jnp.sign(d) * moved).reshape(x.shape))

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """The signs of the largest free gradients, of l1 norm 1; free = not at the side of the box that the gradient points to."""
        low, high = self.delta_bounds(x)
        free = jnp.where(grad > 0, delta < high, delta > low) & (grad != 0)
        scores = jnp.where(free, arrays.absolute(self.from_unit(grad)), 0.0)
        num_coordinates = arrays.size(x)
        top = arrays.top_k_mask(scores, jnp.maximum(1, jnp.round(self.top_fraction * num_coordinates))) & free
        return self.from_unit(arrays.normalize(jnp.where(top, jnp.sign(grad), 0.0), 1))

    def norm(self, delta: Delta) -> Array:
        """sum |delta_i| [B]."""
        return arrays.norm(self.to_unit(delta), 1)

    def dual_norm(self, grad: Delta) -> Array:
        """max |grad_i| [B]."""
        return arrays.norm(self.from_unit(self._masked(grad)), jnp.inf)

    def support(self, normal: Array, x: Array) -> Array:
        """The radius is spent on the coordinates of largest slope, each up to its side of the box: see `Ball.support`."""
        slope, room = ball.orthant(x, self, normal)
        order = jnp.argsort(-slope, axis=1)
        slope, room = (jnp.take_along_axis(a, order, axis=1) for a in (slope, room))
        radius = jnp.reshape(self.radius().astype(slope.dtype), (-1, 1))
        open_ended = jnp.cumsum(jnp.isinf(room), axis=1) - jnp.isinf(room) > 0
        finite = jnp.where(jnp.isinf(room), 0.0, room)
        spent = jnp.where(open_ended, jnp.inf, jnp.cumsum(finite, axis=1) - finite)
        used = jnp.where(spent < radius, jnp.minimum(room, jnp.where(spent < radius, radius - spent, 0.0)), 0.0)
        return jnp.sum(slope * jnp.where(slope > 0, used, 0.0), axis=1)

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The smallest delta in the box with <normal, delta> = offset; if there is none, the corner that comes closest.

        Coordinates go to their bound in the order of |normal|, until the hyperplane is reached.

        Args:
          x: inputs [B, ...]. normal: [B, ...]. offset: [B].
        """
        slope, room, goal, sign = ball.fold_to_orthant(x, self, normal, offset)
        return ball.spent_in_order(slope * arrays.flatten_examples(self.from_unit(jnp.ones_like(x))), slope, room, goal, sign).reshape(
            x.shape
        )
