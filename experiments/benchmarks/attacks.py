"""What an attack costs beyond its gradients: PGD-40 and APGD-100 against the floor of bare gradients, and against other libraries.

`python -m experiments benchmark_attacks --out docs/results/benchmark_attacks.md`. Every row runs once per round, one after the
other, so that a busy machine slows all of them alike; ratios are taken within a round, their median over rounds is shown. Peers need
the extra `robustjax[benchmarks]`.
"""

import argparse
import functools
import importlib.metadata
import logging
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.lib import bench, data, experiment, files, models, peers
from robustjax import attacks, base, loops, losses, lowering, parallel, threats, training

_NETWORKS = {"convnet": (28, 28, 1), "convnet_pooled": (28, 28, 1), "wrn-28-10": (32, 32, 3)}
_EPS, _STEP_SIZE = 0.3, 0.01
_PGD_STEPS, _APGD_STEPS = 40, 100
_PGD, _APGD = f"PGD-{_PGD_STEPS}", f"APGD-{_APGD_STEPS}"
_EPOCH_STEPS = 2  # of SGD; the plain pooled net takes seconds for each
_PEERS = {  # module, distribution
    "foolbox": ("foolbox", "foolbox"),
    "torchattacks": ("torchattacks", "torchattacks"),
    "art": ("art", "adversarial-robustness-toolbox"),
    "autoattack": ("pyautoattack", "pyautoattack"),
}
_PEER_BARS = {"foolbox on JAX, plain model": 2.1, "foolbox on JAX, jitted model": 1.5, "torchattacks": 1.6, "ART": 2.1}
_FLOOR = "jitted step, plain"
_THREADS = ", torch on {} thread(s)"


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=tuple(_PEERS), default=[], help="on the convnet only")
    parser.add_argument("--network", choices=tuple(_NETWORKS), default="convnet")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model's arithmetic; attacks are float32"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--torch-threads", nargs="+", type=int, default=[1], help="one wastes none of its CPU time in waiting")
    parser.add_argument("--out", type=experiment.output, help="where to write the table, as Markdown")
    options = parser.parse_args(arguments)
    if options.peers and (options.network, options.dtype) != ("convnet", "float32"):
        parser.error("the peers are compared on --network convnet --dtype float32.")
    peers.require(*[_PEERS[name][0] for name in options.peers], *(["torch"] if options.peers else []))
    jax.config.update("jax_num_cpu_devices", 2)
    on_cpu = jax.default_backend() == "cpu"

    model_fn, x, y = make_model(options.network, options.dtype, options.batch_size)
    compiled = compile_times(model_fn, x, y, num_rounds=1 if options.network == "wrn-28-10" else 3)
    runs = own_runs(model_fn, x, y, on_cpu)
    if on_cpu and options.network == "convnet":
        runs |= pooled_runs(options.batch_size)
    runs |= peer_runs(options.peers, model_fn, x, y, options.torch_threads)
    times = bench.measure(runs, options.rounds)
    bars = check(times, compiled, count_compilations(), on_cpu)
    text = _report(options, runs, times, bars, sys.argv[1:] if arguments is None else arguments)
    print(text)
    if options.out:
        files.write(options.out, text)


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
        runs[f"jitted step, {name}"] = bench.Run(functools.partial(_step_floor, variant, x, y), _PGD_STEPS)
        runs[f"loop of steps, {name}"] = bench.Run(functools.partial(_loop_floor, variant, x, y), _PGD_STEPS)
    for label, attack, num_passes in ((_PGD, pgd, _PGD_STEPS), (_APGD, apgd, _APGD_STEPS)):
        for name, variant in variants.items():
            runs[f"{label}, scan, {name}"] = bench.Run(
                functools.partial(_attack, attack, variant, x, y), num_passes, f"loop of steps, {name}"
            )
            host = functools.partial(_attack_from_host, base.bind(attack, loop_fn=loops.host), variant, x, y)
            runs[f"{label}, host, {name}"] = bench.Run(host, num_passes, f"jitted step, {name}")
        if on_cpu:
            mesh = parallel.data_mesh(2)
            batch = (parallel.replicate(variants["rewritten"], mesh), *parallel.shard_batch((x, y), mesh))
            sharded = functools.partial(_attack, attack, *batch)
            runs[f"{label}, scan, rewritten, 2 devices"] = bench.Run(sharded, num_passes, "loop of steps, rewritten")
    return runs


def pooled_runs(batch_size: int) -> dict[str, bench.Run]:
    """PGD and a training epoch inside loops on the network with max-pooling, where XLA:CPU needs the rewrite most."""
    model_fn, x, y = make_model("convnet_pooled", "float32", batch_size)
    attack = base.bind(attacks.pgd, threat=threats.Linf(_EPS), step_size=_STEP_SIZE, num_steps=_PGD_STEPS)
    graph, params = nnx.split(model_fn)
    apply_fn = functools.partial(_apply, graph)
    digits = data.load("digits")
    epoch = tuple(jnp.asarray(a[: _EPOCH_STEPS * batch_size]) for a in (digits.x_train, digits.y_train))
    optimizer = optax.sgd(0.01)
    state = training.init(params, None, optimizer)
    runs = {}
    for name, rewrite in (("plain", lambda function: function), ("rewritten", lowering.rewrite)):
        runs[f"pooled net, {_PGD}, scan, {name}"] = bench.Run(functools.partial(_attack, attack, rewrite(model_fn), x, y), _PGD_STEPS)
        step_fn = training.step(base.bind(training.natural, apply_fn=rewrite(apply_fn)), optimizer)
        runs[f"pooled net, SGD epoch in scan, {name}"] = bench.Run(
            functools.partial(_epoch, state, *epoch, step_fn, batch_size), _EPOCH_STEPS
        )
    return runs


