"""Laws of the batch-first array formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import arrays, prng


def _bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_example_keys_are_the_folds_of_one_key_typed_or_raw():
    expected = np.stack([_bits(jax.random.fold_in(jax.random.key(3), row)) for row in range(4)])
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        keys = prng.example_keys(key, 4)
        assert keys.shape == (4,)
        assert jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(_bits(keys), expected)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_per_example_are_returned_as_they_are(make):
    keys = jax.random.split(make(1), 3)
    np.testing.assert_array_equal(_bits(prng.example_keys(keys, 3)), np.reshape(_bits(keys), (3, -1)))


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("num_keys", [1, 2, 4])
def test_a_wrong_number_of_keys_raises(make, num_keys):
    with pytest.raises(ValueError, match=r"\[3\]"):
        prng.example_keys(jax.random.split(make(1), num_keys), 3)


def test_the_key_of_a_row_depends_neither_on_the_batch_size_nor_on_other_rows():
    key = jax.random.key(0)
    longest = _bits(prng.example_keys(key, 9))
    for num_examples in (1, 2, 5):
        np.testing.assert_array_equal(_bits(prng.example_keys(key, num_examples)), longest[:num_examples])
    assert len(np.unique(longest, axis=0)) == 9


def test_fold_in_and_split_act_on_every_key_alone():
    keys = prng.example_keys(jax.random.key(0), 3)
    folded = prng.fold_in(keys, 5)
    np.testing.assert_array_equal(_bits(folded[1]), _bits(jax.random.fold_in(keys[1], 5)))
    parts = prng.split(keys, 2)
    alone = prng.split(keys[1:2], 2)
    assert [part.shape for part in parts] == [(3,), (3,)]
    np.testing.assert_array_equal(_bits(parts[1][1:2]), _bits(alone[1]))
    assert len(np.unique(np.concatenate([_bits(part) for part in parts]), axis=0)) == 6


@pytest.mark.parametrize("order", [0, 1, 2, np.inf])
def test_norm_is_that_of_numpy_per_example(order):
    x = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    x[1, 0] = 0.0
    np.testing.assert_allclose(arrays.norm(x, order), np.linalg.norm(x.reshape(3, -1), order, axis=1), rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_the_gradient_of_a_norm_is_finite_at_zero_and_exact_elsewhere(order):
    x = jnp.array([[0.0, 0.0], [3.0, -4.0]])
    gradient = jax.grad(lambda x: arrays.norm(x, order).sum())(x)
    assert np.isfinite(gradient).all()
    expected = {1: [1.0, -1.0], 2: [0.6, -0.8], np.inf: [0.0, -1.0]}[order]
    np.testing.assert_allclose(gradient[1], expected, rtol=1e-6)
    if order == 2:
        np.testing.assert_array_equal(gradient[0], 0.0)


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_normalize_gives_norm_one_and_keeps_zero_with_finite_gradients(order):
    x = jnp.stack([jnp.zeros((2, 2)), jnp.array([[1.0, -2.0], [0.5, 0.0]]), 1e-6 * jnp.ones((2, 2))])
    unit = arrays.normalize(x, order)
    np.testing.assert_allclose(arrays.norm(unit, order), [0.0, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(unit[1] / unit[1, 0, 0], x[1] / x[1, 0, 0], rtol=1e-6)
    assert np.isfinite(jax.jacobian(lambda x: arrays.normalize(x, order))(x)).all()


def test_top_k_mask_takes_the_largest_with_ties_to_the_lower_index_for_traced_k():
    scores = jnp.array([[[1.0, 3.0], [3.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    top = jax.jit(arrays.top_k_mask)
    expected = {
        0: [[0, 0, 0, 0], [0, 0, 0, 0]],
        1: [[0, 1, 0, 0], [1, 0, 0, 0]],
        2: [[0, 1, 1, 0], [1, 1, 0, 0]],
        3: [[0, 1, 1, 1], [1, 1, 1, 0]],
        9: [[1, 1, 1, 1], [1, 1, 1, 1]],
    }
    for k, mask in expected.items():
        np.testing.assert_array_equal(top(scores, k).reshape(2, -1), np.array(mask, bool))
    per_row = top(scores, jnp.array([1, 3])).reshape(2, -1)
    np.testing.assert_array_equal(per_row, np.array([expected[1][0], expected[3][1]], bool))
    np.testing.assert_array_equal(arrays.top_k_mask(scores, np.inf), True)


def test_top_k_mask_of_negative_scores_and_infinities():
    mask = arrays.top_k_mask(jnp.array([[-3.0, -1.0, -jnp.inf, jnp.inf]]), 2)
    np.testing.assert_array_equal(mask, [[False, True, False, True]])


def test_top_k_mask_of_random_scores_is_that_of_a_stable_sort_also_for_fractional_k():
    scores = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32).round(1) + 0.0  # ties, and no negative zero
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    for k in (1, 7, 2.5, 39, 40):
        np.testing.assert_array_equal(arrays.top_k_mask(jnp.asarray(scores), k), ranks < np.floor(k))


def test_top_k_mask_tells_float64_scores_apart():
    with jax.enable_x64(True):
        close = jnp.array([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]])
        np.testing.assert_array_equal(arrays.top_k_mask(close, 1), [[False, True, False]])


@pytest.mark.parametrize(
    ("shape", "expected"), [((), ()), ((2,), (2, 1, 1)), ((1,), (1, 1, 1)), ((1, 3, 4), (1, 3, 4)), ((2, 1, 4), (2, 1, 4))]
)
def test_per_example_values_broadcast_against_x(shape, expected):
    x = jnp.zeros((2, 3, 4))
    values = arrays.per_example(jnp.ones(shape), x)
    assert values.shape == expected
    assert (x + values).shape == x.shape


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 3), (3, 4), (1, 1, 1, 1)])
def test_per_example_raises_where_values_fit_neither_batch_nor_rank(shape):
    with pytest.raises(ValueError, match="per example"):
        arrays.per_example(jnp.ones(shape), jnp.zeros((2, 3, 4)))


def test_flat_and_total_reduce_all_but_the_batch():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert arrays.flatten_examples(x).shape == (2, 12)
    np.testing.assert_allclose(arrays.sum_examples(x), np.asarray(x).sum((1, 2)))
    np.testing.assert_allclose(arrays.sum_examples(jnp.arange(3.0)), [0.0, 1.0, 2.0])


def test_select_chooses_whole_examples_over_pytrees_of_any_rank():
    chosen = {"a": jnp.ones(3), "b": (jnp.ones((3, 2, 2)), jnp.ones((3, 1), int))}
    otherwise = jax.tree.map(jnp.zeros_like, chosen)
    selected = arrays.where_example(jnp.array([True, False, True]), chosen, otherwise)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf.reshape(3, -1).mean(axis=1), [1.0, 0.0, 1.0]), selected)
    assert jax.tree.map(jnp.shape, selected) == jax.tree.map(jnp.shape, chosen)


@pytest.mark.parametrize("order", [1, 2, jnp.inf])
def test_the_norm_of_nan_is_nan(order):
    assert np.isnan(arrays.norm(jnp.array([[jnp.nan, 1.0], [0.0, 0.0]]), order)).tolist() == [True, False]
