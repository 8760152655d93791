"""From Lecuyer to Li to Cohen: the radius that the same votes certify, and why none of them goes far in linf."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, report, style
from robustjax.smoothing import radii

BOUNDS = {
    "Cohen et al., 2019": radii.gaussian_l2,
    "Li et al., 2019": radii.renyi_l2,
    "Salman et al., 2019, lemma 1": radii.lipschitz_l2,
    "Lecuyer et al., 2019": radii.pixel_dp_l2,
}
SIZES = {"MNIST": 28 * 28, "CIFAR-10": 32 * 32 * 3, "ImageNet": 224 * 224 * 3}
ORDERS = {"2": 2.0, "3": 3.0, "4": 4.0, "infinity": np.inf}
_SHOWN = (0.6, 0.75, 0.9, 0.99, 0.999)


def run(settings: experiment.Settings) -> report.Section:
    """One figure of two panels, and the radii at a few probabilities."""
    del settings
    p = np.linspace(0.5, 0.9999, 400)
    plot, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, bound in BOUNDS.items():
        left.plot(p, bound(p, 1.0), color=style.of(name), label=name)
    left.set(xlabel="pA, probability of the predicted class", ylabel="certified l2 radius / sigma", xlim=(0.5, 1), ylim=(0, 3.8))
    left.legend()
    features = np.unique(np.geomspace(10, 3e5, 100).astype(int))
    for name, order in ORDERS.items():
        right.loglog(features, [radii.gaussian_lp(0.99, 1.0, order=order, num_features=d) for d in features], label=f"p = {name}")
    for name, size in SIZES.items():
        right.axvline(size, color=style.GREY, lw=0.8, zorder=0)
        right.text(size, right.get_ylim()[1] * 1.1, name, ha="right" if name == "MNIST" else "center", fontsize=8)
    right.set(xlabel="number of features d", ylabel="certified lp radius / sigma at pA = .99")
    right.legend(loc="lower left")
    rows = [[name, *(f"{float(bound(np.array(p), 1.0)):.3f}" for p in _SHOWN)] for name, bound in BOUNDS.items()]
    caption = (
        "Left: what four proofs make of the same Gaussian noise and the same probability; Cohen's cannot be improved without "
        "knowing more about the classifier. Right: the lp ball inside the l2 ball shrinks as d^(1/p - 1/2), and other noise does not help."
    )
    table = report.Table("Certified radius / sigma", "By the probability of the predicted class.", ["bound", *map(str, _SHOWN)], rows)
    text = (
        "Lecuyer and others read smoothing as differential privacy, Li and others as a Renyi divergence, Salman and others as a Lipschitz "
        "constant; Cohen and others asked for the worst classifier with these votes, which is a half-space, and so found the exact radius. "
        "For p > 2 the radius falls with the number of pixels: in linf it is the l2 radius over the root of d."
    )
    alt = (
        "Left: four rising curves of the certified radius against the probability of the predicted class; Cohen's lies above all others, "
        "Li's a little lower, those of Salman and Lecuyer far below. Right: on logarithmic axes the radius for p = 2 is level, and falls "
        "with the number of features for p = 3, 4 and infinity, fastest for infinity."
    )
    return report.Section("What a vote is worth", text, [report.figure("Radii", caption, plot, alt), table])
