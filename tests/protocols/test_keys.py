"""No two draws of an attack share a key: not its start, its own choices, nor the draws of a randomised model, over all steps."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from robustjax import attacks, base
from robustjax.threats import L1, L2, Linf

X, Y = jnp.full((2, 9), 0.5), jnp.array([0, 1])
_WEIGHT = 0.1 * jax.random.normal(jax.random.key(1), (9, 3))
_SAMPLERS = ("uniform", "normal", "laplace", "exponential", "rademacher", "bernoulli", "randint", "permutation", "gumbel", "categorical")
ATTACKS: dict[str, Any] = {
    "pgd": base.bind(attacks.pgd, threat=L2(0.1), step_size=0.05, num_steps=3),
    "pgd in l1": base.bind(attacks.pgd, threat=L1(0.1), step_size=0.05, num_steps=3),
    "r_fgsm": base.bind(attacks.r_fgsm, threat=Linf(0.1), alpha=0.05),
    "rs_fgsm": base.bind(attacks.rs_fgsm, threat=Linf(0.1)),
    "n_fgsm": base.bind(attacks.n_fgsm, threat=Linf(0.1)),
    "apgd": base.bind(attacks.apgd, threat=Linf(0.1), num_steps=4),
    "apgd_l1": base.bind(attacks.apgd_l1, threat=L1(0.1), num_steps=4),
    "square": base.bind(attacks.square, threat=Linf(0.1), num_queries=4),
    "square in l2": base.bind(attacks.square, threat=L2(0.1), num_queries=4),
    "ddn": base.bind(attacks.ddn, threat=L2(1.0), num_steps=3),
    "fmn": base.bind(attacks.fmn, threat=L2(1.0), num_steps=3),
    "fab": base.bind(attacks.fab, threat=L2(0.1), num_steps=3, delta=None),
    "carlini_wagner": base.bind(attacks.carlini_wagner, threat=L2(1.0), num_binary_search_steps=2, num_steps=2, learning_rate=0.1),
    "restarts": attacks.restarts(base.bind(attacks.pgd, threat=L2(0.1), step_size=0.05, num_steps=2), 2),
    "over_targets": attacks.over_targets(base.bind(attacks.apgd, threat=Linf(0.1), num_steps=2), 2),
    "worst_case": attacks.worst_case(
        base.bind(attacks.pgd, threat=L2(0.1), step_size=0.05, num_steps=2), base.bind(attacks.square, threat=Linf(0.1), num_queries=2)
    ),
}


class _Recorder:
    """Counts the keys that samplers and random models are given."""

    def __init__(self):
        self.seen = collections.Counter()

    def __call__(self, key):
        data = jax.random.key_data(key).reshape(-1, 2)
        jax.debug.callback(lambda data: self.seen.update(map(tuple, data.tolist())), data)


@jax.tree_util.register_pytree_node_class
class _Random:
    """A model whose draws are recorded."""

    def __init__(self, record):
        self.record = record

    def draw(self, keys):
        self.record(keys)
        return lambda x: x @ _WEIGHT

    def tree_flatten(self):
        return (), self.record

    @classmethod
    def tree_unflatten(cls, record, _):
        return cls(record)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_two_draws_share_a_key(name, monkeypatch):
    record = _Recorder()
    for sampler in _SAMPLERS:
        original = getattr(jax.random, sampler)

        def recorded(key, *args, original=original, **kwargs):
            record(key)
            return original(key, *args, **kwargs)

        monkeypatch.setattr(jax.random, sampler, recorded)
    jax.block_until_ready(jax.jit(lambda key: ATTACKS[name](key, _Random(record), X, Y))(jax.random.key(5)))
    jax.effects_barrier()
    assert record.seen, "nothing was drawn"
    assert max(record.seen.values()) == 1, f"{sum(count > 1 for count in record.seen.values())} keys were used twice"
