"""What a user can get wrong with attacks on training data is named at trace time: what was expected, what was got, what to do."""

import functools

import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import optax
import pytest

from robustjax import base, bilevel, losses, poisoning, training
from robustjax.poisoning import classical, sanitized
from robustjax.threats import Linf

KEY, D, C, N = jax.random.key(0), 4, 3, 12
X, Y = jnp.linspace(0.1, 0.9, N * D).reshape(N, D), jnp.arange(N) % C
SIGNS, ROWS = np.where(np.arange(N) % 2 == 0, 1, -1), np.asarray(X)
THREAT = Linf(0.1)
NETWORK = {"params": {"w": jnp.ones((D, C))}, "model_state": None}
NAN = X.at[0, 0].set(jnp.nan)
ONE_HOT = jax.nn.one_hot(Y, C)
GOOD = base.Bilevel(lambda t, p, b: jnp.sum((t - p.mean(0)) ** 2), lambda t, p, b: jnp.sum(t**2))
SOLVE = base.bind(bilevel.descend, inner_loss=GOOD.inner_loss, num_steps=2, step_size=0.1)
CG = base.bind(bilevel.conjugate_gradient, num_steps=2)


def apply_fn(params, model_state, x, mode):
    del mode
    return x @ params["w"], model_state


def init_fn(key):
    return {"w": jax.random.normal(key, (D, C))}


def with_defaults(function, *args, **defaults):
    """The call with some arguments replaced, by position or name."""
    return lambda changes=None, **options: (
        lambda: function(*[(changes or {}).get(i, arg) for i, arg in enumerate(args)], **(defaults | options))
    )


craft = with_defaults(
    poisoning.craft_poisons,
    KEY,
    X,
    threat=THREAT,
    gradient_fn=poisoning.differentiated(lambda key, x: jnp.sum(x)),
    optimizer=optax.sgd(0.1),
    num_steps=2,
)
control = with_defaults(poisoning.random_control, KEY, X, THREAT)
choose = with_defaults(poisoning.choose, KEY, np.asarray(Y), 2)
insert = with_defaults(poisoning.insert, ROWS, np.asarray(Y), np.array([0, 1]), ROWS[:2])


def of_task(function, rows=(0, 3), **defaults):
    """The call with some fields of its task replaced, or some options."""

    def call(**changes):
        fields = {"x": X, "y": Y, "rows": np.array(rows), "x_target": X[:1], "y_target": Y[1:2]}
        fields = {name: changes.pop(name, value) for name, value in fields.items()}
        return lambda: function(KEY, changes.pop("task", poisoning.Task(**fields)), **(defaults | changes))

    return call


metapoison = of_task(
    poisoning.metapoison, apply_fn=apply_fn, init_fn=init_fn, threat=THREAT, optimizer=optax.adam(0.1), num_steps=1, num_surrogates=1,
    num_epochs=1, batch_size=4, step_size=0.1,
)  # fmt: skip
matching = of_task(poisoning.gradient_matching, (0, 1, 2), params=NETWORK["params"], apply_fn=apply_fn, threat=THREAT, num_steps=1)
frogs = of_task(poisoning.feature_collision, (0, 1, 2), features_fn=jnp.tanh, step_size=0.1, beta=0.1, num_steps=2)
bullseye = of_task(poisoning.bullseye, (0, 1, 2), features_fns=[jnp.tanh], threat=THREAT, num_steps=1, learning_rate=0.1)


def victim(**options):
    options = {"training_loss": base.bind(training.gaussian, apply_fn=apply_fn, sigma=0.1), "num_clean": 4} | options
    return poisoning.VictimTraining(apply_fn, init_fn, **options)


def descent(**options):
    return poisoning.ResponseDescent(**({"num_epochs": 1, "num_poison": 2} | options))


def certificate(**options):
    return poisoning.SoftCertificate(**({"sigma": 0.1, "num_noise": 2} | options))


