"""Attacks made of attacks: restarts, the worst of several, target classes, targeted goals, checked inputs."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from robustjax import arrays, base, checks, configured, loops, losses, prng
from robustjax.attacks import objective
from robustjax.base import Array, Attack, AttackInfo, LossFn, SuccessFn


def restarts(attack: Attack, num_restarts: int) -> Attack:
    """The best result, by (success, loss), of `num_restarts` runs with different keys, one after the other.

    Args:
      attack: an attack with a random start (`delta=None`).
      num_restarts: R; compile time and memory do not depend on it.

    Guarantee:
      never worse, by (success, loss), than the first of the runs alone.
    """
    checks.counts(num_restarts=num_restarts)
    return base.bind(_restarts, attack=attack, num_restarts=num_restarts)


def worst_case(*attacks: Attack) -> Attack:
    """Per example the result of the first attack that succeeds, else of the first attack.

    Losses of different attacks are never compared. All attacks run on all examples: `robustjax.evaluate` drops the fooled ones
    between attacks.

    Guarantee:
      succeeds wherever one of the attacks does.
    """
    if not attacks:
        raise ValueError("expected at least one attack; pass worst_case(*attacks).")
    for attack in attacks:
        each(attack, lambda plain: plain)  # names what is no attack
    return base.bind(_worst_case, attacks=attacks)


def over_targets(attack: Attack, num_targets: int) -> Attack:
    """The best result over attacks toward each of the likeliest wrong classes; success stays "misclassified".

    APGD-T is `over_targets(bind(apgd, ...), 9)`, FAB-T `over_targets(bind(fab, ...), 9)`. An attack that takes a `boundary_fn`
    gets the target's boundary, any other the loss `targeted_dlr` (below 4 classes `targeted_margin`).

    Args:
      attack: the attack.
      num_targets: T; at most the number of classes less one is used.

    Guarantee:
      that of the attack.
    """
    checks.counts(num_targets=num_targets)
    if any(_is_over_targets(part) for part in configured.walk(_expanded(attack))):
        raise ValueError("over_targets inside over_targets would choose the classes twice; autoattack has it, pass a plain attack.")
    return base.bind(_over_targets, attack=attack, num_targets=num_targets)


def targeted(attack: Attack, loss_fn: LossFn = losses.margin) -> Attack:
    """The attack with y read as target labels: success is `classified_as`, the loss `targeted(loss_fn)`.

    Inside a combination every plain attack is aimed; `over_targets`, which would choose classes itself, gives way to its attack.

    Args:
      attack: any attack of this package, `autoattack` and combinations among them.
      loss_fn: a loss whose negative leads to the target: `margin` or `cross_entropy`.

    Raises:
      ValueError: no attack, such as a dictionary of them.
    """
    aimed = base.bind(_aimed, boundary_fn=losses.goal_differences, loss_fn=losses.targeted(loss_fn), success_fn=losses.classified_as)
    return each(_without_targets(attack), aimed)


def is_targeted(attack: Attack) -> bool:
    """Whether every plain attack in it reads y as target labels.

    Raises:
      ValueError: some do and some do not, so that y would be both.
    """
    aimed = {_success_of(part) is losses.classified_as for part in parts(attack)}
    if len(aimed) > 1:
        raise ValueError("some attacks of this combination are targeted and some are not: y would be labels and targets at once.")
    return aimed == {True}


def with_loss(attack: Attack, *, loss_fn: LossFn, success_fn: SuccessFn = losses.never) -> Attack:
    """The attack, or every plain attack inside a combination, with another loss and another success.

    Args:
      attack: any attack that takes a `loss_fn`.
      loss_fn: what is ascended.
      success_fn: what counts as success; by default nothing does, and only the loss decides.

    Raises:
      ValueError: an attack without a loss_fn, such as `fab`, or `over_targets`, which chooses the loss itself.
    """

    def change(plain):
        if not _takes(plain, "loss_fn"):
            raise ValueError(f"with_loss gives an attack its loss, but {_name(plain)} takes no loss_fn; choose another attack, e.g. pgd.")
        return base.bind(plain, loss_fn=loss_fn, success_fn=success_fn)

    for part in configured.walk(_expanded(attack)):
        if _is_over_targets(part):
            raise ValueError("with_loss gives an attack its loss, but over_targets chooses one for every class; leave one of them out.")
    return each(attack, change)


def each(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """The attack with a change made to every plain attack inside a combination, whatever the combination calls its attacks.

    Raises:
      ValueError: no attack.
    """
    if not is_attack(attack):
        got = f"{type(attack).__name__} {attack!r}"
        raise ValueError(
            f"expected an attack, a function (key, model_fn, x, y) with the rest bound by base.bind, got {got[:80]}; of several "
            "attacks make one with attacks.worst_case(*attacks)."
        )
    attack = _expanded(attack)
    if isinstance(attack, base.Configured) and any(is_attack(child) for child in attack.children()):
        return attack.map_children(lambda child: each(child, change) if is_attack(child) else child)
    return change(attack)


def parts(attack: Attack) -> list[Attack]:
    """The attacks that a combination is made of, in order; an attack alone is its own part."""
    plain: list[Attack] = []

    def collect(part):
        plain.append(part)
        return part

    each(attack, collect)
    return plain


def threats_of(attack: Attack) -> list:
    """The threats of the attacks that a combination is made of, where they have one bound."""
    found = [part.get("threat") for part in parts(attack) if isinstance(part, base.Configured)]
    return [threat for threat in found if threat is not None]


def map_attacks(function: Callable, change: Callable[[Attack], Attack]) -> Callable:
    """A configured function, such as a training step, with `each(attack, change)` for every attack with a bound threat inside it."""
    if is_attack(function) and threats_of(function):
        return each(function, change)
    if isinstance(function, base.Configured):
        return function.map_children(lambda child: map_attacks(child, change))
    return function


def take_rows(function: Callable, rows: Array, num_examples: int, rank: int) -> Callable:
    """A configured function whose attacks' fields of every example, [N] or [N, ...], are cut to some rows.

    Such fields are those of a threat (`Ball.take_rows`), and `step_size`, `delta` and `target`, also of a bound loss. Others stay.

    Args:
      function: an attack, or a function with attacks inside, such as a training step.
      rows: indices [B] of examples. num_examples: N.
      rank: of the inputs x [N, ...].

    Raises:
      ValueError: a field [K] of another length than the data set, whose entries would go to other examples in every batch.
    """

    def taken(name, value):
        if isinstance(value, base.Configured):
            return cut(value)
        if hasattr(value, "take_rows"):
            return value.take_rows(rows, num_examples, rank)
        if name not in _PER_EXAMPLE or not isinstance(value, jax.Array | np.ndarray) or value.ndim == 0 or num_examples == 1:
            return value
        if value.ndim == 1 and len(value) not in (1, num_examples):
            raise ValueError(
                f"expected {name} as a number, or one for each of the {num_examples} examples of the data set, got shape {value.shape}."
            )
        return jnp.asarray(value)[rows] if len(value) == num_examples else value

    def cut(attack):
        if not isinstance(attack, base.Configured):
            return attack
        values = attack.call_with(dict)
        changed = {name: taken(name, value) for name, value in values.items()}
        return base.bind(attack, **{name: value for name, value in changed.items() if value is not values[name]})

    return map_attacks(function, cut)


_PER_EXAMPLE = ("step_size", "delta", "target")  # what may have an entry for every example, beside a threat's fields


def is_attack(value) -> bool:
    """Whether it is a function of exactly (key, model_fn, x, y), once what is bound or has a default is left out.

    A loop `(step, carry, num_steps, done_fn)` has as many arguments, and is told by the second.
    """
    if not callable(value):
        return False
    function, bound = (value.function, value) if isinstance(value, base.Configured) else (value, None)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin tells nothing
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    free = [p.name for p in positional if bound is None or bound.get(p.name, p.empty) is p.empty]
    return len(free) == 4 and free[1] != "carry"


def expands_to(attack: Callable, make_fn: Callable[..., Attack]) -> None:
    """Registers a function whose attacks are made inside it: bound to options, it is the combination `make_fn(**options)`."""
    _EXPANSIONS[attack] = make_fn


def checked(attack: Attack) -> Attack:
    """The attack with `checkify` checks of what can only be known at run time; opt-in, to be called through `checkify.checkify`.

    Named are: labels outside [0, C), inputs outside the threat's box, negative eps, and non-finite logits, losses and results.

    >>> error, result = checkify.checkify(checked(attack))(key, model_fn, x, y)  # doctest: +SKIP
    >>> error.throw()  # doctest: +SKIP
    """
    return base.bind(_checked, attack=attack)


def _restarts(key, model_fn, x, y, *, attack, num_restarts):
    keys = prng.example_keys(key, x.shape[0])
    return _best_of(lambda i: attack(prng.fold_in(keys, i), model_fn, x, y), num_restarts, attack)


def _worst_case(key, model_fn, x, y, *, attacks):
    keys = prng.example_keys(key, x.shape[0])
    worst = None
    for index, attack in enumerate(attacks):
        result = attack(prng.fold_in(keys, index), model_fn, x, y)._replace(info=AttackInfo())  # attacks have different things to say
        worst = result if worst is None else arrays.where_example(~worst.success & result.success, result, worst)
    return worst


def _over_targets(key, model_fn, x, y, *, attack, num_targets):
    keys = prng.example_keys(key, x.shape[0])
    logits = base.draw(model_fn, prng.fold_in(keys, num_targets))(x)
    num_classes = logits.shape[1]
    wrong = jnp.where(jax.nn.one_hot(y, num_classes, dtype=bool), -jnp.inf, logits)
    targets = jax.lax.top_k(wrong, min(num_targets, num_classes - 1))[1]
    ratio = losses.targeted_dlr if num_classes >= 4 else losses.targeted_margin

    def toward(i):
        boundary_fn, loss_fn = (base.bind(value_fn, target=targets[:, i]) for value_fn in (losses.target_difference, ratio))
        aimed = base.bind(_aimed, boundary_fn=boundary_fn, loss_fn=loss_fn)
        return each(attack, aimed)(prng.fold_in(keys, i), model_fn, x, y)

    return _best_of(toward, targets.shape[1], attack)


def _best_of(run, num_runs, attack):
    # One after the other; the first run is kept whatever its loss. A host-driven attack cannot be scanned.
    if loops.is_host(attack):
        best = run(0)
        for i in range(1, num_runs):
            best = _better(best, run(i))
        return best
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, 0))

    def step(best, i):
        result = run(i)
        return jax.tree.map(lambda first, later: jnp.where(i == 0, first, later), result, _better(best, result)), None

    return jax.lax.scan(step, nothing, jnp.arange(num_runs))[0]


def _better(best, result):
    chosen = objective.choose(objective.is_better(result, best), result, best)
    if result.info.num_queries is None:
        return chosen
    return chosen._replace(info=chosen.info._replace(num_queries=best.info.num_queries + result.info.num_queries))


def _checked(key, model_fn, x, y, *, attack):
    keys = prng.example_keys(key, x.shape[0])
    logits = base.draw(model_fn, keys)(x)
    checkify.check(jnp.all(jnp.isfinite(logits)), "the model's logits at x are not finite: check its parameters and the scale of x.")
    if y.ndim == 1:
        checkify.check(
            jnp.all((y >= 0) & (y < logits.shape[1])),
            "labels outside [0, " + str(logits.shape[1]) + "): smallest {low}, largest {high}; the model has that many logits.",
            low=y.min(), high=y.max(),
        )  # fmt: skip
    for threat in threats_of(attack):
        if hasattr(threat, "eps"):
            eps = jnp.asarray(threat.eps)
            checkify.check(jnp.all(eps >= 0), "eps must be at least 0, smallest {eps}.", eps=eps.min())
        if hasattr(threat, "box"):
            lower, upper = threat.box
            checkify.check(
                jnp.all((x >= lower) & (x <= upper)),
                "inputs outside the threat's box: values from {low} to {high}; scale them, or pass box=(lower, upper).",
                low=x.min(), high=x.max(),
            )  # fmt: skip
    result = attack(keys, model_fn, x, y)
    finite = jnp.all(jnp.isfinite(result.x)) & ~jnp.any(jnp.isnan(result.loss))
    checkify.check(finite, "the attack met a non-finite loss or gradient: run it under jax.debug_nans to see where.")
    return result


def _aimed(attack, *, boundary_fn, loss_fn, **problem):
    by_boundary = _takes(attack, "boundary_fn")
    return base.bind(attack, **({"boundary_fn": boundary_fn} if by_boundary else {"loss_fn": loss_fn}), **problem)


_EXPANSIONS: dict[Callable, Callable[..., Attack]] = {}


def _expanded(attack):
    make_fn = _EXPANSIONS.get(attack.function) if isinstance(attack, base.Configured) else None
    return attack if make_fn is None else attack.call_with(make_fn)


def _is_over_targets(part):
    return isinstance(part, base.Configured) and part.function is _over_targets


def _without_targets(attack):
    attack = _expanded(attack)
    if _is_over_targets(attack):
        return _without_targets(attack.get("attack"))
    return attack.map_children(_without_targets) if isinstance(attack, base.Configured) else attack


def _success_of(attack):
    bound = attack.get("success_fn") if isinstance(attack, base.Configured) else None
    return losses.misclassified if bound is None else bound


def _takes(attack, name):
    """Whether a plain attack has a parameter of this name; those that pass options on take what `pgd` takes."""
    function = attack.function if isinstance(attack, base.Configured) else attack
    parameters = inspect.signature(function).parameters.values()
    passes_on = name == "loss_fn" and any(p.kind is p.VAR_KEYWORD for p in parameters)
    return passes_on or any(p.name == name for p in parameters)


def _name(attack):
    function = attack.function if isinstance(attack, base.Configured) else attack
    return getattr(function, "__name__", str(function))
