"""Evaluation: what it reports, that nothing about its course changes a result, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from robustjax import attacks, base, evaluate, loops, losses, parallel
from robustjax.threats import L2, Linf

N, D, C = 37, 30, 5
KEY = jax.random.key(0)


def forward(weights, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) - 0.5) @ weights


def problem():
    model_fn = jax.tree_util.Partial(forward, jax.random.normal(jax.random.key(1), (D, C)))
    x = np.asarray(jax.random.uniform(jax.random.key(2), (N, D), minval=0.2, maxval=0.8))
    y = np.array(model_fn(x).argmax(axis=1))
    y[:4] = (y[:4] + 1) % C  # four errors without any attack
    return model_fn, x, y


def suite(eps=0.03):
    threat = Linf(eps)
    return {
        "pgd": base.bind(attacks.pgd, threat=threat, step_size=eps / 2, num_steps=2),
        "apgd": base.bind(attacks.apgd, threat=threat, num_steps=10),
        "square": base.bind(attacks.square, threat=threat, num_queries=20),
    }


def last(*args, **kwargs):
    *_, state = evaluate.evaluate(KEY, *args, **kwargs)
    return state


def test_report_agrees_with_the_examples_it_keeps():
    model_fn, x, y = problem()
    state = last(suite(), model_fn, x, y, batch_size=16)
    table = evaluate.accuracies(state)
    assert table["clean"] == pytest.approx((N - 4) / N)
    assert list(table) == ["clean", "pgd", "apgd", "square", "worst case"]
    values = list(table.values())
    assert values == sorted(values, reverse=True)
    assert 0 < table["worst case"] < table["clean"]
    right = np.asarray(model_fn(state.x).argmax(axis=1)) == y
    assert right.mean() == pytest.approx(table["worst case"])
    assert np.abs(state.x - x).max() <= 0.03 * (1 + 1e-5)
    np.testing.assert_array_equal(state.success[:, :4], evaluate.NOT_RUN)


def test_batch_size_compaction_and_devices_never_change_a_result():
    model_fn, x, y = problem()
    reference = last(suite(), model_fn, x, y, batch_size=40)
    mesh = parallel.data_mesh(4)
    for other in (last(suite(), model_fn, x, y, batch_size=8), last(suite(), model_fn, x, y, batch_size=16, mesh=mesh)):
        np.testing.assert_array_equal(other.success, reference.success)
        np.testing.assert_allclose(other.x, reference.x, atol=1e-6)


def test_every_attack_runs_on_all_when_asked():
    model_fn, x, y = problem()
    state = last(suite(), model_fn, x, y, batch_size=40, survivors_only=False)
    assert (state.success[:, 4:] != evaluate.NOT_RUN).all()
    table = evaluate.accuracies(state, survivors_only=False)
    assert table["worst case"] <= min(table["pgd"], table["apgd"], table["square"])
    compacted = evaluate.accuracies(last(suite(), model_fn, x, y, batch_size=40))
    assert compacted["worst case"] == table["worst case"]


def test_a_run_cut_at_any_state_resumes_to_the_same_result():
    model_fn, x, y = problem()
    states = []
    for state in evaluate.evaluate(KEY, suite(), model_fn, x, y, batch_size=8):
        states.append(evaluate.EvaluationState(state.names, *(array.copy() for array in state[1:])))
    for cut in (0, 2, len(states) - 2):
        resumed = last(suite(), model_fn, x, y, batch_size=8, state=states[cut])
        np.testing.assert_array_equal(resumed.success, states[-1].success)
        np.testing.assert_array_equal(resumed.x, states[-1].x)
        np.testing.assert_array_equal(resumed.loss, states[-1].loss)


def test_a_new_eps_and_a_new_model_compile_nothing():
    model_fn, x, y = problem()
    last(suite(), model_fn, x, y, batch_size=8, survivors_only=False)
    before = evaluate._compiled._cache_size()
    other = jax.tree.map(lambda w: 0.5 * w, model_fn)
    last(suite(0.01), other, x, y, batch_size=8, survivors_only=False)
    assert evaluate._compiled._cache_size() == before


def test_host_driven_attacks_equal_compiled_ones():
    model_fn, x, y = problem()
    attack = base.bind(attacks.pgd, threat=L2(0.3), step_size=0.1, num_steps=4)
    compiled = last({"pgd": attack}, model_fn, x, y, batch_size=16)
    host = last({"pgd": attacks.restarts(base.bind(attack, loop_fn=loops.host), 1)}, model_fn, x, y, batch_size=16)
    restarted = last({"pgd": attacks.restarts(attack, 1)}, model_fn, x, y, batch_size=16)
    np.testing.assert_array_equal(host.success, restarted.success)
    assert compiled.success.shape == host.success.shape


def test_cost_counts_passes():
    model_fn, x, y = problem()
    threat, x, y = Linf(0.1), jnp.asarray(x[:8]), jnp.asarray(y[:8])
    pgd = base.bind(attacks.pgd, threat=threat, step_size=0.01, num_steps=40)
    expected = {
        (41, 40): pgd,
        (101, 100): base.bind(attacks.apgd, threat=threat, num_steps=100),
        (123, 120): attacks.restarts(pgd, 3),
        (1 + 4 * 101, 400): attacks.over_targets(base.bind(attacks.apgd, threat=threat, num_steps=100), 9),
        (52, 0): base.bind(attacks.square, threat=threat, num_queries=50),
        (201, 100 * (C - 1)): base.bind(attacks.fab, threat=threat, num_steps=100),
        (50, 50): base.bind(attacks.carlini_wagner, threat=L2(1.0), num_binary_search_steps=5, num_steps=10, learning_rate=0.1),
    }
    for passes, attack in expected.items():
        assert evaluate.cost(attack, model_fn, x, y) == (*passes, True)
    assert evaluate.cost(base.bind(pgd, loop_fn=loops.host), model_fn, x, y) == (41, 40, True)
    assert not evaluate.cost(base.bind(pgd, loop_fn=loops.while_), model_fn, x, y).bounded


def test_curve_and_interval():
    np.testing.assert_allclose(evaluate.accuracy_curve([0.0, 0.1, 0.3, np.inf], [0.0, 0.1, 0.2, 1.0]), [0.75, 0.5, 0.5, 0.25])
    low, high = evaluate.confidence_interval(90, 100)
    assert low == pytest.approx(scipy.stats.beta.ppf(0.025, 90, 11), abs=1e-12)
    assert high == pytest.approx(scipy.stats.beta.ppf(0.975, 91, 10), abs=1e-12)
    assert evaluate.confidence_interval(0, 10)[0] == 0 and evaluate.confidence_interval(10, 10)[1] == 1
    for wrong in ((11, 10, 0.05), (0, 0, 0.05), (5, 10, 0.0)):
        with pytest.raises(ValueError, match="expected"):
            evaluate.confidence_interval(*wrong)


def test_minimum_norm_curve_is_not_above_a_fixed_eps_attack_that_fails():
    model_fn, x, y = problem()
    norms = -last({"fmn": base.bind(attacks.fmn, threat=Linf(jnp.inf), num_steps=100)}, model_fn, x, y, batch_size=40).loss[0]
    norms = np.where(np.isnan(norms), 0.0, norms)  # misclassified without attack
    curve = evaluate.accuracy_curve(norms, [0.0, 0.03, 0.2])
    fixed = evaluate.accuracies(last(suite(), model_fn, x, y, batch_size=40))
    assert curve[0] == pytest.approx(fixed["clean"])
    assert curve[1] <= fixed["worst case"] + 1 / N
    assert (np.diff(curve) <= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(N - 1, int)}, "expected integer labels y"),
        ({"x": np.zeros((0, D), np.float32), "y": np.zeros(0, int)}, "at least one input"),
        ({"y": np.full(N, C)}, "expected labels y in"),
        ({"x": np.full((N, D), 255.0, np.float32)}, "leave the box"),
        ({"batch_size": 0}, "batch_size"),
        ({"model_fn": lambda x: x[:, :C] * np.nan}, "not finite"),
    ],
)
def test_wrong_input_is_named(change, message):
    model_fn, x, y = problem()
    arguments = {"model_fn": model_fn, "x": x, "y": y, "batch_size": 8} | change
    with pytest.raises(ValueError, match=message):
        last(suite(), arguments["model_fn"], arguments["x"], arguments["y"], batch_size=arguments["batch_size"])


def test_a_state_of_other_attacks_is_refused():
    model_fn, x, y = problem()
    state = next(evaluate.evaluate(KEY, suite(), model_fn, x, y, batch_size=8))
    with pytest.raises(ValueError, match="cannot resume"):
        last({"other": suite()["pgd"]}, model_fn, x, y, batch_size=8, state=state)


def test_autoattack_is_the_worst_case_of_its_ensemble():
    model_fn, x, y = problem()
    budget = {"num_steps": 10, "num_queries": 20}
    threat = Linf(0.03)
    whole = attacks.autoattack(KEY, model_fn, jnp.asarray(x), jnp.asarray(y), threat=threat, **budget)
    wrong = np.asarray(model_fn(whole.x).argmax(axis=1)) != y
    np.testing.assert_array_equal(whole.success, wrong)
    state = last(attacks.ensemble(threat, **budget), model_fn, x, y, batch_size=40)
    assert abs(evaluate.accuracies(state)["worst case"] - (1 - wrong.mean())) <= 1 / N
    assert list(attacks.ensemble(threat, "plus")) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert list(attacks.ensemble(threat, "rand")) == ["apgd-ce", "apgd-dlr"]
    assert attacks.ensemble(threat)["apgd-t"].get("num_targets") == 9
    assert attacks.ensemble(threat, "rand")["apgd-dlr"].get("loss_fn") is losses.dlr


def test_robust_error_is_natural_plus_boundary_error():
    correct = np.array([True, True, False, True, False])
    success = np.array([[1, 0, 0, 0, -1], [-1, 1, -1, 0, -1]], np.int8)
    state = evaluate.EvaluationState(
        ("a", "b"), correct, success, np.zeros((2, 5)), np.zeros((5, 2)), at_goal=np.zeros((2, 5), bool), signs=np.zeros((2, 5), bool),
        kinds=np.array([[0, 0], [-1, -1]], np.int8), fingerprint={},
    )  # fmt: skip
    errors = evaluate.decompose(state)
    np.testing.assert_array_equal(errors.robust, errors.natural | errors.boundary)
    assert not (errors.natural & errors.boundary).any()
    assert (errors.natural.sum(), errors.boundary.sum(), errors.robust.sum()) == (2, 2, 4)
    assert errors.robust.mean() == 1 - evaluate.accuracies(state)["worst case"]


def test_pareto_front_keeps_what_nothing_beats():
    front = evaluate.pareto_front([0.9, 0.8, 0.7, 0.9, 0.6], [0.1, 0.3, 0.2, 0.1, 0.3])
    np.testing.assert_array_equal(front, [True, True, False, True, False])
