"""Names of version 0.1.0 lead to their successors, with a warning that says which."""

import pytest

from robustjax import arrays, attacks, bilevel, poisoning, prng, smoothing, training

OLD = {
    "with_goal": (attacks, attacks.with_loss),
    "sample": (smoothing, smoothing.vote_dataset),
    "craft": (training, training.attacked_inputs),
    "statistics": (training, training.batch_norm_statistics),
    "adam": (bilevel, bilevel.solve_by_adam),
    "weights": (poisoning, poisoning.example_weights),
    "fold_in": (arrays, prng.fold_in),
    "flat": (arrays, arrays.flatten_examples),
}


@pytest.mark.parametrize("name", OLD)
def test_old_names_lead_to_their_successors(name):
    module, successor = OLD[name]
    with pytest.warns(DeprecationWarning, match="is now robustjax"):
        assert getattr(module, name) is successor


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match=r"robustjax\.attacks.*no_such_name"):
        attacks.no_such_name  # noqa: B018
