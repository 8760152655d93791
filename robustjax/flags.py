"""Signs of a flawed evaluation: each function looks for one, and says what to do about it.

`randomized`, `softmax_output`, `few_classes`, `zero_gradient`, `blocked_gradient` and `black_box_wins` are AutoAttack's (Croce &
Hein, 2020); the others ask whether the attack worked at all. A raised flag is a reason to look, a silent one is no proof: post-hoc
defenses have fooled every ensemble.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import arrays, base, graph, losses, prng
from robustjax.attacks import combinators
from robustjax.base import Array, Key, ModelFn

_TIE = 0.002  # of robust accuracy: two attacks closer than .2 points count as equal (AutoAttack)
_FAR = 1.5  # between the norms that two attacks find
_BLOCKING = frozenset({"stop_gradient", "argmax", "argmin", "round", "floor", "ceil", "sign", "while", "pure_callback", "io_callback"})
_INTEGER = "convert_element_type"
_HARMLESS = {prefix + name for name in dir(jax.nn) for prefix in ("", "_")}  # relu at 0, softmax and its shift by the maximum


class Flag(NamedTuple):
    """What one look at an evaluation found."""

    name: str
    raised: bool
    value: float  # what was measured
    advice: str  # what it means and what to do, if raised


def inspect_model(key: Key, model_fn: ModelFn, x: Array, y: Array) -> list[Flag]:
    """Every flag that needs the model alone, at a batch x [B, ...] with labels y [B]."""
    return [
        randomized(key, model_fn, x, y),
        softmax_output(key, model_fn, x),
        few_classes(model_fn, x),
        zero_gradient(key, model_fn, x, y),
        non_finite_gradient(key, model_fn, x, y),
        saturated_loss(key, model_fn, x, y),
        blocked_gradient(model_fn, x),
    ]


def randomized(key: Key, model_fn: ModelFn, x: Array, y: Array, num_draws: int = 5) -> Flag:
    """Forward passes differ, in the number of correct answers or in the normalised logits by more than 1e-4."""
    keys = prng.example_keys(key, x.shape[0])
    draws = jnp.stack([base.draw(model_fn, prng.fold_in(keys, i))(x) for i in range(num_draws)])
    draws = jnp.where(jnp.isfinite(draws), draws, 0.0)  # a class masked by -inf differs in no draw
    unit = draws * arrays.ratio(1.0, jnp.abs(draws).max(axis=2, keepdims=True))
    spread = float(jnp.max(unit.max(axis=0) - unit.min(axis=0)))
    num_correct = (draws.argmax(axis=2) == y[None]).sum(axis=1)
    raised = spread > 1e-4 or bool(num_correct.max() != num_correct.min())
    return Flag("randomized", raised, spread, "the model is random: attack its mean with attacks.eot, and AutoAttack's version 'rand'.")


def softmax_output(key: Key, model_fn: ModelFn, x: Array) -> Flag:
    """The outputs are probabilities: in [0, 1] with sum 1."""
    outputs = base.draw(model_fn, prng.example_keys(key, x.shape[0]))(x)
    off = float(jnp.max(jnp.abs(outputs.sum(axis=1) - 1.0)))
    raised = off < 1e-5 and bool((outputs >= 0).all() & (outputs <= 1).all())
    return looks_like_probabilities(raised, off)


def looks_like_probabilities(raised: bool, value: float = 0.0) -> Flag:
    """The flag of outputs that are probabilities, once that is known."""
    return Flag("softmax_output", raised, value, "the model returns probabilities: return logits, or the losses saturate.")


def few_classes(model_fn: ModelFn, x: Array) -> Flag:
    """Fewer than 4 classes, where the targeted DLR loss is not defined."""
    keys = prng.example_keys(jax.random.key(0), x.shape[0])
    num_classes = jax.eval_shape(base.draw(model_fn, keys), x).shape[1]
    return Flag("few_classes", num_classes < 4, num_classes, "DLR needs 3 classes, its targeted form 4: use losses.margin.")


def zero_gradient(key: Key, model_fn: ModelFn, x: Array, y: Array) -> Flag:
    """The fraction of examples whose gradient of the margin is exactly zero at x."""
    grad = _gradient(key, model_fn, x, y, losses.margin)
    fraction = float(jnp.mean(arrays.norm(grad, jnp.inf) == 0))
    advice = "gradients vanish: use a loss on logits, a backward pass through the defense (BPDA), and black-box attacks."
    return Flag("zero_gradient", fraction > 0, fraction, advice)


def non_finite_gradient(key: Key, model_fn: ModelFn, x: Array, y: Array) -> Flag:
    """The fraction of examples whose gradient of the margin holds NaN or infinity."""
    grad = _gradient(key, model_fn, x, y, losses.margin)
    fraction = float(1.0 - jnp.isfinite(arrays.flatten_examples(grad)).all(axis=1).mean())
    return Flag("non_finite_gradient", fraction > 0, fraction, "gradients are not finite: run under jax.debug_nans to see where.")


def saturated_loss(key: Key, model_fn: ModelFn, x: Array, y: Array) -> Flag:
    """The fraction of examples on a plateau of the cross-entropy (below 1e-6), where its gradient is lost in float32."""
    loss = losses.cross_entropy(base.draw(model_fn, prng.example_keys(key, x.shape[0]))(x), y)
    return saturated_fraction(float(jnp.mean(loss < 1e-6)))


def saturated_fraction(fraction: float) -> Flag:
    """The flag of a saturated cross-entropy, once the fraction of examples is known."""
    return Flag("saturated_loss", fraction > 0.1, fraction, "the cross-entropy is saturated: attack with losses.dlr or losses.margin.")


def blocked_gradient(model_fn: ModelFn, x: Array) -> Flag:
    """Operations between input and logits through which no gradient, or another one than the derivative, flows."""
    keys = prng.example_keys(jax.random.key(0), x.shape[0])
    program = graph.program(base.draw(model_fn, keys), x, keep=graph.CUSTOM_DERIVATIVES | _HARMLESS)
    found = sorted(set(_blocking(program)))
    names = ", ".join(found) or "nothing"
    advice = f"the path from input to logits holds {names}: replace it in the backward pass (BPDA), or attack without gradients."
    return Flag("blocked_gradient", bool(found), len(found), advice)


def unchanged(x_clean: Array, x: Array, success: Array, correct: Array) -> Flag:
    """Successes on correctly classified inputs that were not changed at all: the model answers differently to the same input."""
    same = (arrays.flatten_examples(jnp.asarray(x) - jnp.asarray(x_clean)) == 0).all(axis=1)
    count = int(jnp.sum(same & jnp.asarray(success) & jnp.asarray(correct)))
    return Flag("unchanged", count > 0, count, "unchanged inputs count as adversarial: the model is random, or the clean pass differs.")


def black_box_wins(white_box_accuracy: float, black_box_accuracy: float) -> Flag:
    """A query attack (Square) breaks what gradients could not, by more than .2 points."""
    gap = white_box_accuracy - black_box_accuracy
    return Flag("black_box_wins", gap > _TIE, gap, "queries beat gradients: the gradients are masked; adapt the attack to the defense.")


def minimum_norms(names: Sequence[str], norms: np.ndarray, balls: Sequence[str | None]) -> Flag:
    """A minimum-norm attack finds norms far above those of another in the same ball: half as large again in the median.

    Args:
      names: of the attacks [A].
      norms: [A, N] smallest norms found, inf or NaN where none was.
      balls: whose norm each attack makes small, None for the attacks that do not.
    """
    worst, pair = 1.0, ""
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            both = np.isfinite(norms[i]) & np.isfinite(norms[j]) & (norms[j] > 0)
            if balls[i] is not None and balls[i] == balls[j] and both.any():
                ratio = float(np.median(norms[i][both] / norms[j][both]))
                if ratio > worst:
                    worst, pair = ratio, f"{name} finds norms far above those of {other}"
    advice = f"{pair}: it is not converged, or its gradients vanish; report the smaller, and look why."
    return Flag("minimum_norms", worst > _FAR, worst, advice)


def unknown_gradients(fraction: float) -> Flag:
    """The fraction of examples that count as robust where losses or gradients of an attack were not finite: nothing is known of them."""
    advice = "losses or gradients were not finite, so that these examples are not shown to be robust: look with jax.debug_nans."
    return Flag("unknown_gradients", fraction > 0, fraction, advice)


def transfer_wins(white_box_accuracy: float, transfer_accuracy: float) -> Flag:
    """Adversarial examples of another model break more than the model's own."""
    gap = white_box_accuracy - transfer_accuracy
    return Flag("transfer_wins", gap > _TIE, gap, "another model's examples beat this one's: its gradients are masked.")


