"""Attacks and predictions as compiled programs, and evaluations that are saved after every attack and resume after a kill."""

import pathlib

import jax
import numpy as np

from experiments.lib import checkpoint, experiment, files
from robustjax import base, evaluate, fingerprint, loops

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


def identity(key, attacks, model_fn, x, y, targets=None) -> dict:
    """What an evaluation depends on: names to be read, and digests by which any two of them are told apart.

    Models and attacks are told by their arrays and programs, so that another version of JAX or of the library may make others of them.
    """
    model_fn, keys, x, y = base.bind(model_fn), jax.random.split(key, len(x)), np.asarray(x), np.asarray(y)
    parts = {"model": (model_fn, fingerprint.program(_logits, keys, model_fn, x)), "x": x, "y": y, "targets": targets}
    # Programs of attacks are taken of a stand-in, so that another model does not look like another attack.
    logits = jax.eval_shape(_logits, keys, model_fn, x)
    stand_in = base.bind(_stand_in, scores=np.zeros(logits.shape[1], logits.dtype))
    for name, attack in attacks.items():
        parts[f"attack {name}"] = (attack, fingerprint.program(loops.without_host(attack), keys, stand_in, x, y))
    named = {"attacks": list(attacks), "key": np.asarray(jax.random.key_data(key)).tolist()}
    return named | {name: files.digest(part) for name, part in parts.items()}


def _logits(keys, model_fn, x):
    return base.draw(model_fn, keys)(x)


def _stand_in(x, *, scores):
    return x.reshape(len(x), -1).mean(axis=1, keepdims=True) * scores[None]


def interval(success) -> tuple[float, float, float]:
    """The rate of success over trials in %, with its Clopper-Pearson interval."""
    low, high = evaluate.confidence_interval(int(np.sum(success)), len(success))
    return 100 * float(np.mean(success)), 100 * low, 100 * high


def rate(success) -> str:
    """The same as a cell of a table."""
    return "{:.0f} % ({:.0f} to {:.0f})".format(*interval(success))
