"""alpha-CROWN: the slopes of the lower lines of ReLUs are chosen by gradient ascent on the bound itself (Xu et al., 2021)."""

import functools

import jax
import jax.numpy as jnp
import optax

from robustjax import checks, graph, loops
from robustjax.base import Array, LoopFn, ModelFn, NormThreat, Numeric
from robustjax.bounds import _crown, linear, network, planes, relaxations
from robustjax.bounds.network import Bounds, Network


def alpha_crown(
    model_fn: ModelFn,
    x: Array,
    threat: NormThreat,
    *,
    num_steps: int = 20,
    learning_rate: Numeric = 0.1,
    decay: Numeric = 0.98,
    loop_fn: LoopFn = loops.scan,
    chunk_size: int | None = None,
) -> Bounds:
    """CROWN with the slope of every unstable ReLU's lower line optimised, for each bound of the output by itself.

    Every slope in [0, 1] gives a sound bound, so that the ascent may stop anywhere; the best bound of all steps is kept, and the first
    step is CROWN. Bounds of the layers before the output are CROWN's.

    Args:
      model_fn: x [B, ...] -> [B, ...], any Flax model or function in eval mode.
      x: inputs [B, ...].
      threat: a norm ball around x, or a `Latent` one.
      num_steps: of Adam; each costs a walk back through the network and its gradient.
      learning_rate: of the first step. decay: its factor from step to step.
      loop_fn: how the steps are run, see `robustjax.loops`.
      chunk_size: how many examples are bounded at a time; None for as many as fit: see `crown`.

    Returns:
      Bounds [B, ...] of the model's output, nowhere looser than those of `crown`.

    Guarantee:
      every x' in the threat has lower <= model_fn(x') <= upper, up to the rounding of floating-point arithmetic.
    Source: Xu et al., ICLR 2021, arXiv:2011.13824. Differs: slopes of the last walk alone are optimised.
    """
    checks.counts(num_steps=num_steps)

    def bounds(problem):
        return network.squeezed(_of_output(problem, num_steps, optax.adam(optax.exponential_decay(learning_rate, 1, decay)), loop_fn))

    return network.per_example(bounds, model_fn, x, threat, chunk_size)


def _of_output(problem: Network, num_steps, optimizer, loop_fn) -> Bounds:
    known, relaxed, found = _crown.relax(problem, "adaptive")
    rows = linear.identity(problem.output)
    bends = _bends(problem, known, found)

    def lower_bound(slopes):
        changed = {variable: planes_fn(slope) for (variable, planes_fn, _), slope in zip(bends, slopes, strict=True)}
        return linear.lower_bound(problem, problem.output, rows, known, relaxed | changed)

    def loss(slopes):
        lower = lower_bound(slopes)
        return -jnp.sum(jnp.where(jnp.isfinite(lower), lower, 0.0)), lower

    def step(_, carry):
        slopes, state, best = carry
        grad, lower = jax.grad(loss, has_aux=True)(slopes)
        grad = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0.0), grad)  # of infinite bounds
        updates, state = optimizer.update(grad, state, slopes)
        slopes = [jnp.clip(slope + update, 0.0, 1.0) for slope, update in zip(slopes, updates, strict=True)]
        return slopes, state, jnp.maximum(best, lower)

    best = linear.lower_bound(problem, problem.output, rows, known, relaxed)
    if bends:
        start = [jnp.broadcast_to(slope, (rows.shape[0], *slope.shape)) for _, _, slope in bends]
        slopes, _, best = loop_fn(step, (start, optimizer.init(start), best), num_steps)
        best = jnp.maximum(best, lower_bound(slopes))
    return linear.of_rows(best, problem.output.aval.shape)


def _bends(problem, known, found):
    """(output, slopes [R, ...] -> planes for each row, CROWN's slopes) of every equation with a ReLU in it."""
    bends = []
    for eqn in problem.program.equations:
        values = [known.get(variable) for variable in eqn.inputs]
        bounds = [found.get(variable) for variable in eqn.inputs if not graph.is_concrete(known.get(variable))]
        if any(value is None for value in (*values, *bounds)) or not bounds:
            continue
        compared = planes.bent_at_zero(eqn, values, bounds)
        if compared is not None:
            planes_fn = jax.vmap(functools.partial(planes.of, eqn, values, bounds))
            bends.append((eqn.outputs[0], planes_fn, relaxations.relu(*compared).lower_slope))
    return bends
