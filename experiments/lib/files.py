"""Files that are whole or not there, whenever the process is killed, and digests of arrays by which runs are told apart."""

import hashlib
import io
import json
import os
import pathlib
import re
import zipfile

import jax
import numpy as np


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file at once: whoever looks sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray], **about) -> None:
    """Writes named arrays and a description of what they belong to as one npz file, at once."""
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write(path, buffer.getvalue())


def read_arrays(path: pathlib.Path, **about) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote.

    Raises:
      ValueError: it belongs to something else; every setting that differs is named with both values. Or it is no such file.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = dict(file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole npz file ({error}). Choose another file, or delete it.") from error
    if "about" not in arrays:
        raise ValueError(f"{path} does not say what it was made for, so it was not written here. Choose another file.")
    stored, about = json.loads(str(arrays.pop("about"))), json.loads(json.dumps(about))
    changed = [name for name in sorted(stored.keys() | about.keys()) if stored.get(name) != about.get(name)]
    if changed:
        differences = "; ".join(f"{name}: {stored.get(name)} there, {about.get(name)} here" for name in changed)
        raise ValueError(f"{path} was made with another {differences}. Choose another file, or delete it.")
    return arrays


def digest(tree) -> str:
    """The SHA-256 of a pytree: its arrays with types, shapes and places, and the names of what it is made of, functions among them."""
    structure = re.sub(r" at 0x[0-9a-f]+", "", str(jax.tree.structure(tree)))
    sha = hashlib.sha256(structure.encode())
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(place)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def program(function, *args) -> tuple:
    """What a function does to arguments like these, for `digest`: operations and constants, those of closures among them."""
    made = jax.make_jaxpr(function)(*args)
    return re.sub(r"0x[0-9a-f]+", "", str(made.jaxpr)), *made.consts


def named(tree) -> dict[str, np.ndarray]:
    """The arrays of a pytree by their places in it."""
    return {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def placed(arrays: dict[str, np.ndarray], like):
    """The inverse of `named`, of the structure and shapes of `like`.

    Raises:
      ValueError: places or shapes differ; they are named.
    """
    expected = {place: leaf.shape for place, leaf in named(like).items()}
    got = {place: array.shape for place, array in arrays.items()}
    if expected != got:
        wrong = sorted(place for place in expected.keys() | got.keys() if expected.get(place) != got.get(place))
        raise ValueError(f"these arrays are of another architecture: {', '.join(wrong[:3])} differ; pass the one they were trained with.")
    return jax.tree_util.tree_map_with_path(lambda place, _: arrays[jax.tree_util.keystr(place)], like)
