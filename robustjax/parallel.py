"""Several devices: a mesh with one axis of data, inputs sharded over it, models replicated. The rest is `jit`."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robustjax.base import Array


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices (all by default) with the axis "data".

    Raises:
      ValueError: there are fewer devices.
    """
    devices = jax.devices()[:num_devices]
    if num_devices is not None and len(devices) != num_devices:
        raise ValueError(f"asked for a mesh of {num_devices} devices where there are {len(devices)}; on CPU set jax_num_cpu_devices.")
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(tree, mesh: Mesh):
    """Arrays [B, ...] split over the mesh along B.

    Raises:
      ValueError: B is not a multiple of the number of devices.
    """
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim == 0:
            raise ValueError("expected arrays [B, ...], got a scalar; use parallel.replicate for it.")
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of {leaf.shape[0]} cannot be split over {mesh.size} devices; pad it to "
                f"{-(-leaf.shape[0] // mesh.size) * mesh.size} with parallel.pad_to."
            )
    return _put(tree, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree, mesh: Mesh):
    """The same value on every device of the mesh: for models and threats."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_own(leaf, sharding), tree)


def _put_own(leaf, sharding):
    # Of a mesh over several processes: every process has the whole value, and puts what its devices hold.
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_own(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gather(tree, mesh: Mesh):
    """Arrays split over the mesh as numpy arrays, whole on every process."""
    return jax.tree.map(np.asarray, _replicated(mesh)(tree))


def pad_to(x: Array, num_rows: int):
    """x [B, ...] with its last row repeated up to `num_rows`; numpy in, numpy out.

    Raises:
      ValueError: B is 0 or greater than `num_rows`.
    """
    if not 0 < x.shape[0] <= num_rows:
        raise ValueError(f"cannot pad {x.shape[0]} rows to {num_rows}: expected between 1 and {num_rows} rows.")
    rows = np.minimum(np.arange(num_rows), x.shape[0] - 1)
    return x[rows]


@functools.cache
def _replicated(mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
