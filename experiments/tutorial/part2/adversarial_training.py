"""Optimization matters: models trained with FGSM are not robust to PGD. Methods of adversarial training under attack, in one table."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import data, evaluation, experiment, models, report, runs, victims
from robustjax import attacks, base, evaluate, losses, training
from robustjax.threats import Linf

REPORTED = ("undefended", "FGSM", "PGD", "TRADES")  # without --full the first and third are the two models of part 1
_FEW = ("undefended", "RS-FGSM", "free-4", "TRADES, today's recipe")  # one of each kind: stopped early, replayed, averaged
FULL = ("undefended", "FGSM", "RS-FGSM", "PGD", "TRADES")  # on the embedded digits; every method on other data


class Recipe(NamedTuple):
    """One method of adversarial training with its schedule."""

    loss: base.Configured  # without apply_fn
    num_epochs: int
    learning_rate: float = 2e-3  # the peak of a triangle, at two fifths of the run
    num_ramp_epochs: int = 0
    num_replays: int = 1
    architecture: str = "convnet"
    averaged: bool = False  # over steps, along a cosine in the place of the triangle
    stopped_early: bool = False  # keeps the best epoch on held-out data


def recipes(eps: float, num_epochs: int) -> dict[str, Recipe]:
    """All methods by name, for linf and images in [0, 1]."""
    threat = Linf(eps)
    fgsm = base.bind(attacks.fgsm, threat=threat)
    pgd, ramp = training.inner_pgd(threat, num_steps=7), num_epochs // 3
    divergent = base.bind(pgd, delta=attacks.small_noise)
    adversarial = base.bind(training.adversarial, attack=pgd)
    trades = base.bind(training.trades, attack=divergent, beta=4.0)
    today = base.bind(trades, loss_fn=base.bind(losses.smoothed_cross_entropy, smoothing=0.1))
    return {
        "undefended": Recipe(base.bind(training.natural), num_epochs // 2),
        "FGSM": Recipe(base.bind(training.adversarial, attack=fgsm), num_epochs),
        "FGSM mix": Recipe(base.bind(training.mixed, attack=fgsm), num_epochs),
        "RS-FGSM": Recipe(
            base.bind(training.adversarial, attack=base.bind(attacks.rs_fgsm, threat=threat)), num_epochs, 5e-3, ramp, stopped_early=True
        ),
        "N-FGSM": Recipe(base.bind(training.adversarial, attack=base.bind(attacks.n_fgsm, threat=threat)), num_epochs),
        "GradAlign": Recipe(base.bind(training.grad_align, attack=fgsm, threat=threat, align_weight=0.2), num_epochs),
        "free-4": Recipe(base.bind(training.free, threat=threat), num_epochs // 2, num_replays=4),
        "PGD": Recipe(adversarial, num_epochs, num_ramp_epochs=ramp, stopped_early=True),
        "TRADES": Recipe(trades, num_epochs, num_ramp_epochs=ramp, stopped_early=True),
        "MART": Recipe(base.bind(training.mart, attack=pgd, beta=5.0), num_epochs, num_ramp_epochs=ramp, stopped_early=True),
        "PGD, AWP": Recipe(base.bind(adversarial, weights_fn=base.bind(training.awp, gamma=0.005)), num_epochs, num_ramp_epochs=ramp),
        "TRADES, today's recipe": Recipe(today, num_epochs, num_ramp_epochs=ramp, architecture="convnet_silu", averaged=True),
    }


def train(name: str, recipe: Recipe, settings: experiment.Settings, x, y, held_out=None, batch_size: int = 100):
    """The model of a method as a callable pytree: its average, the best epoch on held-out data, or the last, as the recipe says."""
    model = models.for_data(recipe.architecture, settings.seed, x, y)
    num_batches = len(x) // batch_size
    loss = base.bind(recipe.loss, apply_fn=model.apply_fn)
    num_steps = recipe.num_epochs * num_batches * recipe.num_replays
    optimizer = optax.adam(optax.linear_onecycle_schedule(num_steps, recipe.learning_rate, 0.4, 0.999, 20.0, 100.0))
    if recipe.averaged:
        optimizer = training.averaged(runs.cosine_adam(recipe.learning_rate, len(x), recipe.num_epochs, batch_size), decay=0.995)
    first_params = lambda params: params  # noqa: E731
    if recipe.num_replays > 1:
        threat = recipe.loss.get("threat")
        optimizer = training.free_optimizer(optimizer, threat, threat.radius())
        first_params = lambda params: training.FreeParams(params, jnp.zeros((batch_size, *x.shape[1:])))  # noqa: E731
    ramp = base.bind(training.eps_ramp, num_ramp_steps=recipe.num_ramp_epochs * num_batches) if recipe.num_ramp_epochs else None
    score_fn = None
    if held_out is not None and recipe.stopped_early:
        eps = victims.EPS[settings.dataset]
        attack = base.bind(attacks.pgd, threat=Linf(eps), step_size=eps / 4, num_steps=10)
        score_fn = runs.held_out_accuracy(attack, model, *held_out, settings.seed)
    plan = runs.Plan(
        model, loss, optimizer, recipe.num_epochs, batch_size, ramp, recipe.num_replays, first_params, score_fn
    )  # fmt: skip
    trained = runs.train(f"at-{name}", plan, x, y, settings, method=name, learning_rate=recipe.learning_rate)
    if recipe.averaged:
        averaged = trained.last._replace(params=training.average(trained.last.opt_state))
        return runs.model_fn(plan, averaged)
    return runs.model_fn(plan, trained.best)


def judges(eps: float, less: int = 1) -> dict[str, base.Configured]:
    """The attacks of the table."""
    threat = Linf(eps)
    pgd = base.bind(attacks.pgd, threat=threat, step_size=eps / 12, num_steps=40 // less)
    return {
        "FGSM": base.bind(attacks.fgsm, threat=threat),
        "PGD-40": pgd,
        "C&W-60": base.bind(pgd, num_steps=60 // less, loss_fn=losses.margin),
    }


def accuracies(model_fn, x, y, eps: float, seed: int, less: int = 1) -> dict[str, float]:
    """Accuracy in percent, clean and under every judge."""
    key = jax.random.key(seed)
    table = {"clean": 100 * float(np.mean(evaluation.predicted(model_fn, x) == y))}
    for name, attack in judges(eps, less).items():
        table[name] = 100 * float(1.0 - np.mean(evaluation.attacked(attack, key, model_fn, x, y).success))
    return table


def run(settings: experiment.Settings) -> report.Section:
    """Rows of methods, columns of attacks."""
    dataset = data.load(settings.dataset)
    eps, less = victims.EPS[settings.dataset], settings.pick(10, 2, 1)
    num_images, num_strong = settings.pick((32, 16), (200, 50), (500, 100))
    all_recipes = recipes(eps, settings.pick(2, 10, 12) if settings.dataset == "digits" else settings.pick(2, 8, 8))
    chosen = settings.pick(_FEW, REPORTED, FULL if settings.dataset == "digits" else tuple(all_recipes))
    known = {}
    if not (settings.quick or settings.full):
        known = dict(zip(("undefended", "PGD"), victims.load(settings, dataset).values(), strict=True))
    num_held_out = len(dataset.x_train) // 20
    x, y = dataset.x_train[num_held_out:], dataset.y_train[num_held_out:]
    held_out = dataset.x_train[:num_held_out][:200], dataset.y_train[:num_held_out][:200]
    if settings.quick:
        x, y = x[:200], y[:200]
        all_recipes = {name: recipe._replace(architecture=models.TINY) for name, recipe in all_recipes.items()}
    x_test, y_test = dataset.x_test[:num_images], dataset.y_test[:num_images]
    ensemble, _ = victims.ensemble(settings)
    rows = []
    for name in chosen:
        recipe = all_recipes[name]
        model_fn = known[name] if name in known else train(name, recipe, settings, x, y, held_out)
        row = accuracies(model_fn, x_test, y_test, eps, settings.seed, less)
        state = evaluation.run(
            pathlib.Path(settings.out) / "adversarial_training" / f"autoattack-{name}", jax.random.key(settings.seed), ensemble, model_fn,
            x_test[:num_strong], y_test[:num_strong], batch_size=num_strong, mesh=experiment.mesh(), method=name, eps=eps,
        )  # fmt: skip
        row["AutoAttack"] = 100 * evaluate.accuracies(state)["worst case"]
        errors = evaluate.decompose(state)
        options = {"threat": Linf(eps), "step_size": eps / 4, "num_steps": 20 // less}
        signs = _monitor(jax.random.key(settings.seed), model_fn, x_test, y_test, **options)
        boundary = f"{100 * errors.natural.mean():.0f} + {100 * errors.boundary.mean():.0f}"
        rows.append([name, *(f"{value:.1f}" for value in row.values()), boundary, f"{100 * signs.gap:.0f}", f"{signs.cosine:.2f}"])
    spent = {"PGD-40": f"PGD-{40 // less}", "C&W-60": f"C&W-{60 // less}"}
    header = [
        "trained with",
        *(spent.get(column, column) for column in row),
        "natural + boundary error",
        f"FGSM - PGD-{options['num_steps']}",
        "cosine",
    ]
    stopped = ", ".join(name for name in chosen if all_recipes[name].stopped_early and name not in known)
    shared = f" The models of {' and '.join(known)} are those of part 1." if known else ""
    caption = (
        f"Accuracy in % on {num_images} test images at linf eps {eps:.3g}; AutoAttack ({', '.join(ensemble)}) and the decomposition of "
        f"robust error are on the first {num_strong} alone, where accuracies may differ. Cosine: of input gradients at x and at "
        f"random points of the ball. These keep the best epoch on held-out data, the others the last: {stopped}.{shared}"
    )
    text = (
        "A model trained on FGSM examples learns to resist FGSM alone: its accuracy under one step is high, under many steps near zero "
        "(catastrophic overfitting), and its gradients at neighbouring points no longer agree. Training on many steps holds under all "
        "attacks."
    )
    table = report.Table("Methods of adversarial training", caption, header, rows)
    slide = "Optimization matters: models trained with FGSM are not robust to PGD"
    more = "RS-FGSM too, longer training, 500 images, and attacks of twice the steps."
    return report.Section("Optimization matters", text, [table], slide=slide, more=more)


_monitor = jax.jit(training.catastrophic_overfitting, static_argnames="num_steps")
