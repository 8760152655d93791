"""AutoAttack "standard" from a cold start, here and in pyautoattack on torch: the same weights and images, member by member.

`ROBUSTJAX_DATA=DIR python -m experiments benchmark_autoattack --page docs/results/benchmark_autoattack.md`. Each package runs in a
process of its own with no program compiled; our second run in the process is the warm one. Needs the extra `robustjax[benchmarks]`.
"""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import experiment, gates, pages, peers, two_frameworks
from robustjax import attacks, base, evaluate, losses, lowering, parallel
from robustjax.threats import Linf

_MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
_IMAGES = {"convnet": (100, 0.3), "resnet20": (16, 0.5 / 255)}  # how many, and eps
_SIDES = ("ours, cold", "ours, warm", "torch")
_BATCHES = (8, 16, 50, 100)  # of the bare passes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """Which networks, and how the torch package runs."""

    networks: tuple[two_frameworks.Name, ...] = two_frameworks.NAMES
    torch_threads: int = 2
    side: Literal["both", "ours", "torch"] = "both"
    """One package alone, in this process, for one network: its outcome goes to OUT/outcome.json."""


def run(settings: Settings) -> None:
    """A section for every network."""
    if settings.side != "ours":
        peers.require("torch", "pyautoattack")
    if settings.side != "both":
        outcome = _of(settings)
        (pathlib.Path(settings.out) / "outcome.json").write_text(json.dumps(outcome))
        return
    for name in settings.networks:
        start = time.perf_counter()
        outcomes = {side: _in_a_process(settings, name, side) for side in ("ours", "torch")}
        if not settings.quick:
            packages = ("torch", "pyautoattack")
            experiment.publish("benchmark_autoattack", settings, _PAGE, name, _blocks(name, outcomes), start, packages=packages)


def _in_a_process(settings, name, side):
    with tempfile.TemporaryDirectory() as folder:
        options = ["--networks", name, "--side", side, "--out", folder, "--torch-threads", str(settings.torch_threads)]
        command = [sys.executable, "-m", "experiments", "benchmark_autoattack", *options, *(["--quick"] if settings.quick else [])]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / "cold")}
        subprocess.run(command, check=True, env=environment)
        return json.loads((pathlib.Path(folder) / "outcome.json").read_text())


def _of(settings):
    (name,) = settings.networks
    num_images, eps = (4, 0.3) if settings.quick else _IMAGES[name]
    budget = {"num_steps": 2, "num_targets": 2, "num_queries": 3} if settings.quick else {}
    if settings.side == "ours":
        experiment.prepare(None)
    case = two_frameworks.case(name, num_images, num_epochs=1 if settings.quick else 30, in_torch=settings.side == "torch")
    if settings.side == "torch":
        return {"torch": _torch(case, eps, settings.torch_threads, settings.quick), "bare": _bare_torch(case)}
    plan = attacks.ensemble(Linf(eps), **budget)
    jax.clear_caches()
    cold, warm = _ours(case, plan), _ours(case, plan)
    passes = {member: list(evaluate.cost(attack, case.model_fn, case.x, case.y)[:2]) for member, attack in plan.items()}
    return {"ours, cold": cold, "ours, warm": warm, "passes": passes, "bare": _bare(case)}


def _ours(case, plan):
    seconds = {}
    wall, cpu = time.perf_counter(), time.process_time()
    mesh = parallel.data_mesh() if len(case.x) >= len(jax.devices()) else None
    for state in evaluate.evaluate(jax.random.key(0), plan, case.model_fn, case.x, case.y, batch_size=len(case.x), mesh=mesh):
        done = [name for row, name in zip(state.success, plan, strict=True) if (row != evaluate.NOT_RUN).any()]
        member = done[-1] if done else "clean"
        seconds[member] = [time.perf_counter() - wall, time.process_time() - cpu]
        wall, cpu = time.perf_counter(), time.process_time()
    ran = {name: int((row != evaluate.NOT_RUN).sum()) for row, name in zip(state.success, plan, strict=True)}
    robust = state.correct & ~(state.success == 1).any(axis=0)
    return {"seconds": seconds, "ran": ran, "robust": robust.tolist()}


def _torch(case, eps, num_threads, is_quick):
    import pyautoattack as package
    import torch

    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)  # as XLA does on CPU
    logging.disable(logging.INFO)
    x, y = peers.to_torch(case.x), peers.to_torch(case.y)
    with torch.no_grad():
        left = (case.module(x).argmax(dim=1) == y).numpy()
    seconds, ran = {}, {}
    for member in _MEMBERS if not is_quick else _MEMBERS[:1]:
        if not left.any():
            break
        ran[member], wall, cpu = int(left.sum()), time.perf_counter(), time.process_time()
        whole = package.AutoAttack(case.module, norm="Linf", eps=eps, seed=0, version="standard")
        whole.attacks_to_run = [member]
        found, _ = whole.run_standard_evaluation(x[left], y[left], batch_size=int(left.sum()))
        with torch.no_grad():
            stands = (case.module(found).argmax(dim=1) == y[left]).numpy()
        seconds[member] = [time.perf_counter() - wall, time.process_time() - cpu]
        left[np.flatnonzero(left)[~stands]] = False
    return {"seconds": seconds, "ran": ran, "robust": left.tolist()}


