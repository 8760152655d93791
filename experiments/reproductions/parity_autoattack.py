"""Parity with the public AutoAttack: the same weights and the same starts through pyautoattack (torch) and robustjax.

Three models are made on the spot, a plain one, a PGD-trained one and a gradient-masked one, and every member of AutoAttack runs in
both packages: `python -m experiments parity_autoattack --page docs/results/parity_autoattack.md`. Needs the extra
`robustjax[benchmarks]`.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import data, experiment, gates, models, pages, peers
from experiments.lib import pyautoattack as reference
from experiments.lib.pyautoattack import Case, Outcome
from robustjax import attacks, base, evaluate, losses, threats, training

_TRAINED_EPS = 0.2  # of the PGD-trained model
_EPS = {  # radii at which accuracy is neither that of the clean set nor zero
    "plain": {"Linf": 0.08, "L2": 1.0},
    "robust": {"Linf": 0.2, "L2": 2.0},
    "masked": {"Linf": 0.08, "L2": 1.0},
}
_SHARPNESS = 30.0  # of the masked model's logits: for most images the cross-entropy and its gradient vanish in float32
_NUM_TARGETS = 9
_LOST_BAR, _GAP_BAR, _SQUARE_BAR, _WORST_CASE_BAR = 0.01, 1e-5, 0.01, 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(experiment.Options):
    """What is attacked, and how long."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    num_images: int = 500
    steps: int = 100
    """Of APGD and FAB."""
    queries: int = 5000
    """Of Square."""
    seeds: int = 3
    """Runs of Square, whose draws differ between the packages."""
    models: tuple[Literal["plain", "robust", "masked"], ...] = ("plain", "robust", "masked")
    whole: bool = False
    """Also both ensembles through their front doors, each with its own starts."""


class Row(NamedTuple):
    """One line of the table."""

    model: str
    attack: str
    threat: str
    ours: float  # robust accuracy of all images
    theirs: float
    flags_equal: float | None  # fraction of the attacked images
    loss_gap: float | None  # median of |difference| / |theirs|
    seconds: tuple[float, float]
    checks: tuple[gates.Gate, ...] = ()
    flags: tuple[np.ndarray, np.ndarray] | None = None  # success of the attacked images


def run(settings: Settings) -> None:
    """A section for each model."""
    if settings.quick:
        settings = dataclasses.replace(settings, num_images=64, steps=20, queries=200, seeds=1)
    peers.require("torch", "pyautoattack")
    import torch

    torch.set_num_threads(1)  # its threads wait for each other in a busy loop: far slower where cores are shared
    torch.set_flush_denormal(True)  # as XLA does on CPU: the gradients of a saturated cross-entropy are subnormal numbers
    for case in make_cases(settings.dataset, settings.num_images, settings.models):
        start, rows = time.perf_counter(), []
        for row in compare(case, settings.steps, settings.queries, settings.seeds, settings.whole):
            print(row.model, *_cells(row), sep=" | ", flush=True)
            rows.append(row)
        header = ["attack", "threat", "robustjax", "pyautoattack", "flags equal", "loss gap", "gate", "seconds"]
        blocks = [pages.table(header, [_cells(row) for row in rows]), pages.gates_of([gate for row in rows for gate in row.checks])]
        flags = {f"{row.attack}, {row.threat}, {name}": part for row in rows if row.flags
                 for name, part in zip(("robustjax", "pyautoattack"), row.flags, strict=True)}  # fmt: skip
        page, seeds = pages.Page(_TITLE, _head(settings), tuple(_EPS)), range(settings.seeds)
        packages = ["numpy", "torch", "pyautoattack"]
        experiment.publish("parity_autoattack", settings, page, case.name, blocks, start, packages=packages, seeds=seeds, flags=flags)


def make_cases(dataset: str, num_images: int, names) -> Iterator[Case]:
    """The models by name, trained here, with the first images of the test set."""
    digits = data.load(dataset)
    if not 0 < num_images <= len(digits.x_test):
        raise ValueError(f"num_images={num_images} is not between 1 and the {len(digits.x_test)} test images of {dataset}.")
    x, y = digits.x_test[:num_images], digits.y_test[:num_images]
    for name in names:
        model_fn, params = network(name, digits)
        module = peers.torch_convnet(params)
        ours, theirs = np.asarray(model_fn(jnp.asarray(x))), module(peers.to_torch(x)).numpy()
        correct = (ours.argmax(axis=1) == y) & (theirs.argmax(axis=1) == y)
        gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name}: accuracy {np.mean(ours.argmax(axis=1) == y):.3f}, logits equal up to {gap:.0e} of the largest", flush=True)
        yield Case(name, model_fn, module, x[correct], y[correct], num_images)


def network(name: str, digits):
    """The model by name, "plain", "robust" or "masked", trained here, as a function and as parameters."""
    model = models.build("convnet", input_shape=digits.x_test.shape[1:])
    params = _trained(model, digits, robust=name == "robust")
    if name == "masked":
        params = jax.tree_util.tree_map_with_path(lambda path, p: _SHARPNESS * p if "head" in str(path[0]) else p, params)
    return training.classifier(model.apply_fn, params, model.model_state), params


