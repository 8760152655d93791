"""Training: losses `(params, model_state, key, x, y, *, apply_fn, ...) -> (loss, (model_state, metrics))`, a step, a run."""

from typing import TYPE_CHECKING

from robustjax import renamed
from robustjax.training._adversarial import adversarial, mixed
from robustjax.training._certified import certified
from robustjax.training._consistency import consistency
from robustjax.training._denoise import denoise
from robustjax.training._dual_manifold import Coded, dual_manifold, dual_manifold_trades
from robustjax.training._free import FreeParams, free, free_optimizer, replay
from robustjax.training._gaussian import gaussian, stability
from robustjax.training._grad_align import alignment, grad_align
from robustjax.training._inner_pgd import inner_pgd
from robustjax.training._macer import macer, radius_margin
from robustjax.training._mart import mart
from robustjax.training._natural import accuracy, natural
from robustjax.training._sabr import sabr
from robustjax.training._smooth_adv import smooth_adv
from robustjax.training._smooth_mix import smooth_mix
from robustjax.training._trades import trades
from robustjax.training.crafting import attacked_inputs, attacked_inputs_by_kl, classifier
from robustjax.training.diagnostics import Overfitting, catastrophic_overfitting
from robustjax.training.expressive import cc_ibp, exp_ibp, mtl_ibp
from robustjax.training.flax_models import Model, from_linen, from_nnx
from robustjax.training.ramps import certified_ramp, smooth_ramp
from robustjax.training.run import TrainState, check, eps_ramp, fit, init, step
from robustjax.training.short_warmup import ibp_init, ibp_regularization
from robustjax.training.weights import average, averaged, awp, batch_norm_statistics, unperturbed

__all__ = [
    "Coded",
    "FreeParams",
    "Model",
    "Overfitting",
    "TrainState",
    "accuracy",
    "adversarial",
    "alignment",
    "attacked_inputs",
    "attacked_inputs_by_kl",
    "average",
    "averaged",
    "awp",
    "batch_norm_statistics",
    "catastrophic_overfitting",
    "cc_ibp",
    "certified",
    "certified_ramp",
    "check",
    "classifier",
    "consistency",
    "denoise",
    "dual_manifold",
    "dual_manifold_trades",
    "eps_ramp",
    "exp_ibp",
    "fit",
    "free",
    "free_optimizer",
    "from_linen",
    "from_nnx",
    "gaussian",
    "grad_align",
    "ibp_init",
    "ibp_regularization",
    "init",
    "inner_pgd",
    "macer",
    "mart",
    "mixed",
    "mtl_ibp",
    "natural",
    "radius_margin",
    "replay",
    "sabr",
    "smooth_adv",
    "smooth_mix",
    "smooth_ramp",
    "stability",
    "step",
    "trades",
    "unperturbed",
]

if not TYPE_CHECKING:  # a type checker takes every name for known where a module has this
    __getattr__ = renamed.lookup(
        __name__, craft="attacked_inputs", craft_divergent="attacked_inputs_by_kl", statistics="batch_norm_statistics"
    )
