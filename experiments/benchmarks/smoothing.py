"""What a vote under noise costs beyond its forward pass, and against a torch implementation of the reference's sampling loop.

`python -m experiments.benchmarks.smoothing --out docs/results/benchmark_smoothing.md`. Every row runs once per round, one after the
other; ratios are taken within a round, and their median is shown. The rows of torch need the extra `robustjax[benchmarks]`; kept to one
core (`taskset -c 0`), its idle threads do not add to the CPU time of the other rows.
"""

import argparse
import copy
import functools
import importlib.metadata
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.lib import bench, data, files, peers
from robustjax import arrays, smoothing
from robustjax.smoothing import counting

_SIGMA = 0.5
_NUM_SAMPLES, _NUM_TORCH_SAMPLES = 4000, 2000  # in one timing; each is a multiple of all the batches below
_FORWARD_BATCHES = (100, 250, 500, 1000)
_SHAPES = ((1, 100), (1, 500), (1, 1000), (4, 250), (20, 25))  # images at once, samples of each at once
_TORCH_BATCHES = (50, 100, 250, 1000)
_TORCH_DEFAULT = 1000  # of the reference
_DRIVER_SHAPES = ((1, 500), (4, 250))
_DRIVER_SAMPLES = 2000  # of each of four images, beside those of the selection


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-threads", nargs="*", type=int, default=[1], help="none leaves torch out, one wastes no time in waiting")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the table, as Markdown")
    options = parser.parse_args(arguments)
    if options.torch_threads:
        peers.require("torch")
    module = Network(rngs=nnx.Rngs(0))
    x = data.load("digits").x_test[:20]
    runs = own_runs(module, x) | noise_runs(x)
    for num_threads in options.torch_threads:
        runs |= torch_runs(module, x[:1], num_threads)
    times = bench.measure(runs, options.rounds)
    bars = check(times, options.torch_threads)
    bars += [
        bench.Bar("temporary memory at 100,000 samples to that at 1,000", memory(module, x, 100_000) / memory(module, x, 1000), 1.01),
        bench.Bar("compilations after the first, over sigmas, seeds, a shorter tail and a resumption", count_compilations(module, x), 0),
    ]
    packages = ["jax", "flax", *(["torch"] if options.torch_threads else [])]
    text = _PAGE.format(
        command=" ".join(["python -m experiments.benchmarks.smoothing", *(sys.argv[1:] if arguments is None else arguments)]),
        options=options,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        device=jax.devices()[0].device_kind,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        load=os.getloadavg()[2],
        rows="\n".join(f"| {name} | {1e6 * np.median(t.cpu):.1f} | {1 / np.median(t.cpu):,.0f} |" for name, t in times.items()),
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


def own_runs(module, x) -> dict[str, bench.Run]:
    """The bare forward pass, the votes of images, and of a data set."""
    runs = {}
    for size in _FORWARD_BATCHES:
        images = jnp.asarray(np.random.default_rng(0).random((size, *x.shape[1:]), np.float32))
        runs[f"forward, batch {size}"] = bench.Run(functools.partial(_forwards, module, images), _NUM_SAMPLES)
    for num_images, chunk_size in _SHAPES:
        vote = functools.partial(_votes, module, jnp.asarray(x[:num_images]), _NUM_SAMPLES // num_images, chunk_size)
        runs[f"count_predictions, {num_images} images, chunks of {chunk_size}"] = bench.Run(vote, _NUM_SAMPLES)
    for num_images, chunk_size in _DRIVER_SHAPES:
        drive = functools.partial(_drive, module, x[:4], num_images, chunk_size)
        runs[f"smoothing.sample, {num_images} images, chunks of {chunk_size}"] = bench.Run(drive, 4 * (chunk_size + _DRIVER_SAMPLES))
    return runs


def noise_runs(x) -> dict[str, bench.Run]:
    """The noise alone, by who draws it."""
    image = jnp.asarray(x[:1])
    runs = {"noise alone, a threefry key for each sample (ours)": bench.Run(lambda: _own_noise(image).block_until_ready(), _NUM_SAMPLES)}
    for kind in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=kind)
        runs[f"noise alone, one {kind} key for a chunk"] = bench.Run(
            functools.partial(lambda key: _chunk_noise(key, image).block_until_ready(), key), _NUM_SAMPLES
        )
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


def check(times: dict[str, bench.Times], thread_counts) -> list[bench.Bar]:
    """The bars, in CPU time."""

    def best(prefix):
        return min((name for name in times if name.startswith(prefix)), key=lambda name: np.median(times[name].cpu))

    def speed(name, reference):
        return bench.time_ratio(times, reference, name, "cpu")

    floor, ours = best("forward"), (best("count_predictions"), best("smoothing.sample"))
    bars = [bench.Bar(f"{name}: its throughput over that of {floor}", speed(name, floor), 0.85, is_lower=True) for name in ours]
    for num_threads in thread_counts:
        rows = [_torch_row(size, num_threads) for size in _TORCH_BATCHES]
        fastest = min(rows, key=lambda row: np.median(times[row].cpu))
        for row, bound in ((_torch_row(_TORCH_DEFAULT, num_threads), 7.0), (fastest, 5.5)):
            for name in ours:
                bars.append(bench.Bar(f"{name}: its throughput over that of {row}", speed(name, row), bound, is_lower=True))
    return bars


def memory(module, x, num_samples: int) -> int:
    """Bytes of temporary memory of a compiled count."""
    arguments = jax.random.key(0), module, jnp.asarray(x)
    analysis = _count.lower(*arguments, sigma=_SIGMA, num_samples=num_samples, chunk_size=50).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def count_compilations(module, x) -> int:
    """How many programs `smoothing.sample` compiles after its first run."""
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
    cut = smoothing.VoteState(first.selection, np.zeros_like(first.estimation))
    *_, state = _states(module, x, jax.random.key(0), 0.25, cut)
    np.testing.assert_array_equal(state.estimation, first.estimation)
    return len(compilations) - own


# --- what is timed -------------------------------------------------------------------------------------------------------------


_count = jax.jit(smoothing.count_predictions, static_argnames=("num_samples", "chunk_size"))


@jax.jit
def _compiled(model_fn, x):
    return model_fn(x)


def _forwards(model_fn, x):
    for _ in range(_NUM_SAMPLES // len(x)):
        logits = _compiled(model_fn, x)
    logits.block_until_ready()


def _votes(model_fn, x, num_samples, chunk_size):
    _count(jax.random.key(0), model_fn, x, sigma=_SIGMA, num_samples=num_samples, chunk_size=chunk_size).block_until_ready()


def _states(model_fn, x, key, sigma, state=None):
    return smoothing.sample(
        key, model_fn, x, sigma=sigma, num_selection=25, num_samples=200, num_step_samples=100, batch_size=20, chunk_size=25, state=state
    )


def _drive(model_fn, x, batch_size, chunk_size):
    for _ in smoothing.sample(
        jax.random.key(0), model_fn, x, sigma=_SIGMA, num_selection=chunk_size, num_samples=_DRIVER_SAMPLES,
        num_step_samples=_DRIVER_SAMPLES // 2, batch_size=batch_size, chunk_size=chunk_size,
    ):  # fmt: skip
        pass


@jax.jit
def _own_noise(x):
    keys = arrays.example_keys(jax.random.key(0), 1)

    def chunk(total, index):
        samples, _ = counting.noisy(keys, x, _SIGMA, 250, first_sample=250 * index)
        return total + samples.sum(axis=1), None

    return jax.lax.scan(chunk, jnp.zeros_like(x), jnp.arange(_NUM_SAMPLES // 250))[0]


@jax.jit
def _chunk_noise(key, x):
    def chunk(total, index):
        normals = jax.random.normal(jax.random.fold_in(key, index), (250, *x.shape[1:]))
        return total + (x + _SIGMA * normals).sum(axis=0, keepdims=True), None

    return jax.lax.scan(chunk, jnp.zeros_like(x), jnp.arange(_NUM_SAMPLES // 250))[0]


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
# The cost of certification

    {command}

Network: conv 32, pool, conv 64, pool, dense 128, dense 10, of 3x3 without padding, on 28x28 images, float32, untrained;
{device}, {cores} core(s); {versions}.
Medians of {options.rounds} rounds in which every row runs once, one after the other; load average of the machine at the end: {load:.1f}.
CPU time of all threads. Ratios are medians of the ratios within the rounds; a batch or shape that a bar names is the best of its kind.
A key for each sample costs no more than one for a chunk, and the hardware generator of XLA is slower here: what is drawn for
sample n need depend on nothing else. Rows for a GPU are open: none was at hand.

| row | CPU us a sample | samples a CPU second |
|---|---|---|
{rows}

| bar | measured | bound | |
|---|---|---|---|
{bars}
"""

if __name__ == "__main__":
    main()
