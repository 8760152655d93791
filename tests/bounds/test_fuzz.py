"""Random weights, inputs and radii: no output leaves its bounds, and bounds that are wrong are found out."""

import pytest

from experiments.lib import bounded_models, fuzzing
from robustjax import bounds

_METHODS = {name: fuzzing.METHODS[name] for name in ("interval", "CROWN", "DeepZ", "hybrid zonotope")}


@pytest.mark.parametrize(("name", "ball"), [("channels first, groups, leaky ReLU", "linf"), ("tanh", "l2")])
def test_no_output_leaves_its_bounds(name, ball):
    found = list(fuzzing.cases(bounded_models.ZOO[name], ball, range(13), _METHODS))
    assert len(found) == 13 * len(_METHODS) and not [case for case in found if case.is_violation]


def _too_tight(model_fn, x, threat):
    lower, upper = bounds.crown(model_fn, x, threat)
    middle = 0.5 * (lower + upper)
    return bounds.Bounds(middle + 0.6 * (lower - middle), middle + 0.6 * (upper - middle))


def test_bounds_that_are_too_tight_or_no_number_are_found_out():
    wrong = {"too tight": _too_tight, "none": lambda *args: bounds.Bounds(*(float("nan") * end for end in bounds.interval(*args)))}
    found = list(fuzzing.cases(bounded_models.ZOO["mlp"], "linf", range(10), wrong))
    assert all(case.is_violation for case in found if case.method == "none")
    assert any(case.is_violation for case in found if case.method == "too tight")
