"""Files are whole or not there, also on a full disk and after a kill; whatever cannot be read is named with its path and a remedy."""

import errno
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib import experiment, files, models, pages, poisons, report, runs, votes
from robustjax import base, training

MODEL = models.Model(None, {"w": jnp.zeros((2, 3))}, None)
PROVENANCE = poisons.Provenance("digits", "attack", "victim", "budget", 0, {})
POLL = votes.Poll(sigma=0.25, num_selection=4, num_samples=8, num_step_samples=4)
X = np.zeros((2, 2), np.float32)


def linear(x):
    return x


def cast(path):
    return votes.cast(path, POLL, linear, X, chunk_size=4)


def read_section(path):
    return report.read(path.parent, {})


READERS = {
    "weights.npz": lambda path: models.read(path, MODEL),
    "votes.npz": cast,
    "poisons.npz": lambda path: poisons.kept(path, PROVENANCE, never),
    "section.json": read_section,
    "models/run.seconds.json": lambda path: runs.seconds_per_epoch(path.parents[1], "run"),
    "page.json": lambda path: pages.read(path.with_suffix(".md")),
}


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def torch_like():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.bin", b"0123")
    return buffer.getvalue()


ABOUT = np.array("{}")
FOREIGN = {
    "empty": b"",
    "not text": b"\xff\xfe\x00#\n## a\nb",
    "Python objects": pickle.dumps([1, 2]),
    "text": b"## a\n## b\nc",
    "a list": b"[1, 2]",
    "a number in words": b'"1.5"',
    "another npz": packed(x=X),
    "an npz of Python objects": packed(about=np.array([None]), x=X),
    "an npz with Python objects": packed(about=ABOUT, x=np.array([{}])),
    "an npz of other arrays": packed(about=ABOUT, x=X),
    "an npz about a list": packed(about=np.array("[1]"), x=X),
    "an npz cut short": packed(about=ABOUT, x=np.zeros(1000))[:900],
    "another archive": torch_like(),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", READERS)
def test_foreign_and_cut_files_are_named_with_a_remedy(name, kind, tmp_path):
    path, content = tmp_path / name, FOREIGN[kind]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        READERS[name](path)
    message = str(error.value)
    assert str(path) in message and message.endswith(".") and "pickle" not in message
    assert any(word in message for word in ("hoose", "elete", "pass the one"))
    assert error.value.__suppress_context__ or "pickle" not in str(error.value.__cause__)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["weights.npz", "models/run.seconds.json"])
def test_missing_files_are_named_with_a_remedy(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"cannot read .*{name}: No such file or directory. (Choose|Delete)"):
        READERS[name](tmp_path / name)


