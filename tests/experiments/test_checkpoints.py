"""Checkpoints: settings come before states, a damaged one is told from a whole one, and the older whole one is what goes on."""

import errno
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib import checkpoint, files

RANDOM = np.random.default_rng(0).normal(size=3000).astype(np.float32)
STATE = {"w": jnp.asarray(RANDOM), "key": jax.random.key(7, impl="rbg"), "host": {"n": np.full(3, 2**40, np.uint64)}, "none": None}


def checkpoints(folder):
    return checkpoint.Checkpoints(folder)


def numbered(number):
    return STATE | {"w": STATE["w"] + number}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    states = checkpoints(folder)
    for step in (1, 2, 3):
        states.save(step, numbered(step), seed=0, grid=(1, 2))
    states.close()
    return folder


@pytest.fixture
def run(made, tmp_path):
    return pathlib.Path(shutil.copytree(made, tmp_path / "run"))


def latest(folder, like=STATE, **about):
    states = checkpoints(folder)
    try:
        return states.latest(like, **({"seed": 0, "grid": (1, 2)} | about))
    finally:
        states.close()


def contents(folder, step):
    return [path for path in sorted((folder / str(step)).rglob("*")) if path.is_file()]


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
}


def test_what_is_whole_comes_back(run, capfd):
    step, state = latest(run)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(files.stored, state), jax.tree.map(files.stored, numbered(3)))
    step, plain = latest(run, like=None)
    assert step == 3 and plain["host"]["n"].dtype == np.uint64 and plain["none"] is None
    np.testing.assert_array_equal(plain["w"], RANDOM + 3)
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_older_whole_one_is_taken_where_any_file_of_the_newest_is_damaged(damage, made, tmp_path, capfd):
    for number, path in enumerate(contents(made, 3)):
        folder = pathlib.Path(shutil.copytree(made, tmp_path / str(number)))
        name = path.relative_to(made / "3").as_posix()
        damage(folder / "3" / name)
        step, state = latest(folder)
        if name == "digests.json" and damage is DAMAGE["deleted"]:
            assert step == 3, "a kill came before it was written, and all the rest is whole"
            continue
        assert step == 2, name
        np.testing.assert_array_equal(state["w"], RANDOM + 2)
        line = capfd.readouterr().err
        assert line.startswith(f"warning: checkpoint 3 in {folder} is damaged ({name} is ") and line.endswith(
            "going on from checkpoint 2.\n"
        )
        assert line.count("\n") == 1


def test_what_goes_on_from_an_older_one_replaces_the_damaged_one(run):
    contents(run, 3)[-1].unlink()
    states = checkpoints(run)
    assert states.latest(STATE, seed=0, grid=(1, 2))[0] == 2
    states.save(3, numbered(30), seed=0, grid=(1, 2))
    states.close()
    step, state = latest(run)
    assert step == 3
    np.testing.assert_array_equal(state["w"], RANDOM + 30)


def test_where_none_is_whole_folder_and_remedy_are_named(run):
    for step in (2, 3):
        contents(run, step)[-1].write_bytes(b"")
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError) as error:
        latest(run)
    message = str(error.value)
    assert message.startswith("no checkpoint is whole: checkpoint 3 in ") and f"checkpoint 2 in {run} is damaged" in message
    assert message.endswith("Choose another folder, or delete it.")
    assert sorted(run.rglob("*")) == before, "nothing is lost"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["empty", "a file", "of an earlier version, cut"])
def test_foreign_folders_are_named(kind, made, tmp_path):
    folder = tmp_path / "run"
    (folder / "5").mkdir(parents=True)
    if kind == "a file":
        (folder / "5" / "weights.msgpack").write_bytes(b"0123")
    if kind == "of an earlier version, cut":
        shutil.copytree(made / "3", folder / "5", dirs_exist_ok=True)
        (folder / "5" / "digests.json").unlink()
        (folder / "5" / "about" / "metadata").unlink()
    with pytest.raises(
        ValueError, match=r"no checkpoint is whole: checkpoint 5 in .*run is damaged .*\. Choose another folder, or delete it"
    ):
        latest(folder)


@pytest.mark.parametrize(
    ("like", "about", "words"),
    [
        (STATE | {"w": jnp.zeros(7)}, {"seed": 1}, "seed: 0 there, 1 here"),  # not orbax's error about shapes
        (
            STATE,
            {"seed": 1, "grid": (1, 3), "new": "x"},
            "grid: [1, 2] there, [1, 3] here; new: nothing there, x here; seed: 0 there, 1 here",
        ),
        (STATE | {"w": jnp.zeros(7)}, {}, "['w']: float32[3000] there, float32[7] here"),
        (STATE | {"w": jnp.zeros(3000, int)}, {}, "['w']: float32[3000] there, int32[3000] here"),
        ({"w": STATE["w"]}, {}, "['host']['n']: uint64[3] there, nothing here; ['key']: uint32[4] there, nothing here"),
    ],
)
def test_settings_and_shapes_are_compared_before_anything_is_restored(like, about, words, run):
    with pytest.raises(ValueError) as error:
        latest(run, like, **about)
    assert str(error.value) == f"the checkpoint in {run} was made with other settings ({words}). Choose another folder, or delete it."


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(run, monkeypatch):
    before = sorted(run.rglob("*"))
    states = checkpoints(run)

    def full(step, args):
        (run / f"{step}.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states._manager, "save", full)
    with pytest.raises(OSError, match="No space left"):
        states.save(4, numbered(4), seed=0)
    states.close()
    assert sorted(run.rglob("*")) == before
    assert latest(run)[0] == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .* in .*file.run.*another place"):
        checkpoints(tmp_path / "file" / "run")


def test_what_a_kill_left_of_a_checkpoint_is_removed(run):
    (run / "4.orbax-checkpoint-tmp-1").mkdir()
    assert latest(run)[0] == 3
    assert not (run / "4.orbax-checkpoint-tmp-1").exists()
