"""A threat that places its perturbation at random, such as a patch: every attack draws it afresh in each step, and not as the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, losses
from robustjax.threats import L2, Linf

B, D = 2, 6
X = jnp.full((B, D), 0.5)
_WEIGHT = jax.random.normal(jax.random.key(1), (D, 3))
Y = jnp.argmax(X @ _WEIGHT, axis=1)
ATTACKS = {
    "pgd": (base.bind(attacks.pgd, step_size=0.02, num_steps=4), Linf(0.1), 5),
    "mi_fgsm": (base.bind(attacks.mi_fgsm, step_size=0.02, num_steps=4), L2(0.1), 5),
    "ddn": (base.bind(attacks.ddn, num_steps=4), L2(0.1), 5),
    "deepfool": (base.bind(attacks.deepfool, num_steps=4), L2(0.1), 5),
    "fmn": (base.bind(attacks.fmn, num_steps=4), L2(0.1), 5),
    "ead": (base.bind(attacks.ead, num_binary_search_steps=2, num_steps=2), L2(0.1), 4),
    "carlini_wagner": (base.bind(attacks.carlini_wagner, num_binary_search_steps=2, num_steps=2, learning_rate=0.1), L2(0.1), 4),
    "square": (base.bind(attacks.square, num_queries=3), L2(0.1), 5),
}


@base.node
class _Shifted:
    """A ball whose perturbation is rolled along the input by a random number of places; as it is, by none."""

    ball: Linf | L2
    seen: set = base.static_field()
    shift: jax.Array | int = 0

    def draw(self, keys):
        jax.debug.callback(lambda data: self.seen.update(map(tuple, data.tolist())), jax.random.key_data(keys))
        return _Shifted(self.ball, self.seen, jax.vmap(lambda key: jax.random.randint(key, (), 0, D))(keys))

    def apply(self, x, delta):
        moved = jax.vmap(jnp.roll)(delta, jnp.broadcast_to(self.shift, x.shape[:1]))
        return jnp.clip(self.ball.apply(x, moved), 0.0, 1.0)

    def __getattr__(self, name):
        if name in (*base.NORM_THREAT, "init", "project", "steepest"):
            return getattr(self.ball, name)
        raise AttributeError(name)


class _Seen(set):
    """Keys that were drawn with; one object is as good as another to the jit cache."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@base.node
class _Random:
    """A linear model whose draws are counted too."""

    seen: set = base.static_field()

    def draw(self, keys):
        jax.debug.callback(lambda data: self.seen.update(map(tuple, data.tolist())), jax.random.key_data(keys))
        return lambda x: x @ _WEIGHT


@pytest.mark.parametrize("name", ATTACKS)
def test_every_step_draws_the_threat_afresh(name):
    attack, ball, num_draws = ATTACKS[name]
    by_threat, by_model = _Seen(), _Seen()
    threat = _Shifted(ball, by_threat)
    result = jax.jit(base.bind(attack, threat=threat))(jax.random.key(0), _Random(by_model), X, Y)
    jax.effects_barrier()
    assert len(by_threat) == len(by_model) == num_draws * B
    assert not by_threat & by_model, "the model and the threat shared a key"
    np.testing.assert_allclose(result.x, threat.apply(X, result.delta), atol=1e-7)


def test_a_perturbation_is_found_that_serves_at_every_place():
    # The model sees the first coordinate alone: a single draw would move only that coordinate of delta which lands there.
    model_fn = jax.tree_util.Partial(lambda w, x: x[:, :1] * w, jnp.array([[1.0, -1.0]]))
    attack = base.bind(attacks.pgd, step_size=0.1, num_steps=40, delta=0.0, loss_fn=losses.margin, keep_fn=attacks.keep_last)
    result = jax.jit(base.bind(attack, threat=_Shifted(Linf(0.1), _Seen())))(jax.random.key(0), model_fn, X, jnp.zeros(B, int))
    np.testing.assert_allclose(result.delta, -0.1, atol=1e-6)
