"""One pass back for two purposes: the gradient in the images, and the same loss's gradient in the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import switch


def input_gradient_and_loss(losses: Tensor, leaf: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Gradient of the sum of the losses in the leaf, and that sum, to be differentiated in the parameters later.

    Args:
        losses: [N], with a graph to the leaf and the parameters.
        leaf: the images that the outputs were computed at.
        model: whose parameters.

    Returns:
        The gradient, like leaf, without a graph; the sum, whose gradients in the parameters are known already, so that
        the pass back through its graph is not taken again.
    """
    if not switch.enabled():
        return torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0], losses.sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    g, *slopes = torch.autograd.grad(losses.sum(), [leaf, *parameters], allow_unused=True)
    return g, _PrecomputedGradient.apply(losses.detach().sum(), slopes, *parameters)  # type: ignore[no-untyped-call]


class _PrecomputedGradient(torch.autograd.Function):
    """A value whose gradients in the parameters, the slopes, have been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if s is None else gradients[0] * s for s in ctx.slopes)
