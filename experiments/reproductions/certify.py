"""Certifying a data set by randomized smoothing, on all devices: votes go to a file while they are cast, and a killed run goes on.

    python -m experiments certify --weights runs/tutorial/models/Gaussian-0.5.npz --model convnet_fast --dataset digits --sigma 0.5 \\
        --n 100000 --num-images 500 --out runs/certify/gaussian.npz

Several processes: the same command in each, with --coordinator HOST:PORT --num-processes P --process-id I.
"""

import argparse
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from experiments.lib import certification, data, experiment, models, votes
from robustjax import smoothing, training


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    if options.tolerance is not None and not options.sequential:
        raise SystemExit("--tolerance is the rule of --sequential; pass both, or neither.")
    if options.coordinator is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    experiment.prepare()
    dataset = data.load(options.dataset)
    x, y = certification.spread(dataset.x_test, dataset.y_test, options.num_images)
    blank = models.build(options.model, 0, int(dataset.y_train.max()) + 1, x.shape[1:])
    model = models.read(options.weights, blank)
    model_fn = training.classifier(model.apply_fn, model.params, model.model_state)
    grid = tuple(options.grid) or tuple(np.arange(0.0, 4.0 * options.sigma, 0.25).tolist())
    alpha = smoothing.bonferroni(options.alpha, len(x)) if options.simultaneous else options.alpha
    poll = votes.Poll(options.sigma, options.n0, options.n, options.step, options.seed, alpha)
    if options.sequential:
        poll = poll._replace(grid=grid, tolerance=options.tolerance)
    state = votes.cast(
        options.out, poll, model_fn, x, images_per_device=options.images_per_device, chunk_size=options.chunk_size,
        save_every=options.save_every,
    )  # fmt: skip
    if jax.process_index() == 0:
        extent = "for all at once" if options.simultaneous else "for each"
        print(f"{len(x)} images, sigma {poll.sigma}, alpha {options.alpha} {extent}, {jax.device_count()} devices: votes in {options.out}")
        print(certification.describe(certification.summarize(poll, state, y, grid), poll, grid), flush=True)


def _parser():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="npz file that a training run left")
    parser.add_argument("--model", choices=tuple(models.ARCHITECTURES), required=True, help="architecture of the weights")
    parser.add_argument("--dataset", choices=data.NAMES, default="digits")
    parser.add_argument("--sigma", type=float, required=True, help="of the noise, for pixels in [0, 1]")
    parser.add_argument("--n0", type=int, default=100, help="samples by which the class is chosen")
    parser.add_argument("--n", type=int, default=100_000, help="samples by which its probability is bounded")
    parser.add_argument("--step", type=int, default=1000, help="samples between two looks at an image")
    parser.add_argument("--alpha", type=float, default=0.001, help="probability of a wrong certificate, for each image")
    parser.add_argument("--simultaneous", action="store_true", help="alpha is the probability of any wrong certificate of the set")
    parser.add_argument("--num-images", type=int, default=500, help="of the test set, evenly spread")
    parser.add_argument("--grid", type=float, nargs="+", default=(), help="radii of the table; multiples of .25 by default")
    parser.add_argument("--sequential", action="store_true", help="stop an image when no radius of the grid is in doubt")
    parser.add_argument("--tolerance", type=float, help="with --sequential: go on while a radius may grow by more")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/certify/votes.npz"))
    parser.add_argument("--images-per-device", type=int, default=2, help="at once, at least 2")
    parser.add_argument("--chunk-size", type=int, default=100, help="samples of an image at once; divides n0 and the step")
    parser.add_argument("--save-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, if there are several")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    return parser
