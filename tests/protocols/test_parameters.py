"""Every parameter of every public attack, loss and count of votes, once bound, crosses `jit` as an argument; other floats trace nothing."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, losses, smoothing
from robustjax.threats import L0, L1, L2, Linf

KEY = jax.random.key(0)
X, Y, OTHER = jnp.full((2, 6), 0.5), jnp.array([0, 1]), jnp.array([2, 3])
MODEL = Partial(lambda w, x: x @ w, jax.random.normal(jax.random.key(1), (6, 5)))
THREATS: dict[str, Any] = {
    "alma": L1(1.0), "apgd_l1": L1(1.0), "autoattack": Linf(0.1), "carlini_wagner": L2(0.5), "carlini_wagner_l0": L0(2.0), "ddn": L2(0.5),
    "ead": L1(1.0), "lbfgs": L2(0.5), "sigma_zero": L0(2.0),
}  # fmt: skip
REQUIRED: dict[str, Any] = {
    "step_size": 0.01, "num_steps": 3, "num_binary_search_steps": 2, "num_rounds": 2, "learning_rate": 0.1, "num_queries": 4, "alpha": 0.05,
    "target": OTHER, "smoothing": 0.1, "sigma": 0.25, "num_samples": 4, "num_selection": 4, "chunk_size": 2,
}  # fmt: skip
VALUES: dict[tuple[str, str], Any] = {  # where a default of None leaves a parameter untried
    ("pgd", "optimizer"): optax.scale_by_adam(), ("pgd", "delta"): 0.01, ("apgd", "delta"): 0.0, ("apgd_l1", "delta"): 0.0,
    ("fab", "num_candidates"): 2, ("rs_fgsm", "step_size"): 0.2, ("square", "rescaled"): True, ("fmn", "rescaled"): True,
    ("n_fgsm", "step_size"): 0.1,
}  # fmt: skip


def _options(name, function, taken):
    options = {}
    for parameter in list(inspect.signature(function).parameters.values())[taken:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name == "threat":
            continue
        is_given = parameter.default is not parameter.empty or parameter.name in REQUIRED
        assert is_given, f"add a value for `{parameter.name}` of {name} to REQUIRED, and its threat to THREATS if that is no Linf"
        default = REQUIRED.get(parameter.name) if parameter.default is parameter.empty else parameter.default
        options[parameter.name] = VALUES.get((name, parameter.name), default)
    return options


def _attacks():
    for name in attacks.__all__:
        if list(inspect.signature(getattr(attacks, name)).parameters)[:4] == ["key", "model_fn", "x", "y"]:
            yield name


def _is_float(leaf):
    return isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating))


def _traced_once(function, *args):
    """The function crosses jit as an argument, and again with every float in it a little larger, in one trace."""
    num_traces = 0

    @jax.jit
    def run(function, *args):
        nonlocal num_traces
        num_traces += 1
        return function(*args)

    run.trace(function, *args)
    run.trace(jax.tree.map(lambda leaf: leaf * 1.01 if _is_float(leaf) else leaf, function), *args)
    assert num_traces == 1


@pytest.mark.parametrize("name", list(_attacks()))
def test_parameters_of_attacks(name):
    attack = getattr(attacks, name)
    options = _options(name, attack, 4) | {"threat": THREATS.get(name, Linf(0.1))}
    if name == "autoattack":
        options |= {"num_steps": 2, "num_queries": 2, "num_targets": 1}
    try:
        _traced_once(base.bind(attack, **options), KEY, MODEL, X, Y)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name} refuses what THREATS, REQUIRED and VALUES say of it here; correct these rows: {error}") from error


_LOSSES = [
    name for name, value in vars(losses).items() if inspect.isfunction(value) and value.__module__ == losses.__name__ and name[0] != "_"
]


@pytest.mark.parametrize("name", _LOSSES)
def test_parameters_of_losses(name):
    loss = getattr(losses, name)
    parameters = list(inspect.signature(loss).parameters)
    if parameters[:2] not in (["logits", "y"], ["logits", "probs"], ["logits", "log_probs"]):
        return  # no loss, but a part of one
    y = jax.nn.log_softmax(jnp.ones((2, 5))) if parameters[1] != "y" else Y
    _traced_once(base.bind(loss, **_options(name, loss, 2)), jnp.ones((2, 5)), y)


@pytest.mark.parametrize("name", ["vote", "count_predictions", "count_soft"])
def test_parameters_of_votes(name):
    function = getattr(smoothing, name)
    _traced_once(base.bind(function, **_options(name, function, 3)), KEY, MODEL, X)


def test_parameters_of_combinations_and_models():
    attack = base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.02, num_steps=2)
    for made in (
        attacks.restarts(attack, 2),
        attacks.over_targets(attack, 2),
        attacks.worst_case(attack, attack),
        attacks.targeted(attack),
    ):
        _traced_once(made, KEY, MODEL, X, Y)
    soft = smoothing.soft(MODEL, sigma=0.25, num_samples=2, temperature=2.0)
    _traced_once(attack, KEY, soft, X, Y)
    _traced_once(attack, KEY, attacks.eot(MODEL, num_samples=2), X, Y)
