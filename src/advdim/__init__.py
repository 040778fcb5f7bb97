"""advdim: how a network's adversarial vulnerability grows with the dimension of its input.

Images are float tensors [N, C, H, W] in [0, 1], and every eps is in the same units.
"""

from . import analysis, attacks, data, experiments, measure, models, theory, train
from .audit import audit
from .models import device
from .theory import norms

__version__ = "0.1.0"

__all__ = [
    "analysis",
    "attacks",
    "audit",
    "data",
    "device",
    "experiments",
    "measure",
    "models",
    "norms",
    "theory",
    "train",
]
