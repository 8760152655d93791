"""The attack of adversarial training: projected gradient steps whose last iterate counts (Madry et al., 2018)."""

from typing import Any

from robustjax import attacks, base, checks
from robustjax.base import NormThreat


def inner_pgd(threat: NormThreat, *, num_steps: int, **options: Any) -> base.Configured:
    """PGD as the inner maximum of `training.adversarial` and its relatives: steps of 2.5 eps / num_steps, and no choice among iterates.

    Training wants the end of the ascent. The best iterate, which an evaluation wants, costs one more forward pass and lets the attack
    rest on an early success.

    Args:
      threat: a norm ball, or one in the codes of a decoder.
      num_steps: number of gradients.
      **options: other arguments of `attacks.pgd`, such as `delta=attacks.small_noise` for losses whose gradient vanishes at x.

    Returns:
      The attack `(key, model_fn, x, y) -> AttackResult`.

    Raises:
      ValueError: num_steps is no positive number.

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.

    Example:
      >>> attack = training.inner_pgd(threats.Linf(0.3), num_steps=10)
      >>> float(attack.get("step_size")), attack.get("num_steps")
      (0.07500000298023224, 10)

    Source: Madry et al., ICLR 2018, arXiv:1706.06083. Differs: they take steps of .01 for 40 steps at eps .3, which is 1.3 eps / num_steps.
    """
    checks.counts(num_steps=num_steps)
    step_size = 2.5 * threat.radius() / num_steps
    return base.bind(attacks.pgd, threat=threat, step_size=step_size, num_steps=num_steps, keep_fn=attacks.keep_last, **options)
