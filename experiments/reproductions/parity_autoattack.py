"""Parity with the public AutoAttack: the same weights and the same starts through pyautoattack (torch) and robustjax.

Three models are made on the spot, a plain one, a PGD-trained one and a gradient-masked one, and every member of AutoAttack runs in
both packages: `python -m experiments parity_autoattack` prints the table and writes docs/results/parity_autoattack.md. Needs the
extra `robustjax[benchmarks]`.
"""

import argparse
import importlib.metadata
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import data, experiment, files, models, peers
from robustjax import attacks, base, evaluate, losses, threats, training

_TRAINED_EPS = 0.2  # of the PGD-trained model
_EPS = {  # radii at which accuracy is neither that of the clean set nor zero
    "plain": {"Linf": 0.08, "L2": 1.0},
    "robust": {"Linf": 0.2, "L2": 2.0},
    "masked": {"Linf": 0.08, "L2": 1.0},
}
_SHARPNESS = 30.0  # of the masked model's logits: for most images the cross-entropy and its gradient vanish in float32
_THREATS = {"Linf": threats.Linf, "L2": threats.L2}
_NUM_TARGETS = 9
_LOST_BAR, _GAP_BAR, _SQUARE_BAR, _WORST_CASE_BAR = 0.01, 1e-5, 0.01, 0.005


class Case(NamedTuple):
    """A model in both frameworks, and the images that both classify correctly."""

    name: str
    model_fn: base.ModelFn
    module: Any  # torch.nn.Module on NCHW
    x: np.ndarray  # [B, H, W, C]
    y: np.ndarray  # [B]
    num_images: int  # of which B are classified correctly


class Outcome(NamedTuple):
    """What an attack did to the images of a case."""

    success: np.ndarray  # [B] bool
    loss: np.ndarray | None = None  # [B] the largest, where both packages define it alike
    seconds: float = np.nan


class Row(NamedTuple):
    """One line of the table."""

    model: str
    attack: str
    threat: str
    ours: float  # robust accuracy of all images
    theirs: float
    flags_equal: float | None  # fraction of the attacked images
    loss_gap: float | None  # median of |difference| / |theirs|
    met: bool | None  # the bar; None where there is none
    seconds: tuple[float, float]


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--seeds", type=int, default=3, help="runs of Square, whose draws differ between the packages")
    parser.add_argument("--models", nargs="+", choices=tuple(_EPS), default=list(_EPS))
    parser.add_argument("--dataset", choices=data.NAMES[:-1], default="digits")
    parser.add_argument("--out", type=experiment.output, default="docs/results/parity_autoattack.md")
    parser.add_argument("--whole", action="store_true", help="also both ensembles through their front doors, each with its own starts")
    parser.add_argument("--quick", action="store_true", help="64 images, 20 steps, 200 queries, one seed; nothing is written")
    options = parser.parse_args(arguments)
    if options.quick:
        options.num_images, options.steps, options.queries, options.seeds = 64, 20, 200, 1
    peers.require("torch", "pyautoattack")
    import torch

    torch.set_num_threads(1)  # its threads wait for each other in a busy loop: far slower where cores are shared
    torch.set_flush_denormal(True)  # as XLA does on CPU: the gradients of a saturated cross-entropy are subnormal numbers
    rows = []
    for case in make_cases(options.dataset, options.num_images, options.models):
        for row in compare(case, options.steps, options.queries, options.seeds, options.whole):
            print(_line(row), flush=True)
            rows.append(row)
        if not options.quick:
            files.write(options.out, _report(rows, options, sys.argv[1:] if arguments is None else arguments))


def make_cases(dataset: str, num_images: int, names) -> Iterator[Case]:
    """The models by name, trained here, with the first images of the test set."""
    digits = data.load(dataset)
    if not 0 < num_images <= len(digits.x_test):
        raise ValueError(f"num_images={num_images} is not between 1 and the {len(digits.x_test)} test images of {dataset}.")
    x, y = digits.x_test[:num_images], digits.y_test[:num_images]
    for name in names:
        model = models.build("convnet", input_shape=x.shape[1:])
        params = _trained(model, digits, robust=name == "robust")
        if name == "masked":
            params = jax.tree_util.tree_map_with_path(lambda path, p: _SHARPNESS * p if "head" in str(path[0]) else p, params)
        model_fn, module = training.classifier(model.apply_fn, params, model.model_state), peers.torch_convnet(params)
        ours, theirs = np.asarray(model_fn(jnp.asarray(x))), module(peers.to_torch(x)).numpy()
        correct = (ours.argmax(axis=1) == y) & (theirs.argmax(axis=1) == y)
        gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name}: accuracy {np.mean(ours.argmax(axis=1) == y):.3f}, logits equal up to {gap:.0e} of the largest", flush=True)
        yield Case(name, model_fn, module, x[correct], y[correct], num_images)