lower = of_task(poisoning.poison_certificates, (0, 1, 2, 3), threat=THREAT, victim=victim(), certificate=certificate(), descent=descent())
radius = with_defaults(poisoning.soft_radius, NETWORK["params"], KEY, X, Y, apply_fn=apply_fn, certificate=certificate())
influence = with_defaults(
    poisoning.influence, jnp.ones(D), X, jnp.ones(N), loss_fn=lambda w, x, y: (x @ w - y) ** 2, test_loss_fn=jnp.sum, linear_fn=CG
)
game = with_defaults(
    poisoning.learn_regularization, GOOD, bilevel.unrolled, SOLVE, X[:2], 0.0, jnp.zeros(D), poison_step=0.1, strength_step=0.1, num_steps=1
)
classic = with_defaults(
    classical.attack,
    ROWS,
    SIGNS,
    fit_fn=functools.partial(classical.ridge, reg=0.1),
    pullback_fn=functools.partial(classical.ridge_pullback, reg=0.1),
    outer_fn=classical.toward_parameters(np.zeros(D)),
    effort_order=2,
    weight=0.0,
    step_size=0.1,
    num_steps=1,
)
feasible = with_defaults(sanitized.feasible, ROWS, SIGNS, 1)
SETS = (sanitized.feasible(ROWS, SIGNS, 1), sanitized.feasible(ROWS, SIGNS, -1))
kkt = with_defaults(sanitized.kkt_attack, ROWS, SIGNS, np.ones(D + 1), SETS, share=0.1, weight_decay=0.1, num_steps=2)
min_max = with_defaults(sanitized.min_max_attack, ROWS, SIGNS, SETS, share=0.1, weight_decay=0.1, step_size=0.1, num_steps=4)


def unweighted(loss_fn, phi=None, batch=(X, Y, X, Y)):
    problem = poisoning.weighted_examples(loss_fn)
    solve = base.bind(bilevel.descend, inner_loss=problem.inner_loss, num_steps=1, step_size=0.1)
    return lambda: bilevel.unrolled(problem, solve, jnp.zeros(N) if phi is None else phi, jnp.ones(D), batch)


def gradient(made):
    return craft(gradient_fn=lambda key, x, state: made)