def non_monotone(accuracies: Sequence[float]) -> Flag:
    """Robust accuracy rises along a growing eps, by more than .2 points."""
    rise = float(np.max(np.diff(np.asarray(accuracies)), initial=0.0))
    return Flag("non_monotone", rise > _TIE, rise, "a larger eps was harder for the attack: it is not converged, or its step does not fit.")


def unconverged(key: Key, attack: base.Configured, model_fn: ModelFn, x: Array, y: Array) -> Flag:
    """Twice the steps (queries) lower robust accuracy by more than .2 points: the best iterate is still the last one.

    Raises:
      ValueError: an attack without a bound num_steps or num_queries.
    """
    gap = _robust_accuracy(key, attack, model_fn, x, y) - _robust_accuracy(key, combinators.each(attack, _longer), model_fn, x, y)
    return Flag("unconverged", gap > _TIE, gap, "the attack still gains at its last step: raise num_steps, or use apgd.")


def survives_everything(key: Key, attack: base.Configured, model_fn: ModelFn, x: Array, y: Array) -> Flag:
    """Robust accuracy above zero where the attack may go anywhere in the box.

    A step_size given as a number is not scaled: use an attack that needs none, such as `apgd`.

    Raises:
      ValueError: an attack without a threat.
    """

    def unlimited(plain):
        threat = _threat_of(plain, "survives_everything")
        return base.bind(plain, threat=threat.with_radius(threat.max_norm(x)))

    accuracy = _robust_accuracy(key, combinators.each(attack, unlimited), model_fn, x, y)
    return Flag(
        "survives_everything", accuracy > 0, accuracy, "an attack without limits must succeed on every input: gradients are masked."
    )


