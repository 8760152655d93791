"""How certified training begins: eps, and the weights that go with it, as functions of the step."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from robustjax import base, checks
from robustjax.attacks import combinators
from robustjax.base import Array, Numeric
from robustjax.configured import Configured

RampFn = Callable[[Array], Array]  # number of steps so far -> a factor in [0, 1], such as an optax schedule
Ends = tuple[Numeric, Numeric]  # (at factor 0, at factor 1)


def smooth_ramp(num_steps: int | Array, *, num_warmup_steps: int, num_ramp_steps: int, mid_point: float = 0.25, beta: float = 4.0) -> Array:
    """From 0 to 1, first like t^beta and from mid_point * num_ramp_steps on along its tangent.

    A linear ramp is `optax.linear_schedule(0.0, 1.0, num_ramp_steps, num_warmup_steps)`.

    Args:
      num_steps: number of steps so far.
      num_warmup_steps: steps before the ramp, at 0.
      num_ramp_steps: steps from 0 to 1.
      mid_point: the part of the ramp that is curved, in (0, 1).
      beta: exponent, above 1.

    Raises:
      ValueError: num_ramp_steps is no positive number, or num_warmup_steps is negative.

    Guarantee:
      0 up to the end of the warm-up, 1 from the end of the ramp on, never falling, with a continuous slope in between.
    Source: `SmoothedScheduler` of auto_LiRPA; Xu et al., NeurIPS 2020, arXiv:2002.12920.
    """
    checks.counts(num_ramp_steps=num_ramp_steps)
    checks.counts(0, num_warmup_steps=num_warmup_steps)
    t = jnp.clip((jnp.asarray(num_steps) - num_warmup_steps) / num_ramp_steps, 0.0, 1.0)
    # a t^beta up to m, then on with its slope; a makes the end 1
    power = mid_point ** (beta - 1.0)
    scale = 1.0 / ((1.0 - mid_point) * beta * power + power * mid_point)
    curved = scale * jnp.minimum(t, mid_point) ** beta
    return curved + scale * beta * power * jnp.maximum(t - mid_point, 0.0)


def certified_ramp(
    loss: Callable,
    num_steps: int | Array,
    *,
    ramp_fn: RampFn,
    kappa: Ends | None = None,
    beta: Ends | None = None,
    reg_weight: Ends | None = None,
) -> Configured:
    """A certified loss whose threat and attack have ramp_fn(num_steps) of their radius, and whose weights go along: a `schedule_fn`.

    Args:
      loss: a bound training loss with a `threat`, such as `certified`.
      num_steps: number of steps so far.
      ramp_fn: number of steps -> a factor in [0, 1]: `optax.linear_schedule(0.0, 1.0, num_ramp_steps, num_warmup_steps)`, or
        `base.bind(training.smooth_ramp, num_warmup_steps=..., num_ramp_steps=...)`.
      kappa: weight of the clean loss where the factor is 0 and where it is 1, such as (1., .5); None leaves it as it is bound.
      beta: the same for the `beta` of the loss's `bound_fn`, such as (1., 0.) for `bounds.crown_ibp`.
      reg_weight: the same for the weight of the regularisers, such as (.5, 0.).

    Raises:
      ValueError: a loss without a bound `threat`, weights that it does not take, or beta without a `bound_fn`.

    Example:
      >>> loss = base.bind(training.certified, threat=threats.Linf(0.3), bound_fn=bounds.interval)
      >>> half = training.certified_ramp(loss, 5, ramp_fn=optax.linear_schedule(0.0, 1.0, 10), kappa=(1.0, 0.5))
      >>> round(float(half.get("threat").eps), 3), round(float(half.get("kappa")), 3)
      (0.15, 0.75)

    Guarantee:
      none: certify the trained model.
    Source: Gowal et al., ICCV 2019, arXiv:1810.12715 (kappa); Zhang et al., ICLR 2020, arXiv:1906.06316 (beta); Shi et al., NeurIPS 2021,
      arXiv:2103.17268 (reg_weight).
    """
    if not isinstance(loss, Configured) or loss.get("threat") is None:
        raise ValueError(
            "certified_ramp scales the threat of a certified loss, and this loss has none bound; see training.eps_ramp for attacks."
        )
    factor = jnp.asarray(ramp_fn(jnp.asarray(num_steps)))
    between = lambda ends: ends[0] + factor * (ends[1] - ends[0])  # noqa: E731
    ramped: Configured = scaled(combinators.map_attacks(loss, lambda attack: scaled(attack, factor)), factor)
    weights = {name: between(ends) for name, ends in (("kappa", kappa), ("reg_weight", reg_weight)) if ends is not None}
    taken = inspect.signature(loss.function).parameters
    missing = [name for name in weights if name not in taken]
    if missing:
        raise ValueError(f"expected weights that {loss.function.__name__} takes, got {', '.join(missing)}; leave it out of certified_ramp.")
    ramped = base.bind(ramped, **weights)
    if beta is None:
        return ramped
    if ramped.get("bound_fn") is None:
        raise ValueError("beta is an option of the loss's bound_fn, and this loss has none bound; pass bound_fn=bounds.crown_ibp to it.")
    return base.bind(ramped, bound_fn=base.bind(ramped.get("bound_fn"), beta=between(beta)))


def scaled(attack: Any, factor: Array) -> Configured:
    """A function with a bound threat, and with a step size or none, for a radius times a factor."""
    options = {"threat": attack.get("threat").with_radius(factor * attack.get("threat").radius())}
    if attack.get("step_size") is not None:
        options["step_size"] = factor * attack.get("step_size")
    return base.bind(attack, **options)
