"""Training: losses `(params, model_state, key, x, y, *, apply_fn, ...) -> (loss, (model_state, metrics))`, a step, a run."""

from robustjax.training.adversarial import adversarial, mixed
from robustjax.training.consistency import consistency
from robustjax.training.crafting import classifier, craft, craft_divergent
from robustjax.training.denoise import denoise
from robustjax.training.diagnostics import Overfitting, catastrophic_overfitting
from robustjax.training.dual_manifold import Coded, dual_manifold, dual_manifold_trades
from robustjax.training.flax_models import Model, from_linen, from_nnx
from robustjax.training.free import FreeParams, free, free_optimizer, replay
from robustjax.training.gaussian import gaussian, stability
from robustjax.training.grad_align import alignment, grad_align
from robustjax.training.macer import macer, radius_margin
from robustjax.training.mart import mart
from robustjax.training.natural import accuracy, natural
from robustjax.training.run import TrainState, check, eps_ramp, fit, init, step
from robustjax.training.smooth_adv import smooth_adv
from robustjax.training.smooth_mix import smooth_mix
from robustjax.training.trades import trades
from robustjax.training.weights import average, averaged, awp, statistics, unperturbed

__all__ = [
    "Coded",
    "FreeParams",
    "Model",
    "Overfitting",
    "TrainState",
    "accuracy",
    "adversarial",
    "alignment",
    "average",
    "averaged",
    "awp",
    "catastrophic_overfitting",
    "check",
    "classifier",
    "consistency",
    "craft",
    "craft_divergent",
    "denoise",
    "dual_manifold",
    "dual_manifold_trades",
    "eps_ramp",
    "fit",
    "free",
    "free_optimizer",
    "from_linen",
    "from_nnx",
    "gaussian",
    "grad_align",
    "init",
    "macer",
    "mart",
    "mixed",
    "natural",
    "radius_margin",
    "replay",
    "smooth_adv",
    "smooth_mix",
    "stability",
    "statistics",
    "step",
    "trades",
    "unperturbed",
]
