"""Parity with the public AutoAttack: the same weights and the same starts through pyautoattack (torch) and robustjax.

Three models are made on the spot, a plain one, a PGD-trained one and a gradient-masked one, and every member of AutoAttack runs in
both packages: `python -m experiments.parity_autoattack` prints the table and writes docs/results/parity_autoattack.md. Needs the
extra `robustjax[benchmarks]`.
"""

import argparse
import importlib.metadata
import logging
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.lib import data, models
from robustjax import attacks, base, evaluate, losses, threats, training

_TRAINED_EPS = 0.2  # of the PGD-trained model
_EPS = {"plain": 0.08, "robust": 0.2, "masked": 0.08}  # linf radii at which accuracy is neither that of the clean set nor zero
_EPS_L2 = {"plain": 1.0, "robust": 2.0, "masked": 1.0}
_SHARPNESS = 1e3  # of the masked model's logits: cross-entropy saturates, and its gradient with it
_NUM_TARGETS = 9
_THREATS = {"Linf": threats.Linf, "L2": threats.L2}


class Case(NamedTuple):
    """A model in both frameworks, and the images that both classify correctly."""

    name: str
    model_fn: base.ModelFn
    module: object  # torch.nn.Module on NCHW
    x: np.ndarray  # [B, H, W, C]
    y: np.ndarray  # [B]
    num_images: int  # of which B are classified correctly


class Outcome(NamedTuple):
    """What an attack did to the images of a case."""

    success: np.ndarray  # [B] bool
    loss: np.ndarray | None  # [B] largest loss, where it is defined alike in both packages
    seconds: float


class Row(NamedTuple):
    """One line of the table."""

    model: str
    attack: str
    norm: str
    eps: float
    ours: float  # robust accuracy of all images
    theirs: float
    flags_equal: float | None  # fraction of the attacked images
    loss_gap: float | None  # median of |difference| / |theirs|
    met: bool
    seconds: tuple[float, float]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--models", nargs="+", choices=tuple(_EPS), default=list(_EPS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of Square, whose draws differ between the packages")
    parser.add_argument("--dataset", default="digits", choices=data.NAMES)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/parity_autoattack.md"))
    parser.add_argument("--quick", action="store_true", help="64 images, 20 steps, 200 queries, one seed; nothing is written")
    options = parser.parse_args(argv)
    if options.quick:
        options.num_images, options.steps, options.queries, options.seeds = 64, 20, 200, 1
    require_peers("torch", "pyautoattack")
    rows = []
    for case in make_cases(options.dataset, options.num_images, options.models):
        for row in compare(case, options.steps, options.queries, options.seeds, whole=not options.quick):
            print(_line(row), flush=True)
            rows.append(row)
    text = report(rows, options, sys.argv[1:] if argv is None else argv)
    print(text)
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


def make_cases(dataset: str, num_images: int, names):
    """The models by name, each trained here, with the first images of the test set."""
    digits = data.load(dataset)
    if num_images > len(digits.x_test):
        raise ValueError(f"num_images={num_images} is more than the {len(digits.x_test)} test images of {dataset}.")
    plain = {}
    for name in names:
        kind = "robust" if name == "robust" else "plain"
        if kind not in plain:
            plain[kind] = (_train_robust if kind == "robust" else _train_plain)(digits)
        apply_fn, state = plain[kind]
        model_fn = training.classifier(apply_fn, state.params, state.model_state)
        module = torch_convnet(state.params)
        if name == "masked":
            model_fn, module = base.bind(_sharpened, model_fn=model_fn), _SharpenedTorch(module)
        x, y = digits.x_test[:num_images], digits.y_test[:num_images]
        ours = np.asarray(model_fn(jnp.asarray(x)))
        theirs = _torch_logits(module, x)
        print(f"{name}: accuracy {np.mean(ours.argmax(1) == y):.3f}, largest difference of logits {np.abs(ours - theirs).max():.1e}")
        correct = (ours.argmax(1) == y) & (theirs.argmax(1) == y)
        yield Case(name, model_fn, module, x[correct], y[correct], num_images)


