"""What can be run by `python -m experiments NAME`: plain data, read without importing a script. The report of the tutorial reads it too."""

from typing import NamedTuple


class Entry(NamedTuple):
    """One script."""

    name: str
    place: str  # of its module in this package
    about: str  # what it shows
    source: str  # the slide or topic of the tutorial, or whose numbers it is held against
    minutes: float | None  # on two CPU cores with nothing compiled, or on the device that is named; None where nobody measured it
    data: str
    device: str = "CPU"
    full_minutes: float | None = None  # with --full

    @property
    def module(self) -> str:
        """To import."""
        return f"experiments.{self.place}"

    @property
    def kind(self) -> str:
        """Part of the tutorial, reproduction or benchmark."""
        return self.place.rsplit(".", 1)[0].removeprefix("tutorial.").replace("part", "part ").removesuffix("s")


PARTS = {
    1: "Part 1: how robust is a naive model?",
    2: "Part 2: can a model resist test-time attack?",
    3: "Part 3: when is a model provably robust?",
    4: "Part 4: can you trust others' data?",
}
_ANY = "digits, or --dataset"
_1, _2, _3, _4 = (f"tutorial.part{number}." for number in PARTS)
_R, _B = "reproductions.", "benchmarks."
_REPORT = (  # in the report's order
    Entry("why_adversarial_examples", _1, "Three classes in the plane, and the nearest point beyond the boundary",
          "Why adversarial examples exist", None, "made"),
    Entry("attack_grid", _1, "Ten digits under L-BFGS, C&W, PGD and the augmented Lagrangian", "Attack examples", None, _ANY),
    Entry("accuracy_curves", _1, "Accuracy against eps in four norms", "Robustness curves", None, _ANY),
    Entry("attack_table", _1, "Thirteen attacks: accuracy, distance, seconds; AutoAttack", "Attacks and their cost", None, _ANY),
    Entry("margins", _1, "Histogram of the smallest perturbations found", "The margin r_num", None, _ANY),
    Entry("noise_and_distance", _1, "Error in Gaussian noise against the nearest error", "Error in noise (Gilmer)", None, _ANY),
    Entry("boundaries", _2, "The boundary of a toy before and after adversarial training", "Adversarial training", None, _ANY),
    Entry("adversarial_training", _2, "Methods of adversarial training under four attacks", "Optimization matters", None, _ANY),
    Entry("accuracy_against_robustness", _2, "TRADES over beta, and many architectures", "Accuracy against robustness", None, _ANY),
    Entry("manifolds", _2, "Four ways to train under attacks on and off an exact manifold", "Dual manifold training", None, _ANY),
    Entry("decoders", _2, "A VAE and a VAE-GAN: attacks on codes, inversion", "Learned manifolds", None, _ANY),
    Entry("relaxed_toy", _3, "Boundaries of standard and certified training around twelve boxes", "Convex relaxations", None, "made"),
    Entry("vote_histogram", _3, "Votes for f(x + noise) and their certificate", "Randomized smoothing", None, _ANY),
    Entry("noisy_pictures", _3, "Digits in the noise that a radius costs", "Quality of certification", None, _ANY),
    Entry("radii_history", _3, "What four proofs make of the same votes", "From Lecuyer to Cohen", None, "none"),
    Entry("smoothing_methods", _3, "Certified accuracy by method of training", "Training for smoothing", None, _ANY),
    Entry("sandwich", _3, "Certified radius and nearest error found, image by image", "r_cert <= r <= r_num", None, _ANY),
    Entry("hypergradients", _4, "Error of hypergradients against their cost", "Bilevel optimisation", None, "made"),
    Entry("classical_poisoning", _4, "Which points an attacker of an SVM moves", "Classical learners", 0.5, "scikit-learn's"),
    Entry("untargeted_poisoning", _4, "Accuracy against the number of learned poisons", "Untargeted poisoning", None, _ANY),
    Entry("influence_scatter", _4, "Influence functions against training again", "Influence functions", 1, _ANY),
    Entry("poison_frogs", _4, "One poison for one target; heads and whole networks", "Poison frogs", 1.5, _ANY),
    Entry("metapoison", _4, "Poisons for networks trained from scratch", "MetaPoison, Witches' Brew", None, _ANY),
    Entry("certified_poisoning", _4, "Poisons that take certificates away", "Poisoned certified defenses", None, _ANY),
    Entry("learned_regularization", _4, "A strength of regularization learned against poisons", "Learned regularization", 0.6, _ANY),
)  # fmt: skip
_OTHERS = (
    Entry("parity_autoattack", _R, "Every member of AutoAttack in both packages on the same weights", "pyautoattack (torch)", 40, _ANY),
    Entry("quick_ensemble", _R, "AutoAttack's standard plan against a quick one", "Melamed et al., Xie et al.", None,
          "digits, and local ResNet-20"),
    Entry("training_gates", _R, "Adversarial training on digits, MNIST, Fashion-MNIST and CIFAR-10", "Madry, Wong, Rice, Lin", 89,
          "digits, and local MNIST, Fashion-MNIST, CIFAR-10"),
    Entry("smoothing_gates", _R, "Training for smoothing, sequential votes, votes in bfloat16", "Jeong & Shin's logs", None,
          "local MNIST or CIFAR-10", "GPU, or a CPU with patience"),
    Entry("certify", _R, "Certifies a data set with a model of yours, on all devices", "Cohen et al.", None, _ANY, "any"),
    Entry("synthetic_bilevel", _R, "Four quadratic bilevel problems, two of them singular", "Mehra & Hamm", None, "made"),
    Entry("targeted_poisoning", _R, "Digits read as another; single images with right labels", "Mehra & Hamm", 4.5, _ANY),
    Entry("hypergradient_gates", _R, "Error and cost of every hypergradient, in one table", "The closed form; jaxopt", None, "made"),
    Entry("untargeted_poisoning_gates", _R, "Learned poisons at full length on MNIST", "Mehra & Hamm", 165, "local MNIST"),
    Entry("metapoison_gates", _R, "Success over many trials, recoloured poisons too", "MetaPoison, Witches' Brew", None, _ANY),
    Entry("certified_poisoning_gates", _R, "ACR of a poisoned class for three victims", "PACD", 21, "local MNIST", "CPU; --whole: GPU"),
    Entry("fuzz_bounds", _R, "Bounds of 32 architectures against random weights, inputs and radii", "No violation", None, "made"),
    Entry("benchmark_autoattack", _B, "AutoAttack from a cold start, member by member", "pyautoattack (torch)", None,
          "digits, and local ResNet-20"),
    Entry("benchmark_attacks", _B, "What an attack costs beyond its gradients", "Bare gradients; peers", None, "digits", "any"),
    Entry("benchmark_first_call", _B, "Tracing, lowering and compiling of attacks, votes, training steps", "Bare gradients", None, "made"),
    Entry("benchmark_smoothing", _B, "What a vote costs beyond its forward pass", "Bare passes; torch", None, "digits", "any"),
    Entry("benchmark_training", _B, "What a training step costs beyond its gradients", "Bare gradients", None, "digits"),
)  # fmt: skip
ENTRIES = {entry.name: entry._replace(place=entry.place + entry.name.removeprefix("benchmark_")) for entry in (*_REPORT, *_OTHERS)}


def of_part(number: int) -> list[Entry]:
    """The sections of a part of the report, in order."""
    return [entry for entry in ENTRIES.values() if entry.kind == f"part {number}"]
