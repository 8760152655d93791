"""The threat on a manifold: a perturbation of the code that a decoder turns into an input (Stutz et al., 2019)."""

from typing import Any

import jax.numpy as jnp

from robustjax import base
from robustjax.base import Array, Delta, Key, Numeric
from robustjax.threats import ball, linf


@base.node
class Latent:
    """{decoder(z + delta): delta in a ball of codes}. What attacks call x is the code z [B, K]; `result.x` is decoded.

    Attributes:
      decoder: codes [B, K] -> inputs [B, ...], a callable pytree (a module, or `base.bind(function, ...)`).
      eps: radius in linf and in the unit of the codes, without a box; or a `Ball` of codes, with the box and mask of codes.

    Source: on-manifold attacks, Stutz et al., CVPR 2019, arXiv:1812.00740.
    """

    decoder: Any
    eps: Any

    @property
    def ball(self) -> Any:
        """The ball of codes."""
        return self.eps if isinstance(self.eps, ball.Ball) else linf.Linf(self.eps, box=(-jnp.inf, jnp.inf))

    def apply(self, x: Array, delta: Delta) -> Array:
        """The decoded perturbed code."""
        return self.decoder(self.ball.apply(x, delta))

    def init(self, key: Key, x: Array) -> Delta:
        """A random perturbation from the ball of codes."""
        return self.ball.init(key, x)

    def project(self, delta: Delta, x: Array) -> Delta:
        """The projection of the ball of codes."""
        return self.ball.project(delta, x)

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """The ball's direction of steepest ascent."""
        return self.ball.steepest(grad, x, delta)

    def norm(self, delta: Delta) -> Array:
        """The norm of the code's perturbation [B]."""
        return self.ball.norm(delta)

    def dual_norm(self, grad: Delta) -> Array:
        """The dual norm of a gradient in the code [B]."""
        return self.ball.dual_norm(grad)

    def check(self, x: Array) -> None:
        """Raises an error where codes lie outside their box."""
        self.ball.check(x)

    def within(self, delta: Delta) -> Array:
        """Whether the code's perturbation is at most eps [B]."""
        return self.ball.within(delta)

    def radius(self) -> Array:
        """eps of the codes."""
        return self.ball.radius()

    def with_radius(self, radius: Numeric) -> "Latent":
        """The same threat of another radius."""
        return Latent(self.decoder, self.ball.with_radius(radius))

    def delta_bounds(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest perturbation of every code."""
        return self.ball.delta_bounds(x)

    def support(self, normal: Array, x: Array) -> Array:
        """The maximum of <normal, delta> over the codes' ball and box [B]."""
        return self.ball.support(normal, x)

    def interval(self, x: Array) -> tuple[Array, Array]:
        """The least and the greatest value of each coordinate of the codes."""
        return self.ball.interval(x)

    def hyperplane(self, x: Array, normal: Array, offset: Array) -> Delta:
        """The smallest perturbation of the code with <normal, delta> = offset."""
        return self.ball.hyperplane(x, normal, offset)

    def finite_radius(self, x: Array) -> Array:
        """A length for steps and starts [B]."""
        return self.ball.finite_radius(x)

    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Raises an error where the ball does not fit codes of this shape."""
        self.ball.check_shapes(shape)

    def max_norm(self, x: Array) -> Array:
        """The norm of the largest perturbation that the box of codes allows [B]."""
        return self.ball.max_norm(x)

    @property
    def box(self) -> tuple[Any, Any]:
        """The box of the codes."""
        return self.ball.box

    def to_unit(self, delta: Delta) -> Delta:
        """delta / eps if the eps of the codes is per coordinate, else delta."""
        return self.ball.to_unit(delta)

    def from_unit(self, unit: Delta) -> Delta:
        """The inverse of `to_unit`."""
        return self.ball.from_unit(unit)

    def take_rows(self, rows: Array, num_examples: int, rank: int) -> "Latent":
        """The same threat for some of N codes."""
        return Latent(self.decoder, self.ball.take_rows(rows, num_examples, rank))
