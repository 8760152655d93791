"""Poisoning classical learners: which points an attacker moves, and how the model turns (Mei & Zhu, 2015)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets, svm

from experiments.lib import experiment, report, style
from robustjax import poisoning
from robustjax.poisoning import classical
from robustjax.threats import L2

SVM_C, LOGISTIC_REG = 1.0, 0.01
_RUIN_STEP = 30.0
_ORDERS = {1: "l1", 2: "l2"}


class Task(NamedTuple):
    """A learner of two features whose weight of one the attacker wants to be 0, the other one's to stay."""

    title: str
    features: tuple[str, str]
    ignored: int  # the feature that is to lose its weight
    x: np.ndarray  # [N, 2], standardised
    y: np.ndarray  # [N], -1 or 1
    fit_fn: Callable
    pullback_fn: Callable
    step_size: float
    weights: dict[int, tuple[float, ...]]  # of the effort, by its order; the middle one is pictured

    def outer_fn(self) -> Callable:
        """|w - target|^2 of the weights, whatever the bias."""
        target = self.fit_fn(self.x, self.y)[:2]
        target = np.where(np.arange(2) == self.ignored, 0.0, target)
        return lambda theta: (float(np.sum((theta[:2] - target) ** 2)), np.append(2.0 * (theta[:2] - target), 0.0))


def run(settings: experiment.Settings) -> report.Section:
    """A figure for each learner."""
    num_steps = settings.pick(5, 150, 300)
    figures, efforts = zip(*(_picture(task, num_steps, settings) for task in (wine(), tumours())), strict=True)
    text = (
        "A learner is a function of its training set, and the attacker differentiates it: through the optimality conditions of an SVM or "
        "of logistic regression, or in closed form for least squares. Who pays for the sum of all moves (l1) moves few points far; who "
        "pays for their squares (l2) moves all of them a little; of an SVM, those that it stands on."
    )
    items = [*figures, _labels(settings), _bought(efforts), _ruined(tumours(), num_steps, settings)]
    more = "five prices of effort in place of three, twice the steps of every attack, ten splits of the last table."
    return report.Section("Poisoning classical learners", text, items, more=more)


def wine() -> Task:
    """Two sorts of wine, told apart by an SVM of scikit-learn, which is trained again after every step."""
    features = ("alcohol", "color_intensity")
    x, y = _binary(datasets.load_wine(), features)
    weights = {1: (0.5, 0.3, 0.1, 0.03, 0.01), 2: (1.0, 0.5, 0.2, 0.05, 0.01)}
    return Task("An SVM on wine", features, 0, x, y, svm_fit, svm_pullback, 0.04, weights)


def tumours() -> Task:
    """Tumours, told apart by logistic regression."""
    features = ("mean radius", "mean texture")
    x, y = _binary(datasets.load_breast_cancer(), features)
    fit_fn = functools.partial(classical.logistic, reg=LOGISTIC_REG)
    pullback_fn = functools.partial(classical.logistic_pullback, reg=LOGISTIC_REG)
    weights = {1: (0.02, 0.01, 0.004, 0.001, 0.0003), 2: (0.08, 0.04, 0.02, 0.005, 0.001)}
    return Task("Logistic regression on tumours", features, 1, x, y, fit_fn, pullback_fn, 5.0, weights)


def svm_fit(x, y) -> np.ndarray:
    """(w, b) of scikit-learn's SVC."""
    return _theta(_machine(x, y))


def svm_pullback(x, y, theta, v) -> classical.Pullback:
    """Its gradient, from its multipliers."""
    machine, dual = _machine(x, y), np.zeros(len(x))
    dual[machine.support_] = np.abs(machine.dual_coef_[0])
    return classical.svm_pullback(x, y, theta, v, dual=dual, c=SVM_C)