def compare(case: Case, num_steps: int, num_queries: int, num_seeds: int, whole: bool) -> Iterator[Row]:
    """The rows of a case: every member alone, the union of the standard ones, and (`whole`) both ensembles by their front doors."""
    for norm in ("Linf", "L2"):
        eps = _EPS[case.name][norm]
        threat, delta = getattr(threats, norm)(eps), _start(case.x, norm, eps)
        apgd = base.bind(attacks.apgd, threat=threat, num_steps=num_steps, delta=jnp.asarray(delta))
        label = f"{norm.lower()} {eps:g}"
        ce = _ours(case, apgd), reference.apgd(case, norm, eps, num_steps, delta, "ce")
        yield _row_of_flags(case, "APGD-CE", label, *ce)
        dlr = _ours(case, base.bind(apgd, loss_fn=losses.dlr)), reference.apgd(case, norm, eps, num_steps, delta, "dlr")
        yield _row_of_flags(case, "APGD-DLR", label, *dlr)
        if norm == "L2":
            return
        targeted = (
            _ours(case, attacks.over_targets(apgd, _NUM_TARGETS)),
            reference.targeted_apgd(case, norm, eps, num_steps, delta, _NUM_TARGETS),
        )
        yield _row_of_flags(case, "APGD-T", label, *targeted)
        fab = base.bind(attacks.fab, threat=threat, num_steps=num_steps)
        fab_t = _ours(case, attacks.over_targets(fab, _NUM_TARGETS)), reference.targeted_fab(case, norm, eps, num_steps, _NUM_TARGETS)
        fab_t = fab_t[0]._replace(loss=None), fab_t[1]  # a norm here, and theirs stops at the first target within eps
        yield _row_of_flags(case, "FAB-T", label, *fab_t)
        square = base.bind(attacks.square, threat=threat, num_queries=num_queries)
        squares = [(_ours(case, square, seed), reference.square(case, norm, eps, num_queries, seed)) for seed in range(num_seeds)]
        for seed, pair in enumerate(squares):
            yield _row_of_accuracies(case, f"Square, seed {seed}", label, [pair], None)
        yield _row_of_accuracies(case, "Square, mean", label, squares, _SQUARE_BAR)
        union = tuple(Outcome(np.any([o.success for o in side], axis=0)) for side in zip(ce, targeted, fab_t, squares[0], strict=True))
        yield _row_of_accuracies(case, "worst of CE, T, FAB-T, Square", label, [union], _WORST_CASE_BAR)
        if whole:
            pair = _our_ensemble(case, threat), reference.ensemble(case, norm, eps)
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


# --- the table ---------------------------------------------------------------------------------------------------------------


def _row_of_flags(case, attack, threat, ours, theirs):
    lost, gap, found = float(np.mean(theirs.success & ~ours.success)), None, []
    found.append(gates.Gate(f"{attack}, {threat}: images that pyautoattack alone fools", lost, high=_LOST_BAR))
    if ours.loss is not None and theirs.loss is not None:
        difference = np.abs(ours.loss - theirs.loss)
        gap = float(np.median(np.where(difference > 0, difference / np.maximum(np.abs(theirs.loss), 1e-30), 0.0)))
        found.append(gates.Gate(f"{attack}, {threat}: loss gap", gap, high=_GAP_BAR))
    equal = float(np.mean(ours.success == theirs.success))
    sides = _accuracy(case, ours), _accuracy(case, theirs)
    return Row(case.name, attack, threat, *sides, equal, gap, (ours.seconds, theirs.seconds), tuple(found), (ours.success, theirs.success))


def _row_of_accuracies(case, attack, threat, pairs, bar):
    ours, theirs = (float(np.mean([_accuracy(case, outcome) for outcome in side])) for side in zip(*pairs, strict=True))
    seconds = tuple(float(np.sum([outcome.seconds for outcome in side])) for side in zip(*pairs, strict=True))
    name = f"{attack}, {threat}: accuracy above that of pyautoattack"
    found = () if bar is None else (gates.Gate(name, round(ours - theirs, 9), high=bar),)
    return Row(case.name, attack, threat, ours, theirs, None, None, seconds, found, tuple(pair.success for pair in pairs[0]))


def _accuracy(case, outcome):
    return float((~outcome.success).sum() / case.num_images)


def _cells(row):
    flags = "" if row.flags_equal is None else f"{100 * row.flags_equal:.1f} %"
    gap = "" if row.loss_gap is None else f"{row.loss_gap:.0e}"
    seconds = "" if np.isnan(row.seconds[0]) else f"{row.seconds[0]:.1f} / {row.seconds[1]:.1f}"
    met = gates.verdict(all(gate.met for gate in row.checks) if row.checks else None)
    return [row.attack, row.threat, f"{100 * row.ours:.1f} %", f"{100 * row.theirs:.1f} %", flags, gap, met, seconds]


def _head(settings):
    return _HEAD.format(
        settings=settings, num_targets=_NUM_TARGETS, last_seed=settings.seeds - 1, trained_eps=_TRAINED_EPS, sharpness=_SHARPNESS,
        lost=_LOST_BAR, gap=_GAP_BAR, square=_SQUARE_BAR, worst_case=_WORST_CASE_BAR,
    )  # fmt: skip


_TITLE = "Parity with the public AutoAttack"
_HEAD = """\
{settings.num_images} test images of `{settings.dataset}`, {settings.steps} steps, {num_targets} targets, {settings.queries} queries;
float32 on CPU. Seeds: 0 for weights, training and starts, 0 to {last_seed} for Square.

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
"""