def test_votes_and_weights_of_another_shape_are_named(tmp_path):
    whole = cast(tmp_path / "votes.npz")
    with np.load(tmp_path / "votes.npz") as file:
        about = json.loads(str(file["about"]))
    files.write_arrays(tmp_path / "votes.npz", {"selection": whole.selection[:1], "estimation": whole.estimation}, **about)
    with pytest.raises(ValueError, match=r"votes.npz .*selection'.: int32\[1, 2\] there, int32\[2, 2\] here"):
        cast(tmp_path / "votes.npz")
    models.write(tmp_path / "weights.npz", {"w": np.zeros((2, 3), np.int32)}, None)
    with pytest.raises(ValueError, match=r"weights.npz holds another architecture .*'w'.*int32\[2, 3\] there, float32\[2, 3\] here"):
        models.read(tmp_path / "weights.npz", MODEL)


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that takes the first bytes of a file, and no more."""
    opened = pathlib.Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "open", lambda path, mode="r": Full(opened(path, mode)) if "x" in mode else opened(path, mode))
    monkeypatch.setattr(pathlib.Path, "write_bytes", lambda path, content: Full(opened(path, "wb")).write(content))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    old = tmp_path / "votes.npz"
    with old.open("wb") as file:
        file.write(b"old")
    for written in (lambda: files.write(old, b"newer"), lambda: files.write_arrays(old, {"x": X})):
        with pytest.raises(OSError, match=r"votes.npz in .*No space left on device.* another place") as error:
            written()
        assert error.value.errno == errno.ENOSPC
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "page.md", "text")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); from experiments.lib import files; import pathlib\n"
    code += "pathlib.Path.replace = lambda *_: os._exit(9)\nfiles.write(pathlib.Path(sys.argv[2]), 'cut')"
    path, root = tmp_path / "votes.npz", pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(root), str(path)], check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    living = tmp_path / left.name.replace(left.name.split(".")[3], str(os.getppid()))
    others = [living, tmp_path / ".other.npz.99.00000000", tmp_path / "votes.npz.99.00000000"]
    for other in others:
        other.write_bytes(b"mine")
    files.write(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_no_link_is_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
    for name in (f".page.md.{os.getpid()}", f".page.md.{os.getpid()}.00000000", "page.md"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"cannot write page.md"):
        files.write(tmp_path / "page.md", b"new")
    files.write(tmp_path / "page.md", b"new")  # its own link is replaced
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "page.md").read_bytes() == b"new"


@pytest.fixture
def blocked(tmp_path):
    """A folder that cannot be made: a file is in its way."""
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "runs"


def never(*_, **__):
    raise AssertionError("hours of work")


def test_the_folder_is_tried_before_the_work(blocked, monkeypatch):
    out = str(blocked)
    monkeypatch.setattr(votes.smoothing, "vote_dataset", never)
    monkeypatch.setattr(runs, "_epoch", never)
    for start in (
        lambda: experiment.section(never, experiment.Settings(out=out)),
        lambda: cast(blocked / "votes.npz"),
        lambda: poisons.kept(blocked / "poisons.npz", PROVENANCE, never),
        lambda: runs.train("run", plan(), X, np.zeros(2, int), experiment.Settings(out=out)),
    ):
        with pytest.raises(OSError, match=r"cannot write .* in .*file.runs.*another place"):
            start()


def plan():
    model = models.Model(lambda params, model_state, x, mode: (x @ params, model_state), jnp.zeros((2, 3)), None)
    return runs.Plan(model, base.bind(training.natural, apply_fn=model.apply_fn), optax.sgd(0.1), 1, 2)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--out", "BLOCKED"], "cannot write"),
        (["--page", "BLOCKED/page.md"], "cannot write"),
        (["--page", "FOLDER"], "is a folder"),
        (["--dataset", "imagenet"], "imagenet"),
        (["--seed", "1e3"], "1e3"),
    ],
)
def test_the_command_line_refuses_at_once_what_cannot_be(options, words, blocked, tmp_path, capsys):
    options = [word.replace("BLOCKED", str(blocked)).replace("FOLDER", str(tmp_path)) for word in options]
    script = types.ModuleType("script", "What it shows.")

    def run(settings: experiment.Settings) -> None:
        never()

    script.run = run
    with pytest.raises(SystemExit) as ended:
        experiment.main(script, "margins", ["--out", str(tmp_path), *options])
    assert ended.value.code == 2 and words in capsys.readouterr().err.replace("\n", " ")


def test_the_command_line_leaves_nothing_of_its_trial(tmp_path):
    settings = experiment.parse(experiment.Settings, "n", None, ["--out", str(tmp_path / "a"), "--page", str(tmp_path / "new" / "page.md")])
    assert settings.page == tmp_path / "new" / "page.md" and not list((tmp_path / "new").iterdir()) and not list((tmp_path / "a").iterdir())


def section(**changes):
    items = [report.Figure("F", "c", "a line", b"\x89PNG", b"\x89dark"), report.Table("T", "c", ["a"], [["1"]])]
    return report.Section(**({"title": "t", "text": "x", "items": items, "name": "n", "command": "c", "seed": 0, "seconds": 1.0} | changes))


CHANGED = {
    "a figure outside": lambda content: content["items"][0].update(file="../secret.png"),
    "a figure at the root": lambda content: content["items"][0].update(file=str(pathlib.Path(__file__).resolve())),
    "a folder": lambda content: content["items"][0].update(file=".."),
    "a link to the outside": lambda content: content["items"][0].update(file="link.png"),
    "a figure that is missing": lambda content: content["items"][0].update(file="figure7.png"),
    "a number for a title": lambda content: content.update(title=1),
    "text for seconds": lambda content: content.update(seconds="<script>"),
    "text for the seed": lambda content: content.update(seed="<script>"),
    "another field": lambda content: content.update(another=1),
    "a field that is missing": lambda content: content.pop("text"),
    "no settings": lambda content: content.pop("about"),
    "a row that is a number": lambda content: content["items"][1].update(rows=[1]),
    "rows that are text": lambda content: content["items"][1].update(rows="<b>"),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_section_that_was_changed_is_refused(change, tmp_path):
    folder = tmp_path / "name"
    report.write(folder, section(), {})
    assert report.read(folder, {}) == section()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    content = json.loads((folder / "section.json").read_text())
    change(content)
    (folder / "section.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=r"name.*Delete it, and the experiment runs again"):
        report.read(folder, {})


def test_everything_in_the_page_is_escaped(tmp_path):
    bad = "\"><script>alert(1)</script> x='y' &"
    items = [report.Figure(bad, bad, bad, b"\x89PNG", b"\x89dark"), report.Table(bad, bad, [bad], [[bad]])]
    changed = {name: bad for name in ("title", "text", "name", "command", "slide", "more", "full_command")}
    parts = [report.Part(bad, bad, [section(items=items, **changed)], [bad])]
    report.page(tmp_path / "index.html", bad, bad, parts)
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page and "x='y'" not in page
    assert '<section id="&quot;&gt;&lt;script' in page


def test_descriptions_take_numbers_of_numpy_and_name_all_that_differs(tmp_path):
    path = tmp_path / "a.npz"
    files.write_arrays(path, {"x": X}, eps=np.float32(0.5), grid=(1, 2), key=jnp.arange(2))
    np.testing.assert_array_equal(files.read_arrays(path, ["x"], eps=0.5, grid=[1, 2], key=[0, 1])["x"], X)
    with pytest.raises(
        ValueError, match=r"another eps: 0.5 there, 0.25 here; grid: \[1, 2\] there, nothing here; new: nothing there, 1 here"
    ):
        files.read_arrays(path, eps=0.25, key=jax.numpy.arange(2), new=1)
    with pytest.raises(ValueError, match="holds x; expected y"):
        files.read_arrays(path, ["y"], eps=0.5, grid=[1, 2], key=[0, 1])
