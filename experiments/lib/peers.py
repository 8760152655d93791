"""The other libraries that some experiments compare with: what is missing, and our models and arrays in torch."""

import importlib.util

import jax
import numpy as np
from flax import nnx


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

    return torch.tensor(np.moveaxis(array, -1, 1)) if array.ndim == 4 else torch.tensor(array, dtype=torch.long)
