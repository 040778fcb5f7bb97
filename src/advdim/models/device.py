"""Where to compute."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """The best device at hand: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
