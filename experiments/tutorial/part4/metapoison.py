"""MetaPoison and Witches' Brew: clean-labelled poisons against networks that are trained from scratch, success against budget."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, evaluation, experiment, metapoison, report, style
from experiments.lib.metapoison import COLUMNS, Size


def run(settings: experiment.Settings) -> report.Section:
    """Success against the number of poisons, with intervals."""
    size = settings.pick(Size(200, (10,), 2, 2, 4, 2, 2), Size(2000, (100,), 4, 20, 60), Size(2000, (50, 100), 5, 20, 100))
    found = metapoison.successes(data.load(settings.dataset), settings, size)
    text = (
        "Poisons that fool a network trained from scratch must work for weights that the attacker does not know. MetaPoison looks a few "
        "steps of training ahead through an ensemble of surrogates of different ages; Witches' Brew makes the poisons' gradient point "
        "where the target's would."
    )
    more = "two numbers of poisons, and five trials of each."
    return report.Section("Poisons for networks trained from scratch", text, [_plot(found, size), _table(found, size)], more=more)


def _table(found, size):
    caption = (
        f"Trials in which a random test image is read as a clean network's second choice, of {size.num_trials}, with 95 % Clopper-Pearson "
        f"intervals. Images of that label, those least like the target, are changed ({size.limit}). The same trials, weights and "
        "batches in every column; the victims' first weights are not the attacker's."
    )
    return report.Table("Success", caption, ["poisons", *COLUMNS], list(metapoison.cells(found, size)))


def _plot(found, size):
    plot, axis = plt.subplots(figsize=(6, 3.8))
    for index, column in enumerate(COLUMNS):
        rates = np.array([evaluation.interval(found[column, budget]) for budget in size.budgets])
        place = np.array(size.budgets) * (1 + 0.03 * (index - 1.5))  # side by side
        errors = np.abs(rates[:, 1:] - rates[:, :1]).T
        axis.errorbar(place, rates[:, 0], errors, fmt="o-", capsize=3, color=style.of(column), label=column)
    axis.set(xlabel=f"poisons among {size.num_images:,} training images", ylabel="success in %", xscale="log", ylim=(-3, 103))
    axis.set_xticks(size.budgets, [str(budget) for budget in size.budgets])
    axis.minorticks_off()
    axis.grid()
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    caption = f"{size.architecture} trained from scratch on poisoned images, {size.limit}; {size.num_trials} trials, 95 % intervals."
    told = ", ".join(f"{column} {np.mean(found[column, size.budgets[-1]]):.0%}" for column in COLUMNS)
    alt = f"Success in % with wide intervals against the number of poisons, by what was done to the images. At {size.budgets[-1]}: {told}."
    return report.figure("Success against budget", caption, plot, alt)
