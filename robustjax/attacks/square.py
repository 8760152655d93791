"""Square attack: random squares, kept where the margin falls (Andriushchenko et al., 2020). Queries only, no gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, loops, losses, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackResult, Key, LossFn, ModelFn, SuccessFn

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares shrink


def square(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat,
    num_queries: int,
    initial_fraction: float = 0.8,
    rescaled: bool = False,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn=loops.scan,
) -> AttackResult:
    """Random search over squares at +-eps (linf), or over pyramids that move mass between two windows (l2, l1).

    Args:
      key, model_fn, y, success_fn, loop_fn: as for `pgd`. An example that is fooled makes no further move.
      x: images [B, H, W, C], or vectors [B, D], whose windows are intervals.
      threat: `Linf`, `L2` or `L1`.
      num_queries: proposals, a forward pass each; x itself and the start take one more each.
      initial_fraction: of the image that the first square covers; .8 in AutoAttack. A Python number, as it fixes shapes.
      rescaled: stretch the schedule of sizes from 10,000 queries to num_queries, as the original does and AutoAttack does not.
      loss_fn: what a move must raise.

    Returns:
      The best point by (success, loss).

    Raises:
      ValueError: x of another rank, or another threat.

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049. Differs: windows are drawn per example.
    """
    objective.check(x, y)
    if x.ndim not in (2, 4):
        raise ValueError(f"square needs images [B, H, W, C] or vectors [B, D], got x of shape {x.shape}.")
    objective.require(threat, (threats.Linf, threats.L2, threats.L1), "square")
    keys = arrays.example_keys(key, x.shape[0])
    frame = _Frame(*(x.shape[1:] if x.ndim == 4 else (x.shape[1], 1, 1)))
    is_linf = isinstance(threat, threats.Linf)
    sizes = _sizes(num_queries, initial_fraction, rescaled, frame, least=1 if is_linf else 3)
    plan = {"sizes": jnp.asarray(sizes)}
    if not is_linf:
        which, table = _pyramids(sizes, frame)
        plan |= {"which": jnp.asarray(which), "table": jnp.asarray(table, x.dtype)}
    goal = objective.Goal(threat, loss_fn, success_fn)
    start = (_stripes if is_linf else _tiles)(arrays.fold_in(keys, 0), x, frame, threat)
    found = objective.evaluate(objective.step_model(model_fn, keys, 0), x, y, start, goal)
    clean = objective.evaluate(objective.step_model(model_fn, keys, num_queries + 1), x, y, jnp.zeros_like(x), goal)
    clean = clean._replace(loss=jnp.where(clean.success, clean.loss, -jnp.inf))  # an error as it is needs no query
    step = base.bind(_step, model_fn=model_fn, x=x, y=y, keys=keys, plan=plan, propose_fn=_squares if is_linf else _windows, goal=goal)
    (found,) = loop_fn(step, (objective.keep_best(clean, found),), num_queries, objective.has_succeeded)
    return objective.result(x, found, threat)


class _Frame(NamedTuple):
    height: int
    width: int
    channels: int

    def view(self, x):
        return x.reshape(x.shape[0], *self)

    def side(self, size):
        """Height and width of a window; on a vector, an interval of size positions."""
        return (size, 1) if self.width == 1 else (size, size)


def _sizes(num_queries, fraction, rescaled, frame, least):
    scale = 10_000 / num_queries if rescaled else 1.0
    sizes = []
    for query in range(num_queries):
        part = fraction / 2 ** sum(int(query * scale) > halving for halving in _HALVINGS)
        side = part * frame.height if frame.width == 1 else np.sqrt(part * frame.height * frame.width)
        size = max(round(side), least)
        if least > 1:
            size += size % 2 == 0  # pyramids need a centre
        sizes.append(min(size, frame.height if frame.width == 1 else min(frame.height, frame.width)))
    return np.asarray(sizes, np.int32)


def _step(i, carry, *, model_fn, x, y, keys, plan, propose_fn, goal):
    (found,) = carry
    query = i + 1
    proposal = propose_fn(arrays.fold_in(keys, query), x, found.delta, plan, i, goal.threat)
    candidate = objective.evaluate(objective.step_model(model_fn, keys, query), x, y, proposal, goal)
    better = (candidate.loss > found.loss) | candidate.success
    return (arrays.select(better & ~found.success, candidate, found),)


# --- linf ------------------------------------------------------------------------------------------------------------------


def _stripes(keys, x, frame, threat):
    signs = jax.vmap(lambda k: jax.random.rademacher(k, (1, frame.width, frame.channels), x.dtype))(keys)
    if frame.width == 1:  # on a vector every coordinate has its own sign
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (frame.height, 1, 1), x.dtype))(keys)
    signs = jnp.broadcast_to(signs, (x.shape[0], *frame)).reshape(x.shape)
    return threat.project(signs * arrays.per_example(threat.eps, x), x)


def _squares(keys, x, delta, plan, i, threat):
    frame = _Frame(*(x.shape[1:] if x.ndim == 4 else (x.shape[1], 1, 1)))
    inside, _ = _window(arrays.fold_in(keys, 0), frame, plan["sizes"][i])
    signs = jax.vmap(lambda k: jax.random.rademacher(jax.random.fold_in(k, 1), (1, 1, frame.channels), x.dtype))(keys)
    change = jnp.where(inside, signs, 0.0).reshape(x.shape)
    return threat.project(delta + 2.0 * arrays.per_example(threat.eps, x) * change, x)


def _window(keys, frame, size):
    # Masks [B, H, W, 1] of a random window of `size` per example, and its corner.
    height, width = frame.side(size)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys)
    top = jnp.floor(uniform[:, 0] * (frame.height - height)).astype(jnp.int32)
    left = jnp.floor(uniform[:, 1] * (frame.width - width)).astype(jnp.int32)
    rows = jnp.arange(frame.height)[None, :] - top[:, None]
    columns = jnp.arange(frame.width)[None, :] - left[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None, None] & ((columns >= 0) & (columns < width))[:, None, :, None]
    return inside, (top, left)


# --- l2 and l1 -------------------------------------------------------------------------------------------------------------


def _pyramid(size, order):
    # Two pyramids of opposite sign side by side, of norm 1 together.
    def half(height):
        block = np.zeros((height, size))
        centre = (height // 2, size // 2)
        for ring in range(max(height, size) // 2 + 1):
            rows = slice(max(centre[0] - ring, 0), centre[0] + ring + 1)
            columns = slice(max(centre[1] - ring, 0), centre[1] + ring + 1)
            block[rows, columns] += 1.0 / (ring + 1) ** 2
        return block / np.linalg.norm(block)

    pair = np.concatenate([half(size // 2), -half(size - size // 2)]) if size > 1 else np.ones((1, 1))
    return pair / np.sum(np.abs(pair) ** order) ** (1 / order)


def _pyramids(sizes, frame):
    distinct = sorted(set(sizes.tolist()))
    table = np.zeros((len(distinct), frame.height, frame.width))
    for row, size in enumerate(distinct):
        height, width = frame.side(size)
        table[row, :height, :width] = _pyramid(size, 2)[:, :width] if frame.width > 1 else _pyramid(size, 2).sum(1)[:, None]
    return np.searchsorted(distinct, sizes).astype(np.int32), table


def _order(threat):
    return 1 if isinstance(threat, threats.L1) else 2


def _rescale(delta, x, threat):
    size = threat.norm(delta)
    return threat.project(delta * arrays.per_example(threat.radius() / jnp.maximum(size, arrays.TINY), x), x)


def _tiles(keys, x, frame, threat):
    size = max(frame.height // 5, 1)
    height, width = frame.side(size)
    tile = _pyramid(size, 2)[:, :width] if frame.width > 1 else _pyramid(size, 2).sum(1)[:, None]
    rows, columns = frame.height // height, frame.width // width
    signs = jax.vmap(lambda k: jax.random.rademacher(k, (rows, 1, columns, 1, frame.channels), x.dtype))(keys)
    tiled = (signs * tile[None, None, :, None, :, None]).reshape(x.shape[0], rows * height, columns * width, frame.channels)
    pad = [(0, 0), (0, frame.height - rows * height), (0, frame.width - columns * width), (0, 0)]
    return _rescale(jnp.pad(tiled, pad).reshape(x.shape).astype(x.dtype), x, threat)


def _windows(keys, x, delta, plan, i, threat):
    frame = _Frame(*(x.shape[1:] if x.ndim == 4 else (x.shape[1], 1, 1)))
    order = _order(threat)
    size = plan["sizes"][i]
    current = frame.view(delta)
    into, corner = _window(arrays.fold_in(keys, 0), frame, size)
    out, _ = _window(arrays.fold_in(keys, 1), frame, size)
    pyramid = plan["table"][plan["which"][i]]
    flip = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 2)))(keys)
    signs = jax.vmap(lambda k: jax.random.rademacher(jax.random.fold_in(k, 3), (1, 1, frame.channels), x.dtype))(keys)

    def place(flipped, top, left):
        turned = jnp.where(flipped, pyramid.T, pyramid) if frame.height == frame.width else pyramid
        return jnp.roll(turned, (top, left), (0, 1))

    bump = jax.vmap(place)(flip, *corner)[..., None] * signs

    def mass(values, axes):
        return jnp.sum(jnp.abs(values) ** order, axis=axes, keepdims=True)

    inside = jnp.where(into, current, 0.0)
    per_channel = mass(inside, (1, 2)) ** (1 / order)
    bump = bump + inside / jnp.maximum(per_channel, arrays.TINY)
    budget = jnp.reshape(threat.radius(), (-1, 1, 1, 1)) ** order - mass(current, (1, 2, 3))
    gained = (jnp.maximum(budget, 0.0) + mass(jnp.where(into | out, current, 0.0), (1, 2, 3))) / frame.channels
    bump = bump * (gained / jnp.maximum(mass(bump, (1, 2)), arrays.TINY)) ** (1 / order)
    moved = jnp.where(into, bump, jnp.where(out, 0.0, current)).reshape(x.shape)
    return _rescale(moved, x, threat)
