"""What an attack costs beyond its gradients: PGD-40 and APGD-100 against the floor of bare gradients, and against other libraries.

`python -m experiments benchmark_attacks --page docs/results/benchmark_attacks.md`. Every row runs once per round, one after the
other, so that a busy machine slows all of them alike; ratios are taken within a round, their median over rounds is shown. Peers need
the extra `robustjax[benchmarks]`.
"""

import dataclasses
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.lib import bench, data, experiment, gates, models, pages, peers
from experiments.lib.peers import Library
from robustjax import attacks, base, loops, losses, lowering, parallel, threats, training

_NETWORKS = {"convnet": (28, 28, 1), "convnet_pooled": (28, 28, 1), "wrn-28-10": (32, 32, 3)}
_EPS, _STEP_SIZE = 0.3, 0.01
_PGD_STEPS, _APGD_STEPS = 40, 100
_PGD, _APGD = f"PGD-{_PGD_STEPS}", f"APGD-{_APGD_STEPS}"
_EPOCH_STEPS = 2  # of SGD; the plain pooled net takes seconds for each
_PEER_BARS = {"foolbox on JAX, plain model": 2.1, "foolbox on JAX, jitted model": 1.5, "torchattacks": 1.6, "ART": 2.1}
_FLOOR = "jitted step, plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """What is timed, and beside what."""

    rounds: int = 5
    peers: tuple[Library, ...] = ()
    """On the convnet only."""
    network: Literal["convnet", "convnet_pooled", "wrn-28-10"] = "convnet"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's arithmetic; attacks are float32."""
    batch_size: int = 256
    torch_threads: tuple[int, ...] = (1,)
    """One wastes none of its CPU time in waiting."""


def run(settings: Settings) -> None:
    """Times, ratios and their gates."""
    if settings.quick:
        settings = dataclasses.replace(settings, rounds=1, batch_size=4)
    with experiment.refused():
        if settings.peers and (settings.network, settings.dtype) != ("convnet", "float32"):
            raise ValueError("the peers are compared on --network convnet --dtype float32.")
    distributions = peers.require_attacks(settings.peers)
    experiment.two_devices()
    on_cpu, start = jax.default_backend() == "cpu", time.perf_counter()
    model_fn, x, y = make_model(settings.network, settings.dtype, settings.batch_size)
    compiled = compile_times(model_fn, x, y, num_rounds=1 if settings.network == "wrn-28-10" else 3)
    runs = own_runs(model_fn, x, y, on_cpu)
    if on_cpu and settings.network == "convnet":
        runs |= pooled_runs(settings.batch_size)
    budget = peers.Budget(_EPS, _STEP_SIZE, _PGD_STEPS, _APGD_STEPS)
    runs |= peers.attack_runs(settings.peers, budget, model_fn, x, y, settings.torch_threads)
    times = bench.measure(runs, settings.rounds)
    about = _ABOUT.format(settings=settings)
    header = ["row", "wall ms", "CPU s", f"to the {_FLOOR}", "to its own bare loop"]
    table = pages.table(header, [_row(name, run, times) for name, run in runs.items()])
    blocks = [pages.text(about), table, pages.gates_of(check(times, compiled, count_compilations(), on_cpu))]
    experiment.publish("benchmark_attacks", settings, pages.Page("The cost of attacks"), "", blocks, start, packages=distributions)


def make_model(network: str, dtype: str, batch_size: int):
    """An untrained network as a callable pytree, a batch of images, and its own predictions as labels: every attack has all to do."""
    shape = _NETWORKS[network]
    module = models.ARCHITECTURES[network](shape, 10, rngs=nnx.Rngs(0))
    module.eval()
    model_fn = module if dtype == "float32" else models.in_bfloat16(module)
    if shape == (28, 28, 1):
        x = jnp.asarray(data.load("digits").x_test[:batch_size])
    else:
        x = jax.random.uniform(jax.random.key(0), (batch_size, *shape))
    return model_fn, x, jnp.argmax(_compiled(model_fn, x), axis=1)


