"""A functional JAX toolkit for adversarial machine learning: attacks, training, certificates, poisons and defenses.

`import robustjax as rj` is immediate: a package or a name below is imported when it is first used, and nothing touches a device.

    attack = rj.bind(rj.attacks.pgd, threat=rj.Linf(8 / 255), step_size=2 / 255, num_steps=10)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustjax import (
        arrays,
        attacks,
        base,
        bilevel,
        bounds,
        evaluate,
        flags,
        graph,
        loops,
        losses,
        lowering,
        manifolds,
        parallel,
        poisoning,
        prng,
        smoothing,
        threats,
        training,
    )
    from robustjax.base import AttackResult, Certificate, bind, draw, node, static
    from robustjax.threats import L0, L1, L2, Latent, Linf, Recolor

    __version__: str

_NAMES = {
    **dict.fromkeys(("AttackResult", "Certificate", "bind", "draw", "node", "static"), "base"),
    **dict.fromkeys(("L0", "L1", "L2", "Latent", "Linf", "Recolor"), "threats"),
}  # name: its module

__all__ = [
    "L0",
    "L1",
    "L2",
    "AttackResult",
    "Certificate",
    "Latent",
    "Linf",
    "Recolor",
    "__version__",
    "arrays",
    "attacks",
    "base",
    "bilevel",
    "bind",
    "bounds",
    "draw",
    "evaluate",
    "flags",
    "graph",
    "loops",
    "losses",
    "lowering",
    "manifolds",
    "node",
    "parallel",
    "poisoning",
    "prng",
    "smoothing",
    "static",
    "threats",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # slow to import

        return metadata.version("robustjax")
    if name not in __all__:
        raise AttributeError(f"module 'robustjax' has no attribute {name!r}; its names are {', '.join(__all__)}")
    module = importlib.import_module(f"robustjax.{_NAMES.get(name, name)}")
    return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted(__all__)
