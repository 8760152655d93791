"""What users get wrong with attacks, losses, threats, evaluation and training: an error says what was expected and what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from robustjax import attacks, base, evaluate, flags, losses, parallel, training
from robustjax.threats import L0, L1, L2, Latent, Linf, Recolor

KEY = jax.random.key(0)
X, Y = jnp.full((2, 3), 0.5), jnp.zeros(2, jnp.int32)
MODEL = Partial(lambda w, x: x @ w, jnp.eye(3))
PGD = base.bind(attacks.pgd, threat=Linf(0.1), step_size=0.1, num_steps=2)
PLAN = {"pgd": PGD}


def pgd(*, key=KEY, model_fn=MODEL, x=X, y=Y, **options):
    return base.bind(PGD, **options)(key, model_fn, x, y)


def attacked(function, **options):
    return lambda: function(KEY, MODEL, X, Y, **options)


def evaluated(*, plan=PLAN, model_fn=MODEL, x=X, y=Y, batch_size=2, **options):
    *_, state = evaluate.evaluate(KEY, plan, model_fn, np.asarray(x), np.asarray(y), batch_size=batch_size, **options)
    return state


def resumed(**changes):
    state = next(evaluate.evaluate(KEY, PLAN, MODEL, np.asarray(X), np.asarray(Y), batch_size=2))
    return evaluated(state=state, **changes)


def fitted(*, x=X, y=Y, attack=PGD, batch_size=2, num_epochs=1, model_state=None):
    loss = base.bind(training.adversarial, apply_fn=lambda params, state, x, mode: (x @ params, state), attack=attack)
    optimizer = optax.sgd(0.1)
    state = training.init(jnp.eye(3), model_state, optimizer)
    step_fn = training.step(loss, optimizer)
    return training.fit(state, KEY, x, y, step_fn=step_fn, num_epochs=num_epochs, batch_size=batch_size)


@base.node
class Brightness:
    """A threat of the user's own, with nothing besides what `base.Threat` lists."""

    def init(self, key, x):
        return jnp.zeros(x.shape[0])

    def project(self, delta, x):
        return jnp.clip(delta, -0.1, 0.1)

    def steepest(self, grad, x, delta):
        return jnp.sign(grad)

    def apply(self, x, delta):
        return x + delta[:, None]


def spread(logits, y):
    return losses.cross_entropy(logits, y)[:, None]


