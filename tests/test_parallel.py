"""Sharding and padding of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from robustjax import parallel


def test_a_sharded_batch_is_split_along_its_first_axis_and_unchanged():
    mesh = parallel.data_mesh()
    assert mesh.size == len(jax.devices()) == 4
    batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3), "y": jnp.arange(8)}
    sharded = parallel.shard_batch(batch, mesh)
    assert {shard.data.shape for shard in sharded["x"].addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in sharded["y"].addressable_shards} == {(2,)}
    jax.tree.map(np.testing.assert_array_equal, sharded, batch)


def test_typed_keys_per_example_can_be_sharded():
    keys = parallel.shard_batch(jax.random.split(jax.random.key(0), 8), parallel.data_mesh())
    assert len(keys.sharding.device_set) == 4


def test_a_mesh_of_fewer_devices_has_that_many():
    mesh = parallel.data_mesh(2)
    assert mesh.devices.tolist() == jax.devices()[:2]
    assert mesh.axis_names == ("data",)


def test_a_batch_that_does_not_divide_raises_and_names_the_next_size():
    with pytest.raises(ValueError, match=r"batch of 6 .* 4 devices.* 8 .*parallel\.pad_to"):
        parallel.shard_batch((jnp.zeros((4, 2)), jnp.zeros(6)), parallel.data_mesh())


def test_replicated_values_are_whole_on_every_device():
    mesh = parallel.data_mesh()
    tree = parallel.replicate({"w": jnp.arange(6.0).reshape(2, 3), "eps": 0.5}, mesh)
    assert tree["w"].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec()), 2)
    assert [shard.data.shape for shard in tree["w"].addressable_shards] == [(2, 3)] * 4
    assert float(tree["eps"]) == 0.5


def test_gathered_arrays_are_whole_and_the_second_gathering_compiles_nothing():
    mesh = parallel.data_mesh()
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(parallel.gather(parallel.shard_batch(x, mesh), mesh), x)
    before = parallel._replicated(mesh)._cache_size()
    parallel.gather(parallel.shard_batch(x + 1, mesh), mesh)
    assert parallel._replicated(mesh)._cache_size() == before


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_padding_repeats_the_last_row_and_keeps_the_kind_of_array(convert):
    x = convert(np.arange(6.0, dtype=np.float32).reshape(3, 2))
    padded = parallel.pad_to(x, 5)
    assert isinstance(padded, np.ndarray) == isinstance(x, np.ndarray)
    np.testing.assert_array_equal(padded, np.arange(6.0).reshape(3, 2)[[0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(parallel.pad_to(x, 3), x)


@pytest.mark.parametrize(("rows", "num_rows"), [(0, 4), (5, 4)])
def test_padding_an_empty_or_longer_batch_raises(rows, num_rows):
    with pytest.raises(ValueError, match=f"{rows} rows to {num_rows}"):
        parallel.pad_to(np.zeros((rows, 2)), num_rows)


@pytest.mark.parametrize("num_devices", [None, 2])
def test_rows_of_a_data_set_run_padded_and_sharded_and_come_back_alone(num_devices):
    x = np.arange(22.0, dtype=np.float32).reshape(11, 2)
    mesh = None if num_devices is None else parallel.data_mesh(num_devices)
    run = parallel.RowRunner(Partial(jnp.multiply, 3.0), x, 4, mesh)

    @jax.jit
    def function(model_fn, rows, x, shift):
        return model_fn(x) + shift[:, None], rows

    for rows in (np.array([7, 2, 9, 4]), np.array([10])):
        values, places = run(function, rows, rows.astype(np.float32))
        np.testing.assert_array_equal(values, 3.0 * x[rows] + rows[:, None])
        np.testing.assert_array_equal(places, rows)
    assert function._cache_size() == 1