def own_runs(model_fn, x, y, on_cpu: bool) -> dict[str, bench.Run]:
    """The floors, and both attacks by every way to run them. Off CPU the rewrite is the identity and there is one device."""
    variants = {"plain": model_fn}
    if on_cpu:
        variants["rewritten"] = lowering.rewrite(model_fn)
    pgd = base.bind(attacks.pgd, threat=threats.Linf(_EPS), step_size=_STEP_SIZE, num_steps=_PGD_STEPS)
    apgd = base.bind(attacks.apgd, threat=threats.Linf(_EPS), num_steps=_APGD_STEPS)
    runs = {}
    for name, variant in variants.items():
        runs[f"jitted step, {name}"] = bench.run(_PGD_STEPS, _steps, variant, x, y)
        runs[f"loop of steps, {name}"] = bench.run(_PGD_STEPS, _loop, variant, x, y)
    for label, attack, num_passes in ((_PGD, pgd, _PGD_STEPS), (_APGD, apgd, _APGD_STEPS)):
        for name, variant in variants.items():
            batch = jax.random.key(0), variant, x, y
            runs[f"{label}, scan, {name}"] = bench.run(num_passes, _compiled, attack, *batch, floor=f"loop of steps, {name}")
            runs[f"{label}, host, {name}"] = bench.run(
                num_passes, base.bind(attack, loop_fn=loops.host), *batch, floor=f"jitted step, {name}"
            )
        if on_cpu:
            mesh = parallel.data_mesh(2)
            batch = jax.random.key(0), parallel.replicate(variants["rewritten"], mesh), *parallel.shard_batch((x, y), mesh)
            runs[f"{label}, scan, rewritten, 2 devices"] = bench.run(
                num_passes, _compiled, attack, *batch, floor="loop of steps, rewritten"
            )
    return runs


def pooled_runs(batch_size: int) -> dict[str, bench.Run]:
    """PGD and a training epoch inside loops on the network with max-pooling, where XLA:CPU needs the rewrite most."""
    model_fn, x, y = make_model("convnet_pooled", "float32", batch_size)
    attack = base.bind(attacks.pgd, threat=threats.Linf(_EPS), step_size=_STEP_SIZE, num_steps=_PGD_STEPS)
    digits, model, optimizer = data.load("digits"), training.from_nnx(model_fn), optax.sgd(0.01)
    epoch = tuple(jnp.asarray(a[: _EPOCH_STEPS * batch_size]) for a in (digits.x_train, digits.y_train))
    start = training.init(model.params, model.model_state, optimizer), jax.random.key(0), *epoch
    runs = {}
    for name, rewrite in (("plain", lambda function: function), ("rewritten", lowering.rewrite)):
        batch = jax.random.key(0), rewrite(model_fn), x, y
        runs[f"pooled net, {_PGD}, scan, {name}"] = bench.run(_PGD_STEPS, _compiled, attack, *batch)
        step_fn = training.step(base.bind(training.natural, apply_fn=rewrite(model.apply_fn)), optimizer, rewritten=False)
        options = {"step_fn": step_fn, "num_epochs": 1, "batch_size": batch_size}
        runs[f"pooled net, SGD epoch in scan, {name}"] = bench.run(_EPOCH_STEPS, _fit, *start, **options)
    return runs


def compile_times(model_fn, x, y, num_rounds: int) -> dict[int, bench.Times]:
    """Seconds to trace, lower and compile APGD on the rewritten model, by its number of steps."""
    rounds: dict[int, list[tuple[float, float]]] = {20: [], _APGD_STEPS: []}
    rewritten = lowering.rewrite(model_fn)
    for _ in range(num_rounds):
        for num_steps, seconds in rounds.items():
            attack = base.bind(attacks.apgd, threat=threats.Linf(_EPS), num_steps=num_steps)
            jax.clear_caches()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            jax.jit(_call).lower(attack, jax.random.key(0), rewritten, x, y).compile()
            seconds.append((time.perf_counter() - wall_start, time.process_time() - cpu_start))
    return {num_steps: bench.Times(*np.array(seconds).T) for num_steps, seconds in rounds.items()}


def count_compilations() -> int:
    """How many programs attacks on the convnet compile after their first call, across eps, seed, target class and batch tail."""
    (model_fn, x, y), number = make_model("convnet", "float32", 64), 0
    images, labels = np.asarray(x), np.asarray(y)
    for index in range(3):
        with bench.compilations() as compiled:
            tail = len(images) - index
            batch = tuple(jnp.asarray(parallel.pad_to(a[:tail], len(images))) for a in (images, labels))
            target = jnp.asarray(np.full_like(labels, index))
            apgd = base.bind(attacks.apgd, num_steps=3)
            for attack in (
                base.bind(attacks.pgd, step_size=0.01 * (index + 1), num_steps=3),
                apgd,
                base.bind(apgd, loss_fn=base.bind(losses.targeted_dlr, target=target)),
            ):
                attack = base.bind(attack, threat=threats.Linf(0.1 * (index + 1)))
                _compiled(attack, jax.random.key(index), model_fn, *batch)
                base.bind(attack, loop_fn=loops.host)(jax.random.key(index), model_fn, *batch)
        number += len(compiled) if index else 0
    return number


