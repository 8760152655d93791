"""Adversarial examples are a consequence of error in noise: the distance to the nearest error against its prediction (Gilmer)."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from experiments.lib import data, evaluation, experiment, report, style, victims
from robustjax import attacks, base
from robustjax.threats import L2

SIGMAS = (0.2, 0.3, 0.4, 0.6)


def run(settings: experiment.Settings) -> report.Section:
    """Per image and sigma: the error rate mu in noise, -sigma Phi^-1(mu), and FMN's distance from the image and from noisy ones."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    num_images, num_samples, num_draws = settings.pick((8, 50, 3), (16, 500, 5), (24, 1000, 9))
    x, y = dataset.x_test[:num_images], dataset.y_test[:num_images]
    key_rate, key_draw, key_attack = jax.random.split(jax.random.key(settings.seed), 3)
    anywhere = L2(jnp.inf, box=(-jnp.inf, jnp.inf))  # Gaussian noise leaves the box, and so may the nearest error
    closest = base.bind(attacks.fmn, threat=anywhere, num_steps=settings.pick(20, 50, 100))
    noise = jax.random.normal(key_draw, (num_draws, *x.shape))
    plot, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
    notes = []
    for name, model_fn in models.items():
        rates = np.asarray(_error_rates(key_rate, model_fn, x, y, jnp.asarray(SIGMAS), num_samples))
        informative = (rates >= 10 / num_samples) & (rates <= 0.5)
        predicted = -np.asarray(SIGMAS)[:, None] * scipy.stats.norm.ppf(np.where(informative, rates, 0.5))

        def distances(images, labels, model_fn=model_fn):
            return np.asarray(evaluation.attacked(closest, key_attack, model_fn, images, labels).info.norm)

        from_image = np.broadcast_to(distances(x, y), predicted.shape)
        noisy = [distances((x[None] + sigma * noise).reshape(-1, *x.shape[1:]), np.tile(y, num_draws)) for sigma in SIGMAS]
        from_noisy = np.median(np.reshape(noisy, (len(SIGMAS), num_draws, num_images)), axis=1)
        for axis, measured in zip(axes, (from_image, from_noisy), strict=True):
            axis.plot(predicted[informative], measured[informative], ".", color=style.of(name), label=name, alpha=0.7)
        if informative.any():
            above = np.mean(from_noisy[informative] > predicted[informative])
            ratio = np.median(from_image[informative] / np.maximum(predicted[informative], 1e-9))
            notes.append(f"{name}: {informative.sum()} pairs, from the image {ratio:.1f} times the line, {above:.0%} of medians above it")
    for axis, title in zip(axes, ("from the image", f"from noisy images, median of {num_draws}"), strict=True):
        limit = max(axis.get_xlim()[1], 1.0)
        axis.plot([0, limit], [0, limit], "--", color=style.INK, lw=1, label="half-space")
        axis.set_title(title)
        axis.set_xlabel("-sigma * Phi^-1(error rate in noise)")
    axes[0].set_ylabel("distance to the nearest error (FMN, l2)")
    axes[0].legend()
    caption = (
        f"{num_images} images, {num_samples} noise samples at each of sigma {SIGMAS}; pairs with an error rate between 10 errors and "
        f"one half. In the median over pairs, {'; '.join(notes) or 'no informative pair'}. FMN's distances are upper bounds."
    )
    text = (
        "If a model errs with rate mu <= 1/2 in Gaussian noise around an image, then at least half of the noisy images have an error "
        "within -sigma Phi^-1(mu): that is Gaussian isoperimetry, with equality for a half-space (right). The image itself may lie "
        "farther from every error, in a hollow of the error set; were that a half-space, its points would lie on the line too (left)."
    )
    alt = (
        "Two scatter plots of the distance to the nearest error against the distance predicted from the error rate in noise. On the left, "
        "from the image, most points lie above the diagonal; on the right, from noisy images, they lie near it or below."
    )
    more = "more images, twice the noise samples and steps, nine noisy images in place of five."
    figures = [report.figure("Gilmer's relation", caption, plot, alt)]
    return report.Section("Error in noise and the nearest error", text, figures, more=more)


@functools.partial(jax.jit, static_argnames="num_samples")
def _error_rates(key, model_fn, x, y, sigmas, num_samples):
    """Error rates [sigmas, images]."""

    def of_sigma(sigma):
        def once(i):
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return model_fn(x + sigma * noise).argmax(axis=1) != y

        return jax.lax.map(once, jnp.arange(num_samples)).mean(axis=0)

    return jax.lax.map(of_sigma, sigmas)
