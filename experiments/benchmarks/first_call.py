"""What the first call costs: seconds of tracing, lowering and compiling for every attack, certifier and training step on three networks.

`python -m experiments benchmark_first_call --page docs/results/benchmark_first_call.md`. Nothing is run; no compiled program is kept or
read. Attacks and `value_and_grad` are compiled as `evaluate` compiles them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from experiments.lib import experiment, gates, models, pages
from robustjax import attacks, base, drivers, losses, lowering, prng, smoothing, training
from robustjax.attacks import combinators
from robustjax.threats import L0, L2, Linf

_NETWORKS = {"mlp": (28, 28, 1), "convnet": (28, 28, 1), "resnet20": (32, 32, 3)}
_MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
_FLOOR = "value_and_grad"
_NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """Of how many images, and on which networks."""

    batch_size: int = 16
    networks: tuple[str, ...] = tuple(_NETWORKS)


def run(settings: Settings) -> None:
    """A section for every network."""
    jax.config.update("jax_enable_compilation_cache", False)
    for name in settings.networks:
        start = time.perf_counter()
        found = {}
        for row, function, arguments in programs(name, 2 if settings.quick else settings.batch_size, settings.quick):
            found[row] = stages(function, *arguments)
        experiment.publish("benchmark_first_call", settings, _PAGE, name, blocks(found, name != "mlp"), start)


def programs(name: str, batch_size: int, is_quick: bool) -> Iterator[tuple[str, Callable, tuple]]:
    """What is compiled: its name, the function and its arguments."""
    shape = _NETWORKS[name]
    model = models.build(name, input_shape=shape)
    x, y = jnp.full((batch_size, *shape), 0.5), jnp.zeros(batch_size, jnp.int32)
    keys = prng.example_keys(jax.random.key(0), batch_size)
    model_fn = lowering.rewrite(training.classifier(model.apply_fn, model.params, model.model_state))
    yield _FLOOR, _value_and_grad, (model_fn, x, y)
    for attack_name, attack in _attacks().items():
        yield attack_name, _attacked, (combinators.rounds(attack, _NUM_CLASSES)[0], keys, model_fn, x, y)
        if is_quick:
            break
    yield "votes", _votes, (keys, model_fn, x)
    optimizer = optax.sgd(0.1)
    state = training.init(model.params, model.model_state, optimizer)
    for loss_name, loss in _risks(model.apply_fn).items():
        yield f"training step, {loss_name}", training.step(loss, optimizer), (state, keys[0], x, y)
        if is_quick:
            break


def stages(function: Callable, *arguments) -> tuple[float, float, float, float]:
    """Seconds of tracing, lowering and compiling, and of CPU time in all."""
    start, cpu = time.perf_counter(), time.process_time()
    traced = drivers.jitted(_fresh(function)).trace(*arguments)
    then = time.perf_counter()
    lowered = traced.lower()
    last = time.perf_counter()
    lowered.compile()
    return then - start, last - then, time.perf_counter() - last, time.process_time() - cpu


def blocks(found: dict[str, tuple[float, float, float, float]], is_gated: bool) -> list[pages.Block]:
    """The table, and the gates against one `value_and_grad`; that of AutoAttack's members where all of them were compiled."""
    totals = {row: sum(times[:3]) for row, times in found.items()}
    lines = [[row, *(f"{value:.2f}" for value in times), f"{totals[row] / totals[_FLOOR]:.2f}"] for row, times in found.items()]
    table = pages.table(["program", "tracing s", "lowering s", "compiling s", "CPU s in all", "to value_and_grad"], lines)
    if not is_gated:
        return [table]
    ratios = {row: found[row][2] / found[_FLOOR][2] for row in _attacks() if row in found}
    largest = max(ratios, key=lambda row: ratios[row])
    made = [gates.Gate(f"compilation of the dearest attack ({largest}) to that of value_and_grad", ratios[largest], high=1.5)]
    if set(_MEMBERS) <= set(ratios):
        together = sum(ratios[row] for row in _MEMBERS)
        made.append(gates.Gate("compilation of AutoAttack's members to that of value_and_grad", together, high=4.5))
    return [table, pages.gates_of(made)]


def _attacks():
    linf, l2 = Linf(0.1), L2(1.0)
    steps = {"num_steps": 10}
    return attacks.ensemble(linf) | {
        "fgsm": base.bind(attacks.fgsm, threat=linf),
        "rs_fgsm": base.bind(attacks.rs_fgsm, threat=linf, step_size=0.1),
        "pgd": base.bind(attacks.pgd, threat=linf, step_size=0.02, **steps),
        "mi_fgsm": base.bind(attacks.mi_fgsm, threat=linf, step_size=0.02, **steps),
        "deepfool": base.bind(attacks.deepfool, threat=l2, **steps),
        "carlini_wagner": base.bind(attacks.carlini_wagner, threat=l2, num_binary_search_steps=9, learning_rate=0.01, **steps),
        "ddn": base.bind(attacks.ddn, threat=l2, **steps),
        "fmn": base.bind(attacks.fmn, threat=l2, **steps),
        "alma": base.bind(attacks.alma, threat=l2, **steps),
        "lbfgs": base.bind(attacks.lbfgs, threat=l2, num_binary_search_steps=5, **steps),
        "sigma_zero": base.bind(attacks.sigma_zero, threat=L0(20.0), **steps),
    }


def _risks(apply_fn):
    attack = training.inner_pgd(Linf(0.1), num_steps=7)
    return {
        "natural": base.bind(training.natural, apply_fn=apply_fn),
        "adversarial": base.bind(training.adversarial, apply_fn=apply_fn, attack=attack),
        "gaussian": base.bind(training.gaussian, apply_fn=apply_fn, sigma=0.25),
    }


def _fresh(function):
    # A function of its own for every measurement: nothing is found traced.
    return lambda *arguments: function(*arguments)


def _value_and_grad(model_fn, x, y):
    return jax.value_and_grad(lambda x: losses.cross_entropy(model_fn(x), y).sum())(x)


def _attacked(attack, keys, model_fn, x, y):
    return attack(keys, model_fn, x, y)


def _votes(keys, model_fn, x):
    return smoothing.vote(keys, model_fn, x, sigma=0.25, num_samples=100, chunk_size=50)


_PAGE = pages.Page(
    "The first call", "Seconds before a program runs for the first time. The gates are asked of the networks of convolutions."
)
