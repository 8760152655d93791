"""AutoAttack: a parameter-free ensemble of APGD, FAB and Square (Croce & Hein, 2020)."""

from robustjax import base, checks, losses, threats
from robustjax.attacks import _apgd, _fab, _square, combinators, goals
from robustjax.base import Array, Attack, AttackResult, Key, LoopFn, ModelFn, NormThreat

VERSIONS = ("standard", "plus", "rand", "quick")


def autoattack(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: NormThreat,
    version: str = "standard",
    loop_fn: LoopFn | None = None,
    **budget,
) -> AttackResult:
    """The worst case over the attacks of `ensemble`, all of them run on every example.

    `robustjax.evaluate` runs the same ensemble on survivors only, which is what it costs in the paper.

    Args:
      key, model_fn, x, y: one key or one per example, a model x [B, ...] -> logits [B, C], inputs [B, ...] in the box, labels [B].
      threat: `Linf`, `L2` or `L1`.
      version: "standard", "plus", "rand" or "quick", see `ensemble`.
      loop_fn: how every attack loops, see `robustjax.loops`; None is each one's default.
      **budget: num_steps, num_targets, num_queries and num_restarts of `ensemble`.

    Returns:
      Per example the result of the first attack that succeeds, else of the first attack.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> x, y = jnp.array([[0.6, 0.5, 0.1]]), jnp.array([0])
      >>> attack = rj.bind(rj.attacks.autoattack, threat=rj.Linf(0.125), num_steps=10, num_queries=20)
      >>> attack(jax.random.key(0), lambda x: x, x, y).success
      Array([ True], dtype=bool)

    Guarantee:
      feasibility only: the result lies in the threat; not optimality.
    Source: Croce & Hein, ICML 2020, arXiv:2003.01690.
    """
    return _combination(threat=threat, version=version, loop_fn=loop_fn, **budget)(key, model_fn, x, y)


def ensemble(
    threat: NormThreat,
    version: str = "standard",
    *,
    num_steps: int = 100,
    num_targets: int = 9,
    num_queries: int = 5000,
    num_restarts: int | None = None,
    loop_fn: LoopFn | None = None,
) -> dict[str, Attack]:
    """The attacks of AutoAttack by name, in their order.

    Args:
      threat: `Linf`, `L2` or `L1`.
      version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus" (APGD-CE, APGD-DLR, FAB, Square, APGD-T, FAB-T), "rand" for
        randomised models (APGD-CE, APGD-DLR; the model given as `eot(model_fn, num_samples=20)`), or "quick", which is not of the paper:
        APGD on the probability margin, APGD-T with its targets in the order "malt", and a fifth of the queries of Square.
        `python -m experiments quick_ensemble` measures its passes, and what it misses of "standard".
      num_steps: of APGD and FAB.
      num_targets: number of target classes of APGD-T and FAB-T.
      num_queries: of Square.
      num_restarts: of APGD and of FAB; None takes the paper's: 5 in "plus" and for l1, else 1.
      loop_fn: how every attack loops, see `robustjax.loops`; None is each one's default.

    Raises:
      ValueError: an unknown version.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, and ICML 2021, arXiv:2103.01208, for l1.
    """
    checks.threat(threat)
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version!r} of AutoAttack; choose one of {VERSIONS}.")
    loop = {} if loop_fn is None else {"loop_fn": loop_fn}
    is_l1 = isinstance(threat, threats.L1)
    if num_restarts is None:
        num_restarts = 5 if version == "plus" or is_l1 else 1

    def often(attack):
        return attack if num_restarts == 1 else combinators.restarts(attack, num_restarts)

    apgd_ce = base.bind(_apgd.apgd, threat=threat, num_steps=num_steps, **loop)
    apgd_dlr = base.bind(apgd_ce, loss_fn=losses.dlr)
    num_targets = min(num_targets, 5) if is_l1 else num_targets
    apgd_t = goals.over_targets(apgd_ce, num_targets)
    from_x = base.bind(_fab.fab, threat=threat, num_steps=num_steps, **loop)
    fab_t = goals.over_targets(from_x, num_targets)
    squares = base.bind(_square.square, threat=threat, num_queries=num_queries, **loop)
    if version == "rand":
        return {"apgd-ce": often(apgd_ce), "apgd-dlr": often(apgd_dlr)}
    if version == "quick":
        apgd_pm = base.bind(apgd_ce, loss_fn=losses.probability_margin)
        fewer_queries = base.bind(squares, num_queries=max(num_queries // 5, 1))
        return {"apgd-pm": often(apgd_pm), "apgd-t": goals.over_targets(apgd_ce, num_targets, "malt"), "square": fewer_queries}
    if version == "standard":
        return {"apgd-ce": often(apgd_ce), "apgd-t": apgd_t, "fab-t": fab_t, "square": squares}
    random_fab = combinators.worst_case(from_x, often(base.bind(from_x, delta=None)))
    return {
        "apgd-ce": often(apgd_ce),
        "apgd-dlr": often(apgd_dlr),
        "fab": random_fab,
        "square": squares,
        "apgd-t": apgd_t,
        "fab-t": fab_t,
    }


def _combination(*, threat, version="standard", loop_fn=None, **budget):
    return combinators.worst_case(*ensemble(threat, version, loop_fn=loop_fn, **budget).values())


combinators.expands_to(autoattack, _combination)
