"""What a vote under noise costs beyond its forward pass, and against a torch implementation of the reference's sampling loop.

`python -m experiments benchmark_smoothing --page docs/results/benchmark_smoothing.md`. Every row runs once per round, one after the
other; ratios are taken within a round, and their median is shown. On CPU what counts is CPU time, and a torch implementation stands
beside (its rows need the extra `robustjax[benchmarks]`; kept to one core by `taskset -c 0`, its idle threads do not add to the CPU time
of the other rows); on an accelerator wall time, and a ResNet-20 with N = 100,000 for each image is measured too.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.lib import bench, data, experiment, gates, models, pages, peers
from robustjax import prng, smoothing
from robustjax.smoothing import counting

_SIGMA = 0.5
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
FEW = {
    "num_samples": 500, "forward_batches": (50, 100), "shapes": ((1, 50),), "driver_shapes": ((2, 50),), "driver_images": 2,
    "driver_samples": 100,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How often, and beside what."""

    rounds: int = 7
    torch_threads: tuple[int, ...] | None = None
    """On CPU: 1 by default, no number for no torch."""


def run(settings: Settings) -> None:
    """Times and their gates."""
    start, load = time.perf_counter(), CPU if jax.default_backend() == "cpu" else ACCELERATOR
    on_cpu = load.kind == "cpu"
    if settings.quick:
        settings, load = dataclasses.replace(settings, rounds=1), load._replace(**FEW)
    with experiment.refused():
        if settings.torch_threads and not on_cpu:
            raise ValueError("torch is compared with on CPU only; leave --torch-threads out")
    threads = ((1,) if settings.torch_threads is None else settings.torch_threads) if on_cpu else ()
    if threads:
        peers.require("torch")
    module = models.ARCHITECTURES["convnet_unpadded"]((28, 28, 1), 10, rngs=nnx.Rngs(0))
    x = data.load("digits").x_test[:20]
    networks = {"": (module, x)} if on_cpu else {"convnet, ": (module, x)} | residual_networks()
    runs = {}
    for name, (model_fn, images) in networks.items():
        runs |= {f"{name}{row}": run for row, run in own_runs(model_fn, images, load).items()}
    runs |= noise_runs(x, load)
    for num_threads in threads:
        runs |= peers.sampling_runs(module, x[:1], num_threads, _SIGMA)
    times = bench.measure(runs, settings.rounds)
    found = [gate for name in networks for gate in check(times, name, load)] + check_torch(times, threads)
    found += [
        gates.Gate("temporary memory at 100,000 samples to that at 1,000", memory(module, x, 100_000) / memory(module, x, 1000), high=1.01),
        gates.Gate(
            "compilations after the first, over sigmas, seeds, a shorter tail and a resumption", count_compilations(module, x), high=0
        ),
    ]
    kind = "CPU" if on_cpu else "wall"
    about = _ABOUT.format(rounds=settings.rounds, about=load.about)
    seconds = {name: getattr(row, load.kind) for name, row in times.items()}
    rows = [[name, f"{1e6 * np.median(row):.4g}", f"{1 / np.median(row):,.0f}"] for name, row in seconds.items()]
    table = pages.table(["row", f"{kind} us a sample", f"samples a {kind} second"], rows)
    page = pages.Page(f"The cost of certification on {'a CPU' if on_cpu else 'a GPU or TPU'}")
    packages = ["torch"] if threads else []
    experiment.publish(
        "benchmark_smoothing", settings, page, "", [pages.text(about), table, pages.gates_of(found)], start, packages=packages
    )


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
        runs[f"forward, batch {size}"] = bench.run(load.num_samples, _forwards, model_fn, images, load.num_samples // size)
    for num_images, chunk_size in load.shapes:
        options = {"sigma": _SIGMA, "num_samples": load.num_samples // num_images, "chunk_size": chunk_size}
        name = f"count_predictions, {num_images} images, chunks of {chunk_size}"
        runs[name] = bench.run(load.num_samples, _count, jax.random.key(0), model_fn, jnp.asarray(x[:num_images]), **options)
    for num_images, chunk_size in load.driver_shapes:
        num_samples, images = load.driver_images * (chunk_size + load.driver_samples), x[: load.driver_images]
        name = f"smoothing.vote_dataset, {num_images} images, chunks of {chunk_size}"
        runs[name] = bench.run(num_samples, _drive, model_fn, images, num_images, chunk_size, load.driver_samples)
    return runs


def noise_runs(x, load: Load) -> dict[str, bench.Run]:
    """The noise alone, by who draws it."""
    image, num_samples = jnp.asarray(x[:1]), load.num_samples
    name = f"noise alone, {_NOISE_CHUNK} at once"
    runs = {f"{name}, a threefry key for each sample (ours)": bench.run(num_samples, _own_noise, image, num_samples=num_samples)}
    for kind in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=kind)
        runs[f"{name}, one {kind} key for all"] = bench.run(num_samples, _chunk_noise, key, image, num_samples=num_samples)
    return runs


def check(times: dict[str, bench.Times], network: str, load: Load) -> list[gates.Gate]:
    """The best votes of a network over its best forward pass."""
    floor = _best(times, f"{network}forward", load.kind)
    bars = []
    for verb in _VERBS:
        name = _best(times, f"{network}{verb}", load.kind)
        ratio = bench.time_ratio(times, floor, name, load.kind)
        bars.append(gates.Gate(f"{name}: its throughput over that of {floor}", ratio, load.bound))
    return bars


def check_torch(times: dict[str, bench.Times], thread_counts) -> list[gates.Gate]:
    """The best votes over those of torch at its default batch and at its best, in CPU time."""
    bars = []
    for num_threads in thread_counts:
        rows = [peers.sampling_row(size, num_threads) for size in peers.SAMPLING_BATCHES]
        fastest = min(rows, key=lambda row: np.median(times[row].cpu))
        for row, bound in ((peers.sampling_row(_TORCH_DEFAULT, num_threads), 7.0), (fastest, 5.5)):
            for verb in _VERBS:
                name = _best(times, verb, "cpu")
                ratio = bench.time_ratio(times, row, name, "cpu")
                bars.append(gates.Gate(f"{name}: its throughput over that of {row}", ratio, bound))
    return bars


def _best(times, prefix, kind):
    return min((name for name in times if name.startswith(prefix)), key=lambda name: np.median(getattr(times[name], kind)))


def memory(module, x, num_samples: int) -> int:
    """Bytes of temporary memory of a compiled count."""
    arguments = jax.random.key(0), module, jnp.asarray(x)
    analysis = _count.lower(*arguments, sigma=_SIGMA, num_samples=num_samples, chunk_size=50).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def count_compilations(module, x) -> int:
    """How many programs `smoothing.vote_dataset` compiles after its first run."""
    with bench.compilations() as compiled:
        *_, first = _states(module, x, jax.random.key(0), 0.25)
        own = len(compiled)
        assert own, "no compilation was heard of"
        for index, sigma in enumerate((0.25, 0.5, 1.0)):
            *_, state = _states(module, x[: len(x) - index], jax.random.key(index), sigma)
        cut = smoothing.VoteState(first.selection, np.zeros_like(first.estimation), first.fingerprint)
        *_, state = _states(module, x, jax.random.key(0), 0.25, cut)
    np.testing.assert_array_equal(state.estimation, first.estimation)
    return len(compiled) - own


# --- what is timed -------------------------------------------------------------------------------------------------------------


_count = jax.jit(smoothing.count_predictions, static_argnames=("num_samples", "chunk_size"))


@jax.jit
def _compiled(model_fn, x):
    return model_fn(x)


def _forwards(model_fn, x, num_calls):
    for _ in range(num_calls):
        logits = _compiled(model_fn, x)
    return logits


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


_ABOUT = """\
Convnet: conv 32, pool, conv 64, pool, dense 128, dense 10, of 3x3 without padding, on 28x28 images, float32. Networks are untrained.
Medians of {rounds} rounds in which every row runs once, one after the other. Ratios are medians of the ratios within the rounds; a batch
or shape that a gate names is the best of its kind. What is drawn for sample n depends on nothing else: each has a key of its own. {about}
"""
