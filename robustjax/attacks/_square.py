"""Square attack: random squares, kept where the margin falls (Andriushchenko et al., 2020). Queries only, no gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, loops, losses, prng, threats
from robustjax.attacks import objective
from robustjax.base import Array, AttackInfo, AttackResult, Key, LoopFn, LossFn, ModelFn, NormThreat, SuccessFn

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares shrink


def square(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    num_queries: int,
    initial_fraction: float = 0.8,
    rescaled: bool = False,
    loss_fn: LossFn = losses.margin,
    success_fn: SuccessFn = losses.misclassified,
    loop_fn: LoopFn = loops.scan,
) -> AttackResult:
    """Random search over squares at +-eps (linf), or over pyramids that move mass between two windows (l2, l1).

    Args:
      key, model_fn: one key or one per example, and a model x [B, ...] -> logits [B, C], of which only outputs are used.
      x, y: images [B, H, W, C] in the box, or vectors [B, D], whose windows are intervals; labels [B].
      threat: `Linf`, `L2` or `L1`.
      num_queries: proposals, with a forward pass each; x itself and the start take one more each.
      initial_fraction: of the image that the first square covers; .8 in AutoAttack.
      rescaled: stretch the schedule of sizes from 10,000 queries to num_queries, as the original does and AutoAttack does not.
      loss_fn: (logits, y) -> [B], what a move must raise.
      success_fn: (logits, y) -> [B], what counts as fooled; a fooled example makes no further move.
      loop_fn: how the steps are run, see `robustjax.loops`.

    Returns:
      The best point by (success, loss); `info.num_queries` counts the outputs asked for until it succeeded, x and the start included.

    Raises:
      ValueError: x of another rank, or another threat.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> result = rj.attacks.square(jax.random.key(0), lambda x: x, x, y, threat=rj.Linf(0.125), num_queries=20)
      >>> bool(result.success[0]), int(result.info.num_queries[0]) <= 22
      (True, True)

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049. Differs: windows are drawn per example, and reach the last
      row and column, which the authors' code leaves out.
    """
    objective.check(model_fn, x, y, threat, num_queries=num_queries)
    if x.ndim not in (2, 4):
        raise ValueError(f"square needs images [B, H, W, C] or vectors [B, D], got x of shape {x.shape}.")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 4:
        raise ValueError(f"square needs images [B, H, W, C], and {x.shape} looks like [B, C, H, W]; pass x.transpose(0, 2, 3, 1).")
    objective.require_threat(threat, (threats.Linf, threats.L2, threats.L1), "square", latent=False)
    if isinstance(initial_fraction, int | float) and not 0 < initial_fraction <= 1:
        raise ValueError(f"initial_fraction={initial_fraction} must lie in (0, 1]; .8 is AutoAttack's.")
    frame = _frame(x)
    is_linf = isinstance(threat, threats.Linf)
    sizes = _sizes(num_queries, initial_fraction, rescaled, frame, least=1 if is_linf else 3)
    keys = objective.streams(key, x)
    problem = objective.Problem(model_fn, x, y, threat, loss_fn, success_fn)
    start = (_stripes if is_linf else _tiles)(keys.start, x, frame, threat)
    found = objective.evaluate(objective.step_problem(problem, keys.model, 0), start)
    clean = objective.evaluate(objective.step_problem(problem, keys.model, num_queries + 1), jnp.zeros_like(x))
    clean = clean._replace(loss=jnp.where(clean.success, clean.loss, -jnp.inf))  # an error as it is needs no query
    step = base.bind(_step, problem=problem, keys=keys, sizes=sizes, propose_fn=_squares if is_linf else _windows)
    found = objective.keep_best(clean, found)
    spent, found = loop_fn(step, (jnp.full(x.shape[0], 2, jnp.int32), found), num_queries, objective.has_succeeded)
    return objective.result(problem, found, AttackInfo(num_queries=spent))


class _Frame(NamedTuple):
    height: int
    width: int
    channels: int

    def view(self, x):
        return x.reshape(x.shape[0], *self)

    @property
    def longest(self):
        """The side of the largest window."""
        return self.height if self.width == 1 else min(self.height, self.width)

    def side(self, size):
        """Height and width of a window; on a vector, an interval of size positions."""
        return (size, 1) if self.width == 1 else (size, size)


def _frame(x):
    return _Frame(*(x.shape[1:] if x.ndim == 4 else (x.shape[1], 1, 1)))


def _sizes(num_queries, fraction, rescaled, frame, least):
    # The side of the window at every query [num_queries]; the fraction may be traced.
    scale = 10_000 / num_queries if rescaled else 1.0
    passed = (np.arange(num_queries) * scale).astype(int)[:, None] > np.asarray(_HALVINGS)
    part = fraction / jnp.asarray(2.0 ** passed.sum(axis=1), jnp.float32)
    side = part * frame.height if frame.width == 1 else jnp.sqrt(part * (frame.height * frame.width))
    size = jnp.maximum(jnp.round(side).astype(jnp.int32), least)
    if least > 1:
        size += 1 - size % 2  # pyramids need a centre
    return jnp.minimum(size, frame.longest)


def _step(i, carry, *, problem, keys, sizes, propose_fn):
    spent, found = carry
    query = i + 1
    problem = objective.step_problem(problem, keys.model, query)
    proposal = propose_fn(prng.fold_in(keys.own, query), problem.x, found.delta, sizes[i], problem.threat)
    candidate = objective.evaluate(problem, proposal)
    better = (candidate.loss > found.loss) | candidate.success
    return spent + (~found.success).astype(spent.dtype), arrays.where_example(better & ~found.success, candidate, found)


# --- linf ------------------------------------------------------------------------------------------------------------------


def _stripes(keys, x, frame, threat):
    shape = (frame.height, 1, 1) if frame.width == 1 else (1, frame.width, frame.channels)  # on a vector every coordinate has its own sign
    signs = jax.vmap(lambda k: jax.random.rademacher(k, shape, x.dtype))(keys)
    signs = jnp.broadcast_to(signs, (x.shape[0], *frame)).reshape(x.shape)
    return threat.project(_whole(signs, x, threat), x)


def _squares(keys, x, delta, size, threat):
    frame = _frame(x)
    place, signs = _draws(keys, 2, frame)
    inside, _ = _window(place, frame, size)
    # Algorithm 2 of the paper: one sign for each channel of the square, and a change of 2 eps, which the projection cuts to +-eps.
    change = jnp.where(inside, signs, 0.0).astype(x.dtype).reshape(x.shape)
    return threat.project(delta + 2.0 * _whole(change, x, threat), x)


def _draws(keys, num_values, frame):
    # All that a proposal draws, at once: uniform values [B, num_values], and a sign for every channel [B, 1, 1, C].
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (num_values + frame.channels,)))(keys)
    return uniform[:, :num_values], jnp.where(uniform[:, None, None, num_values:] < 0.5, -1.0, 1.0)


def _whole(signs, x, threat):
    # Signs at the full radius.
    return threat.from_unit(arrays.per_example(threat.finite_radius(x), x) * signs)


def _window(uniform, frame, size):
    # Masks [B, H, W, 1] of a window of `size` per example at a place drawn as uniform [B, 2], and its corner. The size may be traced, so
    # that masks stand for slices.
    height, width = frame.side(size)
    places = jnp.asarray([frame.height - height + 1, frame.width - width + 1]).astype(uniform.dtype)  # the last one included
    top, left = jnp.floor(uniform * places[None]).astype(jnp.int32).T
    rows = jnp.arange(frame.height)[None, :] - top[:, None]
    columns = jnp.arange(frame.width)[None, :] - left[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None, None] & ((columns >= 0) & (columns < width))[:, None, :, None]
    return inside, (top, left)


# --- l2 and l1 -------------------------------------------------------------------------------------------------------------


def _pyramid(size, frame):
    """Two pyramids of opposite sign, one below the other, in the first `size` rows and columns of a frame [H, W]; of l2 norm 1."""
    rows, columns = jnp.arange(frame.height)[:, None], jnp.arange(frame.width)[None, :]
    upper, lower = size // 2, size - size // 2  # heights of the two
    is_upper = rows < upper
    row_centre = jnp.where(is_upper, upper // 2, upper + lower // 2)
    ring = jnp.abs(rows - row_centre)
    if frame.width > 1:
        ring = jnp.maximum(ring, jnp.abs(columns - size // 2))
    # The rings k = ring, ..., size // 2 around the centre each add 1 / (k + 1)^2.
    harmonic = jnp.asarray(np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, frame.longest // 2 + 2) ** 2)]), jnp.float32)
    last = size // 2 + 1
    height, width = frame.side(size)
    heap = jnp.where((rows < height) & (columns < width), harmonic[last] - harmonic[jnp.minimum(ring, last)], 0.0)
    halves = [jnp.where(part, heap, 0.0) for part in (is_upper, ~is_upper)]
    plus, minus = (half * arrays.ratio(1.0, jnp.sqrt(jnp.square(half).sum())) for half in halves)
    pair = plus - minus
    return pair / jnp.sqrt(jnp.square(pair).sum())


def _order(threat):
    return 1 if isinstance(threat, threats.L1) else 2


def _rescale(delta, x, threat):
    return threat.project(delta * arrays.per_example(arrays.ratio(threat.finite_radius(x), threat.norm(delta)), x), x)


def _tiles(keys, x, frame, threat):
    size = max(frame.height // 5, 1)
    height, width = frame.side(size)
    tile = _pyramid(size, frame)[:height, :width].astype(x.dtype)
    rows, columns = frame.height // height, frame.width // width
    signs = jax.vmap(lambda k: jax.random.rademacher(k, (rows, 1, columns, 1, frame.channels), x.dtype))(keys)
    tiled = (signs * tile[None, None, :, None, :, None]).reshape(x.shape[0], rows * height, columns * width, frame.channels)
    pad = [(0, 0), (0, frame.height - rows * height), (0, frame.width - columns * width), (0, 0)]
    return _rescale(threat.from_unit(jnp.pad(tiled, pad).reshape(x.shape)), x, threat)


def _windows(keys, x, delta, size, threat):
    # Algorithm 3 of the paper, in l1 with the exponent 1 for 2: the mass of the window `out` moves to the window `into`.
    frame = _frame(x)
    order = _order(threat)
    current = frame.view(threat.to_unit(delta))
    places, signs = _draws(keys, 5, frame)
    into, corner = _window(places[:, :2], frame, size)
    out, _ = _window(places[:, 2:4], frame, size)
    pyramid = _pyramid(size, frame).astype(x.dtype)
    flip = places[:, 4] < 0.5

    def place(flipped, top, left):
        turned = jnp.where(flipped, pyramid.T, pyramid) if frame.height == frame.width else pyramid
        return jnp.roll(turned, (top, left), (0, 1))

    bump = jax.vmap(place)(flip, *corner)[..., None] * signs.astype(x.dtype)

    def mass(values, axes):
        return jnp.sum(jnp.abs(values) ** order, axis=axes, keepdims=True)

    # The paper's nu_temp: the new pyramid, plus what the window holds at present, normalised channel by channel.
    inside = jnp.where(into, current, 0.0)
    per_channel = mass(inside, (1, 2)) ** (1 / order)
    bump = bump + arrays.ratio(1.0, per_channel) * inside
    # Its eps_avail: what the ball leaves unused and what both windows held goes to the new one, the same amount to every channel.
    budget = jnp.reshape(threat.finite_radius(x), (-1, 1, 1, 1)) ** order - mass(current, (1, 2, 3))
    gained = (jnp.maximum(budget, 0.0) + mass(jnp.where(into | out, current, 0.0), (1, 2, 3))) / frame.channels
    bump = bump * arrays.ratio(gained, mass(bump, (1, 2))) ** (1 / order)
    # One window is filled, the other emptied.
    moved = jnp.where(into, bump, jnp.where(out, 0.0, current)).reshape(x.shape)
    return _rescale(threat.from_unit(moved), x, threat)