def check(times: dict[str, bench.Times], compiled: dict[int, bench.Times], num_compilations: int, on_cpu: bool) -> list[gates.Gate]:
    """The bars: in CPU time on CPU, where the machine may be shared, in wall time elsewhere."""
    kind = "cpu" if on_cpu else "wall"

    def ratio(name, reference):
        return bench.time_ratio(times, name, reference, kind)

    bars = []
    for label in (_PGD, _APGD):
        best = min((name for name in times if name.startswith(f"{label}, ")), key=lambda name: ratio(name, _FLOOR))
        bars.append(gates.Gate(f"{best}, to the {_FLOOR}", ratio(best, _FLOOR), high=1.05 if on_cpu else 1.10))
        bars.append(
            gates.Gate(f"{label}, scan, plain, to the loop of steps", ratio(f"{label}, scan, plain", "loop of steps, plain"), high=1.05)
        )
        for peer, bound in _PEER_BARS.items():
            for row in (name for name in times if name.startswith(f"{peer}, {label}")):
                bars.append(gates.Gate(f"{row}, to {best}", ratio(row, best), low=bound))
    for what, bound in ((f"{_PGD}, scan", 0.35), ("SGD epoch in scan", 0.06)):
        if f"pooled net, {what}, plain" in times:
            name = f"pooled net, {what}"
            bars.append(gates.Gate(f"{name}, rewritten to plain", ratio(f"{name}, rewritten", f"{name}, plain"), high=bound))
    wall, cpu = (float(np.median(seconds)) for seconds in compiled[_APGD_STEPS])
    bars.append(gates.Gate(f"wall seconds to compile {_APGD} (on a quiet machine; {cpu:.1f} CPU s)", wall, high=1.5))
    bars.append(
        gates.Gate(f"the same over that of {min(compiled)} steps", bench.time_ratio(compiled, _APGD_STEPS, min(compiled), kind), high=1.1)
    )
    bars.append(gates.Gate("compilations after the first across eps, seed, target, batch tail", num_compilations, high=0))
    return bars


# --- what is timed -------------------------------------------------------------------------------------------------------------


@jax.jit
def _step(model_fn, x, y):
    # The chain makes each step wait for the one before, as an attack does.
    value, grad = jax.value_and_grad(lambda x: losses.cross_entropy(model_fn(x), y).sum())(x)
    return value, x + 1e-3 * grad


def _steps(model_fn, x, y):
    for _ in range(_PGD_STEPS):
        value, x = _step(model_fn, x, y)
    return value, x


@jax.jit
def _loop(model_fn, x, y):
    def step(carry, _):
        value, x = _step(model_fn, carry[1], y)
        return (carry[0] + value, x), None

    return jax.lax.scan(step, (0.0, x), length=_PGD_STEPS)[0]


def _call(function, *args):
    return function(*args)


_compiled = jax.jit(_call)


_fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))


def _row(name, run, times):
    def ratios(reference):
        return f"{bench.time_ratio(times, name, reference, 'cpu'):.2f} ({bench.time_ratio(times, name, reference, 'wall'):.2f})"

    wall, cpu = (float(np.median(seconds)) * run.num_passes for seconds in times[name])
    to_floor = "" if name.startswith("pooled") else ratios(_FLOOR)
    return [name, f"{1e3 * wall:.0f}", f"{cpu:.2f}", to_floor, ratios(run.floor) if run.floor else ""]


_ABOUT = """\
{settings.network}, batch {settings.batch_size}, {settings.dtype}. Medians of {settings.rounds} rounds in which every row runs once, one
after the other. Ratios are per forward and backward pass, in CPU time (in wall time), each the median of the ratios within the rounds; the
one forward pass with which our attacks end is counted as overhead. Weights and labels are made (an untrained network and its predictions):
every example is attacked to the end. The best way of ours, which gates compare with peers, is the least of its rows in CPU time.
"""
