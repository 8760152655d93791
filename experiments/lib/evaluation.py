"""Attacks and predictions as compiled programs, and evaluations that are saved after every attack and resume after a kill."""

import pathlib

import jax
import numpy as np

from experiments.lib import checkpoint, experiment
from robustjax import evaluate

attacked = jax.jit(lambda attack, key, model_fn, x, y: attack(key, model_fn, x, y))
predicted = jax.jit(lambda model_fn, x: model_fn(x).argmax(axis=1))


def run(folder: str | pathlib.Path, key, attacks, model_fn, x, y, *, batch_size: int, mesh=None, **about) -> evaluate.EvaluationState:
    """The last state of `evaluate.evaluate` on survivors, adversarial examples included.

    Args:
      folder: where the state is kept; a finished evaluation is read back, an interrupted one goes on after its last whole attack.
      key, attacks, model_fn, x, y, batch_size, mesh: as for `evaluate.evaluate`.
      **about: what the evaluation belongs to (model, budget, ...); a folder of something else is refused.
    """
    names, num_examples = tuple(attacks), len(x)
    about = about | {"attacks": list(names), "key": np.asarray(jax.random.key_data(key)).tolist()}
    like = {
        "correct": np.zeros(num_examples, bool),
        "success": np.zeros((len(names), num_examples), np.int8),
        "loss": np.zeros((len(names), num_examples), np.float32),
        "x": np.zeros(np.shape(x), np.asarray(x).dtype),
    }
    files = checkpoint.Checkpoints(folder)
    done, stored = files.latest(like, **about)
    kept = None if done is None else evaluate.EvaluationState(names, **{name: np.asarray(value) for name, value in stored.items()})
    num_saved = done or 0
    with experiment.progress() as bar:
        task = bar.add_task("attacks", total=len(names), completed=num_saved)
        for state in evaluate.evaluate(key, attacks, model_fn, x, y, batch_size=batch_size, mesh=mesh, state=kept):
            while num_saved < len(names) and not state.pending(num_saved, survivors_only=True).any():
                num_saved += 1
                files.save(num_saved, _arrays(state), **about)
                bar.update(task, completed=num_saved)
    files.close()
    return state


def _arrays(state):
    return {name: value.copy() for name, value in state._asdict().items() if name != "names"}


def interval(success) -> tuple[float, float, float]:
    """The rate of success over trials in %, with its Clopper-Pearson interval."""
    low, high = evaluate.confidence_interval(int(np.sum(success)), len(success))
    return 100 * float(np.mean(success)), 100 * low, 100 * high


def rate(success) -> str:
    """The same as a cell of a table."""
    return "{:.0f} % ({:.0f} to {:.0f})".format(*interval(success))