def compare(case: Case, num_steps: int, num_queries: int, num_seeds: int, whole: bool) -> Iterator[Row]:
    """The rows of a case: every member alone, the union of the standard ones, and (`whole`) both ensembles by their front doors."""
    for norm in ("Linf", "L2"):
        eps = _EPS[case.name][norm]
        threat, delta = _THREATS[norm](eps), _start(case.x, norm, eps)
        apgd = base.bind(attacks.apgd, threat=threat, num_steps=num_steps, delta=jnp.asarray(delta))
        label = f"{norm.lower()} {eps:g}"
        ce = _ours(case, apgd), _their_apgd(case, norm, eps, num_steps, delta, "ce")
        yield _row_of_flags(case, "APGD-CE", label, *ce)
        dlr = _ours(case, base.bind(apgd, loss_fn=losses.dlr)), _their_apgd(case, norm, eps, num_steps, delta, "dlr")
        yield _row_of_flags(case, "APGD-DLR", label, *dlr)
        if norm == "L2":
            return
        targeted = _ours(case, attacks.over_targets(apgd, _NUM_TARGETS)), _their_apgd_t(case, norm, eps, num_steps, delta)
        yield _row_of_flags(case, "APGD-T", label, *targeted)
        fab = base.bind(attacks.fab, threat=threat, num_steps=num_steps)
        fab_t = _ours(case, attacks.over_targets(fab, _NUM_TARGETS)), _their_fab_t(case, norm, eps, num_steps)
        fab_t = fab_t[0]._replace(loss=None), fab_t[1]  # a norm here, and theirs stops at the first target within eps
        yield _row_of_flags(case, "FAB-T", label, *fab_t)
        square = base.bind(attacks.square, threat=threat, num_queries=num_queries)
        squares = [(_ours(case, square, seed), _their_square(case, norm, eps, num_queries, seed)) for seed in range(num_seeds)]
        for seed, pair in enumerate(squares):
            yield _row_of_accuracies(case, f"Square, seed {seed}", label, [pair], None)
        yield _row_of_accuracies(case, "Square, mean", label, squares, _SQUARE_BAR)
        union = tuple(Outcome(np.any([o.success for o in side], axis=0)) for side in zip(ce, targeted, fab_t, squares[0], strict=True))
        yield _row_of_accuracies(case, "worst of CE, T, FAB-T, Square", label, [union], _WORST_CASE_BAR)
        if whole:
            pair = _our_ensemble(case, threat), _their_ensemble(case, norm, eps)
            yield _row_of_accuracies(case, "AutoAttack, own starts", label, [pair], _WORST_CASE_BAR)


def _trained(model, digits, robust):
    fit = jax.jit(training.fit, static_argnames=("num_epochs", "batch_size"))
    optimizer = optax.adam(1e-3)
    state = training.init(model.params, model.model_state, optimizer)
    loss = base.bind(training.natural, apply_fn=model.apply_fn)
    stages = [(loss, 8)]
    if robust:  # a ramp of eps: at full strength from the start the small net stays at chance

        def at(eps):
            attack = base.bind(attacks.pgd, threat=threats.Linf(eps), step_size=eps / 4, num_steps=7)
            return base.bind(training.adversarial, apply_fn=model.apply_fn, attack=attack)

        stages = [(at(_TRAINED_EPS / 4 * quarter), epochs) for quarter, epochs in ((1, 2), (2, 2), (3, 2), (4, 8))]
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    for stage, (loss, num_epochs) in enumerate(stages):
        key = jax.random.fold_in(jax.random.key(0), stage)
        state, _ = fit(state, key, x, y, step_fn=training.step(loss, optimizer), num_epochs=num_epochs, batch_size=100)
    return state.params


