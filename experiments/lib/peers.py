"""The other libraries that some experiments compare with: what is missing, and our models and arrays in torch."""

import copy
import functools
import importlib.util
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.lib import bench

Library = Literal["foolbox", "torchattacks", "art", "autoattack"]
_DISTRIBUTIONS = {"art": "adversarial-robustness-toolbox", "autoattack": "pyautoattack"}  # where it is not called like the module
SAMPLING_BATCHES = (50, 100, 250, 1000)
_NUM_SAMPLES = 2000  # of the noise in one timing; a multiple of all these batches


class Budget(NamedTuple):
    """What every library runs: PGD and APGD in linf."""

    eps: float
    step_size: float
    pgd_steps: int
    apgd_steps: int


def require(*names: str) -> None:
    """Raises ImportError with the remedy if a package of the optional extra is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"missing {', '.join(missing)}, of the optional extra: pip install 'robustjax[benchmarks]'.")


def torch_convnet(params, *, pooled_padding: int | None = None):
    """`experiments.lib.models.ConvNet` with these parameters, for 28x28 images, as a torch module on NCHW.

    Args:
      params: of two convolutions `first` and `second`, and two dense layers `dense` and `head`.
      pooled_padding: None for convolutions of stride 2; else they have stride 1, are padded so much, and 2x2 max-pooling follows.
    """
    import torch

    params = jax.tree.map(lambda p: torch.tensor(np.asarray(p)), nnx.to_pure_dict(params))

    def with_weights(layer, weight, bias):
        layer.weight.data, layer.bias.data = weight.contiguous(), bias
        return layer

    def convolution(p):
        weight = p["kernel"].permute(3, 2, 0, 1)  # HWIO -> OIHW
        if pooled_padding is not None:
            layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=pooled_padding)
            return with_weights(layer, weight, p["bias"]), torch.nn.MaxPool2d(2), torch.nn.ReLU()
        # Flax pads SAME at stride 2 on an even side behind only.
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2)
        return torch.nn.ZeroPad2d((0, 1, 0, 1)), with_weights(layer, weight, p["bias"]), torch.nn.ReLU()

    dense, head = params["dense"], params["head"]
    channels, width = params["second"]["bias"].shape[0], dense["bias"].shape[0]
    side = round((dense["kernel"].shape[0] / channels) ** 0.5)
    rows = dense["kernel"].reshape(side, side, channels, width).permute(3, 2, 0, 1).reshape(width, -1)  # flattened HWC -> CHW
    return torch.nn.Sequential(
        *convolution(params["first"]),
        *convolution(params["second"]),
        torch.nn.Flatten(),
        with_weights(torch.nn.Linear(rows.shape[1], width), rows, dense["bias"]),
        torch.nn.ReLU(),
        with_weights(torch.nn.Linear(width, head["bias"].shape[0]), head["kernel"].T, head["bias"]),
    ).eval().requires_grad_(False)  # fmt: skip


def to_torch(array: np.ndarray):
    """Images [B, H, W, C] as a tensor on NCHW, labels [B] as integers."""
    import torch

    if array.ndim != 4:
        return torch.tensor(array, dtype=torch.long)
    return torch.tensor(np.ascontiguousarray(np.moveaxis(array, -1, 1)))  # pyautoattack takes no channels_last strides


def require_attacks(names: Sequence[Library]) -> list[str]:
    """The distributions of libraries of attacks and of torch under them. Raises as `require`."""
    require(*("pyautoattack" if name == "autoattack" else name for name in names), *(["torch"] if names else []))
    return [*(["torch"] if names else []), *(_DISTRIBUTIONS.get(name, name) for name in names)]


def attack_runs(names: Sequence[Library], budget: Budget, model_fn, x, y, thread_counts: Sequence[int]) -> dict[str, bench.Run]:
    """The same attacks of other libraries on the same weights; what runs on torch, once for each number of threads."""
    if not names:
        return {}
    module = torch_convnet(nnx.state(model_fn, nnx.Param))
    x_torch, y_torch = to_torch(np.asarray(x)), to_torch(np.asarray(y))
    steps = {"PGD": budget.pgd_steps, "APGD": budget.apgd_steps}
    runs = {}
    if "foolbox" in names:
        for kind, function in (("plain", lambda x: model_fn(x)), ("jitted", jax.jit(lambda x: model_fn(x)))):
            runs[f"foolbox on JAX, {kind} model, PGD-{budget.pgd_steps}"] = bench.run(
                budget.pgd_steps, _foolbox_on_jax(budget, function, x, y)
            )
    for num_threads in thread_counts:
        for name in names:
            label, make = _ON_TORCH[name]
            for kind, call in make(budget, module, x_torch, y_torch).items():
                row = f"{label}, {kind}-{steps[kind]}, torch on {num_threads} thread(s)"
                runs[row] = bench.Run(functools.partial(bench.on_threads, num_threads, call), steps[kind])
    return runs


def sampling_runs(model_fn, x, num_threads: int, sigma: float) -> dict[str, bench.Run]:
    """The reference's loop: x repeated, plus sigma times normals, argmax, counts; on its own layout, and on the faster one."""
    import torch

    torch.set_flush_denormal(True)  # as XLA does on CPU
    network, image = torch_convnet(nnx.state(model_fn, nnx.Param), pooled_padding=0), to_torch(np.asarray(x))
    np.testing.assert_allclose(network(image).numpy(), model_fn(x), atol=1e-4)  # the same network
    runs = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in SAMPLING_BATCHES:
            sample = functools.partial(_sample, copy.deepcopy(network).to(memory_format=layout), image, layout, size, sigma)
            name = sampling_row(size, num_threads, layout == torch.channels_last)
            runs[name] = bench.Run(functools.partial(bench.on_threads, num_threads, sample), _NUM_SAMPLES)
    return runs


