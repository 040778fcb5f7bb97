"""What computes the same thing sooner, behind this one door; README.md beside this file explains each of it."""

from .double_backpropagation import double_backward
from .graphs import cuda_graphs, repeated, training_steps
from .layout import autocast
from .malloc import images_per_pass, keep_memory
from .rest import at_rest
from .shared_backward import input_gradient_and_loss
from .switch import disable, enabled
from .trained_convolution import in_training

__all__ = [
    "at_rest",
    "autocast",
    "cuda_graphs",
    "disable",
    "double_backward",
    "enabled",
    "images_per_pass",
    "in_training",
    "input_gradient_and_loss",
    "keep_memory",
    "repeated",
    "training_steps",
]
