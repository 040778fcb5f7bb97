"""Measurements on a model: input gradients and their norms, losses, damage, vulnerability."""

from .damage import Evaluation, damage, evaluate, predictions, vulnerability, zero_one
from .gradients import Loss, cross_entropy, gradient_norms, input_gradients, logit, losses, outputs

__all__ = [
    "Evaluation",
    "Loss",
    "cross_entropy",
    "damage",
    "evaluate",
    "gradient_norms",
    "input_gradients",
    "logit",
    "losses",
    "outputs",
    "predictions",
    "vulnerability",
    "zero_one",
]
