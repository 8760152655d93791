"""The table attack x (accuracy, median distance, time, ratio to the floor), on an undefended and on a robust model."""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import evaluation, experiment, report, victims
from robustjax import attacks, base, evaluate, losses, parallel
from robustjax.threats import L2, Linf


def run(settings: experiment.Settings) -> report.Section:
    """Every attack alone on the same images; AutoAttack as an ensemble on survivors."""
    models, x, y = victims.with_images(settings)
    mesh = experiment.mesh()
    batch = parallel.shard_batch((x, y), mesh)
    table = []
    with experiment.progress() as bar:
        suite = _suite(settings)
        task = bar.add_task("attacks", total=len(suite) * len(models))
        placed = {name: parallel.replicate(model_fn, mesh) for name, model_fn in models.items()}
        floors = {name: _floor(model_fn, *batch) for name, model_fn in placed.items()}
        for attack_name, attack in suite.items():
            row, program = [attack_name], None
            for name, model_fn in placed.items():
                arguments = (jax.random.key(settings.seed), model_fn, *batch)
                program = program or jax.jit(attack).lower(*arguments).compile()
                row += _cells(program, arguments, evaluate.cost(attack, *arguments[1:]), floors[name])
                bar.advance(task)
            table.append(row)
    items = [_attack_table(table, list(models), len(x), settings), _ensemble_table(models, x, y, mesh, settings)]
    text = (
        "Accuracy under attack, the median distance of the perturbations that succeed, and what the attack costs: the floor is the "
        "number of its forward and backward passes, counted in its program, times the time of one jitted pass."
    )
    more = "100 images, every attack with two to three times the steps, AutoAttack on all nine wrong classes."
    return report.Section("What every attack reaches, and what it costs", text, items, more=more)


def _suite(settings):
    eps, less = victims.EPS[settings.dataset], settings.pick(10, 2, 1)
    linf, l2 = Linf(eps), L2(jnp.inf)
    ten, thirty, forty, hundred, many = (number // less for number in (10, 30, 40, 100, 500))
    suite = {
        "FGSM (linf)": base.bind(attacks.fgsm, threat=linf),
        f"MI-FGSM-{ten} (linf)": base.bind(attacks.mi_fgsm, threat=linf, step_size=2 * eps / ten, num_steps=ten),
        f"PGD-{forty} (linf)": base.bind(attacks.pgd, threat=linf, step_size=4 * eps / forty, num_steps=forty),
        f"APGD-CE-{hundred} (linf)": base.bind(attacks.apgd, threat=linf, num_steps=hundred),
        f"APGD-DLR-{hundred} (linf)": base.bind(attacks.apgd, threat=linf, num_steps=hundred, loss_fn=losses.dlr),
        f"Square-{many} (linf)": base.bind(attacks.square, threat=linf, num_queries=many),
        "DeepFool (l2)": base.bind(attacks.deepfool, threat=l2, num_steps=thirty),
        f"DDN-{hundred} (l2)": base.bind(attacks.ddn, threat=l2, num_steps=hundred),
        f"FMN-{hundred} (l2)": base.bind(attacks.fmn, threat=l2, num_steps=hundred),
        f"FAB-{thirty} (l2)": base.bind(attacks.fab, threat=l2, num_steps=thirty),
        f"L-BFGS 6x{thirty} (l2)": base.bind(attacks.lbfgs, threat=l2, num_binary_search_steps=6, num_steps=thirty),
        f"C&W 5x{hundred} (l2)": base.bind(
            attacks.carlini_wagner, threat=l2, num_binary_search_steps=5, num_steps=hundred, learning_rate=0.05, init_weight=0.1
        ),
        f"L-aug {3 * hundred} (l2)": base.bind(attacks.alma, threat=l2, num_steps=3 * hundred),
    }
    return dict(list(suite.items())[:: settings.pick(4, 1, 1)])


def _cells(program, arguments, cost, floor):
    start = time.perf_counter()
    result = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - start
    _, model_fn, x, y = arguments
    correct = jax.jit(model_fn)(x).argmax(axis=1) == y
    size = jnp.linalg.norm((result.x - x).reshape(len(x), -1), axis=1)
    fooled = np.asarray(correct & result.success)
    median = f"{np.median(np.asarray(size)[fooled]):.2f}" if fooled.any() else "-"
    least = cost.backward * floor["both"] + max(cost.forward - cost.backward, 0) * floor["forward"]
    accuracy = 100 * float(jnp.mean(correct & ~result.success))
    return [f"{accuracy:.1f}", median, f"{seconds:.2f}", f"{seconds / least:.2f}"]


def _floor(model_fn, x, y):
    """Seconds of one jitted forward pass, and of one forward and backward pass, medians of a few."""
    forward = jax.jit(lambda model_fn, x: model_fn(x))
    both = jax.jit(jax.value_and_grad(lambda x, model_fn: losses.cross_entropy(model_fn(x), y).sum()))
    floor = {}
    for name, call in (("forward", lambda: forward(model_fn, x)), ("both", lambda: both(x, model_fn))):
        times = []
        for _ in range(12):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
        floor[name] = float(np.median(times[2:]))
    return floor


def _attack_table(rows, names, num_images, settings):
    header = ["attack", *(f"{column} ({name})" for name in names for column in ("accuracy %", "median l2", "seconds", "ratio"))]
    eps = victims.EPS[settings.dataset]
    caption = (
        f"{num_images} test images; linf attacks at eps {eps:.3g}, l2 attacks without a limit, so that their accuracy is 0 where they "
        "work and their distance is the figure. Seconds without compilation; ratio = seconds over the floor."
    )
    return report.Table("Attacks", caption, header, rows)


def _ensemble_table(models, x, y, mesh, settings):
    eps, num_images = victims.EPS[settings.dataset], len(x)
    ensemble, budget = victims.ensemble(settings)
    rows = []
    for name, model_fn in models.items():
        state = evaluation.run(
            pathlib.Path(settings.out) / "attack_table" / f"autoattack-{name}",
            jax.random.key(settings.seed), ensemble, model_fn, x, y, batch_size=num_images, mesh=mesh,
            model=name, dataset=settings.dataset, eps=eps, quick=settings.quick, **budget,
        )  # fmt: skip
        table = evaluate.accuracies(state)
        low, high = evaluate.confidence_interval(round(table["worst case"] * num_images), num_images)
        rows.append([name, *(f"{100 * value:.1f}" for value in table.values()), f"{100 * low:.1f} to {100 * high:.1f}"])
    caption = f"{num_images} images, {budget}; every attack on the survivors of those before; 95 % Clopper-Pearson interval."
    return report.Table("AutoAttack", caption, ["model", *table, "interval"], rows)