MISTAKES = {
    # keys
    "key is a number": (lambda: pgd(key=0), "jax.random.key"),
    "key is None": (lambda: pgd(key=None), "jax.random.key"),
    "keys of another number": (lambda: pgd(key=jax.random.split(KEY, 3)), "[2]"),
    "key of floats": (lambda: pgd(key=jnp.zeros(2)), "jax.random.key"),
    # inputs and labels
    "x is a list": (lambda: pgd(x=[[0.5, 0.5, 0.5]]), "asarray"),
    "x of integers": (lambda: pgd(x=jnp.ones((2, 3), jnp.uint8)), "floating"),
    "x of half precision": (lambda: pgd(x=X.astype(jnp.bfloat16)), "float32"),
    "x without a batch": (lambda: pgd(x=X[0], y=Y[0]), "leading axis"),
    "one label for two inputs": (lambda: pgd(y=Y[:1]), "length"),
    "y is a list": (lambda: pgd(y=[0, 0]), "asarray"),
    "labels one-hot": (lambda: pgd(y=jnp.eye(3)[Y]), "argmax"),
    "labels in a column": (lambda: pgd(y=Y[:, None]), "y[:, 0]"),
    "labels of floats": (lambda: pgd(y=jnp.zeros(2)), "int32"),
    # models
    "model is an array": (lambda: pgd(model_fn=jnp.eye(3)), "model"),
    "model is a class": (lambda: pgd(model_fn=Partial), "model"),
    "model returns a tuple": (lambda: pgd(model_fn=lambda x: (x, None)), "tuple"),
    "model returns a dictionary": (lambda: pgd(model_fn=lambda x: {"logits": x}), "dict"),
    "model returns one logit": (lambda: pgd(model_fn=lambda x: x[:, :1]), "2 classes"),
    "model returns no classes": (lambda: pgd(model_fn=lambda x: x.sum(axis=1)), "[B, C]"),
    "model returns a map": (lambda: pgd(model_fn=lambda x: x[:, :, None]), "[B, C]"),
    "model returns integers": (lambda: pgd(model_fn=lambda x: x.argmax(axis=1)[:, None] + jnp.zeros((1, 3), int)), "floating"),
    "model sums over the batch": (lambda: pgd(model_fn=lambda x: x.sum(axis=0, keepdims=True)), "[1]"),
    # losses and goals
    "loss is a mean": (lambda: pgd(loss_fn=lambda z, y: losses.cross_entropy(z, y).mean()), "loss_fn returned"),
    "loss is a column": (lambda: pgd(loss_fn=spread), "loss_fn returned"),
    "success is one number": (lambda: pgd(success_fn=lambda z, y: losses.misclassified(z, y).any()), "success_fn returned"),
    "success is a float": (lambda: pgd(success_fn=losses.margin), "booleans"),
    "dlr of two classes": (lambda: losses.dlr(jnp.ones((2, 2)), Y), "margin"),
    "targeted dlr of three classes": (lambda: losses.targeted_dlr(jnp.ones((2, 3)), Y, target=Y), "4"),
    "target of another length": (lambda: losses.targeted_margin(jnp.ones((2, 3)), Y, target=Y[:1]), "target"),
    "kl of labels": (lambda: losses.kl(jnp.ones((2, 3)), Y), "log_probs"),
    # counts
    "no steps": (lambda: pgd(num_steps=0), "num_steps=0"),
    "steps of float": (lambda: pgd(num_steps=2.0), "integer"),
    "steps are a boolean": (lambda: pgd(num_steps=True), "integer"),
    "steps are traced": (lambda: jax.jit(lambda n: pgd(num_steps=n))(2), "static"),
    "no restarts": (lambda: attacks.restarts(PGD, 0), "num_restarts=0"),
    "no targets": (lambda: attacks.over_targets(PGD, 0), "num_targets=0"),
    "no queries": (attacked(attacks.square, threat=Linf(0.1), num_queries=0), "num_queries=0"),
    "no rounds": (
        attacked(attacks.carlini_wagner, threat=L2(1.0), num_binary_search_steps=0, num_steps=1, learning_rate=0.1),
        "num_binary_search_steps=0",
    ),
    "no memory": (attacked(attacks.lbfgs, threat=L2(1.0), num_binary_search_steps=1, num_steps=1, memory_size=0), "memory_size=0"),
    "no candidates": (attacked(attacks.deepfool, threat=L2(1.0), num_steps=1, num_candidates=0), "num_candidates=0"),
    "a learning rate of zero": (
        attacked(attacks.carlini_wagner, threat=L2(1.0), num_binary_search_steps=1, num_steps=1, learning_rate=0.0),
        "learning_rate must be positive",
    ),
    "a radius that never changes": (attacked(attacks.ddn, threat=L2(1.0), num_steps=1, gamma=0.0), "gamma must be positive"),
    "a random step longer than eps": (attacked(attacks.r_fgsm, threat=Linf(0.1), alpha=0.2), "alpha"),
    "a norm that is NaN": (lambda: evaluate.accuracy_curve([0.1, np.nan], [0.1]), "expected norms"),
    "no samples of eot": (lambda: attacks.eot(MODEL, num_samples=0), "num_samples=0"),
    # threats
    "threat is a number": (lambda: pgd(threat=0.03), "threats.Linf"),
    "threat is a class": (lambda: pgd(threat=Linf), "instance"),
    "threat is None": (lambda: pgd(threat=None), "threats.Linf"),
    "eps is negative": (lambda: Linf(-0.1), "at least 0"),
    "eps is NaN": (lambda: L2(float("nan")), "at least 0"),
    "eps is text": (lambda: Linf("8/255"), "number"),
    "eps is a list": (lambda: Linf([0.1, 0.2]), "array"),
    "eps in pixels": (lambda: Linf(8), "/ 255"),
    "eps per coordinate is infinite": (lambda: Linf(np.full((1, 3), np.inf)), "finite"),
    "eps of another length": (lambda: pgd(threat=Linf(jnp.full(5, 0.1))), "one per example"),
    "l0 eps per coordinate": (lambda: L0(np.ones((1, 3))), "counts"),
    "box upside down": (lambda: Linf(0.1, box=(1.0, 0.0)), "lower < upper"),
    "box of arrays upside down": (lambda: Linf(0.1, box=(np.ones((1, 3)), np.zeros((1, 3)))), "lower <= upper"),
    "box is a number": (lambda: Linf(0.1, box=1.0), "(lower, upper)"),
    "box of three": (lambda: Linf(0.1, box=(0.0, 0.5, 1.0)), "(lower, upper)"),
    "another ball": (attacked(attacks.ddn, threat=Linf(0.1), num_steps=1), "L2"),
    "another ball for apgd_l1": (attacked(attacks.apgd_l1, threat=L2(0.1), num_steps=3), "L1"),
    "codes for rs_fgsm": (attacked(attacks.rs_fgsm, threat=Latent(MODEL, 0.1)), "Latent"),
    "codes for fab": (attacked(attacks.fab, threat=Latent(MODEL, L2(0.1)), num_steps=1), "Latent"),
    "colours for n_fgsm": (attacked(attacks.n_fgsm, threat=Recolor(0.1, 4)), "Recolor"),
    "channels first in square": (
        lambda: attacks.square(KEY, MODEL, jnp.zeros((2, 3, 8, 8)), Y, threat=Linf(0.1), num_queries=1),
        "transpose",
    ),
    "own threat without a radius": (attacked(attacks.fgsm, threat=Brightness()), "finite_radius"),
    "own threat without norms": (attacked(attacks.ddn, threat=Brightness(), num_steps=1), "base.NormThreat"),
    "own threat without a ball's fields": (attacked(attacks.rs_fgsm, threat=Brightness()), "works in Ball, got Brightness"),
    # combinations
    "no attack": (lambda: attacks.targeted(0.1), "attack"),
    "a dictionary of attacks": (lambda: attacks.targeted(attacks.ensemble(Linf(0.1))), "worst_case"),
    "worst case of nothing": (lambda: attacks.worst_case(), "at least one"),
    "worst case of a list": (lambda: attacks.worst_case([PGD]), "attack"),
    "loss for fab": (lambda: attacks.with_loss(base.bind(attacks.fab, threat=L2(1.0)), loss_fn=losses.kl), "loss_fn"),
    "loss for over_targets": (lambda: attacks.with_loss(attacks.over_targets(PGD, 2), loss_fn=losses.kl), "over_targets"),
    "loss for autoattack": (lambda: attacks.with_loss(base.bind(attacks.autoattack, threat=Linf(0.1)), loss_fn=losses.kl), "over_targets"),
    "targets of targets": (lambda: attacks.over_targets(attacks.over_targets(PGD, 2), 2), "twice"),
    "targets of autoattack": (lambda: attacks.over_targets(base.bind(attacks.autoattack, threat=Linf(0.1)), 2), "twice"),
    "unknown version": (lambda: attacks.ensemble(Linf(0.1), "best"), "standard"),
    # evaluation
    "one attack for a mapping": (lambda: evaluated(plan=PGD), "{'pgd': attack}"),
    "no attacks": (lambda: evaluated(plan={}), "at least one"),
    "labels in a column, evaluated": (lambda: evaluated(y=np.zeros((2, 1), int)), "y[:, 0]"),
    "labels out of range, evaluated": (lambda: evaluated(y=np.array([0, 3])), "[0, 3)"),
    "labels from -1": (lambda: evaluated(y=np.array([0, -1])), "[0, 3)"),
    "targets out of range": (lambda: evaluated(plan={"t": attacks.targeted(PGD)}, targets=np.array([3, 3])), "targets"),
    "targeted beside others": (lambda: evaluated(plan={"p": PGD, "t": attacks.targeted(PGD)}), "targets="),
    "half targeted": (lambda: evaluated(plan={"w": attacks.worst_case(PGD, attacks.targeted(PGD))}), "targeted"),
    "pixels outside the box": (lambda: evaluated(x=255 * X), "leave the box"),
    "eps of another length, evaluated": (lambda: evaluated(plan={"p": base.bind(PGD, threat=Linf(np.full(5, 0.1)))}), "eps"),
    "step sizes of the batch": (
        lambda: evaluated(plan={"p": base.bind(PGD, step_size=np.full(2, 0.1))}, x=jnp.full((4, 3), 0.5), y=np.zeros(4, int), batch_size=2),
        "4 examples",
    ),
    "batch size 0": (lambda: evaluated(batch_size=0), "batch_size=0"),
    "batch size and devices": (lambda: evaluated(batch_size=3, mesh=parallel.data_mesh(2)), "devices"),
    "NaN logits": (lambda: evaluated(model_fn=lambda x: x * jnp.nan), "finite"),
    "resumed with another eps": (lambda: resumed(plan={"pgd": base.bind(PGD, threat=Linf(0.2))}), "attack pgd"),
    "resumed with another model": (lambda: resumed(model_fn=jax.tree.map(lambda w: 2 * w, MODEL)), "model"),
    "resumed with another closure": (lambda: resumed(model_fn=lambda x: 2 * x), "model"),
    "resumed with other data": (lambda: resumed(x=X + 0.1), "x"),
    "resumed with other labels": (lambda: resumed(y=np.array([1, 0])), "y"),
    "accuracy of what did not run": (
        lambda: evaluate.accuracies(evaluated(plan={"a": base.bind(PGD, threat=Linf(0.9)), "b": PGD}), survivors_only=False),
        "survivors_only",
    ),
    "unconverged without steps": (lambda: flags.unconverged(KEY, base.bind(attacks.fgsm, threat=Linf(0.1)), MODEL, X, Y), "num_steps"),
    "flags without a threat": (lambda: flags.survives_everything(KEY, base.bind(attacks.apgd, num_steps=1), MODEL, X, Y), "threat"),
    # training
    "labels out of range, trained": (lambda: fitted(y=jnp.array([0, 7])), "[0, 3)"),
    "x and y of other lengths, trained": (lambda: fitted(y=Y[:1]), "as many labels"),
    "batch larger than the data": (lambda: fitted(batch_size=3), "batch_size=3"),
    "no epochs": (lambda: fitted(num_epochs=0), "num_epochs=0"),
    "random start in a point": (lambda: fitted(attack=base.bind(PGD, threat=Linf(0.0))), "radius 0"),
    "eps of the batch, trained": (
        lambda: fitted(x=jnp.full((4, 3), 0.5), y=jnp.zeros(4, int), attack=base.bind(PGD, threat=Linf(np.full(2, 0.1)))),
        "eps",
    ),
    "eps ramp without an attack": (
        lambda: training.eps_ramp(base.bind(training.natural, apply_fn=MODEL), 0, num_ramp_steps=3),
        "threat",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    call, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert words in message, message
    assert caught.type in (ValueError, TypeError), caught.type


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 60
    assert L1(0.1).eps == 0.1  # and what is right passes