def sampling_row(size: int, num_threads: int, is_channels_last: bool = False) -> str:
    """What a row of `sampling_runs` is called."""
    return f"torch, batch {size}, {num_threads} thread(s)" + (", channels last" if is_channels_last else "")


def _foolbox_on_jax(budget, function, x, y):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=budget.step_size, steps=budget.pgd_steps)
    return functools.partial(attack.run, foolbox.JAXModel(function, bounds=(0, 1)), x, y, epsilon=budget.eps)


def _foolbox(budget, module, x, y):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=budget.step_size, steps=budget.pgd_steps)
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    return {"PGD": lambda: attack.run(model, x, y, epsilon=budget.eps)}


def _torchattacks(budget, module, x, y):
    import torchattacks

    pgd = torchattacks.PGD(module, eps=budget.eps, alpha=budget.step_size, steps=budget.pgd_steps)
    apgd = torchattacks.APGD(module, eps=budget.eps, steps=budget.apgd_steps)
    return {"PGD": lambda: pgd(x, y), "APGD": lambda: apgd(x, y)}


def _art(budget, module, x, y):
    import torch
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(module, torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu")
    common = {"eps": budget.eps, "batch_size": len(y), "verbose": False}
    pgd = evasion.ProjectedGradientDescent(classifier, eps_step=budget.step_size, max_iter=budget.pgd_steps, num_random_init=1, **common)
    apgd = evasion.AutoProjectedGradientDescent(
        classifier, eps_step=2 * budget.eps, max_iter=budget.apgd_steps, nb_random_init=1, loss_type="cross_entropy", **common
    )
    x, y = x.numpy(), y.numpy()
    return {"PGD": lambda: pgd.generate(x=x, y=y), "APGD": lambda: apgd.generate(x=x, y=y)}


def _autoattack(budget, module, x, y):
    from pyautoattack import autopgd_base

    apgd = autopgd_base.APGDAttack(module, n_iter=budget.apgd_steps, eps=budget.eps, logger=logging.getLogger())
    return {"APGD": lambda: apgd.perturb(x, y)}


_ON_TORCH = {  # (budget, module, x, y) -> calls by attack
    "foolbox": ("foolbox on torch", _foolbox),
    "torchattacks": ("torchattacks", _torchattacks),
    "art": ("ART", _art),
    "autoattack": ("AutoAttack", _autoattack),
}


def _sample(network, image, layout, size, sigma):
    import torch

    counts = np.zeros(10, int)
    with torch.no_grad():
        for _ in range(_NUM_SAMPLES // size):
            batch = image.repeat((size, 1, 1, 1)).contiguous(memory_format=layout)
            predictions = network(batch + sigma * torch.randn_like(batch)).argmax(1)
            counts += np.bincount(predictions.numpy(), minlength=10)
    return counts
