"""Provable bounds of a model over everything that a threat reaches: intervals and linear relaxations, and the certificates they give."""

from robustjax.bounds._alpha_crown import alpha_crown
from robustjax.bounds._crown import crown, crown_ibp
from robustjax.bounds._interval import interval
from robustjax.bounds._linear_program import linear_program
from robustjax.bounds._wong_kolter import Estimate, wong_kolter_estimate
from robustjax.bounds._zonotope import zonotope
from robustjax.bounds.certificates import Margins, certify, logit_margins, margins, radius, worst
from robustjax.bounds.network import Bounds, memory

__all__ = [
    "Bounds",
    "Estimate",
    "Margins",
    "alpha_crown",
    "certify",
    "crown",
    "crown_ibp",
    "interval",
    "linear_program",
    "logit_margins",
    "margins",
    "memory",
    "radius",
    "wong_kolter_estimate",
    "worst",
    "zonotope",
]
