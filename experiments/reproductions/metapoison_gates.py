"""MetaPoison and Witches' Brew against random noise, on more trials than the report has.

`python -m experiments metapoison_gates --page docs/results/metapoison.md`; the setting of the authors, for a GPU, is
`ROBUSTJAX_DATA=DIR python -m experiments metapoison_gates --dataset cifar10 --architecture convnet --eps 0.0314 --num-images 50000
--budgets 500 --trials 5 --surrogates 24 --steps 61 --epochs 200 --page FILE`, with `--colour` for recoloured poisons.
"""

import dataclasses
import time

from experiments.lib import data, experiment, metapoison, models, pages
from experiments.lib.metapoison import ATTACKS, COLUMNS, Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.DataOptions):
    """How large, how often, of what."""

    out: str = "runs/metapoison"
    architecture: models.Name = "mlp_shallow"
    num_images: int = 2000
    budgets: tuple[int, ...] = (100,)
    """Numbers of poisons."""
    trials: int = 100
    steps: int = 20
    """Of MetaPoison."""
    surrogates: int = 4
    epochs: int = 20
    """Of surrogates and victims."""
    eps: float = 0.3
    colour: bool = False
    """Poisons are recoloured instead of changed pixel by pixel."""
    part: tuple[int, int] = (0, 1)
    """FIRST and EVERY: run some trials alone, for another process to sum up."""


def run(settings: Settings) -> None:
    """A section for a setting."""
    experiment.prepare()
    start, dataset = time.perf_counter(), data.load(settings.dataset)
    size = Size(
        settings.num_images, settings.budgets, settings.trials, settings.steps, 100, settings.surrogates, settings.epochs,
        settings.architecture, settings.eps, settings.colour,
    )  # fmt: skip
    if settings.quick:
        size = size._replace(num_images=200, budgets=(10,), num_trials=2, num_steps=2, num_matching_steps=4, num_surrogates=2, num_epochs=2)
    found = metapoison.successes(dataset, settings, size, *settings.part)
    if settings.part == (0, 1):
        title = f"{size.architecture} on {dataset.name}{', recoloured' if size.is_colour else ''}, {size.num_trials} trials"
        flags = {f"{name}, {budget} poisons": part for (name, budget), part in found.items()}
        experiment.publish("metapoison_gates", settings, _PAGE, title, section(found, size), start, seeds=[settings.seed], flags=flags)


def section(found, size: Size) -> list[pages.Block]:
    """A setting's part of the page."""
    about = (
        f"{size.num_images:,} images, {size.num_epochs} epochs of gradient descent, batches of {metapoison.BATCH_SIZE}, rate "
        f"{metapoison.LEARNING_RATE}; {size.limit}. MetaPoison: {size.num_surrogates} surrogates, {size.num_steps} crafting steps, "
        f"K = {metapoison.NUM_UNROLL_STEPS}; Witches' Brew: one network, {size.num_matching_steps} steps, {metapoison.NUM_RESTARTS} "
        "restarts."
    )
    rows = []
    for budget, cells in zip(size.budgets, metapoison.cells(found, size), strict=True):
        above = ", ".join(f"{attack}: {'yes' if metapoison.beats_noise(found, attack, budget) else 'no'}" for attack in ATTACKS)
        rows.append([*cells, above])
    return [pages.text(about), pages.table(["poisons", *COLUMNS, "above noise"], rows)]


_PAGE = pages.Page(
    "MetaPoison and Witches' Brew against random noise",
    """\
Networks trained from scratch. A trial is a random test image that a clean network of the attacker reads rightly, and its second choice as
the wanted label; the images of that label that are least like the target are changed within the limit and keep their label. Victims start
from other weights than the attacker's networks. Success in % of trials with 95 % Clopper-Pearson intervals; "above noise": the interval
lies above that of random perturbations that spend the whole limit. Settings were chosen on trials with other seeds, for the MLP; 180
poisons were tried on the small ConvNet after 100 had not told MetaPoison from noise. All trials ran on CPUs.
""",
)
