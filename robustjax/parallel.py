"""Several devices: a mesh with one axis for data, inputs sharded over it, models replicated. `jit` does the rest."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robustjax.base import Array, ModelFn


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices (all by default) with the axis "data".

    Raises:
      ValueError: there are fewer devices.

    Example:
      >>> parallel.data_mesh(1).axis_names
      ('data',)
    """
    devices = jax.devices()[:num_devices]
    if num_devices is not None and len(devices) != num_devices:
        raise ValueError(f"asked for a mesh of {num_devices} devices where there are {len(devices)}; on CPU set jax_num_cpu_devices.")
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...] split over the mesh along B.

    Args:
      tree: a pytree of arrays [B, ...].
      mesh: devices, see `data_mesh`.

    Raises:
      ValueError: B is not a multiple of the number of devices.

    Example:
      >>> x = parallel.shard_batch(jnp.ones((4, 3)), parallel.data_mesh(1))
      >>> x.sharding.spec
      P('data',)
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


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same value on every device of the mesh: for models and threats.

    Example:
      >>> parallel.replicate(jnp.ones(3), parallel.data_mesh(1)).sharding.is_fully_replicated
      True
    """
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_own(leaf, sharding), tree)


def _put_own(leaf, sharding):
    # A mesh over several processes: every process has the whole value, and copies the parts for its own devices.
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_own(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gather(tree: Any, mesh: Mesh) -> Any:
    """The whole of arrays that are split over the mesh, as numpy arrays on every process."""
    return jax.tree.map(np.asarray, _replicated(mesh)(tree))


def pad_to(x: Array | np.ndarray, num_rows: int) -> Any:
    """x [B, ...] with its last row repeated up to `num_rows`; numpy in, numpy out.

    Raises:
      ValueError: B is 0 or greater than `num_rows`.

    Example:
      >>> parallel.pad_to(np.array([1, 2]), 4)
      array([1, 2, 2, 2])
    """
    if not 0 < x.shape[0] <= num_rows:
        raise ValueError(f"cannot pad {x.shape[0]} rows to {num_rows}: expected between 1 and {num_rows} rows.")
    rows = np.minimum(np.arange(num_rows), x.shape[0] - 1)
    return x[rows]


class RowRunner:
    """Runs a function on chosen rows of a data set: gathers them, pads and shards the batch, and cuts the padding off the results.

    Args:
      model_fn: the model, replicated over the mesh. x: [N, ...] on the host.
      batch_size: rows of a batch; a multiple of the number of devices.
      mesh: devices to shard over; None for one device.
    """

    def __init__(self, model_fn: ModelFn, x: np.ndarray, batch_size: int, mesh: Mesh | None = None):
        self.x, self.batch_size, self.mesh = x, batch_size, mesh
        self.model_fn = model_fn if mesh is None else replicate(model_fn, mesh)

    def __call__(self, function: Callable, rows: np.ndarray, *per_row: Any, num_rows: int | None = None) -> Any:
        """`function(model_fn, rows [B], x [B, ...], *per_row [B, ...])` on at most `batch_size` rows.

        Args:
          function: the function to run, jitted for speed.
          rows: places in the data set. *per_row: further arrays or pytrees of arrays, with one entry for each of the rows.
          num_rows: length that the batch is padded to; None for `batch_size`.

        Returns:
          The results as numpy arrays, without those of the padding.
        """
        result = function(*self.arguments(rows, *per_row, num_rows=num_rows))
        result = jax.tree.map(np.asarray, result) if self.mesh is None else gather(result, self.mesh)
        return jax.tree.map(lambda values: values[: len(rows)], result)

    def arguments(self, rows: np.ndarray, *per_row: Any, num_rows: int | None = None) -> tuple:
        """What the function is called with: the model, and the padded and sharded batch.

        Args:
          rows, per_row, num_rows: as for a call.
        """
        num_rows = self.batch_size if num_rows is None else num_rows
        padded = pad_to(rows, num_rows)
        batch = (padded.astype(np.int32), self.x[padded], *jax.tree.map(lambda values: pad_to(values, num_rows), per_row))
        return self.model_fn, *(jax.tree.map(jax.numpy.asarray, batch) if self.mesh is None else shard_batch(batch, self.mesh))


@functools.cache
def _replicated(mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
