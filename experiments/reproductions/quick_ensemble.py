"""What the "quick" plan of AutoAttack misses of the "standard" one, and for how many of its passes, on five networks.

`ROBUSTJAX_DATA=DIR python -m experiments quick_ensemble --page docs/results/quick_ensemble.md`. Three networks of digits are trained here,
plainly, by PGD and with a masked gradient, a fourth by FGSM; the fifth is the public ResNet-20, where ROBUSTJAX_DATA has it.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lib import data, experiment, gates, pages, two_frameworks
from experiments.reproductions import parity_autoattack
from robustjax import attacks, evaluate, parallel
from robustjax.threats import Linf

_BATCH = 100
_RADII = {"plain": 0.08, "robust": 0.2, "masked": 0.08}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """How many images of each data set."""

    images: int = 500
    resnet_images: int = 48


class Found(NamedTuple):
    """What a plan did."""

    robust: np.ndarray  # [N] bool
    passes: float  # of an image that nothing fools
    seconds: float


def run(settings: Settings) -> None:
    """The table, a row for each network."""
    start, made, lines, flags = time.perf_counter(), [], [], {}
    experiment.prepare(None)
    for name, model_fn, x, y, eps in _cases(settings):
        standard, quick = (_found(version, model_fn, x, y, eps, settings.quick) for version in ("standard", "quick"))
        missed, more = int(np.sum(quick.robust & ~standard.robust)), int(np.sum(~quick.robust & standard.robust))
        ratio = quick.passes / standard.passes
        cells = [f"{np.mean(standard.robust):.3f}", f"{np.mean(quick.robust):.3f}", f"{missed}", f"{more}", f"{ratio:.2f}"]
        lines.append([name, f"{len(x)}", f"{eps:.4g}", *cells, f"{standard.seconds:.0f}", f"{quick.seconds:.0f}"])
        made += [gates.Gate(f"{name}: images that only standard fools", missed, high=0), gates.Gate(f"{name}: passes", ratio, high=0.35)]
        flags |= {f"{name}, standard": ~standard.robust, f"{name}, quick": ~quick.robust}
    blocks = [pages.table(_HEADER, lines), pages.gates_of(made)]
    experiment.publish("quick_ensemble", settings, _PAGE, "", blocks, start, flags=flags)


def _cases(settings) -> Iterator[tuple[str, Any, np.ndarray, np.ndarray, float]]:
    digits = data.load("digits")
    num_images = 8 if settings.quick else settings.images
    x, y = digits.x_test[:num_images], digits.y_test[:num_images]
    for name in ("plain",) if settings.quick else _RADII:
        yield name, parity_autoattack.network(name, digits)[0], x, y, _RADII[name]
    if settings.quick:
        return
    fgsm = two_frameworks.case("convnet", settings.images, num_epochs=30, in_torch=False)
    yield "trained by FGSM", fgsm.model_fn, fgsm.x, fgsm.y, 0.3
    if "ROBUSTJAX_DATA" in os.environ:
        public = two_frameworks.case("resnet20", settings.resnet_images, num_epochs=0, in_torch=False)
        yield "public ResNet-20", public.model_fn, public.x, public.y, 0.5 / 255


def _found(version, model_fn, x, y, eps, is_quick):
    start, budget = time.perf_counter(), {"num_steps": 2, "num_queries": 5} if is_quick else {}
    plan, mesh = attacks.ensemble(Linf(eps), version, **budget), parallel.data_mesh()
    *_, state = evaluate.evaluate(jax.random.key(0), plan, model_fn, x, y, batch_size=_BATCH, mesh=mesh)
    costs = [evaluate.cost(attack, model_fn, x[:2], y[:2]) for attack in plan.values()]
    robust = state.correct & ~(state.success == 1).any(axis=0)
    return Found(robust, sum(cost.forward + cost.backward for cost in costs), time.perf_counter() - start)


_HEADER = ["network", "images", "eps", "standard", "quick", "only standard fools", "only quick fools", "passes", "s", "s, quick"]
_PAGE = pages.Page(
    "A third of AutoAttack's passes",
    "Robust accuracy in linf under both plans of `attacks.ensemble`, from equal keys. `passes` is the ratio of forward and backward passes "
    "for an image that nothing fools.",
)
