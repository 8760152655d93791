"""Training-time attacks: training data that make a learner fail as the attacker wants, crafted through what it will learn from them."""

from robustjax.poisoning import classical
from robustjax.poisoning.certified import Victim, lower_radius, soft_radius
from robustjax.poisoning.craft import PoisonResult, craft, differentiated, random_control, signed
from robustjax.poisoning.features import Collision, bullseye, feature_collision
from robustjax.poisoning.gradient_matching import cosine, gradient_matching
from robustjax.poisoning.influence import Influence, influence, response_gradient
from robustjax.poisoning.metapoison import Surrogates, metapoison
from robustjax.poisoning.sets import choose, insert

__all__ = [
    "Collision",
    "Influence",
    "PoisonResult",
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
    "lower_radius",
    "metapoison",
    "random_control",
    "response_gradient",
    "signed",
    "soft_radius",
]
