"""One perturbation for a whole batch: universal perturbations, and the patches and triggers that are made in the same way."""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import base, prng
from robustjax.base import Array, Delta, Key, Numeric
from robustjax.threats.ball import Ball


@base.node
class Shared:
    """{delta in a ball, the same for every example}: delta leads with 1, and each input x + delta is clipped to the box of the ball.

    `attacks.pgd` and its relatives ascend the summed loss of the batch and keep the delta of largest mean loss; `loss` and `success` of
    the result are of every example [B].

    Attributes:
      ball: a `Linf`, `L2`, `L1` or `L0` with one eps, or eps per coordinate [1, ...].

    Raises:
      TypeError: no ball. ValueError: an eps for every example, which one perturbation cannot have.

    Source: Moosavi-Dezfooli et al., CVPR 2017, arXiv:1610.08401; ascent in place of DeepFool: Shafahi et al., AAAI 2020, arXiv:1811.11304.
    """

    ball: Any

    def __post_init__(self):
        if not isinstance(self.ball, Ball):
            raise TypeError(
                f"expected a ball to share, such as threats.Linf(8 / 255), got {self.ball!r} of type {type(self.ball).__name__}."
            )
        if jnp.ndim(self.ball.eps) > 0 and jnp.shape(self.ball.eps)[0] != 1:
            raise ValueError(f"one perturbation has one eps: expected a scalar or [1, ...], got shape {jnp.shape(self.ball.eps)}.")

    def init(self, key: Key, x: Array) -> Delta:
        """Random in the ball [1, ...]."""
        return self._unboxed().init(prng.example_keys(key, x.shape[0])[:1], x[:1])

    def project(self, delta: Delta, x: Array) -> Delta:
        """Into the ball [1, ...]; the box is a matter of each input, see `apply`."""
        return self._unboxed().project(delta, x[:1])

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """As the ball, of the summed gradient [1, ...]."""
        return self._unboxed().steepest(grad, x[:1], delta)

    def apply(self, x: Array, delta: Delta) -> Array:
        """x + delta, clipped to the box [B, ...]."""
        low, high = self.ball.delta_bounds(x)
        return x + jnp.clip(delta, min=low, max=high)

    def norm(self, delta: Delta) -> Array:
        """Of the shared delta [1]."""
        return self.ball.norm(delta)

    def within(self, delta: Delta) -> Array:
        """Whether the shared delta is in the ball [1]."""
        return self.ball.within(delta)

    def radius(self) -> Array:
        """eps, as of the ball."""
        return self.ball.radius()

    def finite_radius(self, x: Array) -> Array:
        """A length for steps [1]."""
        return self.ball.finite_radius(x[:1])

    def with_radius(self, radius: Numeric) -> "Shared":
        """The same threat of another radius."""
        return Shared(self.ball.with_radius(radius))

    def check(self, x: Array) -> None:
        """An error about inputs outside the box."""
        self.ball.check(x)

    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """As the ball of one example."""
        self.ball.check_shapes((1, *shape[1:]))

    @property
    def box(self) -> tuple[Any, Any]:
        """Of the inputs."""
        return self.ball.box

    def _unboxed(self):
        return self.ball.replace(box=(-jnp.inf, jnp.inf))


def is_shared(delta: Delta, num_examples: int) -> bool:
    """Whether a perturbation leads with 1 where the batch does not: then one example cannot be told from the others."""
    return num_examples > 1 and all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(delta))
