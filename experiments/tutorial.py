"""The tutorial report: every table and figure, part by part, on one page that grows while it runs."""

import argparse
import pathlib

from experiments import (
    accuracy_against_robustness,
    accuracy_curves,
    adversarial_training,
    attack_grid,
    attack_table,
    boundaries,
    certified_poisoning,
    classical_poisoning,
    decoders,
    hypergradients,
    influence_scatter,
    learned_regularization,
    manifolds,
    margins,
    metapoison,
    noise_and_distance,
    noisy_pictures,
    poison_frogs,
    radii_history,
    sandwich,
    smoothing_methods,
    untargeted_poisoning,
    vote_histogram,
    why_adversarial_examples,
)
from experiments.lib import experiment, report

TITLE = "Why are machine learning models vulnerable to attacks?"
PARTS = {
    1: ("Part 1: how robust is a naive model?", [
        why_adversarial_examples, attack_grid, accuracy_curves, attack_table, margins, noise_and_distance,
    ]),
    2: ("Part 2: can a model resist test-time attack?", [
        boundaries, adversarial_training, accuracy_against_robustness, manifolds, decoders,
    ]),
    3: ("Part 3: when is a model provably robust?", [
        vote_histogram, noisy_pictures, radii_history, smoothing_methods, sandwich,
    ]),
    4: ("Part 4: can you trust others' data?", [
        hypergradients, classical_poisoning, untargeted_poisoning, influence_scatter, poison_frogs, metapoison, certified_poisoning,
        learned_regularization,
    ]),
}  # fmt: skip


def main() -> None:
    """python -m experiments.tutorial [--part N]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, choices=PARTS, help="one part alone; all by default")
    settings, arguments = experiment.parse(parser)
    page = pathlib.Path(settings.out) / "index.html"
    sections: dict[str, list[report.Section]] = {}
    for number, (title, scripts) in PARTS.items():
        if arguments.part in (None, number):
            sections[title] = []
            for script in scripts:
                sections[title].append(experiment.section(script.run, settings))
                report.page(page, TITLE, sections)
    experiment.console.print(f"report: {page}")


if __name__ == "__main__":
    main()
