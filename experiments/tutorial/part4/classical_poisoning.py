"""Poisoning classical learners: which points an attacker moves, and how the model turns (Mei & Zhu, 2015)."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets

from experiments.lib import classical_learners as learners
from experiments.lib import experiment, report, style
from robustjax.poisoning import classical

_ORDERS = {1: "l1", 2: "l2"}


def run(settings: experiment.Settings) -> report.Section:
    """A figure for each learner."""
    num_steps = settings.pick(5, 150, 300)
    figures, efforts = zip(*(_picture(task, num_steps, settings) for task in (learners.wine(), learners.tumours())), strict=True)
    text = (
        "A learner is a function of its training set, and the attacker differentiates it: through the optimality conditions of an SVM or "
        "of logistic regression, or in closed form for least squares. Who pays for the sum of all moves (l1) moves few points far; who "
        "pays for their squares (l2) moves all of them a little; of an SVM, those that it stands on."
    )
    items = [*figures, _labels(settings), _bought(efforts), _ruined(learners.tumours(), num_steps, settings)]
    more = "five prices of effort in place of three, twice the steps of every attack, ten splits of the last table."
    return report.Section("Poisoning classical learners", text, items, more=more)


def _ruined(task, num_steps, settings):
    splits = range(settings.seed, settings.seed + settings.pick(1, 4, 10))
    rows = []
    for share in (0.05, 0.1, 0.2):
        found = np.array([learners.ruined(task, share, num_steps // 3, seed) for seed in splits])
        rows.append([f"{100 * share:.0f} %", *(f"{mean:.1f}" for mean in found.mean(axis=0))])
    caption = (
        f"{task.title}, whose predictions the attacker wants wrong: accuracy in % on a third of the points, which neither learner nor "
        f"attacker saw, means of {len(splits)} splits. Points keep their label and move within the data's range: at random with the "
        "attack's effort, or to random corners of the range, which takes more, and may do nearly as much harm where many points move."
    )
    return report.Table("Ruined predictions", caption, ["points that move", "clean", "random moves", "random corners", "attack"], rows)


def _bought(efforts):
    caption = (
        "What is left of the distance between the learner's weights and the attacker's, in % of that before, against the effort in % of "
        "the norm of the data; random moves: the mean of 5."
    )
    header = ["learner", "effort", "in %", "points that move", "distance left", "after random moves"]
    return report.Table("What effort buys", caption, header, [row for rows in efforts for row in rows])


def _picture(task, num_steps, settings):
    plot, axes = plt.subplots(1, 3, figsize=(14, 4.2))
    clean, notes, rows = task.fit_fn(task.x, task.y), [], []
    start = np.sqrt(task.outer_fn()(clean)[0])
    for axis, (order, weights) in zip(axes, task.weights.items(), strict=False):
        priced = settings.pick(weights[2:3], weights[::2], weights)
        found = [learners.attack(task, order, weight, num_steps) for weight in priced]
        shown = found[len(found) // 2]
        _draw(axis, task, clean, shown)
        moved = [int((np.abs(one.x - task.x).max(axis=1) > 1e-6).sum()) for one in found]
        axis.set_title(f"{_ORDERS[order]} effort: {moved[len(found) // 2]} of {len(task.x)} points move")
        size = np.linalg.norm(task.x.ravel(), order) / 100
        efforts = np.array([0.0, *(one.effort for one in found)])
        color = style.of(_ORDERS[order])
        left = [np.sqrt(one.loss[-1]) / start for one in found]
        axes[2].plot(efforts / size, [1.0, *left], "o-", color=color, label=f"{_ORDERS[order]}, attack")
        control = [
            np.mean([learners.random_distance(task, order, effort, settings.seed + i) for i in range(5)]) / start for effort in efforts
        ]
        axes[2].plot(efforts / size, control, "x:", color=color, label=f"{_ORDERS[order]}, random moves")
        notes.append(f"{_ORDERS[order]} pictured: {left[len(found) // 2]:.2f} of the distance is left")
        for effort, count, share, at_random in zip(efforts[1:] / size, moved, left, control[1:], strict=True):
            rows.append(
                [task.title, _ORDERS[order], f"{effort:.1f}", f"{count} of {len(task.x)}", f"{100 * share:.1f}", f"{100 * at_random:.1f}"]
            )
    axes[2].set(xlabel="effort in % of the data's norm", ylabel="distance to the attacker's weights, 1 = clean", ylim=(0, None))
    axes[2].legend()
    axes[2].grid()
    caption = (
        f"The attacker wants the learner to ignore {task.features[task.ignored]}, with the other weight as it was. Lines: decision "
        f"boundaries; strokes lead from where a point was to where it is. {'; '.join(notes)}. Random moves: the mean of 5. The "
        "attacker's problem is not convex, and an SVM's formula changes with its support vectors: hence the kinks."
    )
    alt = (
        f"Two scatters of {task.features[0]} and {task.features[1]} with the boundaries of the clean, the wanted and the poisoned learner. "
        "With l1 effort few points move, far; with l2 effort many move a little. Third panel: the distance to the wanted weights falls "
        "with the effort of the attack and hardly at all with random moves."
    )
    return report.figure(task.title, caption, plot, alt), rows


def _draw(axis, task, clean, found):
    low, high = task.x.min(axis=0) - 0.6, task.x.max(axis=0) + 0.6
    for label in (-1, 1):
        mine = task.y == label
        axis.plot(*np.stack([task.x[mine], found.x[mine]]).transpose(2, 0, 1), color=style.PALETTE[(label + 1) // 2], lw=0.8, alpha=0.7)
        axis.scatter(*found.x[mine].T, s=8, color=style.PALETTE[(label + 1) // 2])
    wanted = np.append(np.where(np.arange(2) == task.ignored, 0.0, clean[:2]), clean[2])
    for theta, dashes, name in ((clean, ":", "clean"), (wanted, "--", "wanted"), (found.theta, "-", "poisoned")):
        points = _boundary(theta, low, high)
        axis.plot(*points.T, dashes, color=style.INK, lw=1.5, label=name)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=task.features[0], ylabel=task.features[1])
    axis.legend()


def _boundary(theta, low, high):
    # Two points of w x + b = 0, found along the axis of the smaller weight.
    free = int(np.argmin(np.abs(theta[:2])))
    ends = np.array([low[free], high[free]]) * 2.0
    points = np.empty((2, 2))
    points[:, free], points[:, 1 - free] = ends, -(theta[free] * ends + theta[2]) / theta[1 - free]
    return points


def _labels(settings):
    """Least squares: labels move, in closed form."""
    found = datasets.load_diabetes()
    x, y, name = learners.standardised(found.data), found.target - found.target.mean(), "bmi"
    k = found.feature_names.index(name)
    clean = classical.ridge(x, y, reg=0.0)
    changes = {order: classical.least_label_change(x, y, coefficient=k, effort_order=order) for order in _ORDERS}
    plot, axes = plt.subplots(1, 3, figsize=(14, 3.8))
    for axis, (order, change) in zip(axes, changes.items(), strict=False):
        axis.plot(np.sort(np.abs(change))[::-1], ".", color=style.of(_ORDERS[order]))
        count = int((change != 0).sum())
        axis.set(
            title=f"{_ORDERS[order]} effort: {count} of {len(y)} labels move", xlabel="patients, by their change", ylabel="|change of y|"
        )
    share = np.linspace(0, 1, 11)
    rng, row = np.random.default_rng(settings.seed), np.linalg.solve(x.T @ x, x.T)[k]
    for order, change in changes.items():
        effort = np.linalg.norm(change, order)
        noise = rng.normal(size=(50, len(y)))
        noise *= (effort / np.linalg.norm(noise, order, axis=1))[:, None]
        color, percent = style.of(_ORDERS[order]), 100 * effort / np.linalg.norm(y, order)
        axes[2].plot(
            percent * share, [classical.ridge(x, y + s * change, reg=0.0)[k] for s in share], color=color, label=f"{_ORDERS[order]}, attack"
        )
        spread = np.std(noise @ row)
        axes[2].fill_between(percent * share, clean[k] - share * spread, clean[k] + share * spread, color=color, alpha=0.2, lw=0)
    axes[2].set(xlabel="effort in % of the labels' norm", ylabel=f"coefficient of {name}", ylim=(-2, None))
    axes[2].legend()
    axes[2].grid()
    caption = (
        f"Labels are moved until least squares gives {name} the coefficient 0 ({clean[k]:.0f} before). In l1 one label alone moves, by "
        f"{np.abs(changes[1]).max():.0f} ({np.abs(y).max():.0f} is the largest |y|), in l2 none by more than "
        f"{np.abs(changes[2]).max():.0f}. Bands: random changes of the same effort, one standard deviation."
    )
    alt = (
        "Sizes of the changes of labels, sorted: with l1 effort one label moves, with l2 effort nearly all move a little. Third panel: the "
        f"coefficient of {name} falls in a straight line to 0 with the effort of the attack, and stays where it was under random changes."
    )
    return report.figure("Least squares on diabetes", caption, plot, alt)
