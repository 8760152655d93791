"""What a vote under noise costs beyond its forward pass, and against a torch implementation of the reference's sampling loop.

`python -m experiments benchmark_smoothing --out docs/results/benchmark_smoothing.md`. Every row runs once per round, one after the
other; ratios are taken within a round, and their median is shown. On CPU what counts is CPU time, and a torch implementation stands
beside (its rows need the extra `robustjax[benchmarks]`; kept to one core by `taskset -c 0`, its idle threads do not add to the CPU time
of the other rows); on an accelerator wall time, and a ResNet-20 with N = 100,000 for each image is measured too.
"""

import argparse
import copy
import functools
import importlib.metadata
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.lib import bench, data, experiment, files, models, peers
from robustjax import prng, smoothing
from robustjax.smoothing import counting

_SIGMA = 0.5
_NUM_TORCH_SAMPLES = 2000  # in one timing; a multiple of all the batches below
_TORCH_BATCHES = (50, 100, 250, 1000)
_TORCH_DEFAULT = 1000  # of the reference
_NOISE_CHUNK = 250  # samples of one image
_VERBS = ("count_predictions", "smoothing.vote_dataset")


class Load(NamedTuple):
    """What is timed of a kind of device, and the bar of its throughput over that of the forward pass."""

    kind: str  # of time: cpu or wall
    bound: float
    num_samples: int  # in one timing; a multiple of all that follow
    forward_batches: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]  # images at once, samples of each at once
    driver_shapes: tuple[tuple[int, int], ...]
    driver_images: int
    driver_samples: int  # of each image, beside those of the selection
    about: str  # the times and the numbers


CPU = Load(
    "cpu", 0.85, 4000, (100, 250, 500, 1000), ((1, 100), (1, 500), (1, 1000), (4, 250), (20, 25)), ((1, 500), (4, 250)), 4, 2000,
    "CPU time of all threads. Certification on a GPU has [its own page](benchmark_smoothing_gpu.md).",
)  # fmt: skip
ACCELERATOR = Load(
    "wall", 0.95, 200_000, (2000, 10_000), ((2, 1000), (10, 1000)), ((10, 1000),), 10, 100_000,
    "Wall time. float32 is JAX's default precision, which on NVIDIA's GPUs multiplies in TF32. [On a CPU](benchmark_smoothing.md).",
)  # fmt: skip


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-threads", nargs="*", type=int, help="on CPU: 1 by default, no number for no torch")
    parser.add_argument("--out", type=experiment.output, help="where to write the table, as Markdown")
    options = parser.parse_args(arguments)
    load = CPU if jax.default_backend() == "cpu" else ACCELERATOR
    on_cpu = load.kind == "cpu"
    if options.torch_threads and not on_cpu:
        parser.error("torch is compared with on CPU only; leave --torch-threads out")
    threads = ([1] if options.torch_threads is None else options.torch_threads) if on_cpu else []
    if threads:
        peers.require("torch")
    module = Network(rngs=nnx.Rngs(0))
    x = data.load("digits").x_test[:20]
    networks = {"": (module, x)} if on_cpu else {"convnet, ": (module, x)} | residual_networks()
    runs = {}
    for name, (model_fn, images) in networks.items():
        runs |= {f"{name}{row}": run for row, run in own_runs(model_fn, images, load).items()}
    runs |= noise_runs(x, load)
    for num_threads in threads:
        runs |= torch_runs(module, x[:1], num_threads)
    times = bench.measure(runs, options.rounds)
    bars = [bar for name in networks for bar in check(times, name, load)]
    bars += check_torch(times, threads)
    bars += [
        bench.Bar("temporary memory at 100,000 samples to that at 1,000", memory(module, x, 100_000) / memory(module, x, 1000), 1.01),
        bench.Bar("compilations after the first, over sigmas, seeds, a shorter tail and a resumption", count_compilations(module, x), 0),
    ]
    packages = ["jax", "flax", *(["torch"] if threads else [])]
    text = _PAGE.format(
        command=" ".join(["python -m experiments benchmark_smoothing", *(sys.argv[1:] if arguments is None else arguments)]),
        options=options,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        device=jax.devices()[0].device_kind,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        load=os.getloadavg()[2],
        kind="CPU" if on_cpu else "wall",
        place="a CPU" if on_cpu else "a GPU or TPU",
        about=load.about,
        rows="\n".join(_row(name, getattr(row, load.kind)) for name, row in times.items()),
        bars="\n".join(bar.row for bar in bars),
    )
    print(text)
    if options.out:
        files.write(options.out, text)


