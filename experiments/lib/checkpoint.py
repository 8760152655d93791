"""Checkpoints by orbax: written whole or not at all, and a damaged one is told from a whole one before anything goes on from it."""

import hashlib
import json
import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

from experiments.lib import experiment, files

_DIGESTS = "digests.json"  # of the files of a checkpoint, beside them: orbax reads a flipped bit as another number
_REMEDY = "Choose another folder, or delete it."


class Checkpoints:
    """The latest states of a run under one folder; typed PRNG keys are stored as their data."""

    def __init__(self, folder: str | pathlib.Path, max_to_keep: int = 2):
        """Raises OSError if nothing can be written in the folder."""
        self._folder = pathlib.Path(folder).absolute()
        files.try_folder(self._folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, enable_async_checkpointing=False, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._damaged: dict[int, str] = {}  # what is wrong with which step

    def save(self, step: int, state, **about) -> None:
        """Writes a pytree of arrays with a description of what it belongs to, in place of damaged ones that `latest` has passed over."""
        while self._damaged:
            self._manager.delete(self._damaged.popitem()[0])
        state = jax.tree.map(files.stored, state)
        about = files.plain(about | {"shapes": files.shapes(state)})
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        try:
            self._manager.save(step, args=arguments)
        except BaseException:
            for partial in self._folder.glob(f"{step}.*"):  # on a full disk, orbax leaves what it has written so far
                shutil.rmtree(partial)
            raise
        files.write(self._folder / str(step) / _DIGESTS, json.dumps(_digests(self._folder / str(step))))

    def latest(self, like=None, **about):
        """(step, state) of the last whole checkpoint, or (None, like) if there is none; a line names damaged ones that come after it.

        Args:
          like: a pytree of the same structure, with its shapes and types; None for dictionaries of what was saved.
          **about: what was given to `save`.

        Raises:
          ValueError: the checkpoint belongs to something else, and what differs is named; or there are some, and none is whole.
        """
        like_stored = jax.tree.map(files.stored, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._require_whole(step)
                self._require_same(self._restored(step, about=ocp.args.JsonRestore()).about, about, like_stored)
                state = self._restored(step, state=ocp.args.StandardRestore(like_stored)).state
            except _DamagedError as error:
                self._damaged[step] = str(error)
                continue
            if self._damaged:
                experiment.console.print(f"warning: {self._problems()}; going on from checkpoint {step}.", markup=False, soft_wrap=True)
            return step, state if like is None else jax.tree.map(files.typed, state, like)
        if self._damaged:
            raise ValueError(f"no checkpoint is whole: {self._problems()}. {_REMEDY}")
        return None, like

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()

    def _require_whole(self, step):
        folder = self._folder / str(step)
        if not (folder / _DIGESTS).exists():
            return  # killed between the two, or by an earlier version: what is wrong shows when it is restored
        try:
            written = dict(files.read_json(folder / _DIGESTS))
        except (TypeError, ValueError) as error:
            raise _DamagedError(f"{_DIGESTS} is changed") from error
        found = _digests(folder)
        for name, digest in sorted(written.items()):
            if found.get(name) != digest:
                raise _DamagedError(f"{name} is {'changed' if name in found else 'missing'}")

    def _require_same(self, stored, about, like):
        if not isinstance(stored, dict):
            raise _DamagedError("it was not written here")
        shapes = stored.pop("shapes", None)
        changed = files.differences(stored, about)
        if not changed and like is not None and shapes is not None:
            changed = files.differences(shapes, files.shapes(like))
        if changed:
            raise ValueError(f"the checkpoint in {self._folder} was made with other settings ({changed}). {_REMEDY}")

    def _restored(self, step, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and the storage under it raise many kinds
            raise _DamagedError(f"{' '.join(items)} cannot be read ({type(error).__name__})") from error

    def _problems(self):
        return "; ".join(f"checkpoint {step} in {self._folder} is damaged ({problem})" for step, problem in self._damaged.items())


class _DamagedError(Exception):
    pass


def _digests(folder):
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
