"""Accuracy against eps in four norms: one compiled program each, vmapped over eps."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, report, victims
from robustjax import attacks, base, evaluate
from robustjax.threats import L0, L1, L2, Linf

LARGEST = {Linf: 0.5, L2: 5.0, L1: 40.0, L0: 60.0}
NUM_EPS = 9


def run(settings: experiment.Settings) -> report.Section:
    """Curves of PGD with a fixed eps (dots) and of the minimum-norm attack FMN (lines) for both models."""
    models, x, y = victims.with_images(settings, 100)
    key = jax.random.key(settings.seed)
    plot, axes = plt.subplots(1, len(LARGEST), figsize=(13, 3.2), sharey=True)
    for axis, (threat, largest) in zip(axes, LARGEST.items(), strict=True):
        grid = jnp.linspace(0.0, largest, NUM_EPS)
        curve_fn = _pgd_curve(threat, settings.quick)
        closest = base.bind(attacks.fmn, threat=threat(jnp.inf), num_steps=20 if settings.quick else 200)
        for color, (name, model_fn) in zip(("C3", "C0"), models.items(), strict=True):
            norms = np.asarray(jax.jit(closest)(key, model_fn, x, y).info.norm)
            fine = np.linspace(0.0, largest, 200)
            axis.plot(fine, evaluate.accuracy_curve(norms, fine), color=color, label=f"{name}, FMN")
            axis.plot(grid, curve_fn(grid, key, model_fn, x, y), "o", color=color, ms=4, label=f"{name}, PGD")
        axis.set_xlabel(f"eps ({threat.__name__.lower()})")
    axes[0].set_ylabel("accuracy")
    axes[0].legend(fontsize=8)
    caption = (
        f"{len(x)} test images. Lines: fraction whose smallest perturbation found by FMN exceeds eps. Dots: accuracy under PGD at "
        "that eps, all eps in one vmapped program. Both are upper bounds; the lower one counts."
    )
    text = "The robust model was trained in linf alone: what it gains in the other norms is smaller."
    return report.Section("Accuracy against eps", text, [report.figure("Robustness curves", caption, plot)])


def _pgd_curve(threat, quick):
    @jax.jit
    def curve(grid, key, model_fn, x, y):
        def accuracy(eps):
            attack = base.bind(attacks.pgd, threat=threat(eps), step_size=_step_size(threat, eps), num_steps=2 if quick else 30)
            return 1.0 - attack(key, model_fn, x, y).success.mean()

        return jax.vmap(accuracy)(grid)

    return curve


def _step_size(threat, eps):
    return 0.5 if threat is L0 else eps / 6  # an l0 eps counts coordinates, its step has the unit of x
