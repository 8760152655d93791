"""Attacks made of attacks: restarts, and the worst of several; and functions that ask a combination for its attacks."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, checks, loops, losses, prng
from robustjax.attacks import objective
from robustjax.base import Array, Attack, AttackInfo, AttackResult, Key, ModelFn

_PER_EXAMPLE = ("step_size", "delta", "target")  # what may have an entry for every example, beside a threat's fields
_EXPANSIONS: dict[Callable, Callable[..., Attack]] = {}  # see `expands_to`
_ROUNDS: dict[Callable, Callable[..., list[Attack]]] = {}  # see `runs_rounds`


def restarts(attack: Attack, num_restarts: int) -> Attack:
    """The best result, by (success, loss), of `num_restarts` runs with different keys, one after the other.

    Args:
      attack: an attack with a random start (`delta=None`).
      num_restarts: R; compile time and memory do not depend on it.

    Returns:
      An attack.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> once = rj.bind(rj.attacks.pgd, threat=rj.Linf(0.125), step_size=0.05, num_steps=2)
      >>> rj.attacks.restarts(once, 3)(jax.random.key(0), lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0])).success
      Array([ True], dtype=bool)

    Guarantee:
      never worse, by (success, loss), than the first of the runs alone.
    """
    checks.counts(num_restarts=num_restarts)
    return base.bind(_restarts, attack=attack, num_restarts=num_restarts)


def worst_case(*attacks: Attack) -> Attack:
    """Per example the result of the first attack that succeeds, else of the first attack.

    Losses of different attacks are never compared. All attacks run on all examples; `robustjax.evaluate` runs each on those alone that
    no attack before it has fooled.

    Args:
      *attacks: at least one.

    Returns:
      An attack.

    Raises:
      ValueError: no attack at all, or one that is none.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> one, other = (rj.bind(rj.attacks.fgsm, threat=rj.Linf(eps)) for eps in (0.01, 0.125))
      >>> rj.attacks.worst_case(one, other)(jax.random.key(0), lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0])).delta
      Array([[-0.125,  0.125]], dtype=float32)

    Guarantee:
      succeeds wherever one of the attacks does.
    """
    if not attacks:
        raise ValueError("expected at least one attack; pass worst_case(*attacks).")
    for attack in attacks:
        each(attack, lambda plain: plain)  # names what is no attack
    return base.bind(_worst_case, attacks=attacks)


def each(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """The attack with a change made to every plain attack inside a combination, whatever the combination calls its attacks.

    Args:
      attack: an attack or a combination.
      change: attack -> attack.

    Raises:
      ValueError: what is given is no attack.
    """
    if not is_attack(attack):
        got = f"{type(attack).__name__} {attack!r}"
        raise ValueError(
            f"expected an attack, a function (key, model_fn, x, y) with the rest bound by base.bind, got {got[:80]}; of several "
            "attacks make one with attacks.worst_case(*attacks)."
        )
    attack = expanded(attack)
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


def function_of(attack: Attack) -> Callable:
    """The function of a plain attack, without what was bound."""
    return attack.function if isinstance(attack, base.Configured) else attack


def threats_of(attack: Attack) -> list:
    """The threats of the attacks that a combination is made of, where they have one bound."""
    found = [part.get("threat") for part in parts(attack) if isinstance(part, base.Configured)]
    return [threat for threat in found if threat is not None]


def is_targeted(attack: Attack) -> bool:
    """Whether every plain attack of an attack reads y as target labels.

    Raises:
      ValueError: some do and some do not, so that y would be both.
    """
    aimed = {_success_of(part) is losses.classified_as for part in parts(attack)}
    if len(aimed) > 1:
        raise ValueError("some attacks of this combination are targeted and some are not: y would be labels and targets at once.")
    return aimed == {True}


def map_attacks(function: Callable, change: Callable[[Attack], Attack]) -> Callable:
    """A configured function, such as a training step, with `each(attack, change)` for every attack with a bound threat inside it."""
    if is_attack(function) and threats_of(function):
        return each(function, change)
    if isinstance(function, base.Configured):
        return function.map_children(lambda child: map_attacks(child, change))
    return function


def take_rows(function: Callable, rows: Array, num_examples: int, rank: int) -> Callable:
    """A configured function whose attacks keep only some rows of what they have for every example of a data set, [N] or [N, ...].

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


