"""Memory of large tensors: kept for the next ones, and small enough where it is not."""

from __future__ import annotations

import ctypes
import math
import sys

from torch import Tensor

from . import switch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGEST = 2**31 - 1  # mallopt takes ints


def keep_memory() -> bool:
    """Have the C library keep the memory of freed tensors, up to 2 GiB each, for the rest of this process.

    glibc maps every block of more than 32 MiB anew and returns it when it is freed, so that the kernel clears all its
    pages again at each step of training: at batch size 128 the steps of a convolutional network take more than twice as
    long. The environment variables ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_``, set before Python starts,
    do the same without a call.

    Returns:
        Whether the C library is glibc and agreed; elsewhere nothing changes.
    """
    if not switch.enabled() or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(which, _LARGEST) == 1 for which in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def images_per_pass(x: Tensor) -> int:
    """How many of the images x [N, C, H, W] run fast in one pass on their device; 128 with the fast paths off."""
    if not switch.enabled():
        return 128
    # On a CPU, keep a map of 64 channels below the 32 MiB past which glibc maps each tensor's memory anew.
    room = 24 * 2**20 if x.device.type == "cpu" else 2**30
    most = max(1, room // max(1, 64 * x.element_size() * x[0, 0].numel()))
    parts = max(1, math.ceil(len(x) / most))
    return max(1, math.ceil(len(x) / parts))  # of one size, so that the allocator finds what fits
