"""MetaPoison and Witches' Brew: clean-labelled poisons against networks that are trained from scratch, success against budget.

`python -m experiments metapoison --table docs/results/metapoison.md` judges them on more trials than the report; the setting of the
authors, for a GPU, is `ROBUSTJAX_DATA=DIR python -m experiments metapoison --dataset cifar10 --architecture convnet --eps 0.0314
--num-images 50000 --budgets 500 --trials 5 --surrogates 24 --steps 61 --epochs 200 --table FILE`, with `--colour` for recoloured poisons.
"""

import argparse
import functools
import pathlib
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import data, evaluation, experiment, files, models, poisons, report
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


def run(settings: experiment.Settings) -> report.Section:
    """Success against the number of poisons, with intervals."""
    size = Size(200, (10,), 2, 2, 4, 2, 2) if settings.quick else Size(2000, (50, 100), 5, 20, 100)
    found = successes(data.load(settings.dataset), settings, size)
    text = (
        "Poisons that fool a network trained from scratch must work for weights that the attacker does not know. MetaPoison looks a few "
        "steps of training ahead through an ensemble of surrogates of different ages; Witches' Brew makes the poisons' gradient point "
        "where the target's would."
    )
    return report.Section("Poisons for networks trained from scratch", text, [_plot(found, size), _table(found, size)])


def successes(
    dataset: data.Dataset, settings: experiment.Settings, size: Size, first: int = 0, every: int = 1
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
            if not files.try_file(path).exists():
                logits = np.asarray(_logits(jax.random.key(seed), x, y, dataset.x_test, size.architecture, size.num_epochs))
                trial = choose(dataset, x, y, logits, budget, seed)
                files.write_arrays(path, {"success": judge(trial, settings, size)}, **about)
            success = files.read_arrays(path, ["success"], **about)["success"]
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


def judge(trial: Trial, settings: experiment.Settings, size: Size) -> np.ndarray:
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


def _cells(found, size):
    for budget in size.budgets:
        told = [evaluation.rate(found[column, budget]) for column in COLUMNS]
        yield [f"{budget} ({100 * budget / size.num_images:g} %)", *told]


def _table(found, size):
    caption = (
        f"Trials in which a random test image is read as a clean network's second choice, of {size.num_trials}, with 95 % Clopper-Pearson "
        f"intervals. Images of that label, those least like the target, are changed ({size.limit}). The same trials, weights and "
        "batches in every column; the victims' first weights are not the attacker's."
    )
    return report.Table("Success", caption, ["poisons", *COLUMNS], list(_cells(found, size)))


def _plot(found, size):
    plot, axis = plt.subplots(figsize=(6, 3.8))
    for index, column in enumerate(COLUMNS):
        rates = np.array([evaluation.interval(found[column, budget]) for budget in size.budgets])
        place = np.array(size.budgets) * (1 + 0.03 * (index - 1.5))  # side by side
        errors = np.abs(rates[:, 1:] - rates[:, :1]).T
        axis.errorbar(place, rates[:, 0], errors, fmt="o-", capsize=3, color=("C7", "k", "C3", "C0")[index], label=column)
    axis.set(xlabel=f"poisons among {size.num_images:,} training images", ylabel="success in %", xscale="log", ylim=(-3, 103))
    axis.set_xticks(size.budgets, [str(budget) for budget in size.budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    caption = f"{size.architecture} trained from scratch on poisoned images, {size.limit}; {size.num_trials} trials, 95 % intervals."
    return report.figure("Success against budget", caption, plot)


def section(found: dict[tuple[str, int], np.ndarray], size: Size, command: str) -> str:
    """A setting's part of the page."""
    lines = [
        f"{size.num_images:,} images, {size.num_epochs} epochs of gradient descent, batches of {BATCH_SIZE}, rate {LEARNING_RATE}; "
        f"{size.limit}. MetaPoison: {size.num_surrogates} surrogates, {size.num_steps} crafting steps, K = {NUM_UNROLL_STEPS}; "
        f"Witches' Brew: one network, {size.num_matching_steps} steps, {NUM_RESTARTS} restarts.\n",
        "| poisons | " + " | ".join(COLUMNS) + " | above noise |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for budget, cells in zip(size.budgets, _cells(found, size), strict=True):
        above = ", ".join(f"{attack}: {'yes' if beats_noise(found, attack, budget) else 'no'}" for attack in ATTACKS)
        lines.append(f"| {' | '.join(cells)} | {above} |")
    return "\n".join([*lines, "", f"    {command}", ""])


def title(size: Size, dataset: str) -> str:
    """Of a setting's section."""
    return f"{size.architecture} on {dataset}{', recoloured' if size.is_colour else ''}, {size.num_trials} trials"


def main(arguments) -> None:
    """The section of the report, or with --table the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=experiment.output, help="write a section of this page, of more trials; its other sections stay")
    parser.add_argument(
        "--architecture", choices=tuple(models.ARCHITECTURES), default="mlp_shallow", help="in the table, as all that follow"
    )
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[100], help="numbers of poisons")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="of MetaPoison")
    parser.add_argument("--surrogates", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20, help="of surrogates and victims")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--colour", action="store_true", help="poisons are recoloured instead of changed pixel by pixel")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("FIRST", "EVERY"), help="run some trials of the table, write no page"
    )
    settings, options = experiment.old_parse(parser, arguments)
    is_part = tuple(options.part) != (0, 1)
    if options.table is None:
        if is_part:
            parser.error("--part shares out the trials of a table; pass --table too")
        experiment.section(run, settings)
        return
    size = Size(
        options.num_images, tuple(options.budgets), options.trials, options.steps, 100, options.surrogates, options.epochs,
        options.architecture, options.eps, options.colour,
    )  # fmt: skip
    if settings.quick:
        size = size._replace(num_images=200, budgets=(10,), num_trials=2, num_steps=2, num_matching_steps=4, num_surrogates=2, num_epochs=2)
    found = successes(data.load(settings.dataset), settings, size, *options.part)
    if is_part:
        return
    command = " ".join(["python -m experiments metapoison", *arguments])
    made = section(found, size, command)
    report.replace_section(options.table, _HEAD, title(size, settings.dataset), made)


_HEAD = """\
# MetaPoison and Witches' Brew against random noise

Networks trained from scratch. A trial is a random test image that a clean network of the attacker reads rightly, and its second choice as
the wanted label; the images of that label that are least like the target are changed within the limit and keep their label. Victims start
from other weights than the attacker's networks. Success in % of trials with 95 % Clopper-Pearson intervals; "above noise": the interval
lies above that of random perturbations that spend the whole limit. Settings were chosen on trials with other seeds, for the MLP; 180
poisons were tried on the small ConvNet after 100 had not told MetaPoison from noise. All trials ran on CPUs.
"""