def compare(case: Case, num_steps: int, num_queries: int, num_seeds: int, whole: bool):
    """The rows of a case: every member alone, their union, and (`whole`) the two ensembles through their front doors."""
    ours_fooled, theirs_fooled = np.zeros(len(case.y), bool), np.zeros(len(case.y), bool)
    for norm in ("Linf", "L2"):
        eps = (_EPS if norm == "Linf" else _EPS_L2)[case.name]
        threat = _THREATS[norm](eps)
        delta = _start(case, norm, eps)
        apgd = base.bind(attacks.apgd, threat=threat, num_steps=num_steps, delta=jnp.asarray(delta))
        pairs = {
            "APGD-CE": (apgd, lambda norm=norm, eps=eps, delta=delta: _their_apgd(case, norm, eps, num_steps, delta, "ce")),
            "APGD-DLR": (
                base.bind(apgd, loss_fn=losses.dlr),
                lambda norm=norm, eps=eps, delta=delta: _their_apgd(case, norm, eps, num_steps, delta, "dlr"),
            ),
        }
        if norm == "Linf":
            pairs["APGD-T"] = (
                attacks.over_targets(apgd, _NUM_TARGETS),
                lambda norm=norm, eps=eps, delta=delta: _their_apgd(case, norm, eps, num_steps, delta, "dlr-targeted"),
            )
            pairs["FAB-T"] = (
                attacks.over_targets(base.bind(attacks.fab, threat=threat, num_steps=num_steps), _NUM_TARGETS),
                lambda norm=norm, eps=eps: _their_fab(case, norm, eps, num_steps),
            )
        for name, (attack, run_theirs) in pairs.items():
            ours, theirs = _ours(case, attack), run_theirs()
            yield _flags_row(case, name, norm, eps, ours, theirs)
            if norm == "Linf" and name != "APGD-DLR":  # the members of "standard"
                ours_fooled |= ours.success
                theirs_fooled |= theirs.success
        if norm == "Linf":
            square = base.bind(attacks.square, threat=threat, num_queries=num_queries)
            ours = [_ours(case, square, seed) for seed in range(num_seeds)]
            theirs = [_their_square(case, norm, eps, num_queries, seed) for seed in range(num_seeds)]
            yield _accuracy_row(case, f"Square, mean of {num_seeds}", norm, eps, ours, theirs, bar=0.01)
            union = [Outcome(fooled | runs[0].success, None, np.nan) for fooled, runs in ((ours_fooled, ours), (theirs_fooled, theirs))]
            yield _accuracy_row(case, "worst case of the above", norm, eps, union[:1], union[1:], bar=0.005)
            if whole:
                yield _accuracy_row(case, "AutoAttack, own starts", norm, eps, [_our_ensemble(case, threat)], [_their_ensemble(case, norm, eps)], 0.005)


def report(rows, options, arguments) -> str:
    """The page: what was run, the table, the bars."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "torch", "pyautoattack")}
    lines = [
        "# Parity with the public AutoAttack",
        "",
        f"`{' '.join(['python -m experiments.parity_autoattack', *arguments])}`",
        "",
        f"{options.num_images} test images of `{options.dataset}`, {options.steps} steps, {_NUM_TARGETS} targets, {options.queries} queries; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ", CPU, float32. Seeds: 0 for weights, training, starts and both ensembles; "
        + f"{', '.join(map(str, range(options.seeds)))} for Square.",
        "",
        f"The models are the ConvNet of the benchmarks: trained naturally (plain), by PGD at linf {_TRAINED_EPS} (robust), and the plain one "
        f"with its logits times {_SHARPNESS:g} (masked: the cross-entropy saturates). Both packages see the same weights and, but for Square "
        "and the rows of own starts, begin at the same points. Accuracies are of all images; flags are compared on those that are classified "
        "correctly without attack. The gap is the median over images of |largest loss of robustjax - that of pyautoattack| / |that of "
        "pyautoattack|. Bars: flags equal on 99 % (and for APGD a gap of at most 1e-5 in the median), Square within 1 point in the mean over "
        "its seeds, worst cases within 0.5 points.",
        "",
        "| model | attack | threat | robustjax | pyautoattack | flags equal | loss gap | bar | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
    ]
    return "\n".join(lines)


def require_peers(*names: str) -> None:
    """Raises ImportError with the remedy if a package of the optional extra is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} not installed; this comparison needs the optional extra: pip install 'robustjax[benchmarks]'.")


def torch_convnet(params):
    """`experiments.lib.models.ConvNet` or `PooledConvNet` with these parameters as a torch module on NCHW."""
    import torch

    params = nnx.to_pure_dict(params)

    class ConvNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = _torch_conv(params["first"]), _torch_conv(params["second"])
            self.dense, self.head = _torch_linear(params["dense"]), _torch_linear(params["head"])
            # 7x7 positions are left of 28x28 by two strides of 2, or by two pools.
            self.pooled = False

        def forward(self, x):
            for layer in (self.first, self.second):
                # Flax's SAME padding of a 3x3 window: (0, 1) at stride 2 on an even side.
                x = torch.relu(layer(torch.nn.functional.pad(x, (0, 1, 0, 1))))
            x = x.permute(0, 2, 3, 1).flatten(1)  # flax flattens NHWC
            return self.head(torch.relu(self.dense(x)))

    return ConvNet().eval().requires_grad_(False)


def _torch_conv(params):
    import torch

    kernel = torch.tensor(np.asarray(params["kernel"])).permute(3, 2, 0, 1).contiguous()  # HWIO -> OIHW
    layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], stride=2)
    layer.weight.data, layer.bias.data = kernel, torch.tensor(np.asarray(params["bias"]))
    return layer


def _torch_linear(params):
    import torch

    kernel = torch.tensor(np.asarray(params["kernel"])).T.contiguous()
    layer = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
    layer.weight.data, layer.bias.data = kernel, torch.tensor(np.asarray(params["bias"]))
    return layer
