"""What a hook is told of each step: plain numbers that are true, outside of compiled programs, and the same face for every driver."""

import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks, base, evaluate, hooks, smoothing, threats, training

N, D, C = 12, 4, 3
KEY = jax.random.key(0)
X = np.asarray(jax.random.uniform(jax.random.key(1), (N, D)))
WEIGHT = jax.random.normal(jax.random.key(2), (D, C))
MODEL = jax.tree_util.Partial(lambda w, x: x @ w, WEIGHT)
Y = np.asarray(MODEL(X).argmax(axis=1))
OPTIMIZER = optax.sgd(0.5, momentum=0.9)
PLAN = {name: base.bind(attacks.fgsm, threat=threats.Linf(eps)) for name, eps in (("weak", 0.02), ("strong", 0.1))}
VOTES = {"sigma": 0.3, "num_selection": 20, "num_samples": 40, "num_step_samples": 20, "batch_size": 6, "chunk_size": 20}


def apply_fn(params, model_state, x, mode):
    return x @ params, model_state


def step_fn():
    attack = base.bind(attacks.pgd, threat=threats.Linf(jnp.full(N, 0.05)), step_size=0.03, num_steps=2)  # one eps for each example
    return training.step(base.bind(training.adversarial, apply_fn=apply_fn, attack=attack), OPTIMIZER)


def trained(state, on_step=None, num_epochs=2, **options):
    return training.fit(state, KEY, X, Y, step_fn=step_fn(), num_epochs=num_epochs, batch_size=4, on_step=on_step, **options)


def start():
    return training.init(jnp.zeros((D, C)), None, OPTIMIZER)


DRIVERS = {
    "fit": trained,
    "evaluate": lambda on_step: list(evaluate.evaluate(KEY, PLAN, MODEL, X, Y, batch_size=5, on_step=on_step)),
    "vote_dataset": lambda on_step: list(smoothing.vote_dataset(KEY, MODEL, X, on_step=on_step, **VOTES)),
}


@pytest.mark.parametrize("name", DRIVERS)
def test_every_driver_tells_plain_numbers_of_every_step(name):
    told = []
    DRIVERS[name](start(), told.append) if name == "fit" else DRIVERS[name](told.append)
    assert [list(numbers)[:2] for numbers in told] == [["step", "seconds"]] * len(told)
    steps = [numbers["step"] for numbers in told]
    assert steps == list(range(steps[0], steps[0] + len(steps))) and len(steps) > 2
    assert all(type(value) in (int, float, str) for numbers in told for value in numbers.values())
    assert all(json.loads(json.dumps(numbers)) == numbers and numbers["seconds"] > 0 for numbers in told)


def test_a_run_with_a_hook_learns_what_the_scan_learns():
    told = []
    whole, metrics = trained(start())
    state, ours = trained(start(), told.append, place_fn=lambda batch: batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (state, ours), (whole, metrics))
    assert [numbers["step"] for numbers in told] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([numbers["loss"] for numbers in told], metrics["loss"], rtol=1e-5)
    half, _ = trained(start(), told.append, num_epochs=1)
    cut, _ = trained(half, told.append, num_epochs=1)
    jax.tree.map(np.testing.assert_array_equal, cut, state)
    assert [numbers["step"] for numbers in told[-3:]] == [4, 5, 6], "a run that goes on counts on"


def test_steps_with_a_hook_are_compiled_once():
    trained(start(), lambda numbers: None, num_epochs=1)
    before = training.run._on_rows_compiled._cache_size()
    trained(start(), lambda numbers: numbers, num_epochs=2)
    assert training.run._on_rows_compiled._cache_size() == before


def test_a_hook_inside_jit_is_named():
    with pytest.raises(ValueError, match=r"on_step is called from Python .* call it outside"):
        jax.jit(lambda state: trained(state, print))(start())


def test_what_is_told_of_an_evaluation_is_that_of_its_states():
    told = []
    for state in evaluate.evaluate(KEY, PLAN, MODEL, X, Y, batch_size=5, on_step=told.append):
        numbers = told[-1]
        assert numbers["robust_accuracy"] == evaluate.accuracies(state)["worst case"]
        ran = N if numbers["attack"] == "clean" else (state.success[state.names.index(numbers["attack"])] != evaluate.NOT_RUN).sum()
        assert numbers["num_done"] == ran
    survivors = (state.success[0] != 1).sum()
    assert [told[i]["attack"] for i in (0, 1, -1)] == ["clean", "weak", "strong"]
    assert (told[3]["num_done"], told[-1]["num_done"]) == (N, survivors) and 0 < survivors < N
    assert told[-1]["robust_accuracy"] < told[0]["robust_accuracy"] == 1.0


def test_what_is_no_function_is_named_before_anything_runs():
    for driver in (lambda on_step: trained(start(), on_step), DRIVERS["evaluate"], DRIVERS["vote_dataset"]):
        with pytest.raises(TypeError, match="expected on_step as a function, got 'log'"):
            driver("log")


def test_votes_that_are_told_are_those_of_the_state():
    told = []
    for state in smoothing.vote_dataset(KEY, MODEL, X, on_step=told.append, **VOTES):
        assert told[-1]["num_votes"] == state.estimation.sum()
        assert told[-1]["num_selected"] == (state.selection.sum(axis=1) == 20).sum()
        assert told[-1]["num_complete"] == (state.estimation.sum(axis=1) == 40).sum()
    assert told[-1] | {"seconds": 0, "step": 0} == {"step": 0, "seconds": 0, "num_selected": N, "num_complete": N, "num_votes": 40 * N}
    *_, plain = smoothing.vote_dataset(KEY, MODEL, X, **VOTES)
    np.testing.assert_array_equal(plain.estimation, state.estimation)


def test_the_time_of_the_caller_is_not_that_of_the_step():
    clock = iter([0.0, 1.0, 10.0, 12.0, 100.0])
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
        assert list(hooks.reported(iter("ab"), lambda state: {"state": state}, told.append)) == ["a", "b"]
    assert told == [{"step": 0, "seconds": 1.0, "state": "a"}, {"step": 1, "seconds": 2.0, "state": "b"}]


def test_the_recipe_for_tensorboard_writes_curves(tmp_path):
    pytest.importorskip("tensorboardX")
    page = (pathlib.Path(__file__).parents[1] / "docs/how_to/log_metrics.md").read_text()
    (recipe,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    scope = {}
    exec(compile(recipe, "log_metrics.md", "exec"), scope)
    for name, driver in DRIVERS.items():
        on_step = scope["tensorboard"](str(tmp_path / name))
        driver(start(), on_step) if name == "fit" else driver(on_step)
        (events,) = (tmp_path / name).iterdir()
        assert {"fit": b"metrics/loss", "evaluate": b"strong/robust_accuracy"}.get(name, b"metrics/num_votes") in events.read_bytes()
