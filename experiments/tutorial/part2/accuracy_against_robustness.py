"""Accuracy against robustness: TRADES over beta in one vmapped program, and naturally trained architectures (Su et al., 2018)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from experiments.lib import data, evaluation, experiment, models, report, runs, style
from robustjax import attacks, base, evaluate, training
from robustjax.threats import L2, Linf

BETAS = (0.5, 1.0, 3.0, 6.0)
EPS = 0.15  # of the 8x8 digits
NUM_SEEDS = 3


class Sweep(NamedTuple):
    """Accuracies of models trained on the 8x8 digits [seeds]."""

    clean: np.ndarray
    robust: np.ndarray  # under PGD-50


def run(settings: experiment.Settings) -> report.Section:
    """Two figures: one method over its trade-off parameter, and many architectures."""
    sweeps = sweep(NUM_SEEDS, settings.pick(2, 30, 60))
    text = (
        "One model cannot be best in both: with beta the accuracy on clean inputs falls and robustness rises, up to a point. Among "
        "naturally trained networks it need not be so; what they share is that all margins are small, and no architecture is a defense."
    )
    more = "twice the training, and thirteen architectures."
    return report.Section("Accuracy against robustness", text, [_trade_off(sweeps), _architectures(settings)], more=more)


def sweep(num_seeds: int, num_epochs: int) -> dict[str, Sweep]:
    """Natural, PGD and TRADES training on scikit-learn's 8x8 digits; seeds and betas are vmapped."""
    x_train, y_train, x_test, y_test = _small_digits()
    model = models.from_nnx(models.Mlp((64,), 10, width=128, rngs=nnx.Rngs(0)))
    pgd = base.bind(attacks.pgd, threat=Linf(EPS), step_size=EPS / 4, num_steps=10)
    trades = base.bind(training.trades, apply_fn=model.apply_fn, attack=base.bind(pgd, delta=attacks.small_noise))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_epochs * (len(x_train) // 100)))
    judge = base.bind(pgd, num_steps=50, step_size=EPS / 10)

    def one(loss, seed):
        key_init, key_fit, key_attack = jax.random.split(jax.random.key(seed), 3)
        state = training.init(_fresh(key_init, model.params), model.model_state, optimizer)
        step_fn = training.step(loss, optimizer)
        state, _ = training.fit(state, key_fit, x_train, y_train, step_fn=step_fn, num_epochs=num_epochs, batch_size=100)
        model_fn = training.classifier(model.apply_fn, state.params, state.model_state)
        clean = jnp.mean(model_fn(x_test).argmax(axis=1) == y_test)
        return clean, 1.0 - judge(key_attack, model_fn, x_test, y_test).success.mean()

    def over_seeds(loss):
        return Sweep(*map(np.asarray, jax.jit(jax.vmap(functools.partial(one, loss)))(jnp.arange(num_seeds))))

    def over_betas(betas, seeds):
        return jax.vmap(lambda beta: jax.vmap(lambda seed: one(base.bind(trades, beta=beta), seed))(seeds))(betas)

    swept = map(np.asarray, jax.jit(over_betas)(jnp.asarray(BETAS), jnp.arange(num_seeds)))
    rows = {f"TRADES {beta:g}": Sweep(*pair) for beta, pair in zip(BETAS, zip(*swept, strict=True), strict=True)}
    natural = base.bind(training.natural, apply_fn=model.apply_fn)
    adversarial = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=pgd)
    return {"natural": over_seeds(natural), "PGD": over_seeds(adversarial)} | rows


def _trade_off(sweeps):
    plot, axis = plt.subplots(figsize=(5.5, 4.2))
    for name, values in sweeps.items():
        axis.errorbar(
            values.clean.mean(),
            values.robust.mean(),
            values.robust.std(),
            values.clean.std(),
            "o",
            color=style.of(name),
            label=name,
            capsize=3,
        )
    axis.set_xlabel("clean accuracy")
    axis.set_ylabel(f"accuracy under PGD-50, linf {EPS}")
    axis.legend()
    caption = (
        "8x8 digits (1,397 for training, 400 for testing), an MLP of two hidden layers; means and standard deviations of "
        f"{NUM_SEEDS} seeds. All betas and seeds are one vmapped program."
    )
    natural, best = sweeps["natural"], max(sweeps.values(), key=lambda values: values.robust.mean())
    alt = (
        f"Six points with error bars. Natural training is at the lower right (clean {natural.clean.mean():.2f}, robust "
        f"{natural.robust.mean():.2f}); the others lie far higher and to the left, the highest at clean {best.clean.mean():.2f} and robust "
        f"{best.robust.mean():.2f}."
    )
    return report.figure("TRADES over beta", caption, plot, alt)


