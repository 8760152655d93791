"""What an attack aims at: the likeliest wrong classes, labels to be reached, or another loss and success."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, checks, configured, losses, prng
from robustjax.attacks import combinators, objective
from robustjax.base import Attack, LossFn, SuccessFn

_NUM_CANDIDATES = 100  # classes of largest logits that MALT puts in order (Melamed et al., 2024)
ORDERS = ("logits", "malt")


def over_targets(attack: Attack, num_targets: int, order: str = "logits") -> Attack:
    """The best result of attacks toward each of several wrong classes; success stays "misclassified".

    APGD-T is `over_targets(bind(apgd, ...), 9)`, FAB-T `over_targets(bind(fab, ...), 9)`. An attack that takes a `boundary_fn`
    gets the target's boundary, any other the loss `targeted_dlr` (below 4 classes `targeted_margin`).

    Args:
      attack: an attack, or a combination without `over_targets`.
      num_targets: T; at most the number of classes less one is used.
      order: which classes are taken, and which first: "logits", those of largest logits; or "malt", those whose linearised boundary is
        nearest in the threat's norm, among the 100 of largest logits, at the cost of one backward pass each. An evaluation that attacks
        survivors alone stops at the first target that succeeds, so that a good order saves passes.

    Returns:
      An attack.

    Raises:
      ValueError: another order.

    Guarantee:
      that of the attack.
    Source: Croce & Hein, ICML 2020, arXiv:2003.01690; order="malt": Melamed et al., NeurIPS 2024, arXiv:2407.02240.
    """
    checks.counts(num_targets=num_targets)
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r} of targets; choose one of {ORDERS}.")
    if any(_is_over_targets(part) for part in configured.walk(combinators.expanded(attack))):
        raise ValueError("over_targets inside over_targets would choose the classes twice; autoattack has it, pass a plain attack.")
    return base.bind(_over_targets, attack=attack, num_targets=num_targets, order=order)


def targeted(attack: Attack, loss_fn: LossFn = losses.margin) -> Attack:
    """The attack with y read as target labels: success is `classified_as`, the loss `targeted(loss_fn)`.

    Inside a combination every plain attack is changed; `over_targets`, which would choose classes itself, is replaced by its attack.

    Args:
      attack: any attack of this package, `autoattack` and combinations among them.
      loss_fn: a loss whose negative leads to the target: `margin` or `cross_entropy`.

    Returns:
      An attack.

    Raises:
      ValueError: what is given is no attack, such as a dictionary of attacks.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> attack = rj.attacks.targeted(rj.bind(rj.attacks.apgd, threat=rj.Linf(0.25), num_steps=10))
      >>> x, target = jnp.array([[0.6, 0.5, 0.4]]), jnp.array([2])
      >>> attack(jax.random.key(0), lambda x: x, x, target).x.argmax(axis=1)
      Array([2], dtype=int32)
    """
    aimed = base.bind(_aimed, boundary_fn=losses.goal_differences, loss_fn=losses.targeted(loss_fn), success_fn=losses.classified_as)
    return combinators.each(_without_targets(attack), aimed)


def with_loss(attack: Attack, *, loss_fn: LossFn, success_fn: SuccessFn = losses.never) -> Attack:
    """The attack, or every plain attack inside a combination, with another loss and another success.

    Args:
      attack: any attack that takes a `loss_fn`.
      loss_fn: (logits, y) -> [B], what is ascended.
      success_fn: (logits, y) -> [B], what counts as success; by default nothing does, and only the loss decides.

    Returns:
      An attack.

    Raises:
      ValueError: an attack without a loss_fn, such as `fab`, or `over_targets`, which chooses the loss itself.
    """

    def change(plain):
        if not _takes(plain, "loss_fn"):
            raise ValueError(f"with_loss gives an attack its loss, but {_name(plain)} takes no loss_fn; choose another attack, e.g. pgd.")
        return base.bind(plain, loss_fn=loss_fn, success_fn=success_fn)

    for part in configured.walk(combinators.expanded(attack)):
        if _is_over_targets(part):
            raise ValueError("with_loss gives an attack its loss, but over_targets chooses one for every class; leave one of them out.")
    return combinators.each(attack, change)


def _over_targets(key, model_fn, x, y, *, attack, num_targets, order):
    targets, num_classes = _targets(key, model_fn, x, y, attack=attack, num_targets=num_targets, order=order)

    def toward(i):
        return combinators.member(key, model_fn, x, y, attack=_toward(attack, targets[:, i], num_classes), number=i)

    return combinators.best_of(toward, targets.shape[1], attack)


def _one_target(key, model_fn, x, y, *, attack, num_targets, order, number):
    targets, num_classes = _targets(key, model_fn, x, y, attack=attack, num_targets=num_targets, order=order)
    target = jnp.take(targets, number, axis=1)
    return combinators.member(key, model_fn, x, y, attack=_toward(attack, target, num_classes), number=number)


def _rounds(num_classes, **options):
    return [base.bind(_one_target, **options, number=np.int32(i)) for i in range(min(options["num_targets"], num_classes - 1))]


combinators.runs_rounds(_over_targets, _rounds)


def _targets(key, model_fn, x, y, *, attack, num_targets, order):
    # [B, T] classes to aim at, the first one first, and the number of classes.
    keys = prng.fold_in(prng.example_keys(key, x.shape[0]), num_targets)
    logits = combinators.logits_at_x(attack, keys, model_fn, x)
    num_classes = logits.shape[1]
    wrong = jnp.where(jax.nn.one_hot(y, num_classes, dtype=bool), -jnp.inf, logits)
    num_targets = min(num_targets, num_classes - 1)
    if order == "logits":
        return jax.lax.top_k(wrong, num_targets)[1], num_classes
    candidates = jax.lax.top_k(wrong, min(_NUM_CANDIDATES, num_classes - 1))[1]
    distances = _distances(attack, keys, model_fn, x, y, candidates)
    nearest = jax.lax.top_k(-distances, num_targets)[1]
    return jnp.take_along_axis(candidates, nearest, axis=1), num_classes


def _distances(attack, keys, model_fn, x, y, candidates):
    # [B, K] from x to the linearised boundary of each candidate, in the threat's norm.
    threat = next(iter(combinators.threats_of(attack)), None)
    if threat is None or not callable(getattr(threat, "dual_norm", None)):
        raise TypeError(
            f"order='malt' measures distances in the norm of the attack's threat, and {type(threat).__name__} has no dual_norm; bind a "
            "threat that has one (see base.NormThreat), or take order='logits'."
        )
    model_fn, threat = base.draw((model_fn, threat), keys)
    problem = objective.Problem(model_fn, x, y, threat, losses.never, losses.misclassified)
    zeros = objective.start(threat, keys, x, 0.0)

    def distance(candidate):
        def value(delta):
            difference = losses.targeted_margin(objective.logits_at(problem, delta), y, target=candidate)
            return difference.sum(), difference

        normal, difference = jax.grad(value, has_aux=True)(zeros)
        return arrays.ratio(jnp.abs(difference), threat.dual_norm(normal), jnp.inf)

    return jax.lax.map(distance, candidates.T).T


def _toward(attack, target, num_classes):
    ratio = losses.targeted_dlr if num_classes >= 4 else losses.targeted_margin
    boundary_fn, loss_fn = (base.bind(value_fn, target=target) for value_fn in (losses.target_difference, ratio))
    return combinators.each(attack, base.bind(_aimed, boundary_fn=boundary_fn, loss_fn=loss_fn))


def _aimed(attack, *, boundary_fn, loss_fn, **problem):
    by_boundary = _takes(attack, "boundary_fn")
    return base.bind(attack, **({"boundary_fn": boundary_fn} if by_boundary else {"loss_fn": loss_fn}), **problem)


def _is_over_targets(part):
    return isinstance(part, base.Configured) and part.function is _over_targets


def _without_targets(attack):
    attack = combinators.expanded(attack)
    if _is_over_targets(attack):
        return _without_targets(attack.get("attack"))
    return attack.map_children(_without_targets) if isinstance(attack, base.Configured) else attack


def _takes(attack, name):
    """Whether a plain attack has a parameter of this name; those that pass options on take what `pgd` takes."""
    parameters = inspect.signature(combinators.function_of(attack)).parameters.values()
    passes_on = name == "loss_fn" and any(p.kind is p.VAR_KEYWORD for p in parameters)
    return passes_on or any(p.name == name for p in parameters)


def _name(attack):
    function = combinators.function_of(attack)
    return getattr(function, "__name__", str(function))
