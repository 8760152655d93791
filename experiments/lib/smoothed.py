"""Training for smoothing: every method goes on from one model trained on Gaussian noise, for as many images, so that it can be compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import jax.numpy as jnp
import optax

from experiments.lib import data, experiment, models, runs
from robustjax import attacks, base, training
from robustjax.base import ModelFn
from robustjax.threats import L2

SIGMAS = (0.25, 0.5)
Method = Literal["Gaussian", "Stability", "Consistency", "SmoothMix", "MACER", "SmoothAdv"]
METHODS: tuple[Method, ...] = get_args(Method)


class Effort(NamedTuple):
    """How long and with how many noisy copies; Gaussian and Stability take one copy, Consistency and SmoothMix two."""

    architecture: str = "convnet_fast"
    num_warm_epochs: int = 8  # on Gaussian noise, shared by all methods of a sigma
    num_epochs: int = 4  # of each method
    batch_size: int = 100
    learning_rate: float = 1e-3  # of Adam; constant, then along a cosine to zero
    num_attack_steps: int = 2  # T of SmoothAdv and SmoothMix
    num_attack_copies: int = 2  # m of SmoothAdv
    num_radius_copies: int = 4  # k of MACER
    radius_weight: float | None = None  # of MACER, and
    consistency_weight: float | None = None  # of Consistency; None for the paper's on MNIST


if TYPE_CHECKING:
    Change = str
else:
    Change = Literal[*Effort._fields[1:]]  # for command lines


def effort_of(settings: experiment.Settings) -> Effort:
    """What the tutorial can afford."""
    if settings.quick:
        return Effort(models.TINY, num_warm_epochs=1, num_epochs=1, num_attack_steps=1, num_radius_copies=2)
    if settings.dataset != "digits":
        return Effort(num_warm_epochs=1, num_epochs=1)
    return settings.pick(None, Effort(num_warm_epochs=5, num_epochs=2), Effort())


def images(settings: experiment.Settings) -> data.Dataset:
    """The data set, little of it if quick."""
    dataset = data.load(settings.dataset)
    if not settings.quick:
        return dataset
    return dataset._replace(x_train=dataset.x_train[:200], y_train=dataset.y_train[:200])


def losses(sigma: float, effort: Effort) -> dict[str, base.Configured]:
    """The losses by method, without apply_fn."""
    num_steps = effort.num_attack_steps
    consistency_weight, radius_weight = effort.consistency_weight, effort.radius_weight
    if consistency_weight is None:
        consistency_weight = 10.0 if sigma < 0.5 else 5.0
    if radius_weight is None:
        radius_weight = 16.0 if sigma < 1 else 6.0
    pgd = base.bind(attacks.pgd, num_steps=num_steps, delta=0.0, keep_fn=attacks.keep_last)
    ball = base.bind(pgd, threat=L2(1.0), step_size=2.0 / num_steps)
    free = base.bind(pgd, threat=L2(jnp.inf), step_size=0.5)
    return {
        "Gaussian": base.bind(training.gaussian, sigma=sigma),
        "Stability": base.bind(training.stability, sigma=sigma, weight=2.0),
        "Consistency": base.bind(training.consistency, sigma=sigma, weight=consistency_weight),
        "SmoothMix": base.bind(training.smooth_mix, sigma=sigma, num_noise=2, weight=5.0, attack=free),
        "MACER": base.bind(training.macer, sigma=sigma, num_noise=effort.num_radius_copies, weight=radius_weight),
        "SmoothAdv": base.bind(training.smooth_adv, sigma=sigma, num_noise=effort.num_attack_copies, attack=ball),
    }


def described(effort: Effort, methods: Sequence[str]) -> str:
    """What was done of the full recipe."""
    own = {
        "Consistency": "m = 2" + ("" if effort.consistency_weight is None else f", weight {effort.consistency_weight:g}"),
        "SmoothMix": f"m = 2, T = {effort.num_attack_steps}, steps of .5",
        "MACER": f"k = {effort.num_radius_copies}" + ("" if effort.radius_weight is None else f", weight {effort.radius_weight:g}"),
        "SmoothAdv": f"m = {effort.num_attack_copies}, T = {effort.num_attack_steps}, eps 1",
    }
    parts = [f"{name} with {own[name]}" for name in methods if name in own]
    return (
        f"one seed; {effort.num_warm_epochs} epochs on Gaussian noise shared by all methods, then {effort.num_epochs} of each; Adam at "
        f"{effort.learning_rate:g} and batches of {effort.batch_size}; {'; '.join(parts)}"
    )


def train(name: str, sigma: float, settings: experiment.Settings, x, y, effort: Effort) -> ModelFn:
    """The base classifier of a method at sigma, from its last checkpoint if there is one: first on Gaussian noise, at a constant rate.

    The eps of SmoothAdv grows over the first third of its own part.
    """
    model = models.for_data(effort.architecture, settings.seed, x, y)
    own = {method: base.bind(loss, apply_fn=model.apply_fn) for method, loss in losses(sigma, effort).items()}
    warm = runs.Plan(model, own["Gaussian"], optax.adam(effort.learning_rate), effort.num_warm_epochs, effort.batch_size)
    first = runs.classifier(f"warm-{sigma}", warm, x, y, settings, effort=list(effort))
    num_steps = effort.num_epochs * (len(x) // effort.batch_size)
    ramp = base.bind(training.eps_ramp, num_ramp_steps=max(num_steps // 3, 1)) if name == "SmoothAdv" else None
    plan = runs.Plan(runs.continued(model, first), own[name], effort.learning_rate, effort.num_epochs, effort.batch_size, ramp)
    return runs.classifier(f"{name}-{sigma}", plan, x, y, settings, effort=list(effort))
