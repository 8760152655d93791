"""KKT pullbacks against finite differences of the refitted learner; attacks that reach what they want with little effort."""

import functools
import itertools

import numpy as np
import pytest

from robustjax.poisoning import classical

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4))
TRUTH = np.array([1.0, -2.0, 0.5, 0.0])
Y = X @ TRUTH + 0.1 * RNG.normal(size=30)
LABELS = np.where(X @ TRUTH + 0.5 * RNG.normal(size=30) > 0, 1, -1)


C = 0.1


def svm(x, y, c=C, tol=1e-10):
    from sklearn.svm import SVC

    machine = SVC(kernel="linear", C=c, tol=tol).fit(x, y)
    dual = np.zeros(len(x))
    dual[machine.support_] = np.abs(machine.dual_coef_[0])
    return np.append(machine.coef_[0], machine.intercept_[0]), dual


def svm_pullback(x, y, theta, v):
    return classical.svm_pullback(x, y, theta, v, dual=svm(x, y)[1], c=C, tolerance=1e-5)


LEARNERS = {
    "ridge": (functools.partial(classical.ridge, reg=0.3), functools.partial(classical.ridge_pullback, reg=0.3), Y, 1e-7),
    "ols": (functools.partial(classical.ridge, reg=0.0), functools.partial(classical.ridge_pullback, reg=0.0), Y, 1e-7),
    "logistic": (functools.partial(classical.logistic, reg=0.1), functools.partial(classical.logistic_pullback, reg=0.1), LABELS, 1e-9),
    "svm": (lambda x, y: svm(x, y)[0], svm_pullback, LABELS, 1e-3),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_pullbacks_equal_finite_differences(name):
    fit, pullback, y, tolerance = LEARNERS[name]
    theta = fit(X, y)
    v = RNG.normal(size=len(theta))
    pulled = pullback(X, y, theta, v)
    step = 1e-5 if name == "svm" else 1e-4  # the solver's tolerance over the step; else Richardson's extrapolation removes the step
    largest = np.abs(pulled.x).max()
    assert largest > 0.01
    for row, column in [(0, 0), (7, 2), (13, 1), (29, 3), *(tuple(np.argwhere(np.abs(pulled.x) == largest)[0]),)]:

        def slope(h, row=row, column=column):
            moved = [X.copy(), X.copy()]
            moved[0][row, column] += h
            moved[1][row, column] -= h
            return v @ (fit(moved[0], y) - fit(moved[1], y)) / (2 * h)

        numeric = slope(step) if name == "svm" else (4 * slope(step) - slope(2 * step)) / 3
        assert pulled.x[row, column] == pytest.approx(numeric, abs=tolerance * max(largest, 1.0))
    if name in ("ridge", "ols"):
        bumped = [y + 1e-3 * sign * np.eye(30)[3] for sign in (1, -1)]
        assert pulled.y[3] == pytest.approx(v @ (fit(X, bumped[0]) - fit(X, bumped[1])) / 2e-3, abs=1e-9)


def test_the_gradient_in_real_labels_of_logistic_regression():
    theta = classical.logistic(X, LABELS, reg=0.1)
    v = RNG.normal(size=5)
    pulled = classical.logistic_pullback(X, LABELS, theta, v, reg=0.1)
    values = [classical.logistic(X, LABELS + h * np.eye(30)[3], reg=0.1) @ v for h in (1e-4, -1e-4, 2e-4, -2e-4)]
    numeric = (4 * (values[0] - values[1]) / 2e-4 - (values[2] - values[3]) / 4e-4) / 3
    assert pulled.y[3] == pytest.approx(numeric, abs=1e-8)


def test_logistic_is_stationary_and_the_svm_says_how_near_its_formula_changes():
    theta = classical.logistic(X, LABELS, reg=0.1)
    ones = np.column_stack([X, np.ones(30)])
    p = 1 / (1 + np.exp(LABELS * (ones @ theta)))
    np.testing.assert_allclose(-(LABELS * p) @ ones / 30 + 0.1 * theta, 0, atol=1e-13)
    weights, dual = svm(X, LABELS)
    pulled = classical.svm_pullback(X, LABELS, weights, np.ones(5), dual=dual, c=C, tolerance=1e-5)
    assert 0 < pulled.slack < 1
    assert np.isnan(pulled.y).all() and (pulled.x[dual == 0] == 0).all()
    with pytest.raises(ValueError, match="no vector on its margin"):
        classical.svm_pullback(X, LABELS, weights, np.ones(5), dual=np.zeros(30), c=C)


def test_an_svm_without_a_margin_vector_still_says_how_its_weights_move():
    # Two points of opposite labels nearer than the margin: both multipliers are at their bound, w = c (x_1 - x_2).
    x, y, c = np.array([[0.3, 0.1], [-0.2, 0.0]]), np.array([1.0, -1.0]), 0.1
    weights, dual = svm(x, y, c)
    np.testing.assert_allclose(dual, c)
    np.testing.assert_allclose(weights[:2], c * (x[0] - x[1]), atol=1e-9)
    pulled = classical.svm_pullback(x, y, weights, np.array([1.0, 2.0, 0.0]), dual=dual, c=c)
    np.testing.assert_allclose(pulled.x, c * np.array([[1.0, 2.0], [-1.0, -2.0]]))
    assert 0 < pulled.slack < np.inf


def test_only_the_rows_that_may_move_do_and_changes_of_the_active_set_are_counted():
    sets = []

    def fit(x, y):
        weights, fit.dual = svm(x, y, C)
        return weights

    def pullback(x, y, theta, v):
        pulled = classical.svm_pullback(x, y, theta, v, dual=fit.dual, c=C, tolerance=1e-5)
        sets.append((fit.dual > 1e-5 * C).astype(int) + (fit.dual > (1 - 1e-5) * C))
        return pulled

    box = X[3:6].min(), X[3:6].max()
    found = classical.attack(
        X,
        LABELS,
        fit_fn=fit,
        pullback_fn=pullback,
        outer_fn=classical.toward_parameters(np.zeros(5)),
        effort_order=2,
        weight=0.0,
        step_size=0.3,
        num_steps=15,
        rows=[3, 4, 5],
        box=box,
    )
    np.testing.assert_array_equal(np.delete(found.x, [3, 4, 5], axis=0), np.delete(X, [3, 4, 5], axis=0))
    assert box[0] <= found.x[3:6].min() and found.x[3:6].max() <= box[1]
    changes = sum((a != b).any() for a, b in itertools.pairwise(sets))
    assert found.active_set_changes == changes and 0 < changes < 14
    with pytest.raises(ValueError, match="expected labels -1 or 1"):
        classical.logistic(X, (LABELS + 1) / 2, reg=0.1)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("order", [1, 2])
def test_attacks_bring_theta_to_a_target_and_pay_less_with_a_price(name, order):
    fit, pullback, y, _ = LEARNERS[name]
    clean = fit(X, y)
    target = clean.copy()
    target[0] += 0.15 * np.abs(clean).max()
    run = functools.partial(
        classical.attack, X, y, fit_fn=fit, pullback_fn=pullback, outer_fn=classical.toward_parameters(target), effort_order=order,
        step_size={"logistic": 2.0, "svm": 0.1}.get(name, 0.3), num_steps=150,
    )  # fmt: skip
    free, priced = run(weight=0.0), run(weight=0.3 * (1.0 if order == 2 else 0.02))
    assert free.loss[-1] < 0.1 * free.loss[0] and free.loss[0] == pytest.approx(np.sum((clean - target) ** 2))
    assert priced.effort < free.effort and priced.loss[-1] < priced.loss[0]
    np.testing.assert_allclose(fit(free.x, y), free.theta)
    if order == 1:
        assert (priced.x == X).mean() > (free.x == X).mean()


def test_rows_and_box_are_kept_and_wrong_arguments_named():
    fit, pullback, y, _ = LEARNERS["ridge"]
    options = {
        "fit_fn": fit,
        "pullback_fn": pullback,
        "outer_fn": classical.toward_parameters(np.zeros(4)),
        "weight": 0.0,
        "step_size": 0.1,
        "num_steps": 20,
    }
    found = classical.attack(X, y, effort_order=2, rows=[1, 5], box=(-3.0, 3.0), **options)
    moved = (found.x != X).any(axis=1)
    assert moved[[1, 5]].all() and moved.sum() == 2 and np.abs(found.x[[1, 5]]).max() <= 3
    box, far = (X[[1, 5]].min(), X[[1, 5]].max()), options | {"outer_fn": classical.toward_parameters(np.full(4, 10.0))}
    held, free = (classical.attack(X, y, effort_order=2, rows=[1, 5], **(far | more)).x[[1, 5]] for more in ({"box": box}, {}))
    assert box[0] <= held.min() and held.max() <= box[1] and not (box[0] <= free.min() and free.max() <= box[1])
    with pytest.raises(ValueError, match="effort_order must be 1 or 2"):
        classical.attack(X, y, effort_order=3, **options)
    with pytest.raises(ValueError, match="one label y for each of 30"):
        classical.attack(X, y[:-1], effort_order=2, **options)
    with pytest.raises(ValueError, match="rows"):
        classical.attack(X, y, effort_order=2, rows=[40], **options)
    for wrong in ({"box": (0.0, 1.0)}, {"box": (3.0, -3.0)}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=r"at least 0|outside the box|lower < upper"):
            classical.attack(X, y, effort_order=2, **(options | wrong))


def test_labels_that_are_no_signs_are_named():
    x, zeros = np.ones((3, 2)), np.array([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="labels -1 or 1"):
        classical.logistic_pullback(x, zeros, np.ones(3), np.ones(3), reg=0.1)
    for y in (zeros, np.array([1.0, 2.0, 1.0]), np.ones(3)):
        with pytest.raises(ValueError, match="both labels -1 and 1"):
            classical.svm_pullback(x, y, np.ones(3), np.ones(3), dual=np.full(3, 0.5), c=1.0)


def test_the_least_change_of_labels_that_hides_a_coefficient():
    for order in (1, 2):
        change = classical.least_label_change(X, Y, coefficient=1, effort_order=order)
        assert classical.ridge(X, Y + change, reg=0.0)[1] == pytest.approx(0.0, abs=1e-12)
        row = np.linalg.solve(X.T @ X, X.T)[1]
        other = RNG.normal(size=30)
        other += row * ((row @ change - row @ other) / (row @ row))  # any other change with the same effect costs more
        assert np.linalg.norm(change, order) < np.linalg.norm(other, order)
        assert (change != 0).sum() == (1 if order == 1 else 30)


def test_moving_labels_finds_the_least_change_by_itself():
    fit, pullback, y, _ = LEARNERS["ols"]
    hide = lambda theta: (float(theta[1] ** 2), 2 * theta[1] * np.eye(4)[1])  # noqa: E731
    run = functools.partial(classical.attack, X, y, moving="y", fit_fn=fit, pullback_fn=pullback, outer_fn=hide, num_steps=3000)
    row = np.linalg.solve(X.T @ X, X.T)[1]
    free = run(effort_order=2, weight=0.0, step_size=0.4 / (row @ row))
    least = classical.least_label_change(X, y, coefficient=1)
    np.testing.assert_allclose(free.y - y, least, atol=1e-9)
    assert free.effort == pytest.approx(np.linalg.norm(least)) and free.loss[-1] < 1e-20
    np.testing.assert_array_equal(free.x, X)
    weight, best = 0.01, np.argmax(np.abs(row))
    priced = run(effort_order=1, weight=weight, step_size=0.4 / (row @ row))
    change = classical.least_label_change(X, y, coefficient=1, effort_order=1)
    change[best] -= np.sign(change[best]) * weight / (2 * row[best] ** 2)  # where the price equals what one more unit would bring
    np.testing.assert_allclose(priced.y - y, change, atol=1e-9)
    with pytest.raises(ValueError, match="no derivative in y"):
        fit, pullback, y, _ = LEARNERS["svm"]
        classical.attack(
            X,
            y,
            moving="y",
            fit_fn=fit,
            pullback_fn=pullback,
            outer_fn=classical.toward_parameters(np.zeros(5)),
            effort_order=2,
            weight=0.0,
            step_size=0.1,
            num_steps=1,
        )


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_ruin_is_minus_the_loss_and_has_its_gradient(loss):
    y = Y if loss == "squared" else LABELS
    theta = RNG.normal(size=4 if loss == "squared" else 5)
    score = X @ theta[:4] + (theta[4] if len(theta) == 5 else 0.0)
    by_hand = {"squared": 0.5 * (score - y) ** 2, "logistic": np.log1p(np.exp(-y * score)), "hinge": np.clip(1 - y * score, 0, None)}
    outer = classical.toward_errors(X, y, loss=loss)
    value, slope = outer(theta)
    assert value == pytest.approx(-by_hand[loss].mean())
    numeric = [(outer(theta + h)[0] - outer(theta - h)[0]) / 2e-6 for h in 1e-6 * np.eye(len(theta))]
    np.testing.assert_allclose(slope, numeric, atol=1e-8)


@pytest.mark.parametrize(("name", "loss"), [("svm", "hinge"), ("logistic", "logistic")])
def test_ruin_costs_a_retrained_learner_its_accuracy_where_random_moves_do_not(name, loss):
    fit, pullback, y, _ = LEARNERS[name]
    if name == "svm":  # where poisons are far apart the last digits of a dual take libsvm most of a minute
        fit = lambda x, y: svm(x, y, tol=1e-6)[0]  # noqa: E731
        pullback = lambda x, y, theta, v: classical.svm_pullback(x, y, theta, v, dual=svm(x, y, tol=1e-6)[1], c=C, tolerance=1e-5)  # noqa: E731
    truth = np.random.default_rng(1)
    x_new = truth.normal(size=(400, 4))
    y_new = np.where(x_new @ TRUTH > 0, 1, -1)
    accuracy = lambda theta: np.mean(np.where(x_new @ theta[:4] + theta[4] > 0, 1, -1) == y_new)  # noqa: E731
    found = classical.attack(
        X,
        y,
        fit_fn=fit,
        pullback_fn=pullback,
        outer_fn=classical.toward_errors(x_new[:200], y_new[:200], loss=loss),
        effort_order=2,
        weight=0.0,
        step_size=30.0 if name == "svm" else 3.0,
        num_steps=60,
        rows=range(10),
        box=(-3.0, 3.0),
    )
    control = np.zeros_like(X)
    control[:10] = truth.normal(size=(10, 4))
    control *= found.effort / np.linalg.norm(control)
    clean, moved = accuracy(fit(X, y)), accuracy(fit(X + control, y))
    assert clean > 0.85 and accuracy(found.theta) < moved - 0.2 and moved > clean - 0.2
    assert found.loss[-1] < found.loss[0]


def test_wrong_arguments_of_ruin_are_named():
    with pytest.raises(ValueError, match="loss must be one of"):
        classical.toward_errors(X, Y, loss="0-1")
    with pytest.raises(ValueError, match="labels -1 or 1"):
        classical.toward_errors(X, Y, loss="hinge")
    with pytest.raises(ValueError, match="one label y for each of 30"):
        classical.toward_errors(X, Y[:3], loss="squared")
