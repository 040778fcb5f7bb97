"""advdim: how a network's adversarial vulnerability grows with the dimension of its input.

Images are float tensors [N, C, H, W] in [0, 1], and every eps is in the same units.
"""

import torch as _torch

from . import (
    attacks,
    autoattack,
    collapse,
    data,
    experiments,
    initialise,
    measure,
    models,
    norms,
    penalties,
    plots,
    scaling,
    theory,
    train,
)

__version__ = "0.1.0"

__all__ = [
    "attacks",
    "autoattack",
    "collapse",
    "data",
    "device",
    "experiments",
    "initialise",
    "measure",
    "models",
    "norms",
    "penalties",
    "plots",
    "scaling",
    "theory",
    "train",
]


def device() -> _torch.device:
    """The best device at hand: CUDA, else Apple's MPS, else the CPU."""
    if _torch.cuda.is_available():
        return _torch.device("cuda")
    return _torch.device("mps" if _torch.backends.mps.is_available() else "cpu")
