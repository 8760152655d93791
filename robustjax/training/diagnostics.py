"""Signs of failure in adversarial training: catastrophic overfitting to a single-step attack."""

from typing import NamedTuple

import jax.numpy as jnp

from robustjax import base, losses, prng
from robustjax.attacks import _pgd
from robustjax.base import Array, Key, LossFn, ModelFn, Numeric, Threat
from robustjax.training import _grad_align


class Overfitting(NamedTuple):
    """How much weaker a single step is than the worst case."""

    fgsm_accuracy: Array  # under one step of length eps from x
    pgd_accuracy: Array  # under PGD
    gap: Array  # fgsm_accuracy - pgd_accuracy; near 1 after catastrophic overfitting
    cosine: Array  # of input gradients at x and at random points of the threat; near 0 after it


def catastrophic_overfitting(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    threat: Threat,
    step_size: Numeric,
    num_steps: int,
    loss_fn: LossFn = losses.cross_entropy,
) -> Overfitting:
    """Accuracy under FGSM and under PGD, and the agreement of input gradients.

    Args:
      key: of PGD's start and of the random points.
      model_fn: the trained model, x [B, ...] -> logits [B, C].
      x: inputs [B, ...]. y: labels [B]; inputs that are misclassified without an attack count as errors.
      threat: the ball of the training.
      step_size, num_steps: of PGD.
      loss_fn: whose gradients the attacks follow, and are compared.

    Source: Wong et al., ICLR 2020, section 5.4, arXiv:2001.03994; the cosine: Andriushchenko & Flammarion, NeurIPS 2020.
    """
    key_pgd, key_point = prng.split(prng.example_keys(key, x.shape[0]), 2)
    one_step = base.bind(_pgd.fgsm, threat=threat, loss_fn=loss_fn)
    many_steps = base.bind(_pgd.pgd, threat=threat, step_size=step_size, num_steps=num_steps, loss_fn=loss_fn)
    fgsm_accuracy, pgd_accuracy = (1.0 - jnp.mean(attack(key_pgd, model_fn, x, y).success) for attack in (one_step, many_steps))
    cosine = _grad_align.alignment(key_point, model_fn, x, y, threat=threat, loss_fn=loss_fn)
    return Overfitting(fgsm_accuracy, pgd_accuracy, fgsm_accuracy - pgd_accuracy, cosine)
