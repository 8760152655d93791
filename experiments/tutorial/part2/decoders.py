"""A learned manifold: a VAE and a VAE-GAN trained on digits, attacks on their codes, and the inversion of their decoders."""

import functools

import jax
import numpy as np

from experiments.lib import data, evaluation, experiment, report, style, vae, victims
from robustjax import attacks, base, manifolds
from robustjax.threats import Latent

LATENT_EPS = 0.3  # of a code whose prior is standard normal
NUM_SHOWN = 10


def run(settings: experiment.Settings) -> report.Section:
    """Samples, reconstructions and on-manifold adversarial examples of both, and the accuracy of both victims under them."""
    dataset = data.load(settings.dataset)
    models = victims.load(settings, dataset)
    num_images, num_steps = settings.pick((16, 4), (200, 20), (500, 40))
    items: list = []
    rows = []
    for kind in vae.KINDS:
        autoencoder = vae.load(kind, settings, dataset)
        items.append(_picture(kind, autoencoder, models["undefended"], dataset, settings))
        rows += _rows(kind, autoencoder, models, dataset.x_test[:num_images], dataset.y_test[:num_images], num_steps, settings.seed)
    header = ["decoder", "model", "reconstructions", "OM-FGSM", f"OM-PGD-{num_steps}"]
    caption = (
        f"Accuracy in % on test images that the encoder has coded; linf {LATENT_EPS} in the code. What is attacked are images of the "
        "decoder: an error is one on the learned manifold, or an image whose class the decoder has changed."
    )
    text = (
        "Without an exact manifold a decoder learns one. Adversarial training in pixels does little against attacks on the code: what it "
        "has seen lies off the manifold."
    )
    more = "autoencoders trained more than twice as long, 500 images, attacks and inversions of twice the steps."
    return report.Section("A learned manifold", text, [*items, report.Table("Attacks on codes", caption, header, rows)], more=more)


def _picture(kind, autoencoder, model_fn, dataset, settings):
    x, y = dataset.x_test[:NUM_SHOWN], dataset.y_test[:NUM_SHOWN]
    key_sample, key_invert, key_attack = jax.random.split(jax.random.key(settings.seed), 3)
    decoder, code = autoencoder.decoder, autoencoder.encode(x)
    num_steps = settings.pick(5, 100, 200)
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
    predictions = {row: np.asarray(evaluation.predicted(model_fn, images)) for row, images in shown.items()}
    wrong = {row: (predictions[row] != y) & (row != "sample") for row in shown}
    plot = style.gallery({row: (np.asarray(images), predictions[row], wrong[row]) for row, images in shown.items()})
    error = np.linalg.norm((np.asarray(shown["encoded"]) - x).reshape(len(x), -1), axis=1)
    caption = (
        f"Test images, what the decoder makes of their codes (median l2 error {np.median(error):.2f}) and of the codes that inversion "
        f"finds ({np.median(np.asarray(inverted.error)):.2f}), on-manifold adversarial examples of the undefended model, and samples. "
        "Predictions above, wrong ones in orange."
    )
    alt = (
        f"Five rows of ten digits: test images, the {kind}'s reconstructions of them from the encoder's codes and from inverted codes, "
        f"on-manifold adversarial examples, {int(wrong['OM-PGD'].sum())} of which are misread, and digits drawn at random."
    )
    return report.figure(f"The {kind}", caption, plot, alt)


def _rows(kind, autoencoder, models, x, y, num_steps, seed):
    threat = Latent(autoencoder.decoder, LATENT_EPS)
    judges = (
        base.bind(attacks.fgsm, threat=threat),
        base.bind(attacks.pgd, threat=threat, step_size=LATENT_EPS / 8, num_steps=num_steps),
    )
    code, key = autoencoder.encode(x), jax.random.key(seed)
    rows = []
    for name, model_fn in models.items():
        wrong = np.asarray(evaluation.predicted(model_fn, autoencoder.decoder(code))) != y
        fooled = [wrong, *(evaluation.attacked(judge, key, model_fn, code, y).success for judge in judges)]
        rows.append([kind, name, *(f"{100 * (1.0 - np.mean(share)):.1f}" for share in fooled)])
    return rows
