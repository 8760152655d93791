"""How far the nearest error is: the histogram of r_num, the smallest perturbation found by C&W and FMN."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import evaluation, experiment, report, style, victims
from robustjax import attacks, base
from robustjax.threats import L2, Linf


def run(settings: experiment.Settings) -> report.Section:
    """Distances in l2 and linf for both models."""
    models, x, y = victims.with_images(settings)
    key = jax.random.key(settings.seed)
    plot, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    rows = []
    for axis, (norm, suite) in zip(axes, _suites(settings).items(), strict=True):
        for name, model_fn in models.items():
            each = {attack: np.asarray(evaluation.attacked(bound, key, model_fn, x, y).info.norm) for attack, bound in suite.items()}
            smallest = np.min(list(each.values()), axis=0)
            correct = smallest > 0
            axis.hist(smallest[correct & np.isfinite(smallest)], bins=25, alpha=0.6, color=style.of(name), label=name)
            medians = ", ".join(f"{attack} {np.median(distance[correct]):.3f}" for attack, distance in each.items())
            rows.append([f"{norm}, {name}", f"{np.median(smallest[correct]):.3f}", f"{smallest[correct].min():.3f}", medians])
        axis.set_xlabel(f"r_num ({norm})")
        axis.legend()
    axes[0].set_ylabel("images")
    alt = (
        "Two histograms over images of the smallest perturbation found, in l2 and in linf. The bars of the undefended model stand at small "
        "distances, those of the robust model farther out, in linf most clearly."
    )
    caption = f"Smallest perturbation found for each of {len(x)} test images that is classified correctly."
    items = [
        report.figure("Margins", caption, plot, alt),
        report.Table("Margins", "Over the same images.", ["norm and model", "median", "smallest", "median by attack"], rows),
    ]
    text = "r_num is an upper bound of the distance to the decision boundary: an attack shows that a margin is at most this, never more."
    return report.Section("The margin of every image", text, items, more="100 images, and twice the steps of both attacks.")


def _suites(settings):
    num_adam, num_steps = settings.pick((10, 20), (50, 100), (100, 200))
    return {
        "l2": {
            "C&W": base.bind(
                attacks.carlini_wagner, threat=L2(jnp.inf), num_binary_search_steps=5, num_steps=num_adam, learning_rate=0.05,
                init_weight=0.1,
            ),
            "FMN": base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=num_steps),
        },
        "linf": {"FMN": base.bind(attacks.fmn, threat=Linf(jnp.inf), num_steps=num_steps)},
    }  # fmt: skip
