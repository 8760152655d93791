"""Poison frogs: one clean-labelled training image makes a retrained head misread one test image (Shafahi et al., 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.lib import data, experiment, models, report, training
from robustjax import base, evaluate, poisoning
from robustjax import training as methods
from robustjax.threats import L2, Linf

TARGET, BASE = 4, 9  # the digit that is to be misread, and as what
NUM_BULLSEYE = 5  # poisons of the bullseye polytope
BULLSEYE_EPS = 0.2
STEP_SIZE, BETA = 0.02, 0.03
HEAD_EPOCHS, HEAD_RATE, HEAD_BATCH = 200, 1e-2, 20


class Trials(NamedTuple):
    """Which images play which part; a trial is a target with its bases."""

    x: np.ndarray  # [N, ...] that the head is trained on, with y
    y: np.ndarray  # [N], 0 for the target's class and 1 for the base's
    targets: np.ndarray  # [T, ...]
    rows: np.ndarray  # [T, NUM_BULLSEYE] of the bases; the first one is poisoned alone


def run(settings: experiment.Settings) -> report.Section:
    """Pictures, and success rates against controls."""
    dataset = data.load(settings.dataset)
    num_trials, num_steps = (4, 20) if settings.quick else (60, 1000)
    features_fn = features(dataset, settings)
    trials = choose(features_fn, dataset, num_trials, settings.seed)
    first = trials.x[trials.rows[:, 0]]
    frogs = jax.tree.map(np.asarray, collide(features_fn, trials, num_steps))
    key = jax.random.key(settings.seed)
    # The control of a frog spends the same l2 norm as the frog, each its own.
    noisy = poisoning.random_control(key, first, L2(jnp.maximum(frogs.change, 1e-6)))
    threat = Linf(BULLSEYE_EPS)
    surrounded = bullseye(features_fn, trials, num_steps // 4)
    noise = jax.vmap(lambda key, row: poisoning.random_control(key, row, threat))(jax.random.split(key, num_trials), trials.x[trials.rows])
    fooled = lambda rows, poisons: successes(features_fn, trials, rows, poisons, settings.seed)  # noqa: E731
    clean = fooled(trials.rows[:, :1], first[:, None])
    counts = [
        ("feature collision", 1, f"l2 {np.mean(frogs.change):.1f} on average", fooled(trials.rows[:, :1], noisy[:, None]),
         fooled(trials.rows[:, :1], frogs.x[:, None])),
        ("bullseye polytope", NUM_BULLSEYE, f"linf {BULLSEYE_EPS}", fooled(trials.rows, noise), fooled(trials.rows, surrounded)),
    ]  # fmt: skip
    rows = [
        [name, str(num), budget, *(rate(part) for part in (clean, control, poisoned))] for name, num, budget, control, poisoned in counts
    ]
    caption = (
        f"Trials in which a test image of a {TARGET} is read as a {BASE}, of {num_trials}, with 95 % Clopper-Pearson intervals. The head "
        f"is trained from scratch on {len(trials.x)} images for every trial; noise: random directions of the same norm."
    )
    header = ["attack", "poisons", "budget", "clean", "noise of the same budget", "poisoned"]
    text = (
        "The body of the network is frozen and shared, only a head is trained, as in transfer learning. The poison looks like its base and "
        "carries its label, but its features are the target's: a head that fits it misreads the target."
    )
    table = report.Table("One image is enough", caption, header, rows)
    return report.Section("Poison frogs", text, [_pictures(features_fn, trials, frogs), table])


def features(dataset: data.Dataset, settings: experiment.Settings):
    """The last hidden layer of an MLP trained on all digits: images [B, ...] -> [B, K]."""
    model = models.build("mlp", settings.seed)
    x, y = (part[: 200 if settings.quick else None] for part in (dataset.x_train, dataset.y_train))
    num_epochs = 1 if settings.quick else 10
    trained = training.fit(
        model, base.bind(methods.natural), optax.adam(1e-3), x, y, seed=settings.seed, num_epochs=num_epochs, batch_size=100
    )  # fmt: skip
    return base.bind(_last_hidden, params=trained.hyper["params"])


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


def collide(features_fn, trials: Trials, num_steps: int) -> poisoning.Collision:
    """A frog for each trial."""
    return _collided(features_fn, trials.x[trials.rows[:, 0]], trials.targets, num_steps=num_steps)


def bullseye(features_fn, trials: Trials, num_steps: int):
    """NUM_BULLSEYE poisons [T, M, ...] for each trial."""
    return _surrounded(features_fn, trials.x[trials.rows], trials.targets[:, None], num_steps=num_steps)


def successes(features_fn, trials: Trials, rows: np.ndarray, poisons, seed: int) -> np.ndarray:
    """Whether the target [T] is read as the base's class by a head trained with poisons [T, M, ...] in the rows [T, M]."""
    return np.asarray(_fooled(features_fn, trials.x, trials.y, trials.targets, rows, poisons, seed))


