"""Lines below and above functions of one variable over an interval, and their ranges: what every linear bound is made of."""

from robustjax.bounds.relaxations._piecewise import clamp_to, maximum_with, minimum_with, relu
from robustjax.bounds.relaxations._smooth import smooth
from robustjax.bounds.relaxations._table import UNARY, power, reciprocal
from robustjax.bounds.relaxations.planes import Planes, Unary

__all__ = ["UNARY", "Planes", "Unary", "clamp_to", "maximum_with", "minimum_with", "power", "reciprocal", "relu", "smooth"]
