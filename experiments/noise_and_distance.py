"""Adversarial examples are a consequence of error in noise: the distance to the nearest error against its prediction (Gilmer)."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from experiments.lib import data, experiment, report, victims
from robustjax import attacks, base
from robustjax.threats import L2

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)


def run(settings: experiment.Settings) -> report.Section:
    """Per image: error rate mu in noise of sigma, the half-space prediction -sigma Phi^-1(mu), and the distance by FMN."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    num_images, num_samples = (8, 50) if settings.quick else (40, 1000)
    x, y = dataset.x_test[:num_images], dataset.y_test[:num_images]
    key = jax.random.key(settings.seed)
    anywhere = L2(jnp.inf, box=(-jnp.inf, jnp.inf))  # Gaussian noise leaves the box, and so may the nearest error
    closest = base.bind(attacks.fmn, threat=anywhere, num_steps=20 if settings.quick else 300)
    plot, axis = plt.subplots(figsize=(5.5, 4.6))
    notes = []
    for color, (name, model_fn) in zip(("C3", "C0"), models.items(), strict=True):
        distance = -np.asarray(jax.jit(closest)(key, model_fn, x, y).loss)
        rates = np.asarray(_error_rates(key, model_fn, x, y, jnp.asarray(SIGMAS), num_samples))
        informative = (rates >= 10 / num_samples) & (rates <= 0.5) & (distance > 0)
        predicted = -np.asarray(SIGMAS)[:, None] * scipy.stats.norm.ppf(np.where(informative, rates, 0.5))
        measured = np.broadcast_to(distance, predicted.shape)
        axis.plot(predicted[informative], measured[informative], ".", color=color, label=name, alpha=0.7)
        if informative.any():
            ratio = np.median(measured[informative] / np.maximum(predicted[informative], 1e-9))
            notes.append(f"{name}: {informative.sum()} pairs, median ratio {ratio:.2f}")
    limit = max(axis.get_xlim()[1], 1.0)
    axis.plot([0, limit], [0, limit], "k--", lw=1, label="half-space")
    axis.set_xlabel("-sigma * Phi^-1(error rate in noise)")
    axis.set_ylabel("distance to the nearest error (FMN, l2)")
    axis.legend()
    caption = (
        f"{num_images} images, {num_samples} noise samples at each of sigma {SIGMAS}; pairs with an error rate between 10 errors and "
        f"one half. Measured over predicted: {'; '.join(notes) or 'no informative pair'}. Among all error sets of a given rate the "
        "half-space lies farthest from the image, so points lie on or below the line, up to sampling."
    )
    text = (
        "A model that errs in Gaussian noise with rate mu has an error within -sigma Phi^-1(mu) of the image: in many dimensions "
        "small error rates and small distances are one thing."
    )
    return report.Section("Error in noise and the nearest error", text, [report.figure("Gilmer's relation", caption, plot)])


@functools.partial(jax.jit, static_argnames="num_samples")
def _error_rates(key, model_fn, x, y, sigmas, num_samples):
    """Error rates [sigmas, images]."""

    def of_sigma(sigma):
        def once(i):
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return model_fn(x + sigma * noise).argmax(axis=1) != y

        return jax.lax.map(once, jnp.arange(num_samples)).mean(axis=0)

    return jax.lax.map(of_sigma, sigmas)


if __name__ == "__main__":
    from experiments import noise_and_distance

    experiment.main(noise_and_distance.run, __doc__)