def attack(task: Task, order: int, weight: float, num_steps: int) -> classical.Poisoned:
    """The poisoned set for a price of effort."""
    return classical.attack(
        task.x, task.y, fit_fn=task.fit_fn, pullback_fn=task.pullback_fn, outer_fn=task.outer_fn(), effort_order=order, weight=weight,
        step_size=task.step_size, num_steps=num_steps,
    )  # fmt: skip


def random_distance(task: Task, order: int, effort: float, seed: int) -> float:
    """How near the model comes when every point moves at random, with the same effort in all."""
    noise = np.random.default_rng(seed).normal(size=task.x.shape)
    moved = task.x + noise * effort / np.linalg.norm(noise.ravel(), order)
    return float(np.sqrt(task.outer_fn()(task.fit_fn(moved, task.y))[0]))


def ruined(task: Task, share: float, num_steps: int, seed: int) -> tuple[float, float, float, float]:
    """Accuracy in % on points that nobody saw: clean, after a share of the training points moved at random, to corners, and as chosen."""
    train, mine, new = np.array_split(np.random.default_rng(seed).permutation(len(task.x)), 3)  # the second third is the attacker's
    x, y, rows, box = task.x[train], task.y[train], np.arange(int(share * len(train))), (task.x.min(), task.x.max())
    found = classical.attack(
        x,
        y,
        fit_fn=task.fit_fn,
        pullback_fn=task.pullback_fn,
        outer_fn=classical.toward_errors(task.x[mine], task.y[mine], loss="logistic"),
        effort_order=2,
        weight=0.0,
        step_size=_RUIN_STEP,
        num_steps=num_steps,
        rows=rows,
        box=box,
    )
    rng = np.random.default_rng(seed)
    noisy, cornered = x.copy(), x.copy()
    together = x[rows].reshape(1, -1)  # one budget for all
    noisy[rows] = poisoning.random_control(jax.random.key(seed), together, L2(found.effort, box=box)).reshape(len(rows), -1)
    cornered[rows] = rng.choice(box, size=(len(rows), x.shape[1]))

    def accuracy(theta):
        return 100 * float(np.mean(np.sign(task.x[new] @ theta[:-1] + theta[-1]) == task.y[new]))

    return accuracy(task.fit_fn(x, y)), accuracy(task.fit_fn(noisy, y)), accuracy(task.fit_fn(cornered, y)), accuracy(found.theta)


def _ruined(task, num_steps, settings):
    splits = range(settings.seed, settings.seed + settings.pick(1, 4, 10))
    rows = []
    for share in (0.05, 0.1, 0.2):
        found = np.array([ruined(task, share, num_steps // 3, seed) for seed in splits])
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
        found = [attack(task, order, weight, num_steps) for weight in priced]
        shown = found[len(found) // 2]
        _draw(axis, task, clean, shown)
        moved = [int((np.abs(one.x - task.x).max(axis=1) > 1e-6).sum()) for one in found]
        axis.set_title(f"{_ORDERS[order]} effort: {moved[len(found) // 2]} of {len(task.x)} points move")
        size = np.linalg.norm(task.x.ravel(), order) / 100
        efforts = np.array([0.0, *(one.effort for one in found)])
        color = style.of(_ORDERS[order])
        left = [np.sqrt(one.loss[-1]) / start for one in found]
        axes[2].plot(efforts / size, [1.0, *left], "o-", color=color, label=f"{_ORDERS[order]}, attack")
        control = [np.mean([random_distance(task, order, effort, settings.seed + i) for i in range(5)]) / start for effort in efforts]
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
    x, y, name = _standardised(found.data), found.target - found.target.mean(), "bmi"
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


def _machine(x, y):
    return svm.SVC(kernel="linear", C=SVM_C, tol=1e-6).fit(x, y)


def _theta(machine):
    return np.append(machine.coef_[0], machine.intercept_[0])


def _binary(found, features):
    columns = [list(found.feature_names).index(feature) for feature in features]
    rows = found.target < 2
    return _standardised(found.data[rows][:, columns]), np.where(found.target[rows] == 0, 1, -1)


def _standardised(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)
