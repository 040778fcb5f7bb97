"""Networks: the paper's and their variations, their initialisations, and where to compute."""

from . import initialise
from .architectures import PADDINGS, POOLINGS, READOUTS, Network, build, calibrate_batch_norm
from .device import device
from .layers import Net, Normalise

__all__ = [
    "PADDINGS",
    "POOLINGS",
    "READOUTS",
    "Net",
    "Network",
    "Normalise",
    "build",
    "calibrate_batch_norm",
    "device",
    "initialise",
]