def _bare(case):
    # Milliseconds of CPU time an image, of the least batch's best: a forward pass, and one with the gradient in x, in a loop.
    model_fn = lowering.rewrite(case.model_fn)

    def gradient(model_fn, x, y):
        return jax.grad(lambda x: losses.cross_entropy(model_fn(x), y).sum())(x)

    def forward(model_fn, x, y):
        del y
        return model_fn(x).sum(axis=1).reshape(-1, 1, 1, 1)

    found = {}
    for name, function in (("forward", forward), ("forward and backward", gradient)):
        looped = jax.jit(base.bind(_looped, function=function))
        for size in _BATCHES:
            x, y = np.resize(case.x, (size, *case.x.shape[1:])), np.resize(case.y, size)
            found.setdefault(name, []).append(_milliseconds(lambda x=x, y=y, f=looped: jax.block_until_ready(f(model_fn, x, y)), 10 * size))
    return {name: min(times) for name, times in found.items()}


def _looped(model_fn, x, y, *, function):
    return jax.lax.scan(lambda x, _: (x + 1e-20 * function(model_fn, x, y), None), jnp.asarray(x), None, length=10)[0]


def _bare_torch(case):
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    found = {}
    for size in _BATCHES:
        x, y = (peers.to_torch(np.resize(part, (size, *part.shape[1:]))) for part in (case.x, case.y))

        def forward(x=x):
            with torch.no_grad():
                case.module(x)

        def gradient(x=x, y=y):
            x = x.clone().requires_grad_(True)
            functional.cross_entropy(case.module(x), y).backward()

        for name, function in (("forward", forward), ("forward and backward", gradient)):
            found.setdefault(name, []).append(_milliseconds(function, size))
    return {name: min(times) for name, times in found.items()}


def _milliseconds(function, num_images):
    function()
    times = []
    for _ in range(5):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times) / num_images


def _blocks(name, outcomes):
    sides = {
        "ours, cold": outcomes["ours"]["ours, cold"],
        "ours, warm": outcomes["ours"]["ours, warm"],
        "torch": outcomes["torch"]["torch"],
    }
    total = {side: np.sum(list(found["seconds"].values()), axis=0) for side, found in sides.items()}
    rows = []
    for member in ("clean", *_MEMBERS):
        found = [sides[side]["seconds"].get(member) for side in _SIDES]
        cells = [cell for pair in found for cell in ([f"{pair[0]:.1f}", f"{pair[1]:.1f}"] if pair else ["", ""])]
        rows.append([member, str(sides["ours, cold"]["ran"].get(member, "")), *_passes(outcomes, member), *cells])
    rows.append(["all", "", "", "", *(f"{value:.1f}" for side in _SIDES for value in total[side])])
    header = ["member", "images", "forward", "backward", *(f"{side}: {kind}" for side in _SIDES for kind in ("wall s", "CPU s"))]
    bare = [[what, *(f"{1e3 * outcomes[side]['bare'][what]:.0f}" for side in ("ours", "torch"))] for what in outcomes["ours"]["bare"]]
    equal = float(np.mean(np.equal(sides["ours, cold"]["robust"], sides["torch"]["robust"])))
    wall, cpu = total["ours, cold"] / total["torch"]
    num_images, eps = _IMAGES[name]
    return [
        pages.text(f"{num_images} images in one batch, linf, eps {eps:.4g}; robust: {sum(sides['torch']['robust'])} of them in torch."),
        pages.table(header, rows),
        pages.table(["microseconds of CPU time an image, best batch", "ours, rewritten, in a loop", "torch, 1 thread"], bare),
        pages.gates_of([
            gates.Gate("wall time from a cold start, ours to torch's", float(wall), high=0.6),
            gates.Gate("CPU time from a cold start, ours to torch's", float(cpu), high=0.7),
            gates.Gate("fraction of images on which both agree", equal, low=0.99),
        ]),
    ]  # fmt: skip


def _passes(outcomes, member):
    return [f"{count:.0f}" for count in outcomes["ours"]["passes"].get(member, ())] or ["", ""]


_PAGE = pages.Page(
    "AutoAttack from a cold start",
    "Columns `forward` and `backward` are passes for an image that no attack fools. In every package a member runs on the images that the "
    "members before it left; here its targets do so, too, and later members are compiled while an earlier one runs, to which their CPU "
    "seconds are counted.",
)