def _start(x, norm, eps):
    # As the reference draws it: uniform noise scaled to max |.| = eps, or normal noise to |.|_2 = eps, then clipped to the box.
    random = np.random.default_rng(0)
    if norm == "Linf":
        noise = random.uniform(-1, 1, x.shape)
        size = np.abs(noise).max(axis=(1, 2, 3), keepdims=True)
    else:
        noise = random.normal(size=x.shape)
        size = np.sqrt(np.square(noise).sum(axis=(1, 2, 3), keepdims=True))
    return (np.clip(x + eps * noise / size, 0.0, 1.0) - x).astype(np.float32)


# --- robustjax ---------------------------------------------------------------------------------------------------------------


@jax.jit
def _attacked(attack, key, model_fn, x, y):
    return attack(key, model_fn, x, y)


def _ours(case, attack, seed=0):
    began = time.perf_counter()
    result = jax.block_until_ready(_attacked(attack, jax.random.key(seed), case.model_fn, jnp.asarray(case.x), jnp.asarray(case.y)))
    return Outcome(np.asarray(result.success), np.asarray(result.loss), time.perf_counter() - began)


def _our_ensemble(case, threat):
    began = time.perf_counter()
    *_, state = evaluate.evaluate(jax.random.key(0), attacks.ensemble(threat), case.model_fn, case.x, case.y, batch_size=len(case.y))
    return Outcome((state.success == 1).any(axis=0), None, time.perf_counter() - began)


# --- pyautoattack ------------------------------------------------------------------------------------------------------------


def _their_apgd(case, norm, eps, num_steps, delta, loss):
    from pyautoattack import autopgd_base

    began = time.perf_counter()
    attack = autopgd_base.APGDAttack(case.module, n_iter=num_steps, norm=norm, eps=eps, loss=loss, logger=logging.getLogger())
    x, y, start = peers.to_torch(case.x), peers.to_torch(case.y), peers.to_torch(case.x + delta)
    attack.init_hyperparam(x)
    _, stands, loss_best, _ = attack.attack_single_run(x, y, x_init=start)
    return Outcome(~stands.numpy(), loss_best.numpy(), time.perf_counter() - began)


def _their_apgd_t(case, norm, eps, num_steps, delta):
    from pyautoattack import autopgd_base

    began = time.perf_counter()
    attack = autopgd_base.APGDAttack_targeted(case.module, n_iter=num_steps, norm=norm, eps=eps, logger=logging.getLogger())
    x, y, start = peers.to_torch(case.x), peers.to_torch(case.y), peers.to_torch(case.x + delta)
    attack.init_hyperparam(x)
    ranking = case.module(x).argsort(dim=1, descending=True)
    success, loss = np.zeros(len(case.y), bool), np.full(len(case.y), -np.inf)
    for rank in range(1, _NUM_TARGETS + 1):  # every image against every target, so that losses compare
        attack.y_target = ranking[:, rank]
        _, stands, loss_best, _ = attack.attack_single_run(x, y, x_init=start)
        fooled, loss_best = ~stands.numpy(), loss_best.numpy()
        better = np.where(fooled == success, loss_best > loss, fooled)
        success, loss = np.where(better, fooled, success), np.where(better, loss_best, loss)
    return Outcome(success, loss, time.perf_counter() - began)


def _their_fab_t(case, norm, eps, num_steps):
    from pyautoattack import fab_pt

    attack = fab_pt.FABAttack_PT(case.module, norm=norm, n_iter=num_steps, eps=eps, targeted=True, n_target_classes=_NUM_TARGETS)
    return _their_perturbed(case, attack.perturb)


def _their_square(case, norm, eps, num_queries, seed):
    from pyautoattack import square

    attack = square.SquareAttack(case.module, norm=norm, eps=eps, n_queries=num_queries, p_init=0.8, seed=seed, resc_schedule=False)
    return _their_perturbed(case, attack.perturb)


def _their_ensemble(case, norm, eps):
    import pyautoattack

    whole = pyautoattack.AutoAttack(case.module, norm=norm, eps=eps, seed=0, version="standard")
    return _their_perturbed(case, lambda x, y: whole.run_standard_evaluation(x, y, batch_size=len(y)))


def _their_perturbed(case, perturb):
    began = time.perf_counter()
    perturbed = perturb(peers.to_torch(case.x), peers.to_torch(case.y))
    success = case.module(perturbed).numpy().argmax(axis=1) != case.y
    return Outcome(success, None, time.perf_counter() - began)


