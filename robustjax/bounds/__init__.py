"""Provable bounds of a model over everything that a threat reaches: intervals and linear relaxations, and the certificates they give."""

from robustjax.bounds._crown import crown
from robustjax.bounds._interval import interval
from robustjax.bounds.certificates import Margins, certify, logit_margins, margins, radius, worst
from robustjax.bounds.network import Bounds

__all__ = ["Bounds", "Margins", "certify", "crown", "interval", "logit_margins", "margins", "radius", "worst"]
