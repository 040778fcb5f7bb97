"""Tests marked ``gpu`` run on the GPU, or else twice on a pretended one: as the CPU rounds, and with other rounding."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.pretend_cuda import pretend_cuda, why_not

ROUNDINGS = 4  # of inexact results, at most: about what cuDNN's and the CPU's sums differ by


def pytest_generate_tests(metafunc):
    if metafunc.definition.get_closest_marker("gpu"):
        passes = {"gpu": None} if torch.cuda.is_available() else {"exact": 0, "noisy": ROUNDINGS}
        metafunc.parametrize("cuda_device", passes.values(), ids=passes.keys(), indirect=True)


@pytest.fixture(autouse=True)
def cuda_device(request):
    """For tests marked ``gpu``, the device meanwhile: of :mod:`helpers.pretend_cuda`, or None where there is a GPU."""
    roundings = getattr(request, "param", None)
    if roundings is not None and (reason := why_not()):
        pytest.skip(f"no GPU, and {reason}")
    with nullcontext() if roundings is None else pretend_cuda(roundings) as device:
        yield device
