"""Accuracy against eps in four norms: one compiled program each, for all eps at once."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import evaluation, experiment, report, style, victims
from robustjax import attacks, base, evaluate
from robustjax.threats import L0, L1, L2, Linf

LARGEST = {Linf: 0.5, L2: 5.0, L1: 40.0, L0: 60.0}


def run(settings: experiment.Settings) -> report.Section:
    """Curves of PGD with a fixed eps (dots) and of the minimum-norm attack FMN (lines) for both models."""
    models, x, y = victims.with_images(settings)
    key = jax.random.key(settings.seed)
    shown = LARGEST if not settings.quick else {threat: LARGEST[threat] for threat in (Linf, L2)}
    plot, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown) + 1.5, 3.2), sharey=True)
    for axis, (threat, largest) in zip(axes, shown.items(), strict=True):
        grid = jnp.linspace(0.0, largest, settings.pick(9, 6, 9))
        num_steps = settings.pick(2, 20, 30)
        closest = base.bind(attacks.fmn, threat=threat(jnp.inf), num_steps=settings.pick(20, 100, 200))
        for name, model_fn in models.items():
            norms = np.asarray(evaluation.attacked(closest, key, model_fn, x, y).info.norm)
            fine, color = np.linspace(0.0, largest, 200), style.of(name)
            axis.plot(fine, evaluate.accuracy_curve(norms, fine), color=color, label=f"{name}, FMN")
            axis.plot(grid, _under_pgd(threat, grid, num_steps, key, model_fn, x, y), "o", color=color, ms=4, label=f"{name}, PGD")
        axis.set_xlabel(f"eps ({threat.__name__.lower()})")
    axes[0].set_ylabel("accuracy")
    plot.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    caption = (
        f"{len(x)} test images. Lines: fraction whose smallest perturbation found by FMN exceeds eps. Dots: accuracy under PGD at "
        "that eps, all eps in one batch. Both are upper bounds; the lower one counts."
    )
    text = "The robust model was trained in linf alone: what it gains in the other norms is smaller."
    alt = (
        f"A panel for each of {', '.join(threat.__name__.lower() for threat in shown)}: accuracy falls from near 1 "
        "toward 0 as eps grows. The line and the dots of the undefended model fall first; the robust model stays high much longer in linf."
    )
    more = "100 images, nine values of eps, more steps of both attacks."
    return report.Section("Accuracy against eps", text, [report.figure("Robustness curves", caption, plot, alt)], more=more)


def _under_pgd(threat, grid, num_steps, key, model_fn, x, y):
    # eps may differ from example to example: all values of it are one batch of one program.
    eps = jnp.repeat(grid, len(x))
    attack = base.bind(attacks.pgd, threat=threat(eps), step_size=_step_size(threat, eps), num_steps=num_steps)
    many = np.tile(x, (len(grid), *(1,) * (x.ndim - 1))), np.tile(y, len(grid))
    return 1.0 - np.asarray(evaluation.attacked(attack, key, model_fn, *many).success).reshape(len(grid), -1).mean(axis=1)


def _step_size(threat, eps):
    return 0.5 if threat is L0 else eps / 6  # an l0 eps counts coordinates, its step has the unit of x
