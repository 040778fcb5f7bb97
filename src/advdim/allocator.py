"""Memory of large tensors, kept for the next ones."""

from __future__ import annotations

import ctypes
import sys

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
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(which, _LARGEST) == 1 for which in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