def is_attack(value: Any) -> bool:
    """Whether a value is a function of exactly (key, model_fn, x, y), not counting arguments that are bound or have a default.

    A loop `(step, carry, num_steps, done_fn)` has as many arguments; the name of the second tells it from an attack.
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
    """Registers an attack that makes its attacks inside, such as `autoattack`, so that combinators find them.

    Args:
      attack: the function (key, model_fn, x, y, *, ...).
      make_fn: takes the options bound to it, and returns the combination that it runs.
    """
    _EXPANSIONS[attack] = make_fn


def expanded(attack: Attack) -> Attack:
    """The combination that a registered function stands for; any other attack as it is."""
    if not isinstance(attack, base.Configured) or attack.function not in _EXPANSIONS:
        return attack
    return attack.call_with(_EXPANSIONS[attack.function])


def rounds(attack: Attack, num_classes: int) -> list[Attack]:
    """The attacks that a combination runs one after the other, with the keys that they have in it.

    A driver that wants the worst case alone leaves out of a round what an earlier one has fooled. Restarts and targets differ in a traced
    number, so that one compiled program runs all of them.

    Args:
      attack: an attack or a combination; a plain attack is its own only round.
      num_classes: of the model: no more targets than there are wrong classes.
    """
    attack = expanded(attack)
    if not isinstance(attack, base.Configured) or attack.function not in _ROUNDS:
        return [attack]
    return attack.call_with(lambda **options: _ROUNDS[attack.function](num_classes, **options))


def runs_rounds(attack: Callable, make_fn: Callable[..., list[Attack]]) -> None:
    """Registers a combination whose result is the best of several runs, so that `rounds` finds them.

    Args:
      attack: the function (key, model_fn, x, y, *, ...).
      make_fn: takes the number of classes and the options bound to it, and returns the runs, best made of `member`.
    """
    _ROUNDS[attack] = make_fn


def member(key: Key, model_fn: ModelFn, x: Array, y: Array, *, attack: Attack, number: Array | int) -> AttackResult:
    """One of several attacks of a combination: `number` is its place there, and is folded into the keys."""
    return attack(prng.fold_in(prng.example_keys(key, x.shape[0]), number), model_fn, x, y)


def logits_at_x(attack: Attack, keys: Array, model_fn: ModelFn, x: Array) -> Array:
    """The logits where the attack has perturbed nothing: those of x, or of what its threat makes of x, such as a decoder of a code."""
    threat = next(iter(threats_of(attack)), None)
    model_fn, threat = base.draw((model_fn, threat), keys)
    if threat is None:
        return model_fn(x)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(threat.init, keys, x))
    return model_fn(threat.apply(x, zeros))


def best_of(run: Callable[..., AttackResult], num_runs: int, attack: Attack) -> AttackResult:
    """The best of `run(i)`, which runs `attack` somehow, one after the other; the first is kept whatever its loss."""
    if loops.is_host(attack):
        best = run(0)  # a host-driven attack cannot be scanned
        for i in range(1, num_runs):
            best = _better(best, run(i))
        return best
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, 0))

    def step(best, i):
        result = run(i)
        return jax.tree.map(lambda first, later: jnp.where(i == 0, first, later), result, _better(best, result)), None

    return jax.lax.scan(step, nothing, jnp.arange(num_runs))[0]


def _success_of(attack):
    bound = attack.get("success_fn") if isinstance(attack, base.Configured) else None
    return losses.misclassified if bound is None else bound


def _restarts(key, model_fn, x, y, *, attack, num_restarts):
    return best_of(lambda i: member(key, model_fn, x, y, attack=attack, number=i), num_restarts, attack)


def _worst_case(key, model_fn, x, y, *, attacks):
    worst = None
    for index, attack in enumerate(attacks):
        # Attacks have different things to say in their info.
        result = member(key, model_fn, x, y, attack=attack, number=index)._replace(info=AttackInfo())
        worst = result if worst is None else arrays.where_example(~worst.success & result.success, result, worst)
    return worst


def _rounds_of(num_classes, attack, number):
    return [base.bind(member, attack=part, number=np.int32(number)) for part in rounds(attack, num_classes)]


runs_rounds(_restarts, lambda n, attack, num_restarts: [part for i in range(num_restarts) for part in _rounds_of(n, attack, i)])
runs_rounds(_worst_case, lambda n, attacks: [part for i, attack in enumerate(attacks) for part in _rounds_of(n, attack, i)])


def _better(best, result):
    chosen = objective.choose(objective.is_better(result, best), result, best)
    if result.info.num_queries is None:
        return chosen
    return chosen._replace(info=chosen.info._replace(num_queries=best.info.num_queries + result.info.num_queries))
