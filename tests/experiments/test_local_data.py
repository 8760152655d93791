"""Local data: what a user can put into a folder by mistake is named, with its file and the remedy, before anything is trained."""

import gzip
import pathlib
import pickle

import numpy as np
import pytest

from experiments.lib import data, files

IDX = {"x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte", "x_test": "t10k-images-idx3-ubyte"}
IDX |= {"y_test": "t10k-labels-idx1-ubyte"}


def arrays(**changes):
    random = np.random.default_rng(0)
    made = {f"x_{split}": random.integers(0, 256, (20, 8, 8, 3), np.uint8) for split in ("train", "test")}
    made |= {f"y_{split}": np.arange(20) % 10 for split in ("train", "test")}
    return {name: value for name, value in (made | changes).items() if value is not None}


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTJAX_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    return tmp_path / "cifar10"


def refused(folder, name, *words):
    with pytest.raises((ValueError, OSError)) as error:
        data.load("cifar10")
    message = str(error.value)
    assert str(folder / name) in message, message
    for word in words:
        assert word in message, message
    assert "pickle" not in message and message.endswith(".")


X, Y = arrays()["x_train"], arrays()["y_train"]
WRONG = {
    "channels first": ({"x_train": X.transpose(0, 3, 1, 2)}, "x.transpose(0, 2, 3, 1)", "uint8 [20, 3, 8, 8]"),
    "one channel, first": ({"x_test": X[:, None, :, :, 0]}, "x.transpose(0, 2, 3, 1)"),
    "rows": ({"x_train": X.reshape(20, -1)}, "reshape"),
    "five axes": ({"x_train": X[None]}, "no images"),
    "seven channels": ({"x_train": np.zeros((20, 8, 8, 7), np.uint8)}, "grey or RGB"),
    "pixels in [0, 1]": ({"x_train": X / 255.0}, "np.uint8(np.round(255 * x))", "float64"),
    "float pixels": ({"x_test": X.astype(np.float32)}, "np.uint8(np.round(x))"),
    "pixels of int64": ({"x_train": X.astype(int)}, "x.astype(np.uint8)"),
    "one-hot labels": ({"y_train": np.eye(10, dtype=int)[Y]}, "argmax"),
    "labels in a column": ({"y_test": Y[:, None]}, "y[:, 0]"),
    "float labels": ({"y_train": Y.astype(np.float32)}, "y.astype(np.int32)"),
    "text for labels": ({"y_train": Y.astype(str)}, "y.astype(np.int32)"),
    "labels from 1 to 10": ({"y_train": Y + 1}, "y - 1"),
    "labels from 1": ({"y_train": Y % 5 + 1}, "begin at 1"),
    "labels from -1": ({"y_test": Y - 1}, "from -1 to 8"),
    "eleven classes": ({"y_test": np.arange(20) % 11}, "from 0 to 10"),
    "a label for every pixel": ({"y_train": X}, "one label for each image"),
    "fewer labels": ({"y_train": Y[:19]}, "20 images, but 19 labels"),
    "empty sets": ({"x_train": X[:0], "y_train": Y[:0]}, "empty"),
    "no test set": ({"x_test": None, "y_test": None}, "no x_test and y_test"),
    "labels missing": ({"y_test": None}, "x_test alone"),
    "other names": ({name: None for name in arrays()} | {"image": X, "label": Y}, "image, label", "x_train and y_train"),
    "another size for testing": ({"x_test": X[:, :4]}, "[8, 8, 3]", "[4, 8, 3]"),
    "Python objects": ({"y_train": np.array([None] * 20)}, "numbers or text"),
}


@pytest.mark.parametrize("changes, word, more", [(*case, "")[:3] for case in WRONG.values()], ids=WRONG)
def test_wrong_arrays_are_named_with_file_and_remedy(changes, word, more, folder):
    np.savez(folder / "all.npz", **arrays(**changes))
    refused(folder, "" if word.startswith("no x_test") else "all.npz", word, more)


@pytest.mark.parametrize(
    "part, word",
    [
        ({"x_train": X}, "x_train alone"),
        ({"x_train": X[:, :4], "y_train": Y}, "[4, 8, 3]"),
        ({"weights": X}, "holds weights"),
        ({"x_test": X[:3], "y_test": Y}, "3 images, but 20 labels"),
    ],
)
def test_wrong_parts_of_a_set_are_named(part, word, folder):
    np.savez(folder / "a.npz", **arrays())
    np.savez(folder / "b.npz", **part)
    refused(folder, "b.npz", word)


def whole(folder):
    np.savez(folder / "all.npz", **arrays())
    return (folder / "all.npz").read_bytes()


