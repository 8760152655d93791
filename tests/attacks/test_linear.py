"""On a linear model the answers are known: worst-case corners, and the distance to the nearest hyperplane within the box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, base, losses
from robustjax.threats import L0, L1, L2, Linf

B, D, C = 16, 192, 10
KEY = jax.random.key(0)


def forward(weights, bias, x):
    return x @ weights + bias[None]


@functools.cache
def problem():
    """16 points of medium margin, well inside the box."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(D, C)).astype(np.float32), rng.normal(size=C).astype(np.float32)
    points = rng.uniform(0.2, 0.8, size=(3000, D)).astype(np.float32)
    ordered = np.sort(points @ weights + bias, axis=1)
    x = points[np.argsort(ordered[:, -2] - ordered[:, -1])[: 36 * B : 36]]
    return jax.tree_util.Partial(forward, weights, bias), x, (x @ weights + bias).argmax(axis=1)


margins = jax.jit(lambda model_fn, x, y: losses.margin(model_fn(x), y))
distances = jax.jit(lambda threat, x, normal, goal: threat.norm(threat.hyperplane(x, normal, goal)))


def optimum(model_fn, x, y, threat):
    """The distance to the nearest other class within the box, class by class in closed form or by its greedy equivalent (l0)."""
    (weights, bias), labels = model_fn.args, y
    logits = x @ weights + bias
    best = np.full(len(x), np.inf)
    for target in range(C):
        normal = weights[:, target] - weights[:, labels].T
        goal = logits[np.arange(len(x)), labels] - logits[:, target]
        if isinstance(threat, L0):
            gains = np.sort(np.abs(normal) * np.where(normal > 0, 1 - x, x), axis=1)[:, ::-1].cumsum(axis=1)
            distance = 1.0 + (gains < goal[:, None]).sum(axis=1)
        else:
            distance = np.asarray(distances(threat, x, normal, goal))
        best = np.minimum(best, np.where(target == labels, np.inf, distance))
    return best


MINIMUM_NORM = {  # attack, threat, bar of the median ratio to the optimum
    "fab-linf": (base.bind(attacks.fab, num_steps=60), Linf, 1.01),
    "fab-l2": (base.bind(attacks.fab, num_steps=60), L2, 1.01),
    "fab-l1": (base.bind(attacks.fab, num_steps=60), L1, 1.06),
    "fmn-linf": (base.bind(attacks.fmn, num_steps=300), Linf, 1.05),
    "fmn-l2": (base.bind(attacks.fmn, num_steps=300), L2, 1.05),
    "fmn-l1": (base.bind(attacks.fmn, num_steps=300), L1, 1.05),
    "alma-l2": (base.bind(attacks.alma, num_steps=500), L2, 1.02),
    "alma-l1": (base.bind(attacks.alma, num_steps=500), L1, 1.02),
    "carlini_wagner": (base.bind(attacks.carlini_wagner, num_binary_search_steps=9, num_steps=300, learning_rate=0.01), L2, 1.01),
    "carlini_wagner_linf": (base.bind(attacks.carlini_wagner_linf, num_rounds=80, num_steps=50, learning_rate=0.01), Linf, 1.25),
    "deepfool-linf": (base.bind(attacks.deepfool, num_steps=30), Linf, 1.03),
    "deepfool-l2": (base.bind(attacks.deepfool, num_steps=30), L2, 1.03),
    "ddn": (base.bind(attacks.ddn, num_steps=100), L2, 1.3),
    "ead": (base.bind(attacks.ead, num_binary_search_steps=9, num_steps=300), L1, 1.25),
    "lbfgs": (base.bind(attacks.lbfgs, num_binary_search_steps=9, num_steps=60), L2, 1.02),
}


@pytest.mark.parametrize("name", MINIMUM_NORM)
def test_minimum_norm_attacks_reach_the_optimum(name):
    attack, threat, bar = MINIMUM_NORM[name]
    model_fn, x, y = problem()
    result = jax.jit(base.bind(attack, threat=threat(jnp.inf)))(KEY, model_fn, x, y)
    assert result.success.all()
    ratio = np.asarray(result.info.norm) / optimum(model_fn, x, y, threat(jnp.inf))
    assert np.median(ratio) <= bar
    assert ratio.max() <= (1.25 if name != "ddn" else np.inf)
    assert ratio.min() >= 1 - 1e-4, "nothing is nearer than the optimum"


