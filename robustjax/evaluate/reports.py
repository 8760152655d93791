"""What an evaluation knows, and the tables, curves, intervals and flags that follow from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from robustjax import flags as flagging

NOT_RUN = -1
NORMS = ("L0", "L1", "L2", "Linf")


class EvaluationState(NamedTuple):
    """What is known after a batch; numpy arrays over the data set N and the attacks A, filled in place as the evaluation goes on."""

    names: tuple[str, ...]  # names of the attacks
    correct: np.ndarray  # [N] bool, classified correctly without attack; if y are targets alone: not classified as the target
    success: np.ndarray  # [A, N] int8: 1 fooled, 0 not fooled, NOT_RUN
    loss: np.ndarray  # [A, N] of the attack's result, NaN where not run or not known; minimum-norm attacks: -norm
    x: np.ndarray  # [N, ...] an adversarial example where one was found, else the input
    at_goal: np.ndarray  # [A, N] bool, a targeted attack has nothing to do: the clean input is classified as the target
    signs: np.ndarray  # [2, N] bool, of the clean logits: they look like probabilities; their cross-entropy is saturated
    kinds: np.ndarray  # [2, A] int8: 1 if the attack uses no gradient; the norm that it minimises (place in NORMS), -1 for none
    fingerprint: dict[str, np.ndarray]  # of key, attacks, model and data

    def pending(self, attack: int, survivors_only: bool) -> np.ndarray:
        """The examples that an attack still has to run on."""
        eligible = self.correct & (self.success[attack] == NOT_RUN) & ~self.at_goal[attack]
        return eligible & ~(self.success[:attack] == 1).any(axis=0) if survivors_only else eligible

    @property
    def flags(self) -> list[flagging.Flag]:
        """Signs of a flawed evaluation, from numbers that were computed anyway (see `flags`). A flag that is not raised proves nothing."""
        return _flags(self)


def accuracies(state: EvaluationState, survivors_only: bool = True) -> dict[str, float]:
    """Robust accuracy after each attack, with "clean" and "worst case".

    Args:
      state: of an evaluation.
      survivors_only: True for the accuracy after this attack and all before it, False for the accuracy under each attack alone.

    Raises:
      ValueError: survivors_only=False for an attack that did not run on all correctly classified examples: its result on the others is
        not known.

    Guarantee:
      An upper bound of the robust accuracy on these examples: what no attack fooled may be fooled by another.

    Example:
      >>> attack = base.bind(attacks.fgsm, threat=threats.Linf(0.2))
      >>> x, y = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32), np.array([0, 0])
      >>> *_, state = evaluate.evaluate(jax.random.key(0), {"fgsm": attack}, lambda x: x, x, y, batch_size=2)
      >>> evaluate.accuracies(state)
      {'clean': 1.0, 'fgsm': 0.5, 'worst case': 0.5}
    """
    fooled = state.success == 1
    table = {"clean": float(state.correct.mean())}
    for index, name in enumerate(state.names):
        skipped = int(state.pending(index, survivors_only=False).sum())
        if not survivors_only and skipped:
            raise ValueError(
                f"{name} did not run on {skipped} of {int(state.correct.sum())} correctly classified examples: its accuracy alone is not "
                "known; evaluate with survivors_only=False, or ask for the cumulative table."
            )
        broken = fooled[: index + 1].any(axis=0) if survivors_only else fooled[index]
        table[name] = float((state.correct & ~broken).mean())
    return table | {"worst case": float((state.correct & ~fooled.any(axis=0)).mean())}


def progress(state: EvaluationState) -> dict[str, str | int | float]:
    """How far an evaluation is: {"attack": the last that has begun, or "clean", "num_done": examples that it ran on, "robust_accuracy"}."""
    num_done = (state.success != NOT_RUN).sum(axis=1)
    begun = np.flatnonzero(num_done)
    broken = (state.success == 1).any(axis=0)
    return {
        "attack": state.names[begun[-1]] if len(begun) else "clean",
        "num_done": int(num_done[begun[-1]]) if len(begun) else len(broken),
        "robust_accuracy": float((state.correct & ~broken).mean()),
    }


class Errors(NamedTuple):
    """The decomposition of robust error, example by example: each robust error is either natural or boundary."""

    natural: np.ndarray  # [N] bool, misclassified without attack
    boundary: np.ndarray  # [N] bool, classified correctly, but not everywhere within the threat
    robust: np.ndarray  # [N] bool, misclassified somewhere within the threat


def decompose(state: EvaluationState) -> Errors:
    """Natural and boundary errors of an evaluation; `boundary` and `robust` are lower bounds of the true errors.

    Source: Zhang et al., ICML 2019, eq. 1, arXiv:1901.08573.
    """
    boundary = state.correct & (state.success == 1).any(axis=0)
    return Errors(~state.correct, boundary, ~state.correct | boundary)


def pareto_front(accuracy: Sequence[float], robustness: Sequence[float]) -> np.ndarray:
    """Which of M models [M] are on the front: no other model is better in one of the two measures and at least as good in the other."""
    points = np.stack([np.asarray(accuracy, float), np.asarray(robustness, float)], axis=1)
    at_least = np.all(points[None] >= points[:, None], axis=2)  # [m, n]: model n is at least as good as m in both
    better = np.any(points[None] > points[:, None], axis=2)
    return np.logical_not(np.any(at_least & better, axis=1))


def accuracy_curve(norms: np.ndarray, eps: Sequence[float]) -> np.ndarray:
    """Accuracy against eps from minimum-norm attacks.

    Args:
      norms: [N] norm of the smallest perturbation found, 0 where misclassified without attack, inf where none was found.
      eps: sizes of perturbations [E].

    Returns:
      [E] the fraction whose norm exceeds eps, an upper bound of the robust accuracy there.

    Raises:
      ValueError: a norm that is NaN or negative, or a norm of another shape.
    """
    norms = np.asarray(norms)
    if norms.ndim != 1 or not (norms >= 0).all():
        num_others = int(np.sum(~(norms >= 0)))
        raise ValueError(
            f"expected norms [N] of at least 0, inf where nothing was found, got shape {norms.shape} with {num_others} that are NaN or "
            "negative; losses of minimum-norm attacks are -norm, and NaN where gradients were not finite."
        )
    return np.array([np.mean(norms > e) for e in eps])


def confidence_interval(num_correct: int, num_examples: int, alpha: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson interval of an accuracy, in float64.

    Guarantee:
      Covers the accuracy on the population with probability at least 1 - alpha, over the draw of the examples.

    Raises:
      ValueError: an empty set, more correct than examples, or alpha outside (0, 1).
    """
    if not all(isinstance(number, int | np.integer) for number in (num_correct, num_examples)):
        raise TypeError(f"expected numbers of examples as integers, got {num_correct!r} of {num_examples!r}; pass counts, not rates.")
    if not 0 <= num_correct <= num_examples or num_examples == 0 or not 0 < alpha < 1:
        raise ValueError(f"expected 0 <= correct <= examples, examples > 0 and 0 < alpha < 1; got {num_correct}, {num_examples}, {alpha}.")
    interval = scipy.stats.binomtest(num_correct, num_examples).proportion_ci(1 - alpha, method="exact")
    return float(interval.low), float(interval.high)


def _flags(state):
    probabilities, saturated = state.signs
    black_box = state.kinds[0] == 1
    fooled, ran = state.success == 1, state.success != NOT_RUN
    found = []
    if black_box.any() and not black_box.all():
        both = ran[black_box].any(axis=0) | (fooled[~black_box].any(axis=0) & state.correct)
        white, either = fooled[~black_box].any(axis=0), fooled.any(axis=0)
        found.append(flagging.black_box_wins(np.mean(state.correct & ~(white & both)), np.mean(state.correct & ~(either & both))))
    unknown = ran & ~fooled & np.isnan(state.loss)
    return [
        *found,
        flagging.minimum_norms(state.names, -state.loss, [NORMS[place] if place >= 0 else None for place in state.kinds[1]]),
        flagging.unknown_gradients(float(unknown.any(axis=0).mean())),
        flagging.looks_like_probabilities(bool(probabilities.all())),
        flagging.saturated_fraction(float(saturated.mean())),
    ]
