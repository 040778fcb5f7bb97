"""Anybody's network as a map from images in [0, 1] to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Normalise


class Refusal(ValueError):
    """Something that no honest number can come from; the message names the cure."""


class Adapted(nn.Module):
    """A network behind its normalisation, whose outputs are logits, and which cannot write into its images.

    Args:
        model: the network, in eval mode from here on.
        logits: takes what the network gives out to logits [N, K]; None for a tensor, ``.logits``, a mapping's "logits",
            or the first of a tuple.
        normalise: of the images, or None.
    """

    def __init__(
        self, model: nn.Module, logits: Callable[[Any], Tensor] | None = None, normalise: Normalise | None = None
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.model = model
        self._logits = logits
        self.eval()

    @property
    def takes_logits_out(self) -> bool:
        """Whether a function of the user's takes the logits out of what the network gives."""
        return self._logits is not None

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W]."""
        out = self.model(x.clone() if self.normalise is None else self.normalise(x))
        return logits_of(out) if self._logits is None else self._logits(out)


class Function(nn.Module):
    """A plain function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """What the function gives."""
        return self.function(x)


def logits_of(out: Any) -> Tensor:
    """The logits in what a network gives out: a tensor, ``.logits``, a mapping's "logits", or the first of a tuple."""
    if isinstance(out, Tensor):
        return out
    if isinstance(getattr(out, "logits", None), Tensor):
        return torch.as_tensor(out.logits)
    if isinstance(out, Mapping) and isinstance(out.get("logits"), Tensor):
        return torch.as_tensor(out["logits"])
    if isinstance(out, tuple | list) and out and isinstance(out[0], Tensor):
        return out[0]
    keys = f" with {', '.join(map(str, out))}" if isinstance(out, Mapping) else ""
    raise Refusal(
        f"the network gives out a {type(out).__name__}{keys}, where no logits were found: say which part they are, "
        "with logits=lambda out: ..."
    )


def adapted(
    model: nn.Module,
    *,
    logits: Callable[[Any], Tensor] | None,
    mean: Any,
    std: Any,
    dtype: torch.dtype,
    device: torch.device,
    own: bool,
) -> Adapted:
    """A network ready to be measured: normalised, in eval mode, of one dtype, parameters without gradients.

    Args:
        model: the network; a copy is taken unless it is the audit's own.
        logits: as for :class:`Adapted`.
        mean: per channel, [C], or one number; None for no normalisation.
        std: likewise, positive.
        dtype: to measure in.
        device: to measure on.
        own: whether nobody else has this module.
    """
    normalise = None
    if (mean is None) != (std is None):
        raise Refusal("mean and std go together: give both or neither")
    if mean is not None:
        values = [torch.as_tensor(v, dtype=torch.float32).reshape(-1) for v in (mean, std)]
        if not bool((values[1] > 0).all()):
            raise Refusal(f"std must be positive, got {std}")
        normalise = Normalise(*values)
    model = model if own else copy.deepcopy(model)
    net = Adapted(model, logits, normalise).to(device=device, dtype=dtype)
    return net.requires_grad_(False)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch-norms of a model that keep running statistics."""
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for m in found if m.running_mean is not None]


def fresh_batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Those whose running statistics have never seen an image: mean 0, variance 1."""
    return [
        m
        for m in batch_norms(model)
        if m.running_mean is not None
        and m.running_var is not None
        and not bool(m.running_mean.any())
        and bool((m.running_var == 1).all())
    ]


def zero_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose weights are all exactly 0."""
    return [
        name.removeprefix("model.")
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and not bool(m.weight.any())
    ]


def randomise(model: nn.Module) -> list[str]:
    """Draw anew, by PyTorch's default, the weights of layers that are all 0; their names."""
    names = zero_layers(model)
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear | nn.Conv2d) and name.removeprefix("model.") in names:
            m.reset_parameters()
    return names
