"""Evaluation: what it reports, that nothing about its course changes a result, and what it refuses."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from robustjax import attacks, base, drivers, evaluate, fingerprint, loops, losses, parallel, threats
from robustjax.evaluate import running
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


def test_later_rounds_leave_out_what_an_earlier_one_fooled(monkeypatch):
    model_fn, x, y = problem()
    plan = {
        "restarts": attacks.restarts(suite(0.02)["apgd"], 3),
        "targets": attacks.over_targets(base.bind(attacks.apgd, threat=Linf(0.025), num_steps=8), 4),
        "fab": attacks.over_targets(base.bind(attacks.fab, threat=Linf(0.026), num_steps=8), 4),
    }
    rows, programs, compiled = [], set(), running._compiled

    def watched(attack, key, index, model_fn, batch, *data):
        rows.append(len(np.unique(batch)))
        programs.add((jax.tree.structure(attack), batch.shape))
        return compiled(attack, key, index, model_fn, batch, *data)

    monkeypatch.setattr(running, "_compiled", watched)
    state = last(plan, model_fn, x, y, batch_size=N)
    num_programs = len(programs)
    rounds = np.split(np.array(rows[1:]), [3, 7])
    for index in range(len(plan)):
        whole = last({other: plan[other] for other in list(plan)[: index + 1]}, model_fn, x, y, batch_size=N, survivors_only=False)
        ran = state.success[index] != evaluate.NOT_RUN
        np.testing.assert_array_equal(state.success[index][ran], whole.success[index][ran])  # the same keys, so the same flags
        robust = state.success[index] == 0
        np.testing.assert_allclose(state.loss[index][robust], whole.loss[index][robust], rtol=1e-5)
        assert list(rounds[index]) == sorted(rounds[index], reverse=True)
        assert rounds[index][0] == ran.sum() > rounds[index][-1] >= robust.sum() > 0
    assert num_programs <= 1 + 2 * len(plan)  # that of the clean pass, and per attack few sizes for all rounds


def test_the_smallest_norm_is_looked_for_in_every_round():
    model_fn, x, y = problem()
    plan = {"fab": attacks.over_targets(base.bind(attacks.fab, threat=Linf(np.inf), num_steps=5), 4)}
    cut, whole = (last(plan, model_fn, x, y, batch_size=N, survivors_only=only) for only in (True, False))
    np.testing.assert_array_equal(cut.loss, whole.loss)


def test_padding_is_small_and_programs_are_few():
    for num_devices in (1, 2):
        alone = [running._num_rows(n, set(), 128, num_devices) for n in range(1, 129)]
        for n, size in zip(range(1, 129), alone, strict=True):
            assert n <= size <= max(1.25 * n, n + num_devices - 1) and size % num_devices == 0
        assert len(set(alone)) <= 24
    assert all(running._num_rows(n, set(), 120, 3) % 3 == 0 for n in range(1, 121))
    sizes: set[int] = set()
    falling = [running._num_rows(n, sizes, 128, 2) for n in range(128, 0, -1)]
    assert all(n <= size <= 2 * n for n, size in zip(range(128, 0, -1), falling, strict=True))
    assert len(sizes) <= 7


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
    compiled = drivers.jitted(running._call)
    before = compiled._cache_size()
    other = jax.tree.map(lambda w: 0.5 * w, model_fn)
    last(suite(0.01), other, x, y, batch_size=8, survivors_only=False)
    assert compiled._cache_size() == before


COMPILED: list[tuple[str, bool]] = []  # name of the program, and whether it was compiled by the main thread


def _note_compilation(event, duration, *, fun_name="", **rest):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append((fun_name, threading.current_thread() is threading.main_thread()))


def test_attacks_are_compiled_by_other_threads_and_once():
    model_fn, x, y = problem()
    jax.monitoring.register_event_duration_secs_listener(_note_compilation)
    for survivors_only, batch_size in ((False, 33), (True, 11)):  # sizes of no other test
        COMPILED.clear()
        last(suite(0.001), model_fn, x[4:], y[4:], batch_size=batch_size, survivors_only=survivors_only)
        by_main = [is_main for name, is_main in COMPILED if "_call" in name]
        assert sorted(by_main) == [False, False, False, True]  # that of the clean pass was needed at once


def test_an_evaluation_that_is_left_early_ends_its_compiler():
    model_fn, x, y = problem()
    states = evaluate.evaluate(KEY, suite(), model_fn, x, y, batch_size=8)
    next(states), next(states)
    assert any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())
    states.close()
    assert not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


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


_LINEAR = jax.tree_util.Partial(lambda w, x: x @ w, 4 * jnp.eye(3))
_CORNERS = np.array([[0.9, 0.1, 0.1], [0.8, 0.2, 0.1], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9]], np.float32)


def test_targeted_attacks_aim_at_y_alone_or_at_targets_beside_labels():
    labels = _CORNERS.argmax(axis=1)
    pgd = base.bind(attacks.pgd, threat=Linf(0.6), step_size=0.2, num_steps=10)
    weak = base.bind(pgd, threat=Linf(0.01))
    targets = (labels + 1) % 3
    alone = last({"t": attacks.targeted(pgd)}, _LINEAR, _CORNERS, targets, batch_size=4)
    np.testing.assert_array_equal(alone.success[0], 1)
    np.testing.assert_array_equal(_LINEAR(alone.x).argmax(axis=1), targets)
    assert evaluate.accuracies(alone) == {"clean": 1.0, "t": 0.0, "worst case": 0.0}

    targets[0] = labels[0]  # nothing to do there
    wrong = labels.copy()
    wrong[3] = 0  # misclassified as it is
    both = last({"weak": weak, "t": attacks.targeted(pgd)}, _LINEAR, _CORNERS, wrong, targets=targets, batch_size=2)
    np.testing.assert_array_equal(both.success, [[0, 0, 0, -1], [-1, 1, 1, -1]])
    assert evaluate.accuracies(both) == {"clean": 0.75, "weak": 0.75, "t": 0.25, "worst case": 0.25}
    at_target = last({"t": attacks.targeted(pgd)}, _LINEAR, _CORNERS, labels, batch_size=4)
    assert evaluate.accuracies(at_target)["clean"] == 0.0
    assert (at_target.success == evaluate.NOT_RUN).all()


def test_autoattack_aims_too():
    labels = np.repeat([0, 1], 2)
    x = np.array([[0.9, 0.1, 0.1, 0.0], [0.1, 0.9, 0.2, 0.0]], np.float32).repeat(2, axis=0)
    attack = attacks.targeted(base.bind(attacks.autoattack, threat=Linf(0.6), num_steps=10, num_queries=10))
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, 4 * jnp.eye(4))
    state = last({"auto": attack}, model_fn, x, labels, targets=labels + 1, batch_size=4)
    np.testing.assert_array_equal(state.success, 1)


@pytest.mark.parametrize("field", ["eps", "eps of rank", "mask", "box", "step_size", "target", "inside a combination"])
def test_what_belongs_to_an_example_follows_it(field):
    # Twelve examples, all but the last of which cannot be fooled; the first four are misclassified and drop out.
    n = 12
    x = np.tile(np.array([[0.7, 0.3]], np.float32), (n, 1))
    x[:4] = [0.3, 0.7]
    only = np.arange(n) == n - 1
    threat, options = Linf(0.5), {}
    if field in ("eps", "inside a combination"):
        threat = Linf(np.where(only, 0.5, 0.05))
    elif field == "eps of rank":
        threat = Linf(np.where(only, 0.5, 0.05)[:, None] * np.ones((1, 2)))
    elif field == "mask":
        threat = Linf(0.5, mask=np.broadcast_to(only[:, None], (n, 2)))
    elif field == "box":
        threat = Linf(0.5, box=(np.where(only[:, None], 0.0, x), np.where(only[:, None], 1.0, x)))
    elif field == "step_size":
        options = {"step_size": np.where(only, 0.1, 0.0)}
    elif field == "target":  # of the loss: toward the other class for the last alone
        options = {"loss_fn": base.bind(losses.targeted_margin, target=np.where(only, 1, 0))}
    attack = base.bind(attacks.pgd, threat=threat, **({"step_size": 0.1, "num_steps": 10, "delta": 0.0} | options))
    attack = attacks.worst_case(attack, attacks.restarts(attack, 2)) if field == "inside a combination" else attack
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, jnp.array([[5.0, -5.0], [-5.0, 5.0]]))
    for batch_size in (n, 4, 8):
        state = last({"p": attack}, model_fn, x, np.zeros(n, int), batch_size=batch_size)
        assert state.success[0].tolist() == [-1] * 4 + [0] * 7 + [1], batch_size


def _weighted(logits, y, *, weights):
    return losses.cross_entropy(logits, y) * weights[y]


def test_weights_of_classes_are_no_field_of_the_examples():
    n = 10
    x = np.random.default_rng(0).uniform(size=(n, n)).astype(np.float32)
    model_fn = jax.tree_util.Partial(lambda w, x: x @ w, jnp.eye(n))
    y = np.asarray(x.argmax(axis=1))
    attack = base.bind(attacks.fgsm, threat=Linf(0.01), loss_fn=base.bind(_weighted, weights=jnp.arange(1.0, n + 1)))
    state = last({"f": attack}, model_fn, x, y, batch_size=5)
    np.testing.assert_allclose(state.loss[0], attack(KEY, model_fn, jnp.asarray(x), jnp.asarray(y)).loss, rtol=1e-5)


@pytest.mark.parametrize("kind", ["jitted model", "jitted inside", "optimizer", "closure of a threat", "closure of an attack"])
def test_what_hides_in_functions_is_told_apart(kind):
    x, y = _CORNERS, _CORNERS.argmax(axis=1)

    def made(value):
        weight = value * np.eye(3, dtype=np.float32)
        model_fn, plan = _LINEAR, base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.1, num_steps=2)
        if kind == "jitted model":
            model_fn = jax.jit(lambda x: x @ weight)
        elif kind == "jitted inside":
            inner = jax.jit(lambda x: x @ weight)
            model_fn = lambda x: inner(x)  # noqa: E731
        elif kind == "optimizer":
            plan = base.bind(plan, optimizer=optax.adam(value))
        elif kind == "closure of a threat":
            plan = base.bind(plan, threat=threats.Latent(lambda z: z @ weight, 0.1))
        else:
            plan = lambda key, model_fn, x, y: attacks.fgsm(key, model_fn, x, y, threat=Linf(value / 100))  # noqa: E731
        return {"a": plan}, model_fn

    first = evaluate.identity(KEY, *made(1.0), x, y)
    fingerprint.require_same(first, evaluate.identity(KEY, *made(1.0), x, y), "evaluation")
    with pytest.raises(ValueError, match="model" if "jitted" in kind else "attack a"):
        fingerprint.require_same(first, evaluate.identity(KEY, *made(1.5), x, y), "evaluation")


def test_masked_classes_are_no_mistake():
    model_fn = lambda x: jnp.where(jnp.arange(4)[None] == 3, -jnp.inf, jnp.pad(4 * x, ((0, 0), (0, 1))))  # noqa: E731
    plan = {
        "pgd": base.bind(attacks.pgd, threat=Linf(0.6), step_size=0.2, num_steps=10),
        "apgd": base.bind(attacks.apgd, threat=Linf(0.6), num_steps=5, loss_fn=losses.dlr),
    }
    state = last(plan, model_fn, _CORNERS, _CORNERS.argmax(axis=1), batch_size=4, survivors_only=False)
    np.testing.assert_array_equal(state.success, 1)
    assert np.isfinite(state.x).all()


def test_gradients_that_are_not_finite_give_no_examples_and_a_flag():
    def model_fn(x):  # right everywhere; its gradient is NaN
        right = 10.0 * jax.nn.one_hot(jnp.argmax(x, axis=1), 3)
        return right + jnp.sqrt(jnp.zeros_like(x) * x).sum(axis=1, keepdims=True)

    plan = {"p": base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.1, num_steps=3)}
    state = last(plan, model_fn, _CORNERS, _CORNERS.argmax(axis=1), batch_size=4)
    assert evaluate.accuracies(state)["p"] == 1.0
    assert np.isfinite(state.x).all() and np.isnan(state.loss).all()
    assert {flag.name for flag in state.flags if flag.raised} == {"unknown_gradients"}


def test_flags_come_with_the_state():
    x = np.random.default_rng(0).uniform(0.3, 0.7, size=(40, 6)).astype(np.float32)

    @jax.custom_jvp
    def masked(x):
        return 1e3 * jnp.stack([jnp.full(len(x), 0.1), x[:, 0] - 0.75], axis=1)

    masked.defjvp(lambda primals, tangents: (masked(*primals), 0.0 * jnp.stack([tangents[0][:, 0]] * 2, axis=1)))
    apgd = base.bind(attacks.apgd, threat=Linf(0.6), num_steps=5, delta=0.0)
    plan = {"apgd": apgd, "square": base.bind(attacks.square, threat=Linf(0.6), num_queries=60)}
    state = last(plan, masked, x, np.zeros(40, int), batch_size=40)
    assert {flag.name for flag in state.flags if flag.raised} == {"black_box_wins", "saturated_loss"}

    model_fn, x, y = problem()
    ddn = base.bind(attacks.ddn, threat=L2(jnp.inf), num_steps=3, init_eps=30.0)
    fmn = base.bind(attacks.fmn, threat=L2(jnp.inf), num_steps=60)
    far = last({"ddn": ddn, "fmn": fmn}, model_fn, x, y, batch_size=40, survivors_only=False)
    assert "ddn" in next(flag.advice for flag in far.flags if flag.name == "minimum_norms" and flag.raised)
    near = last({"fmn": fmn, "again": fmn}, model_fn, x, y, batch_size=40, survivors_only=False)
    assert not any(flag.raised for flag in near.flags)
    soft = last({"p": apgd}, lambda x: jax.nn.softmax(model_fn(x)), x, y, batch_size=40)
    assert "softmax_output" in {flag.name for flag in soft.flags if flag.raised}


def test_accuracies_of_what_did_not_run_are_refused():
    model_fn, x, y = problem()
    state = last(suite(0.2), model_fn, x, y, batch_size=40)
    with pytest.raises(ValueError, match="did not run"):
        evaluate.accuracies(state, survivors_only=False)


def test_pareto_front_keeps_what_nothing_beats():
    front = evaluate.pareto_front([0.9, 0.8, 0.7, 0.9, 0.6], [0.1, 0.3, 0.2, 0.1, 0.3])
    np.testing.assert_array_equal(front, [True, True, False, True, False])
