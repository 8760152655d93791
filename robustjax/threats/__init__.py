"""What the adversary may do, as frozen pytrees (see `base.Threat`): norm balls with a box and a mask, codes, colours, one delta for all."""

from robustjax.threats.ball import RTOL, Ball
from robustjax.threats.l0 import L0
from robustjax.threats.l1 import L1
from robustjax.threats.l2 import L2
from robustjax.threats.latent import Latent
from robustjax.threats.linf import Linf
from robustjax.threats.recolor import Recolor
from robustjax.threats.shared import Shared, is_shared

__all__ = ["L0", "L1", "L2", "RTOL", "Ball", "Latent", "Linf", "Recolor", "Shared", "is_shared"]
