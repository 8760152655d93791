"""A learned manifold: a VAE and a VAE-GAN trained on digits, attacks on their codes, and the inversion of their decoders."""

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lib import data, evaluation, experiment, report, vae, victims
from robustjax import attacks, base, manifolds
from robustjax.threats import Latent

LATENT_EPS = 0.3  # of a code whose prior is standard normal
NUM_SHOWN = 10


def run(settings: experiment.Settings) -> report.Section:
    """Samples, reconstructions and on-manifold adversarial examples of both, and the accuracy of both victims under them."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    items: list = []
    rows = []
    for kind in vae.KINDS:
        autoencoder = vae.load(kind, settings, dataset)
        items.append(_picture(kind, autoencoder, models["undefended"], dataset, settings))
        rows += _rows(kind, autoencoder, models, dataset, settings)
    header = ["decoder", "model", "reconstructions", "OM-FGSM", "OM-PGD-40"]
    caption = (
        f"Accuracy in % on test images that the encoder has coded; linf {LATENT_EPS} in the code. What is attacked are images of the "
        "decoder: an error is one on the learned manifold, or an image whose class the decoder has changed."
    )
    text = (
        "Without an exact manifold a decoder learns one. Adversarial training in pixels does little against attacks on the code: what it "
        "has seen lies off the manifold."
    )
    return report.Section("A learned manifold", text, [*items, report.Table("Attacks on codes", caption, header, rows)])


def _picture(kind, autoencoder, model_fn, dataset, settings):
    x, y = dataset.x_test[:NUM_SHOWN], dataset.y_test[:NUM_SHOWN]
    key_sample, key_invert, key_attack = jax.random.split(jax.random.key(settings.seed), 3)
    decoder, code = autoencoder.decoder, autoencoder.encode(x)
    num_steps = 5 if settings.quick else 200
    options = {"num_codes": code.shape[1], "num_steps": num_steps, "learning_rate": 0.1, "num_restarts": 2}
    inverted = jax.jit(functools.partial(manifolds.invert, **options))(key_invert, decoder, x)
    attack = base.bind(attacks.pgd, threat=Latent(decoder, LATENT_EPS), step_size=LATENT_EPS / 8, num_steps=num_steps // 5)
    result = evaluation.attacked(attack, key_attack, model_fn, code, y)
    shown = {
        "image": x,
        "encoded": decoder(code),
        "inverted": decoder(inverted.code),
        "OM-PGD": result.x,
        "sample": decoder(jax.random.normal(key_sample, code.shape)),
    }
    plot, axes = plt.subplots(len(shown), NUM_SHOWN, figsize=(NUM_SHOWN, 1.25 * len(shown)))
    for line, (row, images) in zip(axes, shown.items(), strict=True):
        line[0].set_ylabel(row)
        predictions = np.asarray(evaluation.predicted(model_fn, images))
        for axis, image, prediction, label in zip(line, np.asarray(images), predictions, y, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(str(prediction), fontsize=9, color="black" if row == "sample" or prediction == label else "red", pad=2)
            axis.set(xticks=[], yticks=[])
    error = np.linalg.norm((np.asarray(shown["encoded"]) - x).reshape(len(x), -1), axis=1)
    caption = (
        f"Test images, what the decoder makes of their codes (median l2 error {np.median(error):.2f}) and of the codes that inversion "
        f"finds ({np.median(np.asarray(inverted.error)):.2f}), on-manifold adversarial examples of the undefended model, and samples. "
        "Predictions above, wrong ones in red."
    )
    return report.figure(f"The {kind}", caption, plot)


def _rows(kind, autoencoder, models, dataset, settings):
    num_images = 16 if settings.quick else 500
    x, y = dataset.x_test[:num_images], dataset.y_test[:num_images]
    threat = Latent(autoencoder.decoder, LATENT_EPS)
    judges = (
        base.bind(attacks.fgsm, threat=threat),
        base.bind(attacks.pgd, threat=threat, step_size=LATENT_EPS / 8, num_steps=4 if settings.quick else 40),
    )
    code, key = autoencoder.encode(x), jax.random.key(settings.seed)
    rows = []
    for name, model_fn in models.items():
        wrong = np.asarray(evaluation.predicted(model_fn, autoencoder.decoder(code))) != y
        fooled = [wrong, *(evaluation.attacked(judge, key, model_fn, code, y).success for judge in judges)]
        rows.append([kind, name, *(f"{100 * (1.0 - np.mean(share)):.1f}" for share in fooled)])
    return rows