def flipped(content):
    place = content.index(X[:2].tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGED = {
    "half": lambda content: content[: len(content) // 2],
    "the end missing": lambda content: content[:-10],
    "empty": lambda content: b"",
    "a bit": flipped,
    "a page": lambda content: b"<html>404 Not Found</html>",
    "Python objects": lambda content: pickle.dumps({"x_train": X}),
    "a tuple of them": lambda content: pickle.dumps((1, 2), protocol=0),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_archives_are_named(damage, folder):
    content = whole(folder)
    (folder / "all.npz").write_bytes(damage(content))
    refused(folder, "all.npz", "not a whole npz file")


def test_a_single_array_is_no_archive(folder):
    with (folder / "all.npz").open("wb") as file:
        np.save(file, X)
    refused(folder, "all.npz", "not a whole npz file")


def write_idx(folder, **changes):
    for name, array in arrays().items():
        content = idx(array[..., 0] if name.startswith("x") else array.astype(np.uint8))
        (folder / f"{IDX[name]}.gz").write_bytes(gzip.compress(changes[name](content) if name in changes else content))


IDX_WRONG = {
    "truncated": ({"x_train": lambda content: content[:-1]}, "not whole"),
    "too long": ({"y_test": lambda content: content + b"0"}, "not whole"),
    "a header alone": ({"y_train": lambda content: content[:6]}, "no IDX file"),
    "empty": ({"y_train": lambda content: b""}, "no IDX file"),
    "another magic": ({"x_test": lambda content: b"\1" + content[1:]}, "expected to begin with 00 00 08, got 01 00 08 03"),
    "of floats": ({"x_test": lambda content: idx(X[..., 0].astype(">f4"), 13)}, "got 00 00 0d 03"),
    "labels for images": ({"x_train": lambda content: idx(Y.astype(np.uint8))}, "no images"),
    "images for labels": ({"y_train": lambda content: idx(X[..., 0])}, "one label for each image"),
    "fewer labels": ({"y_test": lambda content: idx(Y[:7].astype(np.uint8))}, "20 images, but 7 labels"),
    "labels from 1": ({"y_train": lambda content: idx(Y.astype(np.uint8) + 1)}, "y - 1"),
    "another size": ({"x_test": lambda content: idx(X[:, :4, :4, 0])}, "[4, 4, 1]"),
}


@pytest.mark.parametrize("changes, word", IDX_WRONG.values(), ids=IDX_WRONG)
def test_wrong_idx_files_are_named(changes, word, folder):
    write_idx(folder, **changes)
    name = next(iter(changes))
    if word == "20 images, but 7 labels":
        name = "x_test"
    refused(folder, f"{IDX[name]}.gz", word)


def test_damaged_and_missing_idx_files_are_named(folder):
    write_idx(folder)
    path = folder / f"{IDX['y_test']}.gz"
    content = path.read_bytes()
    for damaged in (content[:-9], content[:5], b"", b"<html>", content[:20] + b"~" + content[21:]):
        path.write_bytes(damaged)
        refused(folder, path.name)
    path.unlink()
    refused(folder, path.name, "All four IDX files")
    path.with_suffix("").write_bytes(gzip.decompress(content))  # not packed, which is allowed
    np.testing.assert_array_equal(data.load("cifar10").y_test, Y)


def test_right_files_pass_in_every_form(folder):
    train, test = slice(0, 12), slice(12, 20)
    for name, rows in (("a", train), ("b", test)):
        np.savez_compressed(folder / f"{name}.npz", x_train=X[rows], y_train=Y[rows].astype(np.uint8))
    np.savez(folder / "c.npz", x_test=X, y_test=Y.astype(np.int16), notes=np.array("text"))
    dataset = data.load("cifar10")
    np.testing.assert_allclose(dataset.x_train, X / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(dataset.y_train, Y)
    for path in folder.iterdir():
        path.unlink()
    np.savez(folder / "grey.npz", **arrays(x_train=X[..., 0], x_test=X[..., :1]))
    assert data.load("cifar10").x_train.shape == data.load("cifar10").x_test.shape == (20, 8, 8, 1)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_cache_of_a_prepared_set_is_named_with_its_remedy(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.delenv("ROBUSTJAX_DATA", raising=False)

    class Prepared:
        data_path = tmp_path

        def is_prepared(self):
            return True

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Prepared())
    path = pathlib.Path(tmp_path) / "robustjax_arrays.npz"
    for content in (b"", whole(tmp_path)[:1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"robustjax_arrays.npz is not a whole npz file.* Delete it, and it is made again"):
            data.load("mnist")
    np.savez(path, **arrays(x_test=X / 255.0))
    with pytest.raises(ValueError, match=r"robustjax_arrays.npz, x_test: expected images uint8"):
        data.load("mnist")
    files.write(path, whole(tmp_path))
    assert data.load("mnist").x_train.shape == (20, 8, 8, 3)
