"""Architectures behind one signature: `apply_fn(params, model_state, x, mode) -> (logits, model_state)`."""

import functools
import itertools
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
        if architecture is LinenConvNet:
            module = architecture(num_classes)
            return _fast(training.from_linen(module, module.init(jax.random.key(seed), jnp.zeros((1, *input_shape)))))
        return from_nnx(architecture(input_shape, num_classes, rngs=nnx.Rngs(seed)))


def for_data(name: str, seed: int, x, y) -> Model:
    """A model by name for such inputs [N, ...] and labels [N]."""
    return build(name, seed, int(y.max()) + 1, x.shape[1:])


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
    """Hidden layers of one width; without any, multinomial logistic regression."""

    def __init__(self, input_shape, num_classes, *, width=200, num_hidden=2, rngs):
        sizes = [math.prod(input_shape), *[width] * num_hidden]
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.head = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, ...] -> [B, C]."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


class ConvNet(nnx.Module):
    """Two convolutions, with strides or followed by 2x2 max-pooling, and a dense layer."""

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        channels=(32, 64),
        width=128,
        kernel=3,
        padding="SAME",
        is_pooled=False,
        activation=nnx.relu,
        rngs,
    ):
        *sides, depth = input_shape
        stride = 1 if is_pooled else 2
        self.first = nnx.Conv(depth, channels[0], (kernel, kernel), (stride, stride), padding=padding, rngs=rngs)
        self.second = nnx.Conv(*channels, (kernel, kernel), (stride, stride), padding=padding, rngs=rngs)
        for _ in channels:
            sides = [(side - (kernel - 1) * (padding == "VALID") + stride - 1) // stride // (1 + is_pooled) for side in sides]
        self.dense = nnx.Linear(channels[1] * math.prod(sides), width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)
        self.is_pooled, self.activation = is_pooled, activation

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        for layer in (self.first, self.second):
            x = layer(x)
            x = self.activation(nnx.max_pool(x, (2, 2), (2, 2)) if self.is_pooled else x)
        return self.head(self.activation(self.dense(x.reshape(x.shape[0], -1))))


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
ARCHITECTURES: dict[str, Callable] = {  # (input_shape, num_classes, rngs=) -> module
    "linear": functools.partial(Mlp, num_hidden=0),
    "mlp": Mlp,
    "mlp_shallow": functools.partial(Mlp, width=128, num_hidden=1),
    "convnet": ConvNet,  # the network of the benchmarks
    "convnet_pooled": functools.partial(ConvNet, is_pooled=True),
    "convnet_small": functools.partial(ConvNet, channels=(8, 16), width=32),  # for what trains many networks from scratch
    "convnet_silu": functools.partial(ConvNet, activation=nnx.silu),  # smooth
    "convnet_fast": functools.partial(ConvNet, channels=(16, 32), width=100, kernel=4),  # the MNIST network of Wong et al. (2020)
    "convnet_linen": LinenConvNet,
    "lenet": functools.partial(ConvNet, channels=(20, 50), width=500, kernel=5, padding="VALID", is_pooled=True),  # of smoothing's papers
    "convnet_unpadded": functools.partial(ConvNet, padding="VALID", is_pooled=True),  # of the loop of smoothing's authors, when timed
    "preactresnet18": residual.PreActResNet18,
    "resnet20": residual.ResNet20,
    "resnet110": residual.ResNet110,
    "wrn-28-10": residual.WideResNet2810,
}
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[*ARCHITECTURES]  # for command lines
