"""Two networks as plain functions of a dictionary of arrays, in JAX and in torch on the same weights."""

import os
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import data, files, local_data, pyautoattack
from robustjax import attacks, base, losses, lowering
from robustjax.threats import Linf

Name = Literal["convnet", "resnet20"]
NAMES: tuple[Name, ...] = ("convnet", "resnet20")
_EPS = 0.3  # of the network that FGSM trains
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DIMENSIONS = ("NHWC", "OIHW", "NHWC")  # weights in torch's layout, as public networks come


def case(name: str, num_images: int, num_epochs: int, in_torch: bool) -> pyautoattack.Case:
    """A network with the first test images, all kept: the ConvNet, trained here by FGSM, or the public ResNet-20 of ROBUSTJAX_DATA.

    Without `in_torch` there is no module, and torch is not needed.

    Raises:
      ValueError: no ROBUSTJAX_DATA for the public network.
    """
    if name == "convnet":
        digits = data.load()
        weights, x, y, function = _trained(digits, num_epochs), digits.x_test, digits.y_test, convnet
    else:
        if "ROBUSTJAX_DATA" not in os.environ:
            raise ValueError("the public ResNet-20 is read from ROBUSTJAX_DATA=DIR, as DIR/models/cifar10_resnet20.npz; set it.")
        folder = pathlib.Path(os.environ["ROBUSTJAX_DATA"])
        weights, function = files.read_npz(folder / "models" / "cifar10_resnet20.npz", "Fetch it again."), resnet20
        test = local_data.read(folder / "cifar10")[1]
        x, y = test.x.astype(np.float32) / 255, test.y
    model_fn = jax.tree_util.Partial(function, jax.tree.map(jnp.asarray, weights))
    module = _module(name, weights) if in_torch else None
    return pyautoattack.Case(name, model_fn, module, x[:num_images], y[:num_images], num_images)


def convnet(p, x):
    """Two convolutions 4x4 of stride 2, to 16 and 32 channels, a layer of 100: images [B, 28, 28, 1] -> logits."""
    for layer in ("1", "2"):
        x = jax.nn.relu(_convolve(x, p["c" + layer], 2) + p["b" + layer][None, None, None])
    x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)  # flattened as torch does
    return jax.nn.relu(x @ p["w3"].T + p["b3"][None]) @ p["w4"].T + p["b4"][None]


def resnet20(p, x):
    """ResNet-20 with shortcuts of stride 2 padded by zero channels (He et al., 2016), BatchNorm by its statistics."""

    def norm(name, x):
        scale = p[name + ".weight"] * jax.lax.rsqrt(p[name + ".running_var"] + 1e-5)
        return x * scale[None, None, None] + (p[name + ".bias"] - p[name + ".running_mean"] * scale)[None, None, None]

    x = (x - jnp.asarray(_MEAN)[None, None, None]) / jnp.asarray(_STD)[None, None, None]
    x = jax.nn.relu(norm("bn1", _convolve(x, p["conv1.weight"], 1)))
    for name, stride in _blocks():
        h = jax.nn.relu(norm(name + ".bn1", _convolve(x, p[name + ".conv1.weight"], stride)))
        h = norm(name + ".bn2", _convolve(h, p[name + ".conv2.weight"], 1))
        added = (h.shape[-1] - x.shape[-1]) // 2
        x = jax.nn.relu(jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (added, added))) + h)
    return x.mean(axis=(1, 2)) @ p["linear.weight"].T + p["linear.bias"][None]


def _blocks():
    return [(f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1) for stage in (1, 2, 3) for block in range(3)]


def _convolve(x, w, stride):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


def _module(name, weights):
    import torch
    from torch.nn import functional

    p = {key: torch.tensor(value) for key, value in weights.items()}

    def small(x):
        for layer in ("1", "2"):
            x = functional.relu(functional.conv2d(x, p["c" + layer], p["b" + layer], 2, 1))
        return functional.linear(functional.relu(functional.linear(x.flatten(1), p["w3"], p["b3"])), p["w4"], p["b4"])

    def norm(name, x):
        statistics = (p[name + ".running_mean"], p[name + ".running_var"])
        return functional.batch_norm(x, *statistics, p[name + ".weight"], p[name + ".bias"])

    def residual(x):
        x = (x - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
        x = functional.relu(norm("bn1", functional.conv2d(x, p["conv1.weight"], None, 1, 1)))
        for block, stride in _blocks():
            h = functional.relu(norm(block + ".bn1", functional.conv2d(x, p[block + ".conv1.weight"], None, stride, 1)))
            h = norm(block + ".bn2", functional.conv2d(h, p[block + ".conv2.weight"], None, 1, 1))
            added = (h.shape[1] - x.shape[1]) // 2
            x = functional.relu(functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added)) + h)
        return functional.linear(x.mean((2, 3)), p["linear.weight"], p["linear.bias"])

    class Module(torch.nn.Module):
        def forward(self, x):
            return small(x) if name == "convnet" else residual(x)

    return Module().eval()


def _trained(digits, num_epochs):
    shapes = {"c1": (16, 1, 4, 4), "c2": (32, 16, 4, 4), "w3": (100, 1568), "w4": (10, 100)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    p = {name: jax.random.normal(keys[name], shape) * np.sqrt(2 / np.prod(shape[1:])) for name, shape in shapes.items()}
    p |= {f"b{layer}": jnp.zeros(len(p[name])) for layer, name in enumerate(shapes, 1)}
    optimizer = optax.adam(1e-3)
    attack = base.bind(attacks.rs_fgsm, threat=Linf(_EPS), step_size=1.25 * _EPS)
    network = lowering.rewrite(convnet)

    @jax.jit
    def step(p, state, key, x, y):
        x = attack(key, jax.tree_util.Partial(network, p), x, y).x
        updates, state = optimizer.update(jax.grad(lambda p: losses.cross_entropy(network(p, x), y).mean())(p), state)
        return optax.apply_updates(p, updates), state

    state, order = optimizer.init(p), np.random.default_rng(0)
    for epoch in range(num_epochs):
        for index, rows in enumerate(order.permutation(len(digits.x_train)).reshape(-1, 100)):
            key = jax.random.fold_in(jax.random.key(epoch), index)
            p, state = step(p, state, key, digits.x_train[rows], digits.y_train[rows])
    return jax.tree.map(np.asarray, p)
