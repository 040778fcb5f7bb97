"""A network at rest: in many passes its parameters stay as they are and need no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import fold_batch_norm, switch


@contextmanager
def at_rest(model: nn.Module) -> Iterator[nn.Module]:
    """Give the network to call meanwhile: the same function, computed sooner, with gradients in its input alone.

    Batch-norms are merged where that can be done (:mod:`.fold_batch_norm`); a network that stays whole gets its images
    in the channels-last layout, in which convolutions run 1.5 to 2 times as fast on a CPU, and from the second pass on
    its weights, too. The parameters need no gradient until the context ends, however it ends.
    """
    if not switch.enabled():
        yield model
        return
    parameters = [p for p in model.parameters() if p.requires_grad and not p.is_inference()]
    laid_out: list[tuple[Tensor, Tensor]] = []
    try:
        for p in parameters:
            p.requires_grad_(False)
        folded = fold_batch_norm.fold(model)
        yield _ChannelsLast(model, laid_out) if folded is model and _gains(model) else folded
    finally:
        for weight, data in laid_out:
            weight.data = data
        for p in parameters:
            p.requires_grad_(True)


class _ChannelsLast(nn.Module):
    """A model whose float32 images are laid out channels-last first; its weights are when it is called again.

    Args:
        model: whose weights do not change meanwhile.
        laid_out: gets the weights that are, each with its data, to be put back.
    """

    def __init__(self, model: nn.Module, laid_out: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self.laid_out, self.passes = model, laid_out, 0

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, K] of images [N, C, H, W]."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            self.passes += 1
            if self.passes == 2:  # a single pass would not gain what the copies cost
                self._lay_out_weights()
        outputs: Tensor = self.model(x)
        return outputs

    def _lay_out_weights(self) -> None:
        for m in self.model.modules():
            if isinstance(m, nn.Conv2d) and not m.weight.requires_grad and not m.weight.is_inference():
                self.laid_out.append((m.weight, m.weight.data))
                m.weight.data = m.weight.data.contiguous(memory_format=torch.channels_last)


def _gains(model: nn.Module) -> bool:
    """Whether the layout of the images is free to choose, and matters."""
    modules = list(model.modules())
    weights = [m.weight for m in modules if isinstance(m, nn.Conv2d)]
    # Weights in that layout lead the maps there by themselves; a batch-norm of 3 channels is slow in it.
    leads = any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)
    # Someone else's forward may call .view on a map, which this layout forbids; the modules of these packages do not.
    known = all(type(m).__module__.startswith(("torch.nn.", "torchvision.models.", "advdim.")) for m in modules)
    return bool(weights) and not leads and known