def peer_runs(names, model_fn, x, y, thread_counts) -> dict[str, bench.Run]:
    """The same attacks of other libraries on the same weights; what runs on torch, once for each number of threads."""
    if not names:
        return {}
    module = peers.torch_convnet(nnx.state(model_fn, nnx.Param))
    x_torch, y_torch = peers.to_torch(np.asarray(x)), peers.to_torch(np.asarray(y))
    makers = {"foolbox": _foolbox_runs, "torchattacks": _torchattacks_runs, "art": _art_runs, "autoattack": _autoattack_runs}
    runs = _foolbox_on_jax_runs(model_fn, x, y) if "foolbox" in names else {}
    for num_threads in thread_counts:
        for name in names:
            for row, run in makers[name](module, x_torch, y_torch).items():
                runs[row + _THREADS.format(num_threads)] = run._replace(
                    function=functools.partial(bench.on_threads, num_threads, run.function)
                )
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
    model_fn, x, y = make_model("convnet", "float32", 64)
    compilations: list[str] = []
    first = True

    def count(event, duration, **_):
        del duration
        if event.endswith("backend_compile_duration") and not first:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    images, labels = np.asarray(x), np.asarray(y)
    for index in range(3):
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
        first = False
    return len(compilations)


def check(times: dict[str, bench.Times], compiled: dict[int, bench.Times], num_compilations: int, on_cpu: bool) -> list[bench.Bar]:
    """The bars: in CPU time on CPU, where the machine may be shared, in wall time elsewhere."""
    kind = "cpu" if on_cpu else "wall"

    def ratio(name, reference):
        return bench.time_ratio(times, name, reference, kind)

    bars = []
    for label in (_PGD, _APGD):
        best = min((name for name in times if name.startswith(f"{label}, ")), key=lambda name: ratio(name, _FLOOR))
        bars.append(bench.Bar(f"{best}, to the {_FLOOR}", ratio(best, _FLOOR), 1.05 if on_cpu else 1.10))
        bars.append(bench.Bar(f"{label}, scan, plain, to the loop of steps", ratio(f"{label}, scan, plain", "loop of steps, plain"), 1.05))
        for peer, bound in _PEER_BARS.items():
            for row in (name for name in times if name.startswith(f"{peer}, {label}")):
                bars.append(bench.Bar(f"{row}, to {best}", ratio(row, best), bound, is_lower=True))
    for what, bound in ((f"{_PGD}, scan", 0.35), ("SGD epoch in scan", 0.06)):
        if f"pooled net, {what}, plain" in times:
            name = f"pooled net, {what}"
            bars.append(bench.Bar(f"{name}, rewritten to plain", ratio(f"{name}, rewritten", f"{name}, plain"), bound))
    wall, cpu = (float(np.median(seconds)) for seconds in compiled[_APGD_STEPS])
    bars.append(bench.Bar(f"wall seconds to compile {_APGD} (on a quiet machine; {cpu:.1f} CPU s)", wall, 1.5))
    bars.append(
        bench.Bar(f"the same over that of {min(compiled)} steps", bench.time_ratio(compiled, _APGD_STEPS, min(compiled), kind), 1.1)
    )
    bars.append(bench.Bar("compilations after the first across eps, seed, target, batch tail", num_compilations, 0))
    return bars


# --- what is timed -------------------------------------------------------------------------------------------------------------


@jax.jit
def _step(model_fn, x, y):
    # The chain makes each step wait for the one before, as an attack does.
    value, grad = jax.value_and_grad(lambda x: losses.cross_entropy(model_fn(x), y).sum())(x)
    return value, x + 1e-3 * grad


def _step_floor(model_fn, x, y):
    for _ in range(_PGD_STEPS):
        value, x = _step(model_fn, x, y)
    jax.block_until_ready((value, x))


@jax.jit
def _loop(model_fn, x, y):
    def step(carry, _):
        value, x = _step(model_fn, carry[1], y)
        return (carry[0] + value, x), None

    return jax.lax.scan(step, (0.0, x), length=_PGD_STEPS)[0]


def _loop_floor(model_fn, x, y):
    jax.block_until_ready(_loop(model_fn, x, y))


def _call(function, *args):
    return function(*args)


_compiled = jax.jit(_call)


def _attack(attack, model_fn, x, y):
    jax.block_until_ready(_compiled(attack, jax.random.key(0), model_fn, x, y))