def _longer(attack):
    for name in ("num_steps", "num_queries"):
        if isinstance(attack, base.Configured) and attack.get(name) is not None:
            return base.bind(attack, **{name: 2 * attack.get(name)})
    raise ValueError(f"unconverged doubles num_steps or num_queries, and {attack!r} has neither bound; bind it with base.bind.")


def _threat_of(attack, name):
    threat = attack.get("threat") if isinstance(attack, base.Configured) else None
    if threat is None:
        raise ValueError(f"{name} changes the threat of an attack, and {attack!r} has none bound; bind it with base.bind(..., threat=...).")
    return threat


def binarization(key: Key, feature_fn: ModelFn, x: Array, *, attack: base.Configured, num_inner: int = 50, num_boundary: int = 1) -> Flag:
    """An adversarial example is planted in the ball of each input, and the attack must find it.

    Around each x a two-class readout of the features is fitted that calls `num_inner` points well inside the ball class 0 and
    `num_boundary` points on its surface class 1. The attack, given eps, should reach class 1 in at least 95 % of the readouts.

    Args:
      key: of the planted points.
      feature_fn: x [B, ...] -> features [B, F], the model without its head (or its logits).
      x: inputs [B, ...]; one readout each.
      attack: a bound attack with a `threat`; its losses must do with two classes.

    Guarantee:
      none: a sign, as every flag.
    Source: Zimmermann et al., NeurIPS 2022, arXiv:2206.13991. Differs: the readout is ridge regression in closed form, and inputs
      for which it does not separate the points are left out.
    """
    threat = _threat_of(combinators.parts(attack)[0], "binarization")
    keys = prng.example_keys(key, x.shape[0])

    def around(index, share):
        delta = threat.init(prng.fold_in(keys, index), x)
        size = arrays.ratio(share * threat.radius(), threat.norm(delta))
        return threat.apply(x, threat.project(delta * arrays.per_example(size, x), x))

    inner = [x, *(around(i, 0.5) for i in range(num_inner - 1))]
    surface = [around(num_inner + i, 1.0) for i in range(num_boundary)]
    features = jnp.stack([feature_fn(point) for point in (*inner, *surface)], axis=1)  # [B, points, F]
    labels = jnp.concatenate([-jnp.ones(num_inner), jnp.ones(num_boundary)])
    readout = jax.vmap(lambda f: _ridge(f, labels))(features)
    scores = jnp.einsum("bpf,bf->bp", features - features[:, :1], readout)
    low, high = scores[:, :num_inner].max(axis=1), scores[:, num_inner:].min(axis=1)
    planted = base.bind(_readout, feature_fn=feature_fn, origin=features[:, 0], readout=readout, threshold=low + 0.9 * (high - low))
    found = attack(prng.fold_in(keys, num_inner + num_boundary), planted, x, jnp.zeros(x.shape[0], jnp.int32)).success
    separable = high > low
    rate = float(jnp.sum(found & separable) / jnp.maximum(jnp.sum(separable), 1))
    return Flag("binarization", rate < 0.95, rate, "the attack misses adversarial examples that are known to exist: adapt it.")


def _ridge(features, labels):
    centred = features - features[:1]
    gram = centred @ centred.T
    weights = jnp.linalg.solve(gram + 1e-4 * jnp.trace(gram) / len(labels) * jnp.eye(len(labels)), labels)
    return centred.T @ weights


def _readout(x, *, feature_fn, origin, readout, threshold):
    score = jnp.sum((feature_fn(x) - origin) * readout, axis=1) - threshold
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def _robust_accuracy(key, attack, model_fn, x, y):
    return 1.0 - float(attack(key, model_fn, x, y).success.mean())


def _gradient(key, model_fn, x, y, loss_fn):
    drawn = base.draw(model_fn, prng.example_keys(key, x.shape[0]))
    return jax.grad(lambda x: loss_fn(drawn(x), y).sum())(x)


def _blocking(program):
    """Names of the blocking primitives, and of functions with derivatives of their own, that depend on the input."""
    moving = graph.depends(program, program.inputs)
    maxima: set[graph.Variable] = set()  # softmax shifts by a maximum without gradient, which changes nothing
    for eqn, _ in graph.walk(program):
        if moving.isdisjoint(eqn.inputs):
            continue
        name = eqn.primitive.name
        is_of_maxima = not maxima.isdisjoint(eqn.inputs)
        if name == "reduce_max" or (name in ("max", "broadcast_in_dim") and is_of_maxima):
            maxima.update(eqn.outputs)
        if name == "stop_gradient" and is_of_maxima:
            continue
        is_integer = name == _INTEGER and jnp.issubdtype(eqn.params["new_dtype"], jnp.integer)
        if name in _BLOCKING or is_integer or (eqn.is_call and eqn.function not in _HARMLESS):
            yield name
