"""Networks: the paper's and their variations, their initialisations, and where to compute."""

from . import initialise
from .architectures import PADDINGS, POOLINGS, READOUTS, Network, build, calibrate_batch_norm
from .device import device
from .layers import Net, Normalise, Residual

__all__ = [
    "PADDINGS",
    "POOLINGS",
    "READOUTS",
    "Net",
    "Network",
    "Normalise",
    "Residual",
    "build",
    "calibrate_batch_norm",
    "device",
    "initialise",
]
