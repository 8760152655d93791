"""Files that are whole or not there, whatever happens while they are written; what is wrong with a file that is read is named."""

import contextlib
import io
import json
import os
import pathlib
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from robustjax import fingerprint

_REMEDY = "Choose another file, or delete it."
_NUM_SHOWN = 8  # differences in a message


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file at once: whoever looks sees the old or the new one.

    Raises:
      OSError: it cannot be written, on a full disk for example; the old file stays, and nothing of the new one is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with partial.open("xb") as file:  # exclusive: it follows no link that waits there
            file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        problem = f"cannot write {path.name} in {path.parent}: {error.strerror or error}. Free space there, or choose another place."
        raise OSError(error.errno, problem) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def try_folder(folder: str | pathlib.Path) -> None:
    """Makes a folder and writes a small file in it, which is removed again: before hours of work, not after them.

    Raises:
      OSError: nothing can be written there.
    """
    path = pathlib.Path(folder) / ".robustjax-tried"
    write(path, b"tried")
    path.unlink(missing_ok=True)  # two processes may try one folder


def try_file(path: str | pathlib.Path) -> pathlib.Path:
    """The path of a file, in whose folder something can be written.

    Raises:
      OSError: it cannot. ValueError: the path is that of a folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it, such as {path / 'result'}.")
    try_folder(path.parent)
    return path


def read(path: pathlib.Path, remedy: str = _REMEDY) -> bytes:
    """The content of a file.

    Raises:
      OSError: there is none, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"cannot read {path}: {error.strerror}. {remedy}") from error


def read_json(path: pathlib.Path, remedy: str = _REMEDY) -> Any:
    """What a JSON file holds.

    Raises:
      OSError: it cannot be read. ValueError: it is no JSON.
    """
    try:
        return json.loads(read(path, remedy))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}). {remedy}") from error


def read_npz(path: pathlib.Path, remedy: str = _REMEDY) -> dict[str, np.ndarray]:
    """The arrays of an npz file: numbers, truth values and text; Python objects are never made from a file.

    Raises:
      OSError: it cannot be read. ValueError: it is no such file, it is not whole, or an array is not of these kinds.
    """
    content, arrays, member = read(path, remedy), {}, "it"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                array = io.BytesIO(archive.read(member))  # whole, so that its checksum is compared
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(array, allow_pickle=False)
    except Exception as error:  # of zipfile, the codecs under it and numpy, whose own message advises to trust the file
        problem = f"{path} is not a whole npz file: {member} cannot be read as an array of numbers or text ({type(error).__name__})"
        raise ValueError(f"{problem}. {remedy}") from None
    return arrays


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray], **about) -> None:
    """Writes named arrays and a description of what they belong to as one npz file, at once."""
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(plain(about))), **arrays)
    write(path, buffer.getvalue())


def read_arrays(path: pathlib.Path, names: Iterable[str] | None = None, **about) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote.

    Args:
      path: of the file.
      names: of the arrays that it must hold; None for any.
      **about: what was given to `write_arrays`.

    Raises:
      OSError: it cannot be read.
      ValueError: it belongs to something else; every setting that differs is named with both values. Or it is no such file.
    """
    arrays = read_npz(path)
    stored = described(arrays.pop("about", np.array("")))
    if stored is None:
        raise ValueError(f"{path} does not say what it was made for, so it was not written here. Choose another file.")
    if changed := differences(stored, about):
        raise ValueError(f"{path} was made with another {changed}. {_REMEDY}")
    if names is not None and arrays.keys() != set(names):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; expected {', '.join(sorted(names))}. {_REMEDY}")
    return arrays


def kept_arrays(
    path: str | pathlib.Path, names: Iterable[str] | None, make: Callable[[], dict[str, np.ndarray]], **about
) -> dict[str, np.ndarray]:
    """The arrays that `make` returns, from their file if there is one: what takes long is made once.

    Raises:
      OSError, ValueError: as `read_arrays`; a file that was made with other settings is refused.
    """
    path = try_file(path)
    if not path.exists():
        write_arrays(path, make(), **about)
    return read_arrays(path, names, **about)


def kept(path: str | pathlib.Path, make: Callable[[], Any], **about) -> Any:
    """The same for one value of any kind that JSON has."""
    return json.loads(str(kept_arrays(path, ["value"], lambda: {"value": np.array(json.dumps(plain(make())))}, **about)["value"]))


def described(about: np.ndarray) -> dict | None:
    """The description that a file holds as JSON, None if it is none."""
    try:
        stored = json.loads(str(about))
    except ValueError:
        return None
    return stored if isinstance(stored, dict) else None


def differences(stored: dict, about: dict) -> str:
    """What differs between a stored description and one that is asked for, each by name with both values; empty if nothing does."""
    there, here = plain(stored), plain(about)
    changed = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    parts = [f"{name}: {_shown(name, there)} there, {_shown(name, here)} here" for name in changed[:_NUM_SHOWN]]
    return "; ".join(parts + [f"and {len(changed) - _NUM_SHOWN} more"] * (len(changed) > _NUM_SHOWN))


def plain(value: Any) -> Any:
    """A value as JSON keeps it: tuples and arrays become lists."""
    return json.loads(json.dumps(value, default=lambda part: np.asarray(part).tolist()))


def digest(tree) -> str:
    """The SHA-256 of a pytree, as `fingerprint.digest`, for descriptions in JSON."""
    return fingerprint.digest(tree).tobytes().hex()


def named(tree) -> dict[str, np.ndarray]:
    """The arrays of a pytree by their places in it; typed PRNG keys as their data."""
    return {jax.tree_util.keystr(place): np.asarray(stored(leaf)) for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def placed(arrays: dict[str, np.ndarray], like, path: pathlib.Path):
    """The inverse of `named`, of the structure, shapes and types of `like`.

    Args:
      arrays: by place.
      like: a pytree of arrays.
      path: of the file of the arrays, for the message.

    Raises:
      ValueError: places, shapes or types differ; they are named.
    """
    if changed := differences({place: _kind(array) for place, array in arrays.items()}, shapes(jax.tree.map(stored, like))):
        raise ValueError(f"{path} holds another architecture than this one ({changed}); pass the one that its weights were trained with.")
    return jax.tree_util.tree_map_with_path(lambda place, leaf: typed(arrays[jax.tree_util.keystr(place)], leaf), like)


def stored(leaf):
    """What is stored of a leaf: of a typed PRNG key its data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def typed(data, like):
    """The inverse of `stored`, of the type of another leaf."""
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like)) if _is_key(like) else data


def shapes(tree) -> dict[str, str]:
    """Type and shape of every array of a pytree, by its place in it."""
    return {jax.tree_util.keystr(place): _kind(leaf) for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _kind(array):
    return f"{getattr(array, 'dtype', type(array).__name__)}{list(np.shape(array))}"


def _remove_leftovers(path):
    # A process that was killed while it wrote has left its partial file; those of living ones are theirs.
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})\.[0-9a-f]{{8}}")
    for sibling in path.parent.iterdir():
        found = pattern.fullmatch(sibling.name)
        if found and not _is_running(int(found[1])):
            sibling.unlink(missing_ok=True)


def _is_running(process):
    if os.name != "posix":
        return True  # signal 0 asks nothing elsewhere
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _shown(name, values):
    text = str(values[name]) if name in values else "nothing"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
