"""MetaPoison and Witches' Brew on networks that are trained from scratch: trials, kept on file, in which a target is to be misread."""

import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.lib import data, evaluation, experiment, files, models, poisons
from robustjax import base, poisoning, training
from robustjax.threats import Linf, Recolor

BATCH_SIZE, LEARNING_RATE = 100, 0.2  # of surrogates and victims alike
NUM_UNROLL_STEPS, NUM_RESTARTS = 2, 2  # K of MetaPoison; of Witches' Brew
STEP_SHARE = 0.5  # of eps: the first rate of MetaPoison's Adam
_CONSTANTS = {
    "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "num_unroll_steps": NUM_UNROLL_STEPS, "num_restarts": NUM_RESTARTS,
    "step_share": STEP_SHARE,
}  # fmt: skip
_VICTIM = 1_000_000  # far beyond what `split` gives: fold_in(key, i) is split(key, n)[i]
ATTACKS = ("MetaPoison", "Witches' Brew")
COLUMNS = ("clean", "random noise", *ATTACKS)
_GRID = 10  # points of a channel's range, of recoloured poisons; the paper's


class Size(NamedTuple):
    """How large a run is, and of what."""

    num_images: int
    budgets: tuple[int, ...]  # numbers of poisons
    num_trials: int
    num_steps: int  # of MetaPoison
    num_matching_steps: int  # of Witches' Brew
    num_surrogates: int = 4
    num_epochs: int = 20  # of surrogates and victims
    architecture: str = "mlp_shallow"
    eps: float = 0.3
    is_colour: bool = False  # a smooth map of colours, instead of every pixel by itself

    @property
    def threat(self):
        """What may be done to an image."""
        return Recolor(self.eps, _GRID) if self.is_colour else Linf(self.eps)

    @property
    def limit(self) -> str:
        """The same in words."""
        return f"colours move by at most {self.eps:g}" if self.is_colour else f"linf {self.eps:g}"

    @property
    def about(self) -> dict:
        """What the poisons of a trial depend on, beside its data, its budget and its seed."""
        return {name: value for name, value in self._asdict().items() if name not in ("budgets", "num_trials")} | _CONSTANTS

    def file(self, dataset: str, num_poisons: int, seed: int) -> str:
        """What a file of a trial is called."""
        return f"{dataset}-{self.architecture}-{self.num_images}-{num_poisons}{'-colour' if self.is_colour else ''}-{seed}.npz"


class Trial(NamedTuple):
    """A test image that a clean network reads rightly, its second choice, and the images of that label which are to make it the first."""

    task: poisoning.Task
    seed: int


def successes(
    dataset: data.Dataset, settings: experiment.DataOptions, size: Size, first: int = 0, every: int = 1
) -> dict[tuple[str, int], np.ndarray]:
    """Whether the target of each trial is read as the attacker wants, by (column, budget); found once, a trial is kept on file.

    Args:
      first, every: runs this trial and every so many-th after it, where several processes share them.
    """
    x, y = dataset.x_train[: size.num_images], dataset.y_train[: size.num_images]
    found: dict[tuple[str, int], list[bool]] = {(column, budget): [] for column in COLUMNS for budget in size.budgets}
    numbers = [(budget, number) for budget in size.budgets for number in range(size.num_trials)][first::every]
    with experiment.progress() as bar:
        for budget, number in bar.track(numbers, description="trials"):
            seed = settings.seed * 1000 + number
            about = size.about | {"dataset": settings.dataset, "num_poisons": budget, "seed": seed}
            path = pathlib.Path(settings.out) / "trials" / size.file(settings.dataset, budget, seed)

            def make(budget=budget, seed=seed):
                logits = np.asarray(_logits(jax.random.key(seed), x, y, dataset.x_test, size.architecture, size.num_epochs))
                return {"success": judge(choose(dataset, x, y, logits, budget, seed), settings, size)}

            success = files.kept_arrays(path, ["success"], make, **about)["success"]
            for column, value in zip(COLUMNS, success, strict=True):
                found[column, budget].append(value)
    return {key: np.array(value) for key, value in found.items()}


def choose(dataset: data.Dataset, x, y, logits, num_poisons: int, seed: int) -> Trial:
    """A random test image among those that are read rightly, its runner-up, and the images of that label that are least like it.

    Args:
      logits: [T, C] of a clean network on the test images. The images that are most like the target pull it to their label as they are.
    """
    rng = np.random.default_rng(seed)
    row = rng.choice(np.flatnonzero(logits.argmax(axis=1) == dataset.y_test))
    wanted = np.argsort(logits[row])[-2]
    rows = poisoning.choose(jax.random.key(seed), y, max(num_poisons, int((y == wanted).sum())), label=int(wanted))  # all, or an error
    distances = np.linalg.norm((x[rows] - dataset.x_test[row]).reshape(len(rows), -1), axis=1)
    rows = rows[np.argsort(-distances)[:num_poisons]]
    return Trial(poisoning.Task(x, y, rows, dataset.x_test[[row]], np.array([wanted], np.int32)), seed)


