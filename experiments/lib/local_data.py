"""Data sets in local files, IDX or npz: checked before anything is trained on them, and named by file where they are wrong."""

import gzip
import pathlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.lib import files

_NUM_CLASSES = 10  # of every data set that is known by name
_REMEDY = "Fetch it again, or delete it."
_IDX = {"images": "idx3", "labels": "idx1"}  # kinds of files, and the ranks of their arrays as MNIST names them


class Split(NamedTuple):
    """Images with their labels."""

    x: np.ndarray  # [N, H, W, C] uint8
    y: np.ndarray  # [N] int32, from 0


def read(folder: pathlib.Path) -> tuple[Split, Split]:
    """The training and the test set of a folder: the four IDX files of MNIST, or npz files.

    Raises:
      FileNotFoundError: there is no data, or one of the four files is missing.
      ValueError: a file is damaged or of another kind, or its arrays are no images and labels; it is named, with the remedy.
    """
    if _idx_path(folder, "train", "images").exists():
        return read_idx(folder)
    paths = sorted(folder.glob("*.npz"))
    if paths:
        return read_npz(paths)
    raise FileNotFoundError(
        f"no data in {folder}: expected the four IDX files of MNIST (train-images-idx3-ubyte.gz, ...), or npz files with x_train, "
        "y_train, x_test, y_test (uint8). Or unset ROBUSTJAX_DATA to read from TFDS."
    )


def read_idx(folder: pathlib.Path) -> tuple[Split, Split]:
    """The training and the test set of the four IDX files, packed by gzip or not. Raises as `read`."""
    found = {}
    for part in ("train", "t10k"):
        x_path, y_path = (_idx_path(folder, part, kind) for kind in _IDX)
        found[x_path] = _checked(x_path, _idx(x_path), y_path, _idx(y_path))
    (x_path, train), (_, test) = found.items()
    _require_same_shapes(found)
    _require_first_class(x_path, train.y)
    return train, test


def read_npz(paths: Sequence[pathlib.Path], remedy: str = _REMEDY) -> tuple[Split, Split]:
    """The training and the test set of npz files, each of which holds whole splits or parts of them, in order. Raises as `read`."""
    parts: dict[str, dict] = {"train": {}, "test": {}}
    for path in paths:
        arrays = files.read_npz(path, remedy)
        if not any(f"{letter}_{split}" in arrays for split in parts for letter in "xy"):
            listed = ", ".join(sorted(arrays)[:5]) or "nothing"
            raise ValueError(f"{path} holds {listed}; expected x_train and y_train, x_test and y_test, or a pair of them. {remedy}")
        for split, found in parts.items():
            names = f"x_{split}", f"y_{split}"
            held = [name for name in names if name in arrays]
            if len(held) == 1:
                raise ValueError(f"{path} holds {held[0]} alone; expected {names[0]} and {names[1]} in the same file. {remedy}")
            if held:
                found[path] = _checked(f"{path}, x_{split}", arrays[names[0]], f"{path}, y_{split}", arrays[names[1]])
    for split, found in parts.items():
        if not found:
            raise ValueError(f"{paths[0].parent} has no x_{split} and y_{split} in {_listed(paths)}; put them into one of these files.")
    _require_same_shapes({f"{path}, x_{split}": part for split, found in parts.items() for path, part in found.items()})
    train, test = (Split(*map(np.concatenate, zip(*found.values(), strict=True))) for found in parts.values())
    _require_first_class(_listed(parts["train"]), train.y)
    return train, test


def _idx_path(folder, part, kind):
    plain = folder / f"{part}-{kind}-{_IDX[kind]}-ubyte"
    zipped = plain.with_name(f"{plain.name}.gz")
    return zipped if zipped.exists() or not plain.exists() else plain


def _idx(path):
    content = files.read(path, "All four IDX files are needed, each packed by gzip or not.")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}). {_REMEDY} A file that is not packed has no .gz.") from error
    # Two zeros, the type (8 for uint8), the rank; the lengths of the axes, big-endian; the values.
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is no IDX file of uint8: expected to begin with 00 00 08, got {content[:4].hex(' ')}. {_REMEDY}")
    values = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:values], ">u4").tolist())
    if len(content) - values != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{path} is not whole: its header says {list(shape)} values, got {len(content) - values}. {_REMEDY}")
    return np.frombuffer(content, np.uint8, offset=values).reshape(shape)


def _checked(x_where, x, y_where, y) -> Split:
    if problem := _image_problem(x):
        raise ValueError(f"{x_where}: expected images uint8 [N, H, W] or [N, H, W, C], N > 0, C 1 or 3; got {_described(x)}: {problem}.")
    if problem := _label_problem(y):
        raise ValueError(f"{y_where}: expected labels [N], integers from 0 to {_NUM_CLASSES - 1}; got {_described(y)}: {problem}.")
    if len(x) != len(y):
        raise ValueError(f"{x_where}: {len(x)} images, but {len(y)} labels in {y_where}; expected as many. {_REMEDY}")
    return Split(x if x.ndim == 4 else x[..., None], y.astype(np.int32))


def _image_problem(x):
    channels = (1, 3)
    if x.ndim == 2:
        return "reshape each row to an image; rows of CIFAR's own files by x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)"
    if x.ndim not in (3, 4):
        return "these are no images"
    if x.size == 0:
        return "the set is empty"
    if x.ndim == 4 and x.shape[3] not in channels:
        return "channels come last: x.transpose(0, 2, 3, 1)" if x.shape[1] in channels else "pass grey or RGB images"
    if np.issubdtype(x.dtype, np.floating):
        return "pixels are whole numbers from 0 to 255: " + ("np.uint8(np.round(255 * x))" if x.max() <= 1 else "np.uint8(np.round(x))")
    return "" if x.dtype == np.uint8 else "save whole numbers from 0 to 255, by x.astype(np.uint8)"


def _label_problem(y):
    if y.ndim == 2:
        return "drop the last axis: y[:, 0]" if y.shape[1] == 1 else "one-hot labels become integers by y.argmax(axis=1)"
    if y.ndim != 1:
        return "pass one label for each image"
    if len(y) == 0:
        return "the set is empty"
    if not np.issubdtype(y.dtype, np.integer):
        return "save them as integers, by y.astype(np.int32)"
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= _NUM_CLASSES:
        return f"they run from {low} to {high}; " + ("count from 0, by y - 1" if (low, high) == (1, _NUM_CLASSES) else "count from 0")
    return ""


def _require_same_shapes(splits):
    (first, split), *others = splits.items()
    for other, found in others:
        if found.x.shape[1:] != split.x.shape[1:]:
            expected, got = list(split.x.shape[1:]), list(found.x.shape[1:])
            raise ValueError(f"{other}: expected images {expected} as in {first}, got {got}; keep one size in a folder.")


def _require_first_class(where, y):
    if y.min() > 0:
        raise ValueError(f"{where}: the training labels begin at {y.min()}; expected classes from 0. Count them from 0: y - {y.min()}.")


def _listed(paths):
    return ", ".join(str(path) for path in paths)


def _described(array):
    return f"{array.dtype} {list(array.shape)}"
