"""Training-time attacks: training data that make a learner fail as the attacker wants, crafted through what it will learn from them."""

from typing import TYPE_CHECKING

from robustjax import renamed
from robustjax.poisoned_sets import choose, insert
from robustjax.poisoning import classical, sanitized
from robustjax.poisoning._craft import PoisonResult, craft_poisons, differentiated, random_control, signed
from robustjax.poisoning._example_weights import example_weights, weighted_examples
from robustjax.poisoning._gradient_matching import cosine, gradient_matching
from robustjax.poisoning._influence import Influence, Response, influence, method_gradient, response_gradient
from robustjax.poisoning._metapoison import Surrogates, metapoison
from robustjax.poisoning.certified import ResponseDescent, SoftCertificate, VictimState, VictimTraining, poison_certificates, soft_radius
from robustjax.poisoning.features import Collision, bullseye, feature_collision
from robustjax.poisoning.regularization import Regularized, learn_regularization, penalized
from robustjax.poisoning.task import Task

__all__ = [
    "Collision",
    "Influence",
    "PoisonResult",
    "Regularized",
    "Response",
    "ResponseDescent",
    "SoftCertificate",
    "Surrogates",
    "Task",
    "VictimState",
    "VictimTraining",
    "bullseye",
    "choose",
    "classical",
    "cosine",
    "craft_poisons",
    "differentiated",
    "example_weights",
    "feature_collision",
    "gradient_matching",
    "influence",
    "insert",
    "learn_regularization",
    "metapoison",
    "method_gradient",
    "penalized",
    "poison_certificates",
    "random_control",
    "response_gradient",
    "sanitized",
    "signed",
    "soft_radius",
    "weighted_examples",
]

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(__name__, craft="craft_poisons", weights="example_weights", weighted="weighted_examples")
