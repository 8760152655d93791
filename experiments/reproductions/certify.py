"""Certifying a data set by randomized smoothing, on all devices: votes go to a file while they are cast, and a killed run goes on.

    python -m experiments certify --weights runs/tutorial/models/Gaussian-0.5.npz --model convnet_fast --dataset digits --sigma 0.5 \\
        --n 100000 --num-images 500 --out runs/certify/gaussian.npz

Several processes: the same command in each, with --coordinator HOST:PORT --num-processes P --process-id I.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.lib import certification, data, experiment, models, votes
from robustjax import smoothing, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is certified, and how."""

    weights: pathlib.Path
    """The npz file that a training run left."""
    model: models.Name
    """Architecture of the weights."""
    sigma: float
    """Of the noise, for pixels in [0, 1]."""
    dataset: data.Name = "digits"
    n0: int = 100
    """Samples by which the class is chosen."""
    n: int = 100_000
    """Samples by which its probability is bounded."""
    step: int = 1000
    """Samples between two looks at an image."""
    alpha: float = 0.001
    """Probability of a wrong certificate, for each image."""
    simultaneous: bool = False
    """Alpha is the probability of any wrong certificate of the set."""
    num_images: int = 500
    """Of the test set, evenly spread."""
    grid: tuple[float, ...] = ()
    """Radii of the table; multiples of .25 by default."""
    sequential: bool = False
    """Stop an image when no radius of the grid is in doubt."""
    tolerance: float | None = None
    """With --sequential: go on while a radius may grow by more."""
    seed: int = 0
    """Of the noise."""
    out: pathlib.Path = pathlib.Path("runs/certify/votes.npz")
    images_per_device: int = 2
    """At once, at least 2."""
    chunk_size: int = 100
    """Samples of an image at once; divides n0 and the step."""
    save_every: float = 5.0
    """Seconds."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if there are several."""
    num_processes: int | None = None
    process_id: int | None = None


def run(settings: Settings) -> None:
    """Votes, certificates and their summary."""
    with experiment.refused():
        if settings.tolerance is not None and not settings.sequential:
            raise ValueError("--tolerance is the rule of --sequential; pass both, or neither.")
    if settings.coordinator is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(settings.coordinator, settings.num_processes, settings.process_id)
    experiment.prepare()
    dataset = data.load(settings.dataset)
    x, y = certification.spread(dataset.x_test, dataset.y_test, settings.num_images)
    blank = models.build(settings.model, 0, int(dataset.y_train.max()) + 1, x.shape[1:])
    model = models.read(settings.weights, blank)
    model_fn = training.classifier(model.apply_fn, model.params, model.model_state)
    grid = settings.grid or tuple(np.arange(0.0, 4.0 * settings.sigma, 0.25).tolist())
    alpha = smoothing.bonferroni(settings.alpha, len(x)) if settings.simultaneous else settings.alpha
    poll = votes.Poll(settings.sigma, settings.n0, settings.n, settings.step, settings.seed, alpha)
    if settings.sequential:
        poll = poll._replace(grid=grid, tolerance=settings.tolerance)
    options = {name: getattr(settings, name) for name in ("images_per_device", "chunk_size", "save_every")}
    state = votes.cast(settings.out, poll, model_fn, x, **options)
    if jax.process_index() == 0:
        extent = "for all at once" if settings.simultaneous else "for each"
        print(
            f"{len(x)} images, sigma {poll.sigma}, alpha {settings.alpha} {extent}, {jax.device_count()} devices: votes in {settings.out}"
        )
        print(certification.describe(certification.summarize(poll, state, y, grid), poll, grid), flush=True)
