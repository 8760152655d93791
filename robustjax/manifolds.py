"""Known manifolds: decoders that take codes to inputs exactly, and the inversion of any decoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import arrays, base, loops, prng
from robustjax.base import Array, Key, LoopFn, Numeric


@base.node
class Pca:
    """The affine space of the first principal components: decoder(z) = mean + (z * scale) components.

    Attributes:
      mean: [...] of the inputs.
      components: [K, D] orthonormal rows.
      scale: [K] standard deviations along them, so that codes have unit variance.
    """

    mean: Any
    components: Any
    scale: Any

    def __call__(self, code: Array) -> Array:
        """Codes [B, K] -> inputs [B, ...]."""
        flat = (code * self.scale[None]) @ self.components + self.mean.reshape(1, -1)
        return flat.reshape(code.shape[0], *self.mean.shape)

    def encode(self, x: Array) -> Array:
        """The code of the nearest point of the space: [B, ...] -> [B, K]."""
        return ((arrays.flatten_examples(x) - self.mean.reshape(1, -1)) @ self.components.T) / self.scale[None]


def affine_warp(code: Array, *, image_shape: tuple[int, int, int]) -> Array:
    """The image in a code, transformed by the six numbers before it: the exact manifold of affine transformations.

    A code is (shift right, shift down, shear along x, shear along y, scale - 1, rotation in radians) and the pixels; zeros do not
    change the image. Shifts are fractions of half the side. The threat `Linf(eps, mask=arange(K) < 6)` does not change the pixels.

    Args:
      code: [B, 6 + H * W * C], see `warp_code`.
      image_shape: (H, W, C).

    Returns:
      Images [B, H, W, C], by bilinear interpolation, with 0 outside.

    Source: the generator of FONTS in Stutz et al., CVPR 2019, arXiv:1812.00740.
    """
    height, width, channels = image_shape
    if code.shape[1] != 6 + height * width * channels:
        raise ValueError(f"expected codes [B, 6 + {height * width * channels}] for images {image_shape}, got {code.shape}.")
    return jax.vmap(lambda one: _warped(one[:6], one[6:].reshape(image_shape)))(code)


def warp_code(x: Array) -> Array:
    """The codes of images that are not transformed: six zeros and the pixels."""
    return jnp.concatenate([jnp.zeros((x.shape[0], 6), x.dtype), arrays.flatten_examples(x)], axis=1)


def _warped(theta, image):
    right, down, shear_x, shear_y, growth, angle = theta
    height, width, _ = image.shape
    rows, columns = jnp.meshgrid(jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width), indexing="ij")
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # Every pixel of the output asks for the place in the input that it comes from: the inverse of each transformation, the last one first.
    u, v = columns - right, rows - down
    u, v = cosine * u + sine * v, cosine * v - sine * u
    u, v = u / (1.0 + growth), v / (1.0 + growth)
    u, v = u - shear_x * v, v - shear_y * u
    places = [(v + 1.0) * 0.5 * (height - 1), (u + 1.0) * 0.5 * (width - 1)]
    return jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, order=1), in_axes=-1, out_axes=-1)(image)


class Inversion(NamedTuple):
    """The codes found for inputs."""

    code: Array  # [B, K]
    error: Array  # [B] |decoder(code) - x|_2


class _State(NamedTuple):
    code: Array
    memory: Any
    best: Inversion


def invert(
    key: Key,
    decoder: Callable[[Array], Array],
    x: Array,
    *,
    num_codes: int,
    num_steps: int,
    learning_rate: Numeric,
    num_restarts: int = 1,
    box: Any = (-jnp.inf, jnp.inf),
    loop_fn: LoopFn = loops.scan,
) -> Inversion:
    """min over z of |decoder(z) - x|_2 by Adam from normal starts: codes for inputs that have none.

    Args:
      key: one key, or one per example.
      decoder: codes [B, K] -> inputs [B, ...].
      x: inputs [B, ...].
      num_codes: K.
      num_steps, learning_rate: of Adam.
      num_restarts: starts per example, one after the other; the best code is kept.
      box: (lower, upper) bounds of the codes.
      loop_fn: (step, carry, num_steps, done_fn) -> carry, see `loops`.

    Returns:
      The best codes of all steps and starts.

    Raises:
      ValueError: the outputs of the decoder have another shape than x.

    Guarantee:
      none: a local minimum.
    Source: the projection of Samangouei et al., ICLR 2018, arXiv:1805.06605. Differs: Adam, and the best iterate.
    """
    keys = prng.example_keys(key, x.shape[0])
    shape = jax.ShapeDtypeStruct((x.shape[0], num_codes), x.dtype)
    decoded = jax.eval_shape(decoder, shape)
    if decoded.shape != x.shape:
        raise ValueError(f"the decoder makes {decoded.shape} of codes {shape.shape}, but x is {x.shape}; they must agree.")
    best = Inversion(jnp.zeros(shape.shape, x.dtype), jnp.full(x.shape[0], jnp.inf, x.dtype))

    def start(best, restart):
        code = prng.sample(jax.random.normal, prng.fold_in(keys, restart), best.code)
        step = base.bind(_step, decoder=decoder, x=x, learning_rate=learning_rate, box=box)
        memory = jax.vmap(optax.scale_by_adam().init)(code)
        state = loop_fn(step, _State(code, memory, best), num_steps)
        return _better(state.best, state.code, _error(decoder, state.code, x)), None

    if loops.is_host(loop_fn):
        for restart in range(num_restarts):
            best, _ = start(best, restart)
        return best
    return jax.lax.scan(start, best, jnp.arange(num_restarts))[0]


def _step(i, state, *, decoder, x, learning_rate, box):
    del i

    def total(code):
        error = _error(decoder, code, x)
        return jnp.square(error).sum(), error

    grad, error = jax.grad(total, has_aux=True)(state.code)
    best = _better(state.best, state.code, error)
    update, memory = jax.vmap(optax.scale_by_adam().update)(grad, state.memory)
    return _State(jnp.clip(state.code - learning_rate * update, *box), memory, best)


def _error(decoder, code, x):
    return arrays.norm(decoder(code) - x, 2)


def _better(best, code, error):
    return arrays.where_example(error < best.error, Inversion(code, error), best)
