"""Checkpoints by orbax: written whole or not at all, so that a run killed at any moment resumes from the last one."""

import pathlib

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The latest states of a run under one folder; typed PRNG keys are stored as their data."""

    def __init__(self, folder: str | pathlib.Path, max_to_keep: int = 2):
        self._manager = ocp.CheckpointManager(
            pathlib.Path(folder).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, enable_async_checkpointing=False)
        )

    def save(self, step: int, state, **about) -> None:
        """Writes a pytree of arrays with a description of what it belongs to."""
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(jax.tree.map(_stored, state)), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=arguments)

    def latest(self, like, **about):
        """(step, state) of the last checkpoint, or (None, like) if there is none.

        Args:
          like: a pytree of the same structure, with its shapes and types.
          **about: what was given to `save`.

        Raises:
          ValueError: the checkpoint belongs to something else.
        """
        step = self._manager.latest_step()
        if step is None:
            return None, like
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_stored, like)), about=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=arguments)
        if restored.about != about:
            changed = sorted(name for name in restored.about.keys() | about.keys() if restored.about.get(name) != about.get(name))
            raise ValueError(
                f"the checkpoint in {self._manager.directory} was made with other settings ({', '.join(changed)}); "
                "choose another folder, or delete it."
            )
        return step, jax.tree.map(_typed, restored.state, like)

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()


def _stored(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _typed(stored, leaf):
    return jax.random.wrap_key_data(stored) if _is_key(leaf) else stored


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
