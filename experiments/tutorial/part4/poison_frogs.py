"""Poison frogs: one clean-labelled training image makes a retrained head misread one test image (Shafahi et al., 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import data, evaluation, experiment, models, report, runs, style
from robustjax import base, poisoning, training
from robustjax.threats import L2, Linf

TARGET, BASE = 4, 9  # the digit that is to be misread, and as what
NUM_BULLSEYE = 5  # poisons of the bullseye polytope
BULLSEYE_EPS = 0.2
STEP_SIZE, BETA = 0.02, 0.03
HEAD_EPOCHS, HEAD_RATE, HEAD_BATCH = 200, 1e-2, 20
ARCHITECTURE, OTHER = "mlp", "convnet_fast"  # whose features the poisons are made with, and another one that they are tried on
WATERMARK, NUM_WATERMARKED = 0.3, 60  # where the whole network is trained
NUM_WHOLE, WHOLE_RATE = 20, 1e-3  # trials of it, and the rate of Adam


class Trials(NamedTuple):
    """Which images play which part; a trial is a target with its bases."""

    x: np.ndarray  # [N, ...] that the head is trained on, with y
    y: np.ndarray  # [N], 0 for the target's class and 1 for the base's
    targets: np.ndarray  # [T, ...]
    rows: np.ndarray  # [T, NUM_BULLSEYE] of the bases; the first one is poisoned alone


def run(settings: experiment.Settings) -> report.Section:
    """Pictures, and success rates against controls."""
    dataset = data.load(settings.dataset)
    num_trials, num_steps = settings.pick((4, 20), (40, 500), (60, 1000))
    model, params = pretrain(ARCHITECTURE, dataset, settings)
    features_fn, other_fn = body(model, params), body(*pretrain(OTHER, dataset, settings))
    trials = choose(features_fn, dataset, num_trials, settings.seed)
    first = trials.x[trials.rows[:, 0]]
    frogs = jax.tree.map(np.asarray, collide(features_fn, trials, num_steps))
    key = jax.random.key(settings.seed)
    # The control of a frog spends the same l2 norm as the frog, each its own.
    noisy = poisoning.random_control(key, first, L2(jnp.maximum(frogs.state.change, 1e-6)))
    threat = Linf(BULLSEYE_EPS)
    surrounded = bullseye(features_fn, trials, num_steps // 4)
    noise = jax.vmap(lambda key, row: poisoning.random_control(key, row, threat))(jax.random.split(key, num_trials), trials.x[trials.rows])
    alone = trials.rows[:, :1]

    def cells(judge, rows, control, poisoned):
        return [evaluation.rate(judge(rows, part)) for part in (trials.x[rows], control, poisoned)]

    def heads(features_fn):
        return lambda rows, poisons: successes(features_fn, trials, rows, poisons, settings.seed)

    frog, ring = (alone, noisy[:, None], frogs.x[:, None]), (trials.rows, noise, surrounded)
    on_frogs, on_ring = f"l2 {np.mean(frogs.state.change):.1f} on average", f"linf {BULLSEYE_EPS}"
    whole, num_whole = end_to_end(model, params, features_fn, trials, settings)
    rows = [
        ["feature collision", "a head", "1", on_frogs, *cells(heads(features_fn), *frog)],
        ["bullseye polytope", "a head", str(NUM_BULLSEYE), on_ring, *cells(heads(features_fn), *ring)],
        ["feature collision", f"a head on a {OTHER}", "1", on_frogs, *cells(heads(other_fn), *frog)],
        ["bullseye polytope", f"a head on a {OTHER}", str(NUM_BULLSEYE), on_ring, *cells(heads(other_fn), *ring)],
        whole,
    ]
    caption = (
        f"Trials in which a test image of a {TARGET} is read as a {BASE}, of {num_trials} ({num_whole} where the whole network is "
        f"trained), with 95 % Clopper-Pearson intervals. What is named is trained for every trial on {len(trials.x)} images: a head from "
        f"zero on the frozen body of an {ARCHITECTURE}, for whose features the poisons are made, or of another network; or the whole "
        f"{ARCHITECTURE} from its trained weights. Control: random directions of the same norm; for watermarked poisons the watermark of "
        f"{WATERMARK:.0%} of the target alone."
    )
    header = ["attack", "trained", "poisons", "budget", "clean", "control", "poisoned"]
    text = (
        "The body of the network is frozen and shared, only a head is trained, as in transfer learning. The poison is its base, changed, "
        "and carries its label, but its features are the target's: a head that fits it misreads the target. A network that is trained as a "
        "whole moves the features apart again: there it takes many poisons and a watermark of the target. Here the watermark alone is "
        "enough, and the collision of features on top of it takes some of its success away."
    )
    table = report.Table("One image is enough", caption, header, rows)
    more = "60 targets, twice the steps of crafting, and 20 networks trained as a whole."
    return report.Section("Poison frogs", text, [_pictures(features_fn, trials, frogs), table], more=more)


def end_to_end(model: models.Model, params, features_fn, trials: Trials, settings: experiment.Settings) -> tuple[list[str], int]:
    """The row of many watermarked poisons for each target, against the whole network; and its number of trials."""
    num_trials, num_poisons, num_steps, num_epochs = settings.pick(
        (2, 5, 5, 1), (10, NUM_WATERMARKED, 150, 15), (NUM_WHOLE, NUM_WATERMARKED, 300, 20)
    )
    targets = trials.targets[:num_trials]
    gaps = np.asarray(features_fn(targets))[:, None] - np.asarray(features_fn(trials.x))
    far = np.where(trials.y == 1, np.linalg.norm(gaps, axis=2), np.inf)
    rows = np.argsort(far, axis=1)[:, :num_poisons]
    bases = trials.x[rows]
    blended = (1.0 - WATERMARK) * bases + WATERMARK * targets[:, None]
    poisons = _watermarked(features_fn, trials.x, trials.y, rows, targets[:, None], num_steps=num_steps)
    start = base.bind(training.natural, apply_fn=model.apply_fn), params, model.model_state
    labels = np.where(trials.y == 0, TARGET, BASE).astype(np.int32)
    fooled = [
        np.asarray(_whole(start, trials.x, labels, targets, rows, part, settings.seed, num_epochs=num_epochs))
        for part in (bases, blended, poisons)
    ]
    budget = f"l2 {float(np.mean(np.linalg.norm((poisons - bases).reshape(-1, bases[0, 0].size), axis=1))):.1f} on average"
    row = [f"collision, watermark {WATERMARK:.0%}", "the whole network", str(num_poisons), budget, *map(evaluation.rate, fooled)]
    return row, num_trials


def pretrain(architecture: str, dataset: data.Dataset, settings: experiment.Settings):
    """A network and its parameters after training on all digits."""
    model = models.build(architecture, settings.seed)
    x, y = (part[: settings.pick(200, None, None)] for part in (dataset.x_train, dataset.y_train))
    num_epochs = settings.pick(1, 8, 10)
    trained = runs.fit(
        model, base.bind(training.natural), optax.adam(1e-3), x, y, seed=settings.seed, num_epochs=num_epochs, batch_size=100
    )  # fmt: skip
    return model, trained.get("params")


def body(model: models.Model, params):
    """The last hidden layer of a network, images [B, ...] -> [B, K]: the network with the identity for its head."""

    def identity(path, leaf):
        if "head" not in str(path):
            return leaf
        return jnp.eye(len(leaf)) if leaf.ndim == 2 else jnp.zeros(1)

    return training.classifier(model.apply_fn, jax.tree_util.tree_map_with_path(identity, params), model.model_state)


def choose(features_fn, dataset: data.Dataset, num_trials: int, seed: int, num_each: int = 100) -> Trials:
    """Random targets of the test set, the head's training set, and for each target the bases that are nearest in feature space."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([dataset.x_train[dataset.y_train == label][:num_each] for label in (TARGET, BASE)])
    y = np.repeat([0, 1], num_each).astype(np.int32)
    targets = dataset.x_test[dataset.y_test == TARGET]
    targets = targets[rng.choice(len(targets), num_trials, replace=False)]
    gaps = np.asarray(features_fn(targets))[:, None] - np.asarray(features_fn(x[num_each:]))
    rows = num_each + np.argsort(np.linalg.norm(gaps, axis=2), axis=1)[:, :NUM_BULLSEYE]
    return Trials(x, y, targets, rows)


