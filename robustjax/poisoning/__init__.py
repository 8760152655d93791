"""Training-time attacks: training data that make a learner fail as the attacker wants, crafted through what it will learn from them."""

from robustjax.poisoning import classical, sanitized
from robustjax.poisoning.certified import Victim, lower_radius, soft_radius
from robustjax.poisoning.craft import PoisonResult, craft, differentiated, random_control, signed
from robustjax.poisoning.example_weights import weighted, weights
from robustjax.poisoning.features import Collision, bullseye, feature_collision
from robustjax.poisoning.gradient_matching import cosine, gradient_matching
from robustjax.poisoning.influence import Influence, Response, influence, method_gradient, response_gradient
from robustjax.poisoning.metapoison import Surrogates, metapoison
from robustjax.poisoning.regularization import Regularized, learn_regularization, penalized
from robustjax.poisoning.sets import choose, insert

__all__ = [
    "Collision",
    "Influence",
    "PoisonResult",
    "Regularized",
    "Response",
    "Surrogates",
    "Victim",
    "bullseye",
    "choose",
    "classical",
    "cosine",
    "craft",
    "differentiated",
    "feature_collision",
    "gradient_matching",
    "influence",
    "insert",
    "learn_regularization",
    "lower_radius",
    "metapoison",
    "method_gradient",
    "penalized",
    "random_control",
    "response_gradient",
    "sanitized",
    "signed",
    "soft_radius",
    "weighted",
    "weights",
]
