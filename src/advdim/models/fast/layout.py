"""Layouts and precisions of training: channels-last parameters, autocast to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import switch
from .block_convolution import convolve_by_blocks


@contextmanager
def channels_last(model: nn.Module, *, twice: bool) -> Iterator[None]:
    """Keep the parameters of convolutions in the layout in which they train fastest meanwhile; then as they were.

    Channels-last, in which PyTorch adds up the statistics of a batch-norm one number after the other: in float32, means
    over 128 maps of 32x32 are off by 1e-5 of a standard deviation, by 1e-3 where most places hold one number.

    Args:
        model: any module.
        twice: whether gradients are differentiated again. :func:`advdim.models.fast.double_backward` has layers for
            CPUs only; elsewhere, PyTorch's own second derivatives are faster in the layout of the model.
    """
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    on_cpu = all(p.is_cpu for p in model.parameters())
    if not switch.enabled() or not convolutions or (twice and not on_cpu):
        yield
        return
    maps = [t for t in (*model.parameters(), *model.buffers()) if t.ndim == 4]
    strides = [t.stride() for t in maps]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for t, stride in zip(maps, strides, strict=True):
            if t.stride() != stride:
                t.data = torch.empty_strided(t.shape, stride, dtype=t.dtype, device=t.device).copy_(t.data)


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Compute convolutions and matrix products in bfloat16 meanwhile."""
    quick = _CPUAutocast() if switch.enabled() and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), quick:
        yield


class _CPUAutocast(TorchFunctionMode):
    """What is quicker on a CPU than autocast alone.

    Padding keeps its dtype; autocast takes it to float32, which costs two copies, a tenth of the time. Convolutions of
    images have their gradient in the images computed by blocks.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A convolution by blocks, where that can be done, padding without autocast, any other function as it is."""
        kwargs = kwargs or {}
        if func is torch.conv2d and (outputs := convolve_by_blocks(*args, **kwargs)) is not None:
            return outputs
        if func is not F.pad:
            return func(*args, **kwargs)
        before = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", False)  # as torch.autocast does, in a tenth of its time
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled("cpu", before)
