"""Where to compute, and with which precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

#: The environment variable that chooses the device, and what it may be.
VARIABLE, CHOICES = "ADVDIM_DEVICE", ("cpu", "cuda", "mps")


def device() -> torch.device:
    """The device of the environment variable ``ADVDIM_DEVICE``; else the best at hand: CUDA, Apple's MPS, the CPU.

    Returns:
        "cpu", "cuda" or "mps".

    Raises:
        ValueError: if the variable is none of these, or names a device that is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = os.environ.get(VARIABLE, "")
    if not chosen:
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if chosen not in CHOICES:
        raise ValueError(
            f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {chosen!r}; unset it for the best device"
        )
    if not there[chosen]:
        found = ", ".join(name for name in CHOICES if there[name])
        raise ValueError(f"{VARIABLE} is {chosen!r}, but there is only {found}; unset it, or set it to one of these")
    return torch.device(chosen)


def to_device(t: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; from the CPU to a GPU by way of pinned memory, for which the host need not wait."""
    if t.is_cpu and device.type == "cuda":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions and products in float32 meanwhile, whatever precision they are allowed.

    On a GPU, convolutions are in TF32 by default, with 10 of the mantissa's 23 bits. PyTorch has switches of two
    generations: the older ones set all of a library, the newer ones (from 2.9 on) each kind of layer, by itself or as
    its library or all of PyTorch is set. The older ones cannot be read where newer ones differ; elsewhere they are
    used, since what reads them meanwhile (``torch.backends.cudnn.flags``, say) then still can.
    """
    backends: Any = torch.backends
    with ExitStack() as stack:
        kinds = _kinds()
        stack.callback(_restore, kinds, [kind.fp32_precision for kind in kinds])
        try:
            allowed = backends.cudnn.allow_tf32
        except RuntimeError:
            allowed = False
        if allowed:
            stack.callback(setattr, backends.cudnn, "allow_tf32", True)
            backends.cudnn.allow_tf32 = False
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:
            precision = "highest"
        if precision != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        for kind in kinds:
            if kind.fp32_precision not in ("none", "ieee"):
                kind.fp32_precision = "ieee"
        yield


def _kinds() -> list[Any]:
    """Kinds of layers that have a switch of their own; none before PyTorch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    libraries = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    return [*libraries, *(getattr(backends.mkldnn, kind) for kind in ("conv", "rnn", "matmul"))]


def _restore(kinds: list[Any], before: list[str]) -> None:
    for kind, precision in zip(kinds, before, strict=True):
        kind.fp32_precision = "none"  # which then is as its library, or all of PyTorch, is set
        if kind.fp32_precision != precision:
            kind.fp32_precision = precision