MISTAKES = {
    "craft with a number for a key": (craft({0: 0}), "expected a key", "jax.random.key"),
    "craft with several keys": (craft({0: jax.random.split(KEY, N)}), "one key", "(12,)"),
    "craft of a list": (craft({1: [[0.1]]}), "expected x as an array", "list"),
    "craft of uint8": (craft({1: jnp.ones((2, 3), jnp.uint8)}), "uint8", "/ 255"),
    "craft of bfloat16": (craft({1: X.astype(jnp.bfloat16)}), "expected x of float32 or float64", "bfloat16", "cast inside the model"),
    "craft of one image without an axis": (craft({1: X[0]}), "expected x [M, ...]", "x[None]"),
    "craft of no image": (craft({1: X[:0]}), "at least 1 image", "(0, 4)"),
    "craft of NaN": (craft({1: NAN}), "NaN or infinite"),
    "craft outside the box": (craft({1: X * 255}), "leave the box", "scale them"),
    "craft with eps for a threat": (craft(threat=0.03), "expected a threat", "0.03", "threats.Linf"),
    "craft with a class for a threat": (craft(threat=Linf), "expected a threat", "make an instance"),
    "craft in 8 of 255": (lambda: craft(threat=Linf(8))(), "wider than the box", "/ 255"),
    "craft without steps": (craft(num_steps=0), "num_steps=0", "pass num_steps >= 1"),
    "craft of 10.0 steps": (craft(num_steps=10.0), "num_steps", "10.0 of type float"),
    "craft with optax.adam": (craft(optimizer=optax.adam), "optax transformation", "optax.adam(0.01)"),
    "craft of a loss for a gradient": (craft(gradient_fn=lambda x: x.sum()), "gradient_fn(key, poisons, state)", "too many"),
    "craft of a gradient alone": (gradient(X), "to return (loss, gradient, state)", "differentiated"),
    "craft of a loss per poison": (gradient((X[:, 0], X, None)), "one real number", "[12]"),
    "craft of another gradient": (gradient((X.sum(), X[:2], None)), "the gradient of gradient_fn like the poisons", "got (2, 4)"),
    "craft of another state": (
        craft(gradient_fn=lambda key, x, state: (x.sum(), x, (state, 1.0)), state=jnp.zeros(3)), "the state it was given",
    ),
    "craft without a Response": (
        craft(gradient_fn=poisoning.response_gradient(GOOD, SOLVE, linear_fn=CG)), "Response(theta, zeros like theta)", "NoneType",
    ),
    "craft with an unbound method": (
        craft(gradient_fn=poisoning.method_gradient(GOOD, bilevel.implicit, SOLVE, jnp.zeros(D))), "'linear_fn'", "base.bind(implicit",
    ),
    "craft with an unbound solver": (
        craft(gradient_fn=poisoning.method_gradient(GOOD, bilevel.unrolled, bilevel.descend, jnp.zeros(D))), "base.bind(descend",
    ),
    "craft with a method that is none": (
        craft(gradient_fn=poisoning.method_gradient(GOOD, lambda *args: 0.0, SOLVE, jnp.zeros(D))), "to return a HyperGradient",
    ),
    "the gradient of a number": (lambda: poisoning.differentiated(3.0), "expected a function loss_fn(key, poisons)", "3.0"),
    "the gradient of losses [M]": (
        craft(gradient_fn=poisoning.differentiated(lambda key, x: x.sum(axis=1))), "loss_fn to return one real number", "[12]",
    ),
    "the gradient of a loss without a key": (
        craft(gradient_fn=poisoning.differentiated(lambda x: x.sum())), "loss_fn(key, poisons)", "too many",
    ),
    "the sign of a rate": (lambda: poisoning.signed(0.1), "optax transformation", "0.1"),
    "a control in a number": (control({2: 0.1}), "expected a threat", "0.1"),
    "a control of NaN": (control({1: NAN}), "NaN or infinite"),
    "a control outside the box": (control({1: X + 1}), "leave the box"),
    "no poison chosen": (choose({2: 0}), "num_poisons=0"),
    "a share of poisons": (choose({2: 0.1}), "num_poisons", "0.1 of type float"),
    "more poisons than images": (choose({2: 13}), "cannot poison 13 of 12", "between 1 and 12"),
    "poisons of a missing label": (choose(label=7), "no example has the label 7", "[0 1 2]"),
    "poisons of one-hot labels": (choose({1: np.asarray(ONE_HOT)}, label=1), "expected one label y", "argmax(axis=1)"),
    "poisons chosen by a number": (choose({0: 1}), "expected a key"),
    "labels [N, 1] in a set": (insert({1: np.asarray(Y)[:, None]}), "expected one label y", "y[:, 0]"),
    "one-hot labels in a set": (insert({1: np.asarray(ONE_HOT)}), "argmax(axis=1)"),
    "fewer labels than images": (insert({1: np.asarray(Y)[:-1]}), "one label y for each of 12", "(11,)"),
    "no rows": (insert({2: np.array([], int), 3: ROWS[:0]}), "at least one poison", "(0,)"),
    "a mask for rows": (insert({2: np.arange(N) < 2}), "got a mask", "np.flatnonzero"),
    "one row": (insert({2: 3, 3: ROWS[3]}), "expected rows [M]", "np.array"),
    "negative rows": (insert({2: np.array([-1, 0])}), "rows from 0 to 11", "-1"),
    "repeated rows": (insert({2: np.array([1, 1])}), "different rows"),
    "rows outside": (insert({2: np.array([1, 12])}), "rows from 0 to 11", "12"),
    "another number of poisons": (insert({3: ROWS[:3]}), "one poison (4,) for each of 2", "(3, 4)"),
    "poisons that are NaN": (insert({3: np.asarray(NAN)[:2]}), "poisons are not finite"),
    "poisons outside the box": (insert({3: ROWS[:2] + 1}), "leave the box", "clip them"),
    "real poisons among bytes": (insert({0: (ROWS * 255).astype(np.uint8)}), "float32 do not fit into x of uint8", "scale"),
    "a reversed box": (insert(box=(1.0, 0.0)), "lower < upper", "(1.0, 0.0)"),
    "a class for the ball of poisons": (insert(threat=Linf), "make an instance"),
    "poisons outside the ball": (insert({3: ROWS[:2] + 0.2}, threat=Linf(0.1)), "leave Linf", "project them"),
    "new labels in a ball": (insert(labels=np.array([1, 0]), threat=THREAT), "clean-label", "labels=None"),
    "unknown labels": (insert(labels=np.array([0, 9])), "labels among those of y", "9"),
    "metapoison without surrogates": (metapoison(num_surrogates=0), "num_surrogates=0"),
    "metapoison without epochs": (metapoison(num_epochs=0), "num_epochs=0"),
    "metapoison of half a step": (metapoison(num_unroll_steps=0.5), "num_unroll_steps", "0.5"),
    "metapoison in large batches": (metapoison(batch_size=13), "at most 12", "batch_size=13"),
    "metapoison of repeated rows": (metapoison(rows=np.array([1, 1])), "different rows"),
    "metapoison of real rows": (metapoison(rows=np.array([1.0, 2.0])), "whole rows", "poisoning.choose"),
    "metapoison with one-hot labels": (metapoison(y=ONE_HOT), "integer labels y [12]", "argmax"),
    "metapoison with labels out of range": (metapoison(y=Y + 1), "labels y in [0, 3)", "1 to 3"),
    "metapoison toward a missing class": (metapoison(y_target=jnp.array([3])), "labels y_target in [0, 3)"),
    "metapoison of one target image": (metapoison(x_target=X[0]), "expected x_target", "x_target[None]"),
    "metapoison of another image": (metapoison(x_target=X[:1, :2]), "expected x_target [T, 4]", "(1, 2)"),
    "metapoison with step 0": (metapoison(step_size=0.0), "step_size", "positive"),
    "metapoison without a state": (metapoison(apply_fn=lambda p, s, x, m: x @ p["w"]), "(logits, model_state)", "(logits, None)"),
    "metapoison of a model": (metapoison(apply_fn=lambda x: x), "apply_fn(params, model_state, x, mode)", "too many"),
    "metapoison with params for init": (metapoison(init_fn=NETWORK["params"]), "expected a function init_fn(key)"),
    "matching with a mean loss": (
        matching(loss_fn=lambda z, y: losses.cross_entropy(z, y).mean()), "one loss per example [1]", "do not reduce",
    ),
    "matching without restarts": (matching(num_restarts=0), "num_restarts=0"),
    "matching with labels [M, 1]": (matching(y=Y[:, None]), "integer labels y [12]", "y[:, 0]"),
    "matching with fewer labels": (matching(y=Y[:2]), "integer labels y [12]", "(2,)"),
    "matching with real targets": (matching(y_target=jnp.ones(1)), "integer labels y_target", "astype"),
    "matching with rate -1": (matching(learning_rate=-1.0), "learning_rate", "-1.0"),
    "matching with integer params": (matching(params={"w": jnp.ones((D, C), int)}), "params['w'] is differentiated", "int32[4, 3]"),
    "matching with flat logits": (matching(apply_fn=lambda p, s, x, m: ((x @ p["w"])[:, 0], s)), "expected logits [3, C]", "(3,)"),
    "matching under a crop": (matching(augment_fn=lambda key, x: x[:, :2]), "what augment_fn returns", "got (3, 2)"),
    "frogs with features of the whole": (frogs(features_fn=lambda x: x.mean()), "features [3, K]", "()"),
    "frogs toward another image": (frogs(x_target=X[:1, :2]), "expected x_target"),
    "frogs toward two targets": (frogs(x_target=X[:2]), "one target [1, ...] or one for each base, 3, got 2"),
    "frogs with opacity 30": (frogs(watermark=30), "watermark is a share", "30"),
    "frogs with beta -1": (frogs(beta=-1.0), "beta", "at least 0"),
    "frogs with step inf": (frogs(step_size=jnp.inf), "step_size is not finite"),
    "frogs outside the box": (frogs(box=(0.0, 0.2)), "leaves the box (0.0, 0.2)"),
    "bullseye with one network": (bullseye(features_fns=jnp.tanh), "list of networks", "[features_fn]"),
    "bullseye without a network": (bullseye(features_fns=[]), "one at least", "[]"),
    "bullseye with rate 0": (bullseye(learning_rate=0.0), "learning_rate", "positive"),
    "radius under no noise": (lambda: certificate(sigma=0.0), "sigma", "positive"),
    "radius under sigma inf": (lambda: certificate(sigma=jnp.inf), "sigma", "inf"),
    "radius under sigma -1": (lambda: certificate(sigma=-1.0), "sigma", "-1.0"),
    "radius of one-hot labels": (radius({3: ONE_HOT}), "integer labels y [12]", "argmax"),
    "radius of no draw": (lambda: certificate(num_noise=0), "num_noise=0"),
    "radius with smoothing .6": (lambda: certificate(smoothing=0.6), "smoothing", "[0, .5)", "0.6"),
    "certified poisons without epochs": (lambda: descent(num_epochs=0), "num_epochs=0"),
    "certified poisons with few images": (lower(descent=descent(num_poison=5)), "a batch takes", "5"),
    "certified poisons of another shape": (lower(x_target=X[:, :2]), "expected x_target [T, 4]", "(12, 2)"),
    "certified poisons with labels out of range": (lower(y=Y + 5), "labels y in [0, 3)"),
    "certified poisons with a plain loss": (
        lower(victim=victim(training_loss=lambda p, x, y: 0.0)), "training_loss(params, model_state, key, x, y)", "too many",
    ),
    "certified poisons with a rate for a descent": (lower(descent=0.1), "expected descent=poisoning.ResponseDescent", "float"),
    "certified poisons with a loss for a victim": (lower(victim=training.gaussian), "expected victim=poisoning.VictimTraining", "function"),
    "certified poisons with sigma for a certificate": (lower(certificate=0.5), "expected certificate=poisoning.SoftCertificate", "float"),
    "a radius with sigma for a certificate": (radius(certificate=0.5), "expected certificate=poisoning.SoftCertificate", "float"),
    "certified poisons that fall by -1": (lambda: descent(learning_rate=-1.0), "learning_rate", "-1.0"),
    "certified poisons with damping -1": (lambda: descent(damping=-1.0), "damping", "at least 0"),
    "a victim that is trained in 0 steps": (lambda: victim(num_steps=0), "num_steps=0"),
    "a victim with rate 0": (lambda: victim(learning_rate=0.0), "learning_rate", "positive"),
    "images for a task": (metapoison(task=X), "expected poisoning.Task(x, y, rows, x_target, y_target)"),
    "a tuple for a task": (frogs(task=(X, Y, np.arange(3), X[:1], None)), "expected poisoning.Task", "tuple"),
    "a task of NaN": (bullseye(x=NAN), "NaN or infinite"),
    "a task outside the box": (matching(x=X + 1.0), "leave the box"),
    "a task with rows outside": (matching(rows=np.array([3, 12])), "different rows of 12", "12"),
    "a task with a mask for rows": (bullseye(rows=np.arange(N) < 2), "whole rows", "poisoning.choose"),
    "a task of no rows": (frogs(rows=np.array([], int)), "one at least"),
    "a task without what the targets shall be": (matching(y_target=None), "integer labels y_target [1]", "None"),
    "influence of a loss per example": (influence(loss_fn=lambda w, x, y: x * w), "loss_fn to return one real number", "[4]"),
    "influence on test losses [T]": (influence(test_loss_fn=lambda w: w), "test_loss_fn to return one real number", "[4]"),
    "influence with a number to regularize": (influence(regularizer_fn=0.1), "expected a function regularizer_fn", "0.1"),
    "influence of fewer labels": (influence({2: jnp.ones(3)}), "as many y", "(3,)"),
    "influence of one point": (influence({1: X[:1], 2: jnp.ones(1)}), "two at least"),
    "influence of NaN": (influence({1: NAN}), "NaN or infinite", "leave it out"),
    "influence with an unbound system": (influence(linear_fn=bilevel.conjugate_gradient), "linear_fn(product, v, start)", "'num_steps'"),
    "influence with damping -1": (influence(damping=-1.0), "damping", "at least 0"),
    "influence with integer params": (influence({0: jnp.ones(D, int)}), "params is differentiated", "int32[4]"),
    "weights of a mean loss": (unweighted(lambda w, x, y: (x @ w).mean()), "one loss per example [12]", "do not reduce"),
    "weights of other rows": (unweighted(lambda w, x, y: x @ w, jnp.zeros(5)), "one logit phi for each of 12", "(5,)"),
    "weights without clean data": (unweighted(lambda w, x, y: x @ w, batch=(X, Y)), "(x, y, x_clean, y_clean)"),
    "weights without a loss": (lambda: poisoning.weighted_examples(None), "expected a function loss_fn", "None"),
    "a penalty without a loss": (lambda: poisoning.penalized(None, None), "expected a function training_loss"),
    "a game without steps": (game(num_steps=0), "num_steps=0"),
    "a game outside its box": (game({3: X[:2] + 3}), "poisons from", "leaves the box"),
    "a game with bounds that cross": (game(bounds=(8.0, -8.0)), "the bounds needs lower < upper"),
    "a game outside its bounds": (game({4: 100.0}), "log_strength from 100", "leaves the box"),
    "a game with a step NaN": (game(strength_step=jnp.nan), "strength_step is not finite"),
    "a game with an unbound method": (game({1: bilevel.implicit}), "'linear_fn'"),
    "classical labels one-hot": (classic({1: np.asarray(ONE_HOT)}), "expected one label y", "argmax"),
    "classical images": (classic({0: ROWS.reshape(N, 2, 2)}), "rows x [N, D]", "x.reshape(len(x), -1)"),
    "classical NaN": (classic({0: np.asarray(NAN)}), "finite numbers", "drop those rows"),
    "classical rows that repeat": (classic(rows=[1, 1]), "different rows from 0 to 11"),
    "classical negative rows": (classic(rows=[-1]), "different rows from 0 to 11", "[-1]"),
    "classical rows of nothing": (classic(rows=[]), "one at least"),
    "classical effort of order 3": (classic(effort_order=3), "effort_order must be 1 or 2", "3"),
    "classical moving z": (classic(moving="z"), "moving 'x' or 'y'", "'z'"),
    "classical step 0": (classic(step_size=0.0), "step_size", "positive"),
    "classical weight below 0": (classic(weight=-1.0), "weight", "at least 0"),
    "classical in no step": (classic(num_steps=0), "num_steps=0"),
    "classical with a theta for a fit": (classic(fit_fn=np.zeros(D)), "expected a function fit_fn(x, y)"),
    "classical outside the box": (classic(box=(0.5, 1.0)), "outside the box", "pass its own"),
    "ruin by another loss": (lambda: classical.toward_errors(ROWS, SIGNS, loss="0-1"), "loss must be one of", "'0-1'"),
    "ruin with labels 0 and 1": (lambda: classical.toward_errors(ROWS, SIGNS > 0, loss="hinge"), "labels -1 or 1", "2 * y - 1"),
    "ruin of another theta": (lambda: classical.toward_errors(ROWS, SIGNS, loss="hinge")(np.ones(9)), "expected theta [4]", "(9,)"),
    "ridge with reg -1": (lambda: classical.ridge(ROWS, SIGNS, reg=-1.0), "reg", "at least 0"),
    "logistic regression with reg 0": (lambda: classical.logistic(ROWS, SIGNS, reg=0.0), "reg", "positive"),
    "logistic regression of 0 and 1": (lambda: classical.logistic(ROWS, SIGNS > 0, reg=0.1), "labels -1 or 1", "2 * y - 1"),
    "a target without its bias": (
        lambda: classical.toward_parameters(np.zeros(D))(np.zeros(D + 1)),
        "like the target (4,)",
        "bias comes last",
    ),
    "a target of NaN": (lambda: classical.toward_parameters([np.nan]), "not finite"),
    "a pullback without a bias": (
        lambda: classical.logistic_pullback(ROWS, SIGNS, np.ones(D), np.ones(D), reg=0.1), "theta and v [5], the bias last", "(4,)",
    ),
    "a pullback of other rows": (
        lambda: classical.ridge_pullback(ROWS[:3], SIGNS, np.ones(D), np.ones(D), reg=0.1), "one label y for each",
    ),
    "the cosine of other gradients": (lambda: poisoning.cosine({"a": X}, {"b": X}), "expected b like a"),
    "an SVM with other multipliers": (
        lambda: classical.svm_pullback(ROWS, SIGNS, np.ones(D + 1), np.ones(D + 1), dual=np.ones(3), c=1.0), "dual [12]", "(3,)",
    ),
    "a coefficient that is not there": (lambda: classical.least_label_change(ROWS, SIGNS, coefficient=9), "below 4", "9"),
    "label changes in l3": (lambda: classical.least_label_change(ROWS, SIGNS, coefficient=1, effort_order=3), "effort_order 1 or 2", "3"),
    "feasible of labels 0 and 1": (feasible({1: SIGNS > 0}), "labels -1 and 1", "2 * y - 1"),
    "feasible of label 0": (feasible({2: 0}), "label -1 or 1", "0"),
    "feasible of a share": (feasible(percentile=0.9), "in percent", "90.0"),
    "feasible of equal centres": (lambda: sanitized.feasible(np.ones((4, 2)), np.array([1, -1, 1, -1]), 1), "same centre"),
    "a decoy without its bias": (kkt({2: np.ones(D)}), "decoy [5]", "(4,)"),
    "one set for two": (kkt({3: SETS[:1]}), "two sets", "feasible(x, y, 1)"),
    "a share above 1": (kkt(share=2.0), "share of poisons above 0", "2.0"),
    "a grid of step 0": (kkt(grid_step=0.0), "grid_step", "positive"),
    "fewer steps than poisons": (min_max(share=1.0), "pass at least 12"),
    "min-max with a class for sets": (min_max({2: sanitized.Feasible}), "two sets"),
    "decoys of a model": (lambda: sanitized.decoys(ROWS, SIGNS, np.ones(D + 1)), "expected a function fit_fn(x, y)"),
    "decoys of quantile 5": (lambda: sanitized.decoys(ROWS, SIGNS, lambda x, y: np.ones(D + 1), quantiles=(5,)), "quantiles is a share"),
    "decoys that repeat 1.5 times": (
        lambda: sanitized.decoys(ROWS, SIGNS, lambda x, y: np.ones(D + 1), repeats=(1.5,)), "repeats[0]", "1.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_named_with_what_was_expected_and_what_to_do(name):
    mistakes.check(*MISTAKES[name])


def test_mistakes_are_named_while_a_program_is_traced():
    with pytest.raises(ValueError, match="integer labels y"):
        jax.eval_shape(lambda y: metapoison(y=y)(), ONE_HOT)
    with pytest.raises(ValueError, match="one loss per example"):
        jax.eval_shape(lambda x: matching(x=x, loss_fn=lambda z, y: losses.cross_entropy(z, y).mean())(), X)