def judge(trial: Trial, settings: experiment.DataOptions, size: Size) -> np.ndarray:
    """Success [COLUMNS] of victims trained from scratch, with the same weights and batches, on the clean, noisy and poisoned sets."""
    (x, y, rows, x_target, y_target), threat, key = trial.task, size.threat, jax.random.key(trial.seed)
    changed = {"clean": x[rows], "random noise": np.asarray(poisoning.random_control(key, x[rows], threat))}
    crafts = {"MetaPoison": metapoisons, "Witches' Brew": brew}
    for name in ATTACKS:
        craft = functools.partial(crafts[name], trial, size)
        file = f"{crafts[name].__name__}-{size.file(settings.dataset, len(rows), trial.seed)}"
        provenance = poisons.Provenance(
            settings.dataset, name, size.architecture, f"{len(rows)} images, {size.limit}", trial.seed, size.about
        )  # fmt: skip
        made = poisons.kept(
            pathlib.Path(settings.out) / "poisons" / file,
            provenance,
            lambda craft=craft: poisons.Crafted(rows, np.asarray(craft()), y[rows]),
        )
        changed[name] = made.x
    key_victim = jax.random.fold_in(key, _VICTIM)
    ball = Linf(size.eps)  # a recolouring stays in it
    sets = {name: poisoning.insert(x, y, rows, part, threat=ball)[0] for name, part in changed.items()}
    logits = [_logits(key_victim, sets[name], y, x_target, size.architecture, size.num_epochs) for name in COLUMNS]
    return np.array([each[0].argmax() == np.asarray(y_target)[0] for each in logits])


def metapoisons(trial: Trial, size: Size):
    """Poisons by MetaPoison, with Adam at a rate of a share of eps that falls along a cosine."""
    attack = _attacks(size, trial.task.x.shape[1:])["MetaPoison"]
    return _compiled(attack, jax.random.key(trial.seed), trial.task).x


def brew(trial: Trial, size: Size):
    """Poisons by gradient matching on one network trained on the clean set."""
    key = jax.random.key(trial.seed)
    params = _trained(key, trial.task.x, trial.task.y, size.architecture, size.num_epochs)
    attack = _attacks(size, trial.task.x.shape[1:])["Witches' Brew"]
    return _compiled(base.bind(attack, params=params), key, trial.task).x


@functools.cache  # made once, so that one program serves all trials
def _attacks(size, input_shape):
    network = models.stateless(size.architecture, 10, input_shape)
    rate = optax.cosine_decay_schedule(STEP_SHARE * size.eps, size.num_steps, alpha=0.05)
    return {
        "MetaPoison": base.bind(
            poisoning.metapoison, apply_fn=network.apply_fn, init_fn=network.init_fn, threat=size.threat, optimizer=optax.adam(rate),
            num_steps=size.num_steps, num_surrogates=size.num_surrogates, num_epochs=size.num_epochs,
            num_unroll_steps=NUM_UNROLL_STEPS, batch_size=BATCH_SIZE, step_size=LEARNING_RATE,
        ),
        "Witches' Brew": base.bind(
            poisoning.gradient_matching, apply_fn=network.apply_fn, threat=size.threat, num_steps=size.num_matching_steps,
            num_restarts=NUM_RESTARTS,
        ),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames=("architecture", "num_epochs"))
def _trained(key, x, y, architecture, num_epochs):
    network = models.stateless(architecture, 10, x.shape[1:])
    optimizer = optax.sgd(LEARNING_RATE)
    step_fn = training.step(base.bind(training.natural, apply_fn=network.apply_fn), optimizer)
    key_init, key_fit = jax.random.split(key)
    state = training.init(network.init_fn(key_init), None, optimizer)
    return training.fit(state, key_fit, x, y, step_fn=step_fn, num_epochs=num_epochs, batch_size=BATCH_SIZE)[0].params


@functools.partial(jax.jit, static_argnames=("architecture", "num_epochs"))
def _logits(key, x, y, x_test, architecture, num_epochs):
    network = models.stateless(architecture, 10, x.shape[1:])
    return network.apply_fn(_trained(key, x, y, architecture, num_epochs), None, x_test, "eval")[0]


_compiled = jax.jit(lambda attack, key, task: attack(key, task))


def beats_noise(found: dict[tuple[str, int], np.ndarray], attack: str, budget: int) -> bool:
    """Whether the interval of an attack lies above that of random noise of the same budget."""
    return evaluation.interval(found[attack, budget])[1] > evaluation.interval(found["random noise", budget])[2]


def cells(found: dict[tuple[str, int], np.ndarray], size: Size) -> Iterator[list[str]]:
    """The rows of a table of rates, a row for each budget."""
    for budget in size.budgets:
        told = [evaluation.rate(found[column, budget]) for column in COLUMNS]
        yield [f"{budget} ({100 * budget / size.num_images:g} %)", *told]
