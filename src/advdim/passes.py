"""Passes through a model, shared by measurements and attacks: batches, losses per example, parameters at rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import blocks, folding

#: A loss per example: (outputs [N, K], labels [N]) to [N].
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, [N], of logits [N, K] and labels [N]."""
    return F.cross_entropy(outputs, y, reduction="none")


def per_example(values: Tensor, y: Tensor) -> Tensor:
    """The values of a loss, refused unless there is one for each of the labels y [N]."""
    if values.shape != y.shape:  # a mean over the batch, say, would divide every gradient by the size of the batch
        raise ValueError(f"the loss must give one value per example, [{len(y)}], got shape {tuple(values.shape)}")
    return values


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs [N, K]; on a CPU by way of the channels-last layout, in which convolutions run 1.5 to 2 times as fast.

    In that layout PyTorch adds up the statistics of a batch-norm in train mode one number after the other: in float32,
    means over 128 maps of 32x32 are off by 1e-5 of a standard deviation, by 1e-3 where most places hold one number.
    """
    # Someone else's forward may call .view on a map, which this layout forbids; the modules of these packages do not.
    safe = all(type(m).__module__.startswith(("torch.nn.", "torchvision.models.", "advdim.")) for m in model.modules())
    if safe and x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and not _leads_there(model):
        x = x.contiguous(memory_format=torch.channels_last)
    outputs: Tensor = model(x)
    return outputs


def _leads_there(model: nn.Module) -> bool:
    """Whether a convolution's weights, so its outputs, have that layout; a batch-norm of 3 channels is slow in it."""
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)


def with_graph(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of x that needs a gradient, and the outputs [N, K] at it."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, forward(model, leaf)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Gradient of every example's own loss, like x, and the outputs [N, K], by one pass forward and one back."""
    leaf, outputs = with_graph(model, x)
    with torch.enable_grad():
        total = per_example(loss(outputs, y), y).sum()
    (g,) = torch.autograd.grad(total, leaf)
    return torch.empty_like(x).copy_(g), outputs.detach()


@contextmanager
def bfloat16(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products in bfloat16 meanwhile, by autocast."""
    with torch.autocast(device.type, torch.bfloat16), _OnCPU():
        yield


class _OnCPU(TorchFunctionMode):
    """What is quicker on a CPU than autocast alone.

    Padding keeps its dtype; autocast takes it to float32, which costs two copies, a tenth of the time. Convolutions of
    images have their gradient in the images computed by blocks.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A convolution by blocks, where that can be done, padding without autocast, any other function as it is."""
        kwargs = kwargs or {}
        if func is torch.conv2d and (outputs := blocks.by_blocks(*args, **kwargs)) is not None:
            return outputs
        if func is not F.pad:
            return func(*args, **kwargs)
        before = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", False)  # as torch.autocast does, in a tenth of its time
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled("cpu", before)


class frozen:
    """Parameters need no gradient meanwhile: only the input's is computed, and theirs are left as found.

    Gives the network to use meanwhile, with batch-norms folded where that can be done: a fourth to a half faster.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> nn.Module:
        for p in self.parameters:
            p.requires_grad_(False)
        return folding.folded(self.model)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)


def batches(*tensors: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equal length, split alike; by default into as many images as run fast on their device."""
    first = tensors[0]
    if batch_size is None:
        # On a CPU, keep a map of 64 channels below the 32 MiB past which glibc maps each tensor's memory anew.
        room = 24 * 2**20 if first.device.type == "cpu" else 2**30
        most = max(1, room // max(1, 64 * first.element_size() * first[0, 0].numel()))
        parts = max(1, math.ceil(len(first) / most))
        batch_size = max(1, math.ceil(len(first) / parts))  # of one size, so that the allocator finds what fits
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    yield from zip(*(torch.split(t, batch_size) for t in tensors), strict=True)


def warn_of_train_mode(model: nn.Module) -> None:
    """Warn the caller's caller of layers in which the examples of a batch interact."""
    interacting = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if batch_statistics or (module.training and isinstance(module, interacting)):
            why = "has no running statistics" if batch_statistics else "is in train mode"
            cure = "build it with track_running_stats=True" if batch_statistics else "call model.eval() first"
            warnings.warn(
                f"{type(module).__name__} {name!r} {why}: the gradients are not each example's own; {cure}",
                stacklevel=3,
            )
            return


def rows(values: Tensor) -> Tensor:
    """One value per example, [N], as [N, 1, 1, 1], to go with images."""
    return values.view(-1, 1, 1, 1)


def at_least(least: float, **values: float) -> None:
    """Refuse a value below the least."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_range(x: Tensor, clip: bool) -> None:
    """Refuse images that clipping itself would move."""
    if clip and not (x.min() >= 0 and x.max() <= 1):
        low, high = x.min().item(), x.max().item()
        raise ValueError(f"clip=True needs x in [0, 1], got values from {low:g} to {high:g}; rescale x, or clip=False")