def _attack_from_host(attack, model_fn, x, y):
    jax.block_until_ready(attack(jax.random.key(0), model_fn, x, y))


_fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))


def _epoch(state, x, y, step_fn, batch_size):
    jax.block_until_ready(_fit(state, jax.random.key(0), x, y, step_fn=step_fn, num_epochs=1, batch_size=batch_size))


def _apply(graph, params, model_state, x, mode):
    del mode
    return nnx.merge(graph, params)(x), model_state


# --- peers -----------------------------------------------------------------------------------------------------------------------


def _foolbox_on_jax_runs(model_fn, x, y):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=_STEP_SIZE, steps=_PGD_STEPS)

    def on_jax(function):
        model = foolbox.JAXModel(function, bounds=(0, 1))
        return bench.Run(lambda: jax.block_until_ready(attack.run(model, x, y, epsilon=_EPS)), _PGD_STEPS)

    jitted = functools.partial(_compiled, model_fn)
    return {
        f"foolbox on JAX, plain model, {_PGD}": on_jax(lambda x: model_fn(x)),
        f"foolbox on JAX, jitted model, {_PGD}": on_jax(jitted),
    }


def _foolbox_runs(module, x, y):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=_STEP_SIZE, steps=_PGD_STEPS)
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    return {f"foolbox on torch, {_PGD}": bench.Run(lambda: attack.run(model, x, y, epsilon=_EPS), _PGD_STEPS)}


def _torchattacks_runs(module, x, y):
    import torchattacks

    pgd = torchattacks.PGD(module, eps=_EPS, alpha=_STEP_SIZE, steps=_PGD_STEPS)
    apgd = torchattacks.APGD(module, eps=_EPS, steps=_APGD_STEPS)
    return {
        f"torchattacks, {_PGD}": bench.Run(lambda: pgd(x, y), _PGD_STEPS),
        f"torchattacks, {_APGD}": bench.Run(lambda: apgd(x, y), _APGD_STEPS),
    }


def _art_runs(module, x, y):
    import torch
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(module, torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu")
    common = {"eps": _EPS, "batch_size": len(y), "verbose": False}
    pgd = evasion.ProjectedGradientDescent(classifier, eps_step=_STEP_SIZE, max_iter=_PGD_STEPS, num_random_init=1, **common)
    apgd = evasion.AutoProjectedGradientDescent(
        classifier, eps_step=2 * _EPS, max_iter=_APGD_STEPS, nb_random_init=1, loss_type="cross_entropy", **common
    )
    x, y = x.numpy(), y.numpy()
    return {
        f"ART, {_PGD}": bench.Run(lambda: pgd.generate(x=x, y=y), _PGD_STEPS),
        f"ART, {_APGD}": bench.Run(lambda: apgd.generate(x=x, y=y), _APGD_STEPS),
    }


def _autoattack_runs(module, x, y):
    from pyautoattack import autopgd_base

    apgd = autopgd_base.APGDAttack(module, n_iter=_APGD_STEPS, eps=_EPS, logger=logging.getLogger())
    return {f"AutoAttack, {_APGD}": bench.Run(lambda: apgd.perturb(x, y), _APGD_STEPS)}


# --- the table -------------------------------------------------------------------------------------------------------------------


def _report(options, runs, times, bars, arguments):
    device = jax.devices()[0].device_kind + (f", {os.cpu_count()} cores" if jax.default_backend() == "cpu" else "")
    packages = ["jax", "flax", *(["torch"] if options.peers else []), *(_PEERS[peer][1] for peer in options.peers)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return _PAGE.format(
        command=" ".join(["python -m experiments benchmark_attacks", *arguments]),
        options=options,
        device=device,
        versions=versions,
        load=os.getloadavg()[2],
        floor=_FLOOR,
        rows="\n".join(_row(name, run, times) for name, run in runs.items()),
        bars="\n".join(bar.row for bar in bars),
    )


_PAGE = """\
# The cost of attacks

    {command}

{options.network}, batch {options.batch_size}, {options.dtype}; {device}; {versions}.
Medians of {options.rounds} rounds in which every row runs once, one after the other; load average of the machine at the end: {load:.1f}.
Ratios are per forward and backward pass, in CPU time (in wall time), each the median of the ratios within the rounds; the one forward pass
with which our attacks end is counted as overhead. Weights and labels are made (an untrained network and its predictions): every example is
attacked to the end. The best way of ours, which bars compare with peers, is the least of its rows in CPU time.

| row | wall ms | CPU s | to the {floor} | to its own bare loop |
|---|---|---|---|---|
{rows}

| bar | measured | bound | |
|---|---|---|---|
{bars}
"""


def _row(name, run, times):
    def ratios(reference):
        return f"{bench.time_ratio(times, name, reference, 'cpu'):.2f} ({bench.time_ratio(times, name, reference, 'wall'):.2f})"

    wall, cpu = (float(np.median(seconds)) * run.num_passes for seconds in times[name])
    to_floor = "" if name.startswith("pooled") else ratios(_FLOOR)
    return f"| {name} | {1e3 * wall:.0f} | {cpu:.2f} | {to_floor} | {ratios(run.floor) if run.floor else ''} |"
