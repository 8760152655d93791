"""Untargeted poisoning: images with wrong labels, learned so that the retrained model fails (Mehra & Hamm, 2021)."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, experiment, report, style
from experiments.lib import learned_poisons as learned
from robustjax.base import Array


def flip(images: learned.Split, num_poisons: int, seed: int) -> tuple[Array, learned.Batch]:
    """Copies of the first training images with random wrong labels: the first poisons, and the random control."""
    (x, y), (x_val, y_val) = images.train, images.val
    shift = np.random.default_rng(seed).integers(1, learned.NUM_CLASSES, num_poisons)
    return x[:num_poisons], learned.Batch(x, y, x_val, y_val, (y[:num_poisons] + shift) % learned.NUM_CLASSES)


def accuracies(
    methods: dict[str, learned.Method | None],
    images: learned.Split,
    counts: tuple[int, ...],
    seed: int,
    keep_fn=lambda name, counts, make: make(),
) -> dict[str, list[float]]:
    """Test accuracy in % by name, for each number of poisons; "clean" (no poisons) and "random flips" (method None) among them."""
    phi, batch = flip(images, max(counts), seed)
    clean = learned.fit_clean(batch)

    def poisoned(method):
        sets = [phi[:count] for count in counts] if method is None else learned.attack_each(method, phi, clean, batch, counts)
        victims = [learned.fit(made, batch._replace(y_poison=batch.y_poison[: len(made)])) for made in sets]
        return [learned.accuracy(victim, *images.test) for victim in victims]

    found = {"clean": keep_fn("clean", (0,), lambda: [learned.accuracy(clean, *images.test)])}
    for name, method in methods.items():
        found[name] = keep_fn(name, counts, lambda method=method: poisoned(method))
    return found


def run(settings: experiment.Settings) -> report.Section:
    """Accuracy against the number of poisons."""
    images = learned.split(data.load(settings.dataset), settings.seed, *settings.pick((100, 100), (1000, 1000), (1000, 1000)))
    num_updates, num_backward = settings.pick((2, 2), (120, 15), (200, 30))
    methods = {
        "random flips": None,
        "back-gradient": learned.backward(num_backward),
        "ApproxGrad": learned.approximate(num_updates),
        "penalty": learned.penalty(num_updates),
    }
    counts = settings.pick((5,), (20, 60), (20, 60))
    found = accuracies(methods, images, counts, settings.seed)
    plot, axis = plt.subplots(figsize=(5.5, 4.0))
    for name in methods:
        axis.plot((0, *counts), found["clean"] + found[name], "o-", color=style.of(name), label=name)
    axis.set_xlabel(f"poisons among {len(images.train[0])} training images")
    axis.set_ylabel("test accuracy in %")
    axis.legend()
    caption = (
        f"A linear softmax, retrained from scratch on its training images and the poisons, on {len(images.test[0])} test images. Poisons "
        f"start as copies of training images with a random wrong label (random flips), and learn their pixels in [0, 1]: ApproxGrad and "
        f"the penalty method in {num_updates} updates, back-gradient in {num_backward}."
    )
    text = (
        "A few percent of the training set is enough, if it is chosen: labels flipped at random cost little, the same number of images "
        "learned through the victim's training costs far more. The victim is judged after training from scratch."
    )
    told = ", ".join(f"{name} {found[name][-1]:.0f}" for name in methods)
    alt = (
        f"Lines that start at {found['clean'][0]:.0f} % accuracy and fall with the number of poisons. At {counts[-1]} poisons, in %: "
        f"{told}. Random flips stay highest."
    )
    more = "nearly twice the updates of every method, which cost the victim more accuracy."
    figures = [report.figure("Accuracy against the number of poisons", caption, plot, alt)]
    return report.Section("Poisons against accuracy", text, figures, more=more)
