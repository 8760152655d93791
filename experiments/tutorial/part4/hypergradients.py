"""Every way to differentiate a bilevel problem against the closed form: relative error, and cost in inner gradients of the same run."""

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import experiment, hypergradients, oracles, report, style


def run(settings: experiment.Settings) -> report.Section:
    """The figure of error against cost."""
    sizes = settings.pick((100, 10, 10), oracles.SIZES, oracles.SIZES)
    plot, axes = plt.subplots(1, 2, figsize=(10.0, 4.0), sharey=True)
    few = settings.pick(hypergradients.FEWEST, hypergradients.FEW, None)
    rows = hypergradients.ways(few)
    with jax.enable_x64(True):
        for axis, name in zip(axes, oracles.CONDITIONS, strict=True):
            o = oracles.build(name, *sizes)
            found, _ = hypergradients.measure(o, rows, 1)
            for family in dict.fromkeys(row.family for row in rows if row.family):
                points = [found[row.label] for row in rows if row.family == family]
                errors, costs = zip(*points, strict=True)
                axis.loglog(costs, np.clip(errors, 1e-16, 1e4), "o-", color=style.of(family), label=family, markersize=4)
            axis.set_title(f"{name}, condition number {o.condition:.0f}")
            axis.set_xlabel("cost in inner gradients")
    axes[0].set_ylabel("relative error of the hypergradient")
    plot.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    caption = (
        f"{sizes[0]} rows of {sizes[2]} features and {sizes[1]} poisons whose features are what is differentiated; exact gradients by the "
        "closed form, float64. Implicit ways (dense, CG, Neumann, Adam, LiSSA) start at the inner optimum; unrolled, truncated, "
        "back-gradient and value function include the descent that finds it, the penalty Newton's steps. Errors above 1e4 are drawn there."
    )
    text = (
        "A linear system of tens of Hessian products does what thousands of unrolled steps do, where the inner problem is solved and its "
        "Hessian is regular. Reversing descent without storing it explodes on ridge regression."
    )
    alt = (
        "Two panels, ridge and logistic regression, of relative error against cost on logarithmic axes, a line for each method. Dense "
        "solution and conjugate gradients reach the smallest errors at the least cost; unrolled descent falls steeply and costs more; "
        "truncated descent stays high; back-gradient rises above 1 on ridge regression."
    )
    more = "three settings of most methods in place of two, LiSSA among them."
    figures = [report.figure("Hypergradients", caption, plot, alt)]
    return report.Section("Error of hypergradients against cost", text, figures, more=more)