def collide(features_fn, trials: Trials, num_steps: int) -> poisoning.PoisonResult:
    """A frog for each trial."""
    return _collided(features_fn, poisoning.Task(trials.x, trials.y, trials.rows[:, 0], trials.targets), num_steps=num_steps)


def bullseye(features_fn, trials: Trials, num_steps: int):
    """NUM_BULLSEYE poisons [T, M, ...] for each trial."""
    return _surrounded(features_fn, trials.x, trials.y, trials.rows, trials.targets[:, None], num_steps=num_steps)


def successes(features_fn, trials: Trials, rows: np.ndarray, poisons, seed: int) -> np.ndarray:
    """Whether the target [T] is read as the base's class by a head trained with poisons [T, M, ...] in the rows [T, M]."""
    return np.asarray(_fooled(features_fn, trials.x, trials.y, trials.targets, rows, poisons, seed))


def _frogs(features_fn, task, *, num_steps, watermark=0.0):
    return poisoning.feature_collision(
        jax.random.key(0), task, features_fn=features_fn, step_size=STEP_SIZE, beta=BETA, num_steps=num_steps, watermark=watermark
    )


def _polytopes(features_fn, x, y, rows, targets, *, num_steps):
    options = {"features_fns": (features_fn,), "threat": Linf(BULLSEYE_EPS), "num_steps": num_steps, "learning_rate": 0.01}
    one = lambda part: poisoning.bullseye(jax.random.key(0), poisoning.Task(x, y, *part), **options).x  # noqa: E731
    return jax.lax.map(one, (rows, targets), batch_size=20)