# --- the table ---------------------------------------------------------------------------------------------------------------


def _row_of_flags(case, attack, threat, ours, theirs):
    equal = float(np.mean(ours.success == theirs.success))
    gap = None
    if ours.loss is not None and theirs.loss is not None:
        difference = np.abs(ours.loss - theirs.loss)
        gap = float(np.median(np.where(difference > 0, difference / np.maximum(np.abs(theirs.loss), 1e-30), 0.0)))
    lost = float(np.mean(theirs.success & ~ours.success))
    met = lost <= _LOST_BAR and (gap is None or gap <= _GAP_BAR)
    accuracies = _accuracy(case, ours), _accuracy(case, theirs)
    return Row(case.name, attack, threat, *accuracies, equal, gap, met, (ours.seconds, theirs.seconds))


def _row_of_accuracies(case, attack, threat, pairs, bar):
    ours, theirs = (float(np.mean([_accuracy(case, outcome) for outcome in side])) for side in zip(*pairs, strict=True))
    seconds = tuple(float(np.sum([outcome.seconds for outcome in side])) for side in zip(*pairs, strict=True))
    met = None if bar is None else ours - theirs <= bar + 1e-9
    return Row(case.name, attack, threat, ours, theirs, None, None, met, seconds)


def _accuracy(case, outcome):
    return float((~outcome.success).sum() / case.num_images)


def _line(row):
    flags = "" if row.flags_equal is None else f"{100 * row.flags_equal:.1f} %"
    gap = "" if row.loss_gap is None else f"{row.loss_gap:.0e}"
    seconds = "" if np.isnan(row.seconds[0]) else f"{row.seconds[0]:.1f} / {row.seconds[1]:.1f}"
    accuracies = f"{100 * row.ours:.1f} % | {100 * row.theirs:.1f} %"
    bar = {None: "", True: "met", False: "MISSED"}[row.met]
    return f"| {row.model} | {row.attack} | {row.threat} | {accuracies} | {flags} | {gap} | {bar} | {seconds} |"


def _report(rows, options, arguments):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy", "torch", "pyautoattack"))
    about = _ABOUT.format(
        command=" ".join(["python -m experiments parity_autoattack", *arguments]), options=options, versions=versions,
        num_targets=_NUM_TARGETS, last_seed=options.seeds - 1, trained_eps=_TRAINED_EPS, sharpness=_SHARPNESS,
        lost=_LOST_BAR, gap=_GAP_BAR, square=_SQUARE_BAR, worst_case=_WORST_CASE_BAR,
    )  # fmt: skip
    return "\n".join([about, *map(_line, rows), ""])


_ABOUT = """\
# Parity with the public AutoAttack

    {command}

{options.num_images} test images of `{options.dataset}`, {options.steps} steps, {num_targets} targets, {options.queries} queries; float32
on CPU; {versions}. Seeds: 0 for weights, training and starts, 0 to {last_seed} for Square.

The models are the ConvNet of the benchmarks: trained naturally (plain), with PGD-7 at linf {trained_eps} (robust), and the plain one with
its logits times {sharpness:g} (masked: the cross-entropy saturates). Both packages have the same weights, and torch flushes subnormal
numbers to zero as XLA does on CPU: left on, they are the gradient of a nearly saturated cross-entropy, and fewer flags of APGD-CE on the
masked model are equal. APGD begins at the same points, drawn as the reference draws them, FAB at the images; Square,
and rows of own starts, use each package's own draws. Accuracies are of all images, flags and losses of those that are classified correctly
without attack. The loss gap is the median of |largest loss of robustjax - that of pyautoattack| / |that of pyautoattack|. Seconds are
robustjax / pyautoattack, wall time with compilation, one after the other on a shared machine, torch on one thread: for orientation only.

Bars: at most {lost:g} of the images are fooled by pyautoattack alone and, for APGD, the gap is at most {gap:g}; accuracies of Square, in
the mean of its seeds, are at most {square:g} higher, worst cases at most {worst_case:g}. Two differences are meant: robustjax takes the
direction of a gradient however small it is, where the reference divides by its norm plus 1e-12 and stands still (masked, APGD-CE, l2),
and its Square draws windows up to the last row and column, which the reference never does.

| model | attack | threat | robustjax | pyautoattack | flags equal | loss gap | bar | seconds |
|---|---|---|---|---|---|---|---|---|"""
