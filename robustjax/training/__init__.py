"""Training: losses `(params, model_state, key, x, y, *, apply_fn, ...) -> (loss, (model_state, metrics))`, a step, a run."""

from robustjax.training.adversarial import adversarial, classifier
from robustjax.training.natural import natural
from robustjax.training.run import TrainState, fit, init, step

__all__ = ["TrainState", "adversarial", "classifier", "fit", "init", "natural", "step"]
