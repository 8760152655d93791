"""An attack with checks of what can only be known at run time."""

import jax.numpy as jnp
from jax.experimental import checkify

from robustjax import base, prng
from robustjax.attacks import combinators
from robustjax.base import Attack


def checked(attack: Attack) -> Attack:
    """The attack with `checkify` checks of what can only be known at run time; to be called through `checkify.checkify`.

    What it reports: labels outside [0, C), inputs outside the threat's box, negative eps, and logits, losses and results that are not
    finite.

    Args:
      attack: an attack or a combination.

    Returns:
      An attack.

    Example:
      >>> import jax, jax.numpy as jnp, robustjax as rj
      >>> from jax.experimental import checkify
      >>> attack = rj.attacks.checked(rj.bind(rj.attacks.fgsm, threat=rj.Linf(0.125)))
      >>> error, result = checkify.checkify(attack)(jax.random.key(0), lambda x: x, jnp.array([[0.6, 1.5]]), jnp.array([0]))
      >>> error.get().partition(":")[0]
      "inputs outside the threat's box"
    """
    return base.bind(_checked, attack=attack)


def _checked(key, model_fn, x, y, *, attack):
    keys = prng.example_keys(key, x.shape[0])
    logits = combinators.logits_at_x(attack, keys, model_fn, x)
    checkify.check(jnp.all(jnp.isfinite(logits)), "the model's logits at x are not finite: check its parameters and the scale of x.")
    if y.ndim == 1:
        checkify.check(
            jnp.all((y >= 0) & (y < logits.shape[1])),
            "labels outside [0, " + str(logits.shape[1]) + "): smallest {low}, largest {high}; the model has that many logits.",
            low=y.min(), high=y.max(),
        )  # fmt: skip
    for threat in (getattr(threat, "ball", threat) for threat in combinators.threats_of(attack)):
        if hasattr(threat, "eps"):
            eps = jnp.asarray(threat.eps)
            checkify.check(jnp.all(eps >= 0), "eps must be at least 0, smallest {eps}.", eps=eps.min())
        if hasattr(threat, "box"):
            lower, upper = threat.box
            checkify.check(
                jnp.all((x >= lower) & (x <= upper)),
                "inputs outside the threat's box: values from {low} to {high}; scale them, or pass box=(lower, upper).",
                low=x.min(), high=x.max(),
            )  # fmt: skip
    result = attack(keys, model_fn, x, y)
    finite = jnp.all(jnp.isfinite(result.x)) & ~jnp.any(jnp.isnan(result.loss))
    checkify.check(finite, "the attack met a non-finite loss or gradient: run it under jax.debug_nans to see where.")
    return result
