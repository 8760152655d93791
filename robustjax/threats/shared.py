"""One perturbation for a whole batch: universal perturbations, patches and triggers."""

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
      TypeError: what is shared is no ball. ValueError: an eps for every example, which one perturbation cannot have.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5], [0.9, 0.4]]), jnp.array([0, 0])
      >>> attack = rj.bind(rj.attacks.pgd, threat=rj.threats.Shared(rj.Linf(0.125)), step_size=0.05, num_steps=9)
      >>> attack(jax.random.key(0), lambda x: x, x, y).delta
      Array([[-0.125,  0.125]], dtype=float32)

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
        """Into the ball [1, ...]; not into the box, to which `apply` clips each input by itself."""
        return self._unboxed().project(delta, x[:1])

    def steepest(self, grad: Delta, x: Array, delta: Delta) -> Delta:
        """The ball's direction for the summed gradient [1, ...]."""
        return self._unboxed().steepest(grad, x[:1], delta)

    def apply(self, x: Array, delta: Delta) -> Array:
        """x + delta, clipped to the box [B, ...]."""
        low, high = self.ball.delta_bounds(x)
        return x + jnp.clip(delta, min=low, max=high)

    def norm(self, delta: Delta) -> Array:
        """The norm of the shared delta [1]."""
        return self.ball.norm(delta)

    def within(self, delta: Delta) -> Array:
        """Whether the shared delta is in the ball [1]."""
        return self.ball.within(delta)

    def radius(self) -> Array:
        """eps of the ball."""
        return self.ball.radius()

    def finite_radius(self, x: Array) -> Array:
        """A length for steps [1]."""
        return self.ball.finite_radius(x[:1])

    def with_radius(self, radius: Numeric) -> "Shared":
        """The same threat of another radius."""
        return Shared(self.ball.with_radius(radius))

    def check(self, x: Array) -> None:
        """Raises an error where inputs lie outside the box."""
        self.ball.check(x)

    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Raises an error where the ball does not fit one example."""
        self.ball.check_shapes((1, *shape[1:]))

    @property
    def box(self) -> tuple[Any, Any]:
        """The box of valid inputs."""
        return self.ball.box

    def _unboxed(self):
        return self.ball.replace(box=(-jnp.inf, jnp.inf))


def is_shared(delta: Delta, num_examples: int) -> bool:
    """Whether a perturbation leads with 1 where the batch does not: then one example cannot be told from the others."""
    return num_examples > 1 and all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(delta))