def rate(success) -> str:
    """A share of trials with its interval."""
    low, high = evaluate.confidence_interval(int(np.sum(success)), len(success))
    return f"{100 * np.mean(success):.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _last_hidden(x, *, params):
    x = x.reshape(x.shape[0], -1)
    for layer in (params["hidden"][0], params["hidden"][1]):
        x = jax.nn.relu(x @ layer["kernel"][...] + layer["bias"][...][None])
    return x


def _frogs(features_fn, bases, targets, *, num_steps):
    return poisoning.feature_collision(features_fn, bases, targets, step_size=STEP_SIZE, beta=BETA, num_steps=num_steps)


def _polytopes(features_fn, bases, targets, *, num_steps):
    def one(parts):
        key = jax.random.key(0)  # it starts at the bases: nothing is drawn
        verb = base.bind(poisoning.bullseye, threat=Linf(BULLSEYE_EPS), num_steps=num_steps, learning_rate=0.01)
        return verb(key, (features_fn,), *parts).x

    return jax.lax.map(one, (bases, targets), batch_size=20)


def _heads(features_fn, x, y, targets, rows, poisons, seed):
    frozen = features_fn(x)
    loss = base.bind(methods.natural, apply_fn=_head)
    optimizer = optax.adam(HEAD_RATE)
    key = jax.random.key(seed)

    def one(trial):
        target, places, changed = trial
        seen = frozen.at[places].set(features_fn(changed))
        start = {"kernel": jnp.zeros((seen.shape[1], 2)), "bias": jnp.zeros(2)}
        state = methods.init(start, None, optimizer)
        state, _ = methods.fit(
            state, key, seen, y, step_fn=methods.step(loss, optimizer), num_epochs=HEAD_EPOCHS, batch_size=HEAD_BATCH
        )  # fmt: skip
        return _head(state.params, None, features_fn(target[None]), "eval")[0][0].argmax() == 1

    return jax.lax.map(one, (targets, rows, poisons), batch_size=20)


def _head(params, model_state, x, mode):
    del mode
    return x @ params["kernel"] + params["bias"][None], model_state


def _pictures(features_fn, trials, frogs):
    num_shown = min(4, len(trials.targets))
    bases, apart = trials.x[trials.rows[:, 0]], np.asarray(frogs.distance)
    before = np.linalg.norm(np.asarray(features_fn(bases) - features_fn(trials.targets)), axis=1)
    plot, axes = plt.subplots(num_shown, 4, figsize=(6.4, 1.7 * num_shown))
    for row, line in enumerate(axes):
        change = np.asarray(frogs.x[row]) - bases[row]
        panels = {"base": bases[row], "target": trials.targets[row], "poison": np.asarray(frogs.x[row]), "difference": change}
        for axis, (name, image) in zip(line, panels.items(), strict=True):
            signed = name == "difference"
            axis.imshow(image[..., 0], cmap="RdBu_r" if signed else "gray_r", vmin=-1.0 if signed else 0.0, vmax=1.0)
            axis.axis("off")
            if row == 0:
                axis.set_title(name, fontsize=9)
    caption = (
        f"Bases are {BASE}s of the training set and keep their label; targets are {TARGET}s of the test set. In feature space the poison "
        f"is at {100 * np.median(apart / before):.0f} % of the base's distance to the target (median). Darker than before is red, "
        "lighter is blue."
    )
    return report.figure("One poison for one target", caption, plot)


_collided = jax.jit(_frogs, static_argnames="num_steps")
_surrounded = jax.jit(_polytopes, static_argnames="num_steps")
_fooled = jax.jit(_heads)

if __name__ == "__main__":
    from experiments import poison_frogs

    experiment.main(poison_frogs.run, __doc__)
