"""Loading, models, checkpoints, reports: files whole or not at all, and errors that say what to do."""

import gzip
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.lib import data, files, models, report
from robustjax import training


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def images(num, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def test_embedded_digits():
    dataset = data.load()
    assert dataset.x_train.shape == (4000, 28, 28, 1) and dataset.x_test.shape == (1000, 28, 28, 1)
    assert dataset.x_train.min() == 0 and dataset.x_train.max() == 1 and dataset.x_train.dtype == np.float32
    assert np.bincount(dataset.y_test).min() > 50


def test_idx_files(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    x, y = images(6, (28, 28), 0), np.arange(6, dtype=np.uint8)
    for part, rows in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", x[rows])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", y[rows])
    monkeypatch.setenv("ROBUSTJAX_DATA", str(tmp_path))
    dataset = data.load("mnist")
    np.testing.assert_allclose(dataset.x_test[..., 0], x[4:] / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(dataset.y_train, [0, 1, 2, 3])


def test_npz_files_in_parts(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    x = images(6, (32, 32, 3), 0)
    np.savez(folder / "part1.npz", x_train=x[:2], y_train=np.arange(2), x_test=x[4:], y_test=np.arange(2))
    np.savez(folder / "part2.npz", x_train=x[2:4], y_train=np.arange(2, 4))
    monkeypatch.setenv("ROBUSTJAX_DATA", str(tmp_path))
    dataset = data.load("cifar10")
    np.testing.assert_allclose(dataset.x_train, x[:4] / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(dataset.y_train, np.arange(4))


@pytest.mark.filterwarnings("ignore")
def test_tfds_set_made_on_the_spot(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from PIL import Image

    x = images(5, (28, 28), 1)

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        name = "mnist"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(3)), "test": self._generate_examples(range(3, 5))}

        def _generate_examples(self, rows):
            for row in rows:
                yield row, {"image": Image.fromarray(x[row]), "label": row}

    Mnist(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.delenv("ROBUSTJAX_DATA", raising=False)
    for _ in range(2):  # decoded, then from the cache of arrays
        dataset = data.load("mnist", data_dir=str(tmp_path))
        order = np.argsort(dataset.y_train)
        np.testing.assert_allclose(dataset.x_train[order, ..., 0], x[:3] / 255.0, rtol=1e-6)
        assert sorted(dataset.y_test) == [3, 4]


@pytest.mark.filterwarnings("ignore")
def test_without_files_the_error_comes_at_once_and_says_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"IDX files.*npz.*TFDS"):
        data.load("mnist")
    monkeypatch.delenv("ROBUSTJAX_DATA")
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"download_and_prepare[\s\S]*ROBUSTJAX_DATA"):
        data.load("mnist", data_dir=str(tmp_path))
    assert time.perf_counter() - start < 30
    with pytest.raises(ValueError, match="choose one of"):
        data.load("imagenet")


@pytest.mark.parametrize("name", sorted(set(models.ARCHITECTURES) - {"wrn-28-10", "resnet110"}))
def test_models_share_one_face(name):
    shape = {"preactresnet18": (8, 8, 3), "resnet20": (8, 8, 3), "lenet": (16, 16, 1)}.get(name, (12, 12, 1))
    model = models.build(name, seed=0, num_classes=4, input_shape=shape)
    x = jax.random.uniform(jax.random.key(0), (4, *shape))
    forward = jax.jit(model.apply_fn, static_argnames="mode")
    logits, same = forward(model.params, model.model_state, x, mode="eval")
    assert logits.shape == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, same, model.model_state)
    np.testing.assert_allclose(forward(model.params, model.model_state, x[:1], mode="eval")[0], logits[:1], atol=1e-4)
    if jax.tree.leaves(model.model_state):
        _, new = forward(model.params, model.model_state, x, mode="train")
        _, kept = forward(model.params, model.model_state, x, mode="batch")
        assert any(bool((a != b).any()) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(same), strict=True))
        jax.tree.map(np.testing.assert_array_equal, kept, model.model_state)


@pytest.mark.parametrize(("name", "size"), [("wrn-28-10", 36.5e6), ("resnet20", 272_474), ("resnet110", 1_730_714)])
def test_residual_networks_have_the_published_sizes(name, size):
    module = nnx.eval_shape(lambda: models.ARCHITECTURES[name]((32, 32, 3), 10, rngs=nnx.Rngs(0)))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert num_params == (pytest.approx(size, rel=0.005) if name.startswith("wrn") else size)


def test_weights_are_read_back_and_refused_by_another_architecture(tmp_path):
    model = models.build("preactresnet18", seed=1, num_classes=3, input_shape=(8, 8, 3))
    models.write(tmp_path / "model.npz", model.params, model.model_state)
    blank = models.build("preactresnet18", seed=2, num_classes=3, input_shape=(8, 8, 3))
    kept = models.read(tmp_path / "model.npz", blank)
    jax.tree.map(np.testing.assert_array_equal, (kept.params, kept.model_state), (model.params, model.model_state))
    with pytest.raises(ValueError, match="another architecture"):
        models.read(tmp_path / "model.npz", models.build("linear", num_classes=3))


def test_a_model_that_is_first_built_inside_a_program_is_whole_outside():
    shape = (6, 6, 1)
    x = jnp.ones((2, *shape))

    def logits(x):
        model = models.build("convnet_fast", 7, 3, shape)
        return model.apply_fn(model.params, model.model_state, x, "eval")[0]

    np.testing.assert_allclose(jax.jit(logits)(x), logits(x), rtol=1e-5)


def test_digests_tell_values_types_and_places_apart():
    trees = [
        {"a": np.zeros(2)},
        {"b": np.zeros(2)},
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros((2, 1))},
        {"a": np.array([0.0, 1e-300])},
    ]
    assert len({files.digest(tree) for tree in trees}) == len(trees)
    assert files.digest({"a": jnp.zeros(2)}) == files.digest({"a": np.zeros(2, np.float32)})
    alike = [models.build(name) for name in ("convnet", "convnet_silu", "convnet_pooled")]  # the same parameters
    functions = [training.classifier(model.apply_fn, alike[0].params, None) for model in (*alike, models.build("convnet"))]
    digests = [files.digest(function) for function in functions]
    assert len(set(digests)) == 3 and digests[0] == digests[3]


def test_report_is_self_contained_and_kept(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plot, axis = plt.subplots()
    axis.plot([0, 1])
    items = [report.figure("F", "caption", plot, "a line"), report.Table("T", "c", ["a"], [["1"]])]
    section = report.Section("A <title>", "text", items, name="name", command="python -m x", seconds=1.5)
    report.write(tmp_path / "name", section, {"seed": 0})
    kept = report.read(tmp_path / "name", {"seed": 0})
    assert kept == section
    assert report.read(tmp_path / "name", {"seed": 1}) is None
    report.page(tmp_path / "index.html", "Title", "About it.", [report.Part("Part", "Words.", [kept])])
    page = (tmp_path / "index.html").read_text()
    assert "data:image/png;base64," in page and "A &lt;title&gt;" in page and "python -m x" in page
    assert "http" not in page
