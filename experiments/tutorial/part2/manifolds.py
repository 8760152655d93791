"""On and off the manifold: normal, adversarial, on-manifold and dual manifold training on digits whose manifold is known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from experiments.lib import data, evaluation, experiment, models, report, runs, style
from robustjax import attacks, base, manifolds, training
from robustjax.threats import Latent, Linf

NUM_COMPONENTS = 24
EPS, LATENT_EPS = 0.15, 0.3  # pixels, and standard deviations of a code
BARS = ("normal", "AT", "OM-AT", "DMAT")


class Projected(NamedTuple):
    """Digits projected on their first principal components and clipped to [0, 1], so that the manifold is exact."""

    decoder: base.Configured
    train: training.Coded
    y_train: np.ndarray
    test: training.Coded
    y_test: np.ndarray


def run(settings: experiment.Settings) -> report.Section:
    """Three panels, four bars."""
    dataset = data.load(settings.dataset)
    num_train, num_test, num_epochs, num_steps = settings.pick((300, 1000, 1, 5), (4000, 500, 8, 20), (8000, 1000, 12, 50))
    projected = project(dataset.x_train[:num_train], dataset.y_train[:num_train], dataset.x_test[:num_test], dataset.y_test[:num_test])
    table = accuracies(projected, settings.seed, num_epochs, num_steps)
    plot, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    for column, (axis, title) in enumerate(zip(axes, ("standard accuracy", f"PGD-{num_steps}", f"OM-PGD-{num_steps}"), strict=True)):
        axis.bar(list(table), [row[column] for row in table.values()], color=[style.of(name) for name in table])
        axis.set_title(title)
        for place, row in enumerate(table.values()):
            axis.text(place, row[column] + 1, f"{row[column]:.1f}", ha="center", fontsize=8)
    axes[0].set(ylabel="accuracy in %", ylim=(0, 105))
    caption = (
        f"{len(projected.y_test)} test digits projected on {NUM_COMPONENTS} principal components and clipped to [0, 1]; an MLP of two "
        f"hidden layers of 200. PGD-{num_steps}: linf {EPS} in pixels; OM-PGD-{num_steps}: linf {LATENT_EPS} standard deviations of a code."
    )
    text = (
        "Perturbations of the code stay on the manifold, those of pixels leave it. Adversarial training gains most against the second, "
        "less against the first, and costs accuracy; on-manifold training resists the first and not at all the second; dual manifold "
        "training resists both, and costs less accuracy than adversarial training."
    )
    told = "; ".join(f"{name} {', '.join(f'{value:.0f}' for value in row)}" for name, row in table.items())
    alt = (
        f"Three bar charts with a bar for each way to train. Accuracy in %, standard, under PGD, under on-manifold PGD: {told}. Only AT "
        "and DMAT have a bar of any height under PGD, and OM-AT and DMAT the highest under on-manifold PGD."
    )
    more = "twelve epochs of training in place of eight, 1,000 test images, attacks of 50 steps."
    figures = [report.figure("On and off the manifold", caption, plot, alt)]
    return report.Section("Attacks on and off the manifold", text, figures, more=more)


def project(x, y, x_test, y_test) -> Projected:
    """The training set's principal components, and both sets projected on them."""
    from sklearn.decomposition import PCA

    fitted = PCA(NUM_COMPONENTS, random_state=0).fit(x.reshape(len(x), -1))
    pca = manifolds.Pca(
        jnp.asarray(fitted.mean_.reshape(x.shape[1:]), jnp.float32),
        jnp.asarray(fitted.components_, jnp.float32),
        jnp.asarray(np.sqrt(fitted.explained_variance_), jnp.float32),
    )
    decoder = base.bind(_pixels, pca=pca)
    coded = [training.Coded(*map(np.asarray, (decoder(code), code))) for code in map(pca.encode, (jnp.asarray(x), jnp.asarray(x_test)))]
    return Projected(decoder, coded[0], y, coded[1], y_test)


def _pixels(code, *, pca):
    # A projected digit leaves [0, 1]; clipped it is an image again, and the box of the threat holds it.
    return jnp.clip(pca(code), 0.0, 1.0)


def losses(projected: Projected) -> dict[str, base.Configured]:
    """The four ways to train, and the TRADES form of the last."""
    off, on = (training.inner_pgd(threat, num_steps=5) for threat in (Linf(EPS), Latent(projected.decoder, LATENT_EPS)))
    dual = {"attack": off, "latent_attack": on}
    return {
        "normal": base.bind(training.natural),
        "AT": base.bind(training.adversarial, attack=off),
        "OM-AT": base.bind(training.adversarial, attack=on),
        "DMAT": base.bind(training.dual_manifold, **dual),
        "DMAT, TRADES form": base.bind(training.dual_manifold_trades, beta=1.0, **dual),
    }


def accuracies(projected: Projected, seed: int, num_epochs: int, num_steps: int, names=BARS) -> dict[str, tuple]:
    """Accuracy in percent of each way to train: clean, under PGD, under OM-PGD."""
    model = models.from_nnx(models.Mlp(projected.train.x.shape[1:], 10, rngs=nnx.Rngs(seed)))
    off = base.bind(attacks.pgd, threat=Linf(EPS), step_size=EPS / 10, num_steps=num_steps)
    on = base.bind(attacks.pgd, threat=Latent(projected.decoder, LATENT_EPS), step_size=LATENT_EPS / 10, num_steps=num_steps)
    table = {}
    for name, loss in losses(projected).items():
        if name not in names:
            continue
        inputs = projected.train.code if name == "OM-AT" else projected.train if "DMAT" in name else projected.train.x
        training.check(loss, inputs)
        options = {"seed": seed, "num_epochs": num_epochs, "batch_size": 128}
        model_fn = runs.fit(model, loss, optax.adam(1e-3), inputs, projected.y_train, **options)
        clean = np.mean(np.asarray(evaluation.predicted(model_fn, projected.test.x)) == projected.y_test)
        fooled = [
            np.mean(evaluation.attacked(attack, jax.random.key(seed), model_fn, inputs, projected.y_test).success)
            for attack, inputs in ((off, projected.test.x), (on, projected.test.code))
        ]
        table[name] = (100 * float(clean), *(100 * float(1.0 - share) for share in fooled))
    return table