class Network(nnx.Module):
    """conv 32, pool, conv 64, pool, dense 128, dense 10, without padding: what the reference's loop was measured with."""

    def __init__(self, *, rngs):
        self.first = nnx.Conv(1, 32, (3, 3), padding="VALID", rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(64 * 5 * 5, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        """[B, 28, 28, 1] -> [B, 10]."""
        for layer in (self.first, self.second):
            x = nnx.relu(nnx.max_pool(layer(x), (2, 2), (2, 2)))
        return self.head(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


def residual_networks() -> dict[str, tuple]:
    """A ResNet-20 in float32 and bfloat16, and images of its size, by the prefix of its rows."""
    module = models.ARCHITECTURES["resnet20"]((32, 32, 3), 10, rngs=nnx.Rngs(0))
    module.eval()
    x = np.random.default_rng(0).random((20, 32, 32, 3), np.float32)
    return {"ResNet-20 in float32, ": (module, x), "ResNet-20 in bfloat16, ": (models.in_bfloat16(module), x)}


def own_runs(model_fn, x, load: Load) -> dict[str, bench.Run]:
    """The bare forward pass, the votes of images, and of a data set."""
    runs = {}
    for size in load.forward_batches:
        images = jnp.asarray(np.random.default_rng(0).random((size, *x.shape[1:]), np.float32))
        forward = functools.partial(_forwards, model_fn, images, load.num_samples // size)
        runs[f"forward, batch {size}"] = bench.Run(forward, load.num_samples)
    for num_images, chunk_size in load.shapes:
        vote = functools.partial(_votes, model_fn, jnp.asarray(x[:num_images]), load.num_samples // num_images, chunk_size)
        runs[f"count_predictions, {num_images} images, chunks of {chunk_size}"] = bench.Run(vote, load.num_samples)
    for num_images, chunk_size in load.driver_shapes:
        drive = functools.partial(_drive, model_fn, x[: load.driver_images], num_images, chunk_size, load.driver_samples)
        num_samples = load.driver_images * (chunk_size + load.driver_samples)
        runs[f"smoothing.vote_dataset, {num_images} images, chunks of {chunk_size}"] = bench.Run(drive, num_samples)
    return runs


def noise_runs(x, load: Load) -> dict[str, bench.Run]:
    """The noise alone, by who draws it."""
    image, num_samples = jnp.asarray(x[:1]), load.num_samples

    def timed(draw, *arguments):
        return bench.Run(lambda: draw(*arguments, image, num_samples=num_samples).block_until_ready(), num_samples)

    runs = {f"noise alone, {_NOISE_CHUNK} at once, a threefry key for each sample (ours)": timed(_own_noise)}
    for kind in ("threefry2x32", "rbg", "unsafe_rbg"):
        runs[f"noise alone, {_NOISE_CHUNK} at once, one {kind} key for all"] = timed(_chunk_noise, jax.random.key(0, impl=kind))
    return runs


def torch_runs(module, x, num_threads: int) -> dict[str, bench.Run]:
    """The reference's loop: x repeated, plus sigma times normals, argmax, counts; on its own layout, and on the faster one."""
    import torch

    torch.set_flush_denormal(True)  # as XLA does on CPU
    network, image = peers.torch_convnet(nnx.state(module, nnx.Param), pooled_padding=0), peers.to_torch(np.asarray(x))
    logits = _compiled(module, jnp.asarray(x))
    np.testing.assert_allclose(network(image).numpy(), logits, atol=1e-4)  # the same network
    runs = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in _TORCH_BATCHES:
            sample = functools.partial(_torch_sample, copy.deepcopy(network).to(memory_format=layout), image, layout, size)
            name = _torch_row(size, num_threads, layout == torch.channels_last)
            runs[name] = bench.Run(functools.partial(bench.on_threads, num_threads, sample), _NUM_TORCH_SAMPLES)
    return runs


def check(times: dict[str, bench.Times], network: str, load: Load) -> list[bench.Bar]:
    """The best votes of a network over its best forward pass."""
    floor = _best(times, f"{network}forward", load.kind)
    bars = []
    for verb in _VERBS:
        name = _best(times, f"{network}{verb}", load.kind)
        ratio = bench.time_ratio(times, floor, name, load.kind)
        bars.append(bench.Bar(f"{name}: its throughput over that of {floor}", ratio, load.bound, is_lower=True))
    return bars


def check_torch(times: dict[str, bench.Times], thread_counts) -> list[bench.Bar]:
    """The best votes over those of torch at its default batch and at its best, in CPU time."""
    bars = []
    for num_threads in thread_counts:
        rows = [_torch_row(size, num_threads) for size in _TORCH_BATCHES]
        fastest = min(rows, key=lambda row: np.median(times[row].cpu))
        for row, bound in ((_torch_row(_TORCH_DEFAULT, num_threads), 7.0), (fastest, 5.5)):
            for verb in _VERBS:
                name = _best(times, verb, "cpu")
                ratio = bench.time_ratio(times, row, name, "cpu")
                bars.append(bench.Bar(f"{name}: its throughput over that of {row}", ratio, bound, is_lower=True))
    return bars


def _best(times, prefix, kind):
    return min((name for name in times if name.startswith(prefix)), key=lambda name: np.median(getattr(times[name], kind)))


def _row(name, seconds):
    return f"| {name} | {1e6 * np.median(seconds):.4g} | {1 / np.median(seconds):,.0f} |"


def memory(module, x, num_samples: int) -> int:
    """Bytes of temporary memory of a compiled count."""
    arguments = jax.random.key(0), module, jnp.asarray(x)
    analysis = _count.lower(*arguments, sigma=_SIGMA, num_samples=num_samples, chunk_size=50).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def count_compilations(module, x) -> int:
    """How many programs `smoothing.vote_dataset` compiles after its first run."""
    compilations: list[str] = []

    def count(event, duration, **_):
        del duration
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    *_, first = _states(module, x, jax.random.key(0), 0.25)
    own = len(compilations)
    assert own, "no compilation was heard of"
    for index, sigma in enumerate((0.25, 0.5, 1.0)):
        *_, state = _states(module, x[: len(x) - index], jax.random.key(index), sigma)
    cut = smoothing.VoteState(first.selection, np.zeros_like(first.estimation), first.fingerprint)
    *_, state = _states(module, x, jax.random.key(0), 0.25, cut)
    np.testing.assert_array_equal(state.estimation, first.estimation)
    return len(compilations) - own


# --- what is timed -------------------------------------------------------------------------------------------------------------


_count = jax.jit(smoothing.count_predictions, static_argnames=("num_samples", "chunk_size"))


@jax.jit
def _compiled(model_fn, x):
    return model_fn(x)


def _forwards(model_fn, x, num_calls):
    for _ in range(num_calls):
        logits = _compiled(model_fn, x)
    logits.block_until_ready()


def _votes(model_fn, x, num_samples, chunk_size):
    _count(jax.random.key(0), model_fn, x, sigma=_SIGMA, num_samples=num_samples, chunk_size=chunk_size).block_until_ready()


def _states(model_fn, x, key, sigma, state=None):
    return smoothing.vote_dataset(
        key, model_fn, x, sigma=sigma, num_selection=25, num_samples=200, num_step_samples=100, batch_size=20, chunk_size=25, state=state
    )


def _drive(model_fn, x, batch_size, chunk_size, num_samples):
    for _ in smoothing.vote_dataset(
        jax.random.key(0), model_fn, x, sigma=_SIGMA, num_selection=chunk_size, num_samples=num_samples,
        num_step_samples=num_samples // 2, batch_size=batch_size, chunk_size=chunk_size,
    ):  # fmt: skip
        pass


@functools.partial(jax.jit, static_argnames="num_samples")
def _own_noise(x, *, num_samples):
    keys = prng.example_keys(jax.random.key(0), 1)

    def chunk(total, index):
        samples, _ = counting.noisy(keys, x, _SIGMA, _NOISE_CHUNK, first_sample=_NOISE_CHUNK * index)
        return total + samples.sum(axis=1), None

    return jax.lax.scan(chunk, jnp.zeros_like(x), jnp.arange(num_samples // _NOISE_CHUNK))[0]


@functools.partial(jax.jit, static_argnames="num_samples")
def _chunk_noise(key, x, *, num_samples):
    def chunk(total, index):
        normals = jax.random.normal(jax.random.fold_in(key, index), (_NOISE_CHUNK, *x.shape[1:]))
        return total + (x + _SIGMA * normals).sum(axis=0, keepdims=True), None

    return jax.lax.scan(chunk, jnp.zeros_like(x), jnp.arange(num_samples // _NOISE_CHUNK))[0]


def _torch_row(size, num_threads, is_channels_last=False):
    return f"torch, batch {size}, {num_threads} thread(s)" + (", channels last" if is_channels_last else "")


def _torch_sample(network, image, layout, size):
    import torch

    counts = np.zeros(10, int)
    with torch.no_grad():
        for _ in range(_NUM_TORCH_SAMPLES // size):
            batch = image.repeat((size, 1, 1, 1)).contiguous(memory_format=layout)
            predictions = network(batch + _SIGMA * torch.randn_like(batch)).argmax(1)
            counts += np.bincount(predictions.numpy(), minlength=10)
    return counts


_PAGE = """\
# The cost of certification on {place}

    {command}

Convnet: conv 32, pool, conv 64, pool, dense 128, dense 10, of 3x3 without padding, on 28x28 images, float32. Networks are untrained.
{device}, {cores} core(s); {versions}.
Medians of {options.rounds} rounds in which every row runs once, one after the other; load average of the machine at the end: {load:.1f}.
Ratios are medians of the ratios within the rounds; a batch or shape that a bar names is the best of its kind. What is drawn for sample n
depends on nothing else: each has a key of its own.
{about}

| row | {kind} us a sample | samples a {kind} second |
|---|---|---|
{rows}

| bar | measured | bound | |
|---|---|---|---|
{bars}
"""
