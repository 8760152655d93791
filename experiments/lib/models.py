"""Architectures behind one signature: `apply_fn(params, model_state, x, mode) -> (logits, model_state)`."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from experiments.lib import files, residual
from robustjax import base, lowering, training

Model = training.Model  # an architecture with its first parameters


@functools.cache  # one apply_fn, so that programs compiled for one of its models serve the others
def build(name: str, seed: int = 0, num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Model:
    """A model by name, with fast gradients on CPU: see ARCHITECTURES."""
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; choose one of {tuple(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[name]
    with jax.ensure_compile_time_eval():  # what is kept must not be of whatever program is being traced
        if issubclass(architecture, linen.Module):
            module = architecture(num_classes)
            return _fast(training.from_linen(module, module.init(jax.random.key(seed), jnp.zeros((1, *input_shape)))))
        return from_nnx(architecture(input_shape, num_classes, rngs=nnx.Rngs(seed)))


def write(path: pathlib.Path, params, model_state) -> None:
    """Writes the weights of a model as one npz file, at once."""
    files.write_arrays(path, files.named((params, model_state)))


def read(path: str | pathlib.Path, model: Model) -> Model:
    """The model with the weights that `write` wrote.

    Raises:
      OSError: there is no such file.
      ValueError: they are of another architecture, or the file is damaged or not one of weights.
    """
    path = pathlib.Path(path)
    params, model_state = files.placed(files.read_arrays(path), (model.params, model.model_state), path)
    return model._replace(params=params, model_state=model_state)


def from_nnx(module: nnx.Module) -> Model:
    """An NNX module, with fast gradients on CPU."""
    return _fast(training.from_nnx(module))


class Stateless(NamedTuple):
    """An architecture without statistics, whose parameters are many: what poisoning trains inside its programs."""

    apply_fn: Callable  # as a model's, with model_state None
    init_fn: Callable  # key -> params, under jit and vmap too


@functools.cache
def stateless(name: str, num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Stateless:
    """An NNX architecture by name, without statistics."""
    model = build(name, 0, num_classes, input_shape)
    if jax.tree.leaves(model.model_state):
        raise ValueError(f"{name} has statistics, which poisons cannot be crafted through; choose another.")

    def apply_fn(params, model_state, x, mode):
        return model.apply_fn(params, model.model_state, x, mode)[0], model_state

    def init_fn(key):
        return nnx.state(ARCHITECTURES[name](input_shape, num_classes, rngs=nnx.Rngs(key)), nnx.Param)

    return Stateless(apply_fn, init_fn)


def in_bfloat16(model_fn) -> base.Configured:
    """A model whose input, weights, arithmetic and logits are bfloat16; what it hands out is float32."""

    def halved(leaf):
        return leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return base.bind(_in_bfloat16, model_fn=jax.tree.map(halved, model_fn))


def _in_bfloat16(x, *, model_fn):
    return model_fn(x.astype(jnp.bfloat16)).astype(jnp.float32)


def _fast(model):
    return model._replace(apply_fn=lowering.rewrite(model.apply_fn))


class Mlp(nnx.Module):
    """Two hidden layers."""

    def __init__(self, input_shape, num_classes, *, width=200, rngs):
        size = math.prod(input_shape)
        self.hidden = nnx.List([nnx.Linear(size, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, ...] -> [B, C]."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


class ShallowMlp(nnx.Module):
    """One hidden layer."""

    def __init__(self, input_shape, num_classes, *, width=128, rngs):
        self.hidden = nnx.Linear(math.prod(input_shape), width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, ...] -> [B, C]."""
        return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class Linear(nnx.Module):
    """One layer: multinomial logistic regression."""

    def __init__(self, input_shape, num_classes, *, rngs):
        self.head = nnx.Linear(math.prod(input_shape), num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, ...] -> [B, C]."""
        return self.head(x.reshape(x.shape[0], -1))


class ConvNet(nnx.Module):
    """Two strided 3x3 convolutions of 32 and 64 channels, a dense layer of 128: the network of the benchmarks."""

    pooled = False
    activation = staticmethod(nnx.relu)

    def __init__(self, input_shape, num_classes, *, num_channels=32, rngs):
        height, width, channels = input_shape
        strides = (1, 1) if self.pooled else (2, 2)
        self.first = nnx.Conv(channels, num_channels, (3, 3), strides, rngs=rngs)
        self.second = nnx.Conv(num_channels, 2 * num_channels, (3, 3), strides, rngs=rngs)
        halved = [side // 2 // 2 if self.pooled else (side + 3) // 4 for side in (height, width)]
        self.dense = nnx.Linear(2 * num_channels * halved[0] * halved[1], 4 * num_channels, rngs=rngs)
        self.head = nnx.Linear(4 * num_channels, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        for layer in (self.first, self.second):
            x = layer(x)
            x = self.activation(nnx.max_pool(x, (2, 2), (2, 2)) if self.pooled else x)
        return self.head(self.activation(self.dense(x.reshape(x.shape[0], -1))))


class FastConvNet(nnx.Module):
    """Two strided 4x4 convolutions of 16 and 32 channels, a dense layer of 100: the MNIST network of Wong et al. (2020)."""

    def __init__(self, input_shape, num_classes, *, rngs):
        height, width, channels = input_shape
        self.first = nnx.Conv(channels, 16, (4, 4), (2, 2), rngs=rngs)
        self.second = nnx.Conv(16, 32, (4, 4), (2, 2), rngs=rngs)
        self.dense = nnx.Linear(32 * ((height + 3) // 4) * ((width + 3) // 4), 100, rngs=rngs)
        self.head = nnx.Linear(100, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


class LeNet(nnx.Module):
    """Two 5x5 convolutions of 20 and 50 channels with max-pooling, a dense layer of 500: the MNIST network of smoothing's papers."""

    def __init__(self, input_shape, num_classes, *, rngs):
        height, width, channels = input_shape
        self.first = nnx.Conv(channels, 20, (5, 5), padding="VALID", rngs=rngs)
        self.second = nnx.Conv(20, 50, (5, 5), padding="VALID", rngs=rngs)
        sides = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        self.dense = nnx.Linear(50 * sides[0] * sides[1], 500, rngs=rngs)
        self.head = nnx.Linear(500, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        for layer in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
        return self.head(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


class PooledConvNet(ConvNet):
    """The same with stride 1 and 2x2 max-pooling."""

    pooled = True


class UnpaddedConvNet(nnx.Module):
    """conv 32, pool, conv 64, pool, dense 128, dense 10, without padding: what the loop of smoothing's authors was measured with."""

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


class SmallConvNet(ConvNet):
    """`ConvNet` with 8 and 16 channels and a dense layer of 32: for what trains many networks from scratch."""

    def __init__(self, input_shape, num_classes, *, rngs):
        super().__init__(input_shape, num_classes, num_channels=8, rngs=rngs)


class SiluConvNet(ConvNet):
    """`ConvNet` with SiLU, which is smooth."""

    activation = staticmethod(nnx.silu)


class LinenConvNet(linen.Module):
    """`ConvNet` in Linen."""

    num_classes: int

    @linen.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        for features in (32, 64):
            x = linen.relu(linen.Conv(features, (3, 3), (2, 2))(x))
        x = linen.relu(linen.Dense(128)(x.reshape(x.shape[0], -1)))
        return linen.Dense(self.num_classes)(x)


TINY = "mlp_shallow"  # compiles fast: of quick runs
ARCHITECTURES: dict[str, type] = {
    "linear": Linear,
    "mlp": Mlp,
    "mlp_shallow": ShallowMlp,
    "convnet": ConvNet,
    "convnet_pooled": PooledConvNet,
    "convnet_small": SmallConvNet,
    "convnet_silu": SiluConvNet,
    "convnet_fast": FastConvNet,
    "convnet_linen": LinenConvNet,
    "lenet": LeNet,
    "preactresnet18": residual.PreActResNet18,
    "resnet20": residual.ResNet20,
    "resnet110": residual.ResNet110,
    "wrn-28-10": residual.WideResNet2810,
}
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[*ARCHITECTURES]  # for command lines
