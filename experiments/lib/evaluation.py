"""Attacks and predictions as compiled programs, and evaluations that are saved after every attack and resume after a kill."""

import pathlib

import jax
import numpy as np

from experiments.lib import checkpoint, experiment, files
from robustjax import evaluate

attacked = jax.jit(lambda attack, key, model_fn, x, y: attack(key, model_fn, x, y))
predicted = jax.jit(lambda model_fn, x: model_fn(x).argmax(axis=1))


def run(
    folder: str | pathlib.Path, key, attacks, model_fn, x, y, *, batch_size: int, targets=None, mesh=None, **about
) -> evaluate.EvaluationState:
    """The last state of `evaluate.evaluate` on survivors, adversarial examples included.

    Args:
      folder: where the state is kept; a finished evaluation is read back, an interrupted one goes on after its last whole attack.
      key, attacks, model_fn, x, y, batch_size, targets, mesh: as for `evaluate.evaluate`.
      **about: what else the evaluation belongs to, so that a message says more than "another model".

    Raises:
      OSError: nothing can be written in the folder.
      ValueError: it holds an evaluation of another model, data set, label, attack or key, and what differs is named; or no whole one.
    """
    names = tuple(attacks)
    about = about | identity(key, attacks, model_fn, x, y, targets)
    states = checkpoint.Checkpoints(folder)
    done, stored = states.latest(**about)
    kept = None if done is None else evaluate.EvaluationState(names=names, **stored)
    num_saved = done or 0
    with experiment.progress() as bar:
        task = bar.add_task("attacks", total=len(names), completed=num_saved)
        for state in evaluate.evaluate(key, attacks, model_fn, x, y, batch_size=batch_size, targets=targets, mesh=mesh, state=kept):
            while num_saved < len(names) and not state.pending(num_saved, survivors_only=True).any():
                num_saved += 1
                states.save(num_saved, {name: part for name, part in state._asdict().items() if name != "names"}, **about)
                bar.update(task, completed=num_saved)
    states.close()
    return state


def identity(key, attacks, model_fn, x, y, targets=None) -> dict[str, str]:
    """`evaluate.identity` in JSON: what an evaluation depends on."""
    parts = evaluate.identity(key, attacks, model_fn, np.asarray(x), np.asarray(y), targets)
    return {name: files.digest(part) for name, part in parts.items()}


def interval(success) -> tuple[float, float, float]:
    """The rate of success over trials in %, with its Clopper-Pearson interval."""
    low, high = evaluate.confidence_interval(int(np.sum(success)), len(success))
    return 100 * float(np.mean(success)), 100 * low, 100 * high


def rate(success) -> str:
    """The same as a cell of a table."""
    return "{:.0f} % ({:.0f} to {:.0f})".format(*interval(success))
