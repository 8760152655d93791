"""Step-size schedules of a traced step index."""

import jax.numpy as jnp

from robustjax.base import Array, Numeric


def cosine(i: Array | int, num_steps: int, start: Numeric, end: Numeric) -> Numeric:
    """From start at step 0 down to end at num_steps along half a cosine."""
    return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * (i / num_steps)))