@pytest.mark.parametrize(
    "attack",
    [
        base.bind(attacks.fmn, num_steps=300),
        base.bind(attacks.sigma_zero, num_steps=600),
        base.bind(attacks.carlini_wagner_l0, num_rounds=60, num_steps=40, learning_rate=0.1),
    ],
    ids=["fmn", "sigma_zero", "carlini_wagner_l0"],
)
def test_l0_attacks_are_within_one_coordinate(attack):
    model_fn, x, y = problem()
    result = jax.jit(base.bind(attack, threat=L0(jnp.inf)))(KEY, model_fn, x, y)
    assert result.success.all()
    excess = np.asarray(result.info.norm) - optimum(model_fn, x, y, L0(jnp.inf))
    assert np.median(excess) <= 1
    assert excess.min() >= 0


@functools.cache
def binary():
    """Two classes: the margin is linear, its maximum over a ball closed; never positive, so that no attack stops early."""
    rng = np.random.default_rng(1)
    direction = (rng.normal(size=D) / D).astype(np.float32)
    model_fn = jax.tree_util.Partial(forward, np.stack([-direction, direction], axis=1) / 2, np.array([5.0, 0.0], np.float32))
    x = rng.uniform(0.3, 0.7, size=(8, D)).astype(np.float32)
    return model_fn, x, np.zeros(8, np.int32), direction


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square"])
def test_linf_attacks_reach_the_corner(name):
    model_fn, x, y, direction = binary()
    eps = 0.1
    suite = {
        "fgsm": base.bind(attacks.fgsm),
        "pgd": base.bind(attacks.pgd, step_size=0.03, num_steps=10),
        "apgd": base.bind(attacks.apgd, num_steps=10),
        "square": base.bind(attacks.square, num_queries=2000),
    }
    result = jax.jit(base.bind(suite[name], threat=Linf(eps), loss_fn=losses.margin))(KEY, model_fn, x, y)
    clean = np.asarray(margins(model_fn, x, y))
    corner = clean + eps * np.abs(direction).sum()
    if name == "square":  # random search: near it
        assert ((result.loss - clean) / (corner - clean) >= 0.5).all()
    else:
        np.testing.assert_allclose(result.loss, corner, atol=1e-6)
        np.testing.assert_allclose(result.delta, np.broadcast_to(eps * np.sign(direction), x.shape), atol=1e-7)


@pytest.mark.parametrize(("threat", "order"), [(L2, 2), (L1, np.inf)])
def test_pgd_and_apgd_reach_margin_plus_eps_times_the_dual_norm(threat, order):
    model_fn, x, y, direction = binary()
    eps = 0.2
    best = np.asarray(margins(model_fn, x, y)) + eps * np.linalg.norm(direction, order)
    goal = {"threat": threat(eps, box=(-1e3, 1e3)), "loss_fn": losses.margin}
    for attack in (base.bind(attacks.pgd, step_size=eps / 4, num_steps=40, **goal), base.bind(attacks.apgd, num_steps=60, **goal)):
        loss = np.asarray(jax.jit(attack)(KEY, model_fn, x, y).loss)
        np.testing.assert_allclose(loss, best, rtol=2e-2 if threat is L1 else 1e-4)
        assert (loss <= best + 1e-5).all()


def test_more_restarts_never_lower_the_best_loss():
    model_fn, x, y = problem()
    attack = base.bind(attacks.pgd, threat=L2(0.1), step_size=0.02, num_steps=1)
    previous = -np.inf
    for num_restarts in (1, 2, 4):
        result = jax.jit(attacks.restarts(attack, num_restarts))(KEY, model_fn, x, y)
        score = np.where(result.success, 1e3, 0.0) + result.loss
        assert (score >= previous).all()
        previous = score


def test_square_in_l2_and_l1_lowers_the_margin():
    model_fn, x, y = problem()
    for threat in (L2(1.0), L1(8.0)):
        result = jax.jit(base.bind(attacks.square, threat=threat, num_queries=300))(KEY, model_fn, x, y)
        assert (result.loss >= margins(model_fn, x, y) - 1e-6).mean() > 0.9
        assert result.success.mean() > 0.1
        assert jax.jit(threat.within)(result.delta).all()