def _architectures(settings):
    dataset = data.load(settings.dataset)
    num_images = settings.pick(16, 100, 200)
    x, y = dataset.x_test, dataset.y_test
    closest = base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=settings.pick(10, 40, 60))
    shape = dataset.x_train.shape[1:]
    accuracy, margin, labels = [], [], []
    with experiment.progress() as bar:
        makers = {name: make for name, make in _makers(shape).items() if name in settings.pick(_FEW[:2], _FEW, _makers(shape))}
        task = bar.add_task("architectures", total=len(makers))
        for label, make in makers.items():
            model_fn = _train(make(nnx.Rngs(settings.seed)), dataset, settings)
            found = evaluation.attacked(closest, jax.random.key(settings.seed), model_fn, x[:num_images], y[:num_images])
            accuracy.append(float(np.mean(np.asarray(evaluation.predicted(model_fn, x)) == y)))
            margin.append(float(np.median(np.asarray(found.info.norm))))
            labels.append(label)
            bar.advance(task)
    front = evaluate.pareto_front(accuracy, margin)
    plot, axis = plt.subplots(figsize=(6.5, 4.6))
    axis.scatter(accuracy, margin, c=[style.VERMILION if best else style.BLUE for best in front], s=24)
    axis.margins(x=0.15)  # room for the last label
    places = np.stack([accuracy, margin], axis=1)
    away = (places[None] - places[:, None]) / np.maximum(np.ptp(places, axis=0), 1e-6)
    crowded = ((np.abs(away) < (0.15, 0.05)).all(axis=2) & (away[..., 1] > 0)).any(axis=1)  # by a neighbour just above
    for place, label, is_crowded in zip(places, labels, crowded, strict=True):
        axis.annotate(label, place, (3, -9 if is_crowded else 3), textcoords="offset points", fontsize=7)
    axis.set_xlabel("clean accuracy")
    axis.set_ylabel("median l2 distance of the nearest error (FMN)")
    caption = (
        f"{len(labels)} naturally trained architectures: accuracy on {len(x)} test images, and the median of the smallest perturbations "
        f"that FMN finds on {num_images} of them (upper bounds). Orange: the Pareto front."
    )
    alt = (
        f"A scatter of {len(labels)} named networks: clean accuracy from {min(accuracy):.2f} to {max(accuracy):.2f} against a median "
        f"distance from {min(margin):.2f} to {max(margin):.2f}. The points of the Pareto front are coloured: "
        f"{', '.join(label for label, best in zip(labels, front, strict=True) if best)}."
    )
    return report.figure("Architectures", caption, plot, alt)


_FEW = ("linear", "MLP 25", "MLP 400", "strided 8", "pooled 8", "SiLU 8")


def _makers(shape) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
    kinds = {"strided": "convnet", "pooled": "convnet_pooled", "SiLU": "convnet_silu"}
    nets = {
        f"{name} {width}": functools.partial(models.ARCHITECTURES[kind], channels=(width, 2 * width), width=4 * width)
        for name, kind in kinds.items()
        for width in ((4, 8, 16) if name == "pooled" else (8, 16, 32))
    }
    mlps = {f"MLP {width}": functools.partial(models.Mlp, width=width) for width in (25, 100, 400)}
    makers = {"linear": models.ARCHITECTURES["linear"]} | mlps | nets
    return {name: lambda rngs, make=make: make(shape, 10, rngs=rngs) for name, make in makers.items()}


def _train(module, dataset, settings):
    num_epochs, num_images = settings.pick((1, 200), (5, 4000), (6, 4000))
    x, y = dataset.x_train[:num_images], dataset.y_train[:num_images]
    options = {"seed": settings.seed, "num_epochs": num_epochs, "batch_size": 100}
    return runs.fit(models.from_nnx(module), training.natural, 2e-3, x, y, **options)


def _small_digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16.0).astype(np.float32), y[order].astype(np.int32)
    return x[:1397], y[:1397], x[1397:], y[1397:]


def _fresh(key, params):
    # New weights of the same scale, so that a seed is an argument of the program.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    scale = lambda leaf: (1.0 / leaf.shape[0]) ** 0.5 if leaf.ndim > 1 else 0.0  # noqa: E731
    return structure.unflatten([scale(leaf) * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