def _blends(features_fn, x, y, rows, targets, *, num_steps):
    one = lambda part: _frogs(features_fn, poisoning.Task(x, y, *part), num_steps=num_steps, watermark=WATERMARK).x  # noqa: E731
    return jax.lax.map(one, (rows, targets))


def _networks(start, x, y, targets, rows, poisons, seed, *, num_epochs):
    loss, params, model_state = start
    optimizer = optax.adam(WHOLE_RATE)

    def one(trial):
        target, places, changed = trial
        state = training.init(params, model_state, optimizer)
        state, _ = training.fit(
            state, jax.random.key(seed), x.at[places].set(changed), y, step_fn=training.step(loss, optimizer), num_epochs=num_epochs,
            batch_size=HEAD_BATCH,
        )  # fmt: skip
        model_fn = training.classifier(loss.get("apply_fn"), state.params, state.model_state)
        return model_fn(target[None])[0].argmax() == BASE

    return jax.lax.map(one, (targets, rows, poisons))


def _heads(features_fn, x, y, targets, rows, poisons, seed):
    frozen = features_fn(x)
    loss = base.bind(training.natural, apply_fn=_head)
    optimizer = optax.adam(HEAD_RATE)
    key = jax.random.key(seed)

    def one(trial):
        target, places, changed = trial
        seen = frozen.at[places].set(features_fn(changed))
        start = {"kernel": jnp.zeros((seen.shape[1], 2)), "bias": jnp.zeros(2)}
        state = training.init(start, None, optimizer)
        state, _ = training.fit(
            state, key, seen, y, step_fn=training.step(loss, optimizer), num_epochs=HEAD_EPOCHS, batch_size=HEAD_BATCH
        )  # fmt: skip
        return _head(state.params, None, features_fn(target[None]), "eval")[0][0].argmax() == 1

    return jax.lax.map(one, (targets, rows, poisons), batch_size=20)


def _head(params, model_state, x, mode):
    del mode
    return x @ params["kernel"] + params["bias"][None], model_state


def _pictures(features_fn, trials, frogs):
    num_shown = min(4, len(trials.targets))
    bases, apart = trials.x[trials.rows[:, 0]], np.asarray(frogs.state.distance)
    before = np.linalg.norm(np.asarray(features_fn(bases) - features_fn(trials.targets)), axis=1)
    plot, axes = plt.subplots(num_shown, 4, figsize=(6.4, 1.7 * num_shown))
    for row, line in enumerate(axes):
        change = np.asarray(frogs.x[row]) - bases[row]
        panels = {"base": bases[row], "target": trials.targets[row], "poison": np.asarray(frogs.x[row]), "difference": change}
        for axis, (name, image) in zip(line, panels.items(), strict=True):
            style.picture(axis, image, name if row == 0 else "", fontsize=9)
            if name == "difference":
                axis.images[0].set(cmap="RdBu_r", clim=(-1.0, 1.0))
    caption = (
        f"Bases are {BASE}s of the training set and keep their label; targets are {TARGET}s of the test set. In feature space the poison "
        f"is at {100 * np.median(apart / before):.0f} % of the base's distance to the target (median). Lighter than before is red, "
        "darker is blue."
    )
    alt = (
        f"Rows of four pictures: a {BASE}, a {TARGET}, the poison, which still looks like the {BASE}, and the difference of both, "
        "faint spots of both signs along the strokes."
    )
    return report.figure("One poison for one target", caption, plot, alt)


_collided = jax.jit(_frogs, static_argnames="num_steps")
_surrounded = jax.jit(_polytopes, static_argnames="num_steps")
_fooled = jax.jit(_heads)
_watermarked = jax.jit(_blends, static_argnames="num_steps")
_whole = jax.jit(_networks, static_argnames="num_epochs")
