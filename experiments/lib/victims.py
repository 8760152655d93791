"""The two models that part 1 attacks: one undefended, one adversarially trained; trained once, and kept."""

from typing import NamedTuple

from experiments.lib import data, experiment, models, runs
from robustjax import attacks, base, training
from robustjax.base import ModelFn
from robustjax.threats import Linf


class Recipe(NamedTuple):
    """How a victim is trained."""

    architecture: str = "convnet"
    eps: float = 0.0  # 0 trains on the inputs as they are
    num_ramp_epochs: int = 0  # over which eps grows from 0: PGD-AT at .3 sticks at a constant class without
    num_steps: int = 7
    num_epochs: int = 12
    batch_size: int = 100
    learning_rate: float = 2e-3


EPS = {"digits": 0.3, "mnist": 0.3, "fashion_mnist": 0.1, "cifar10": 8 / 255}


def recipes(settings: experiment.Settings) -> dict[str, Recipe]:
    """The recipes of the two victims."""
    num_epochs, num_ramp_epochs = settings.pick((16, 5), (10, 4), (16, 5))
    if settings.dataset != "digits":
        num_epochs, num_ramp_epochs = 6, 2
    natural = Recipe(num_epochs=num_epochs // 2)
    robust = Recipe(eps=EPS[settings.dataset], num_ramp_epochs=num_ramp_epochs, num_epochs=num_epochs, num_steps=settings.pick(7, 4, 7))
    if settings.quick:
        natural, robust = (recipe._replace(architecture=models.TINY, num_epochs=1, num_steps=1) for recipe in (natural, robust))
    return {"undefended": natural, "robust": robust}


def load(settings: experiment.Settings, dataset: data.Dataset) -> dict[str, ModelFn]:
    """The trained victims by name."""
    return {name: train(name, recipe, settings, dataset) for name, recipe in recipes(settings).items()}


def with_images(settings: experiment.Settings):
    """The victims by name, and the first test images and labels: as many in every section, so that programs are shared."""
    dataset = data.load(settings.dataset)
    rows = slice(settings.pick(16, 50, 100))
    return load(settings, dataset), dataset.x_test[rows], dataset.y_test[rows]


def ensemble(settings: experiment.Settings) -> tuple[dict[str, base.Attack], dict[str, int]]:
    """AutoAttack for the victims' threat, and what it may spend: the same in every section, so that programs are shared."""
    num_steps, num_targets, num_queries = settings.pick((5, 2, 50), (25, 3, 250), (50, 9, 500))
    budget = {"num_steps": num_steps, "num_targets": num_targets, "num_queries": num_queries}
    return attacks.ensemble(Linf(EPS[settings.dataset]), **budget), budget


def train(name: str, recipe: Recipe, settings: experiment.Settings, dataset: data.Dataset) -> ModelFn:
    """A victim, from its last checkpoint if there is one."""
    x, y = dataset.x_train, dataset.y_train
    model, ramp = models.for_data(recipe.architecture, settings.seed, x, y), None
    loss = base.bind(training.natural, apply_fn=model.apply_fn)
    if recipe.eps:
        attack = training.inner_pgd(Linf(recipe.eps), num_steps=recipe.num_steps)
        loss = base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack)
        ramp = base.bind(training.eps_ramp, num_ramp_steps=max(recipe.num_ramp_epochs * (len(x) // recipe.batch_size), 1))
    plan = runs.Plan(model, loss, recipe.learning_rate, recipe.num_epochs, recipe.batch_size, ramp)
    return runs.classifier(name, plan, x, y, settings, recipe=list(recipe))
