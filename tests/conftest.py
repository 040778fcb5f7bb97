"""Tests marked ``gpu`` run on the GPU, or else twice on a pretended one: as the CPU rounds, and with other rounding.

``gpu(noise=True)`` leaves the first pass out, for what is compared in float32 and below; ``gpu(noise=False)`` the
second, for what does not depend on rounding or is compared in float64; ``gpu(noise="by dtype")`` chooses by that
parameter.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.pretend_cuda import pretend_cuda, why_not

ROUNDINGS = 4  # of inexact results, at most: about what cuDNN's and the CPU's sums differ by


def pytest_collection_modifyitems(config, items):
    """Of the two passes, leave out the one in which a case cannot fail if it passes in the other."""
    redundant = [item for item in items if _is_redundant(item)]
    config.hook.pytest_deselected(items=redundant)
    items[:] = [item for item in items if item not in set(redundant)]


def _is_redundant(item):
    marker = item.get_closest_marker("gpu")
    where = marker.kwargs.get("noise", "both") if marker else "both"
    if where == "both" or item.callspec.params["cuda_device"] is None:
        return False
    if where == "by dtype":  # float64 is held to 1e-6, which noise does not reach
        where = item.callspec.params["dtype"] not in ("float64", torch.float64)
    return where != bool(item.callspec.params["cuda_device"])


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
