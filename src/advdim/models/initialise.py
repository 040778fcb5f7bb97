r"""Initialisations of a network's weights, each drawn from an explicit generator.

The in-degree of a neuron is the number of its inputs: the columns of a linear layer, channels x kernel area of a
convolution. Every rule draws independent weights of mean 0; they differ in the variance, and the last row in the law:

========= ================================================ ======================================
rule      variance of hidden weights                       variance of the readout's weights
========= ================================================ ======================================
he        2 / in-degree (assumption H3)                    2 / in-degree (H3 to the letter)
he_unit   2 / in-degree                                    1 / in-degree (outputs of unit gain)
ntk       2 / in-degree, as sqrt(2 / in-degree) x N(0, 1)  the same
mup       2 / in-degree                                    2 / (in-degree x width)
torch     1 / (3 in-degree), uniform, with biases          the same
========= ================================================ ======================================

Biases are 0, except under ``torch``. ``ntk`` starts from the same function as ``he`` and differs in what training then
does (Jacot et al., 2018). ``mup`` is the maximal-update parametrisation (Yang & Hu, 2021) at initialisation, with the
number of channels or hidden units, and not the image, as the width that goes to infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class WeightLaw:
    """What a layer's weights were drawn from, kept on the layer as ``layer.weight_law``.

    Attributes:
        variance: of each weight, as it acts in the forward pass.
        total: :func:`weight_total` right after drawing, by which a later change is noticed.
    """

    variance: float
    total: float


class Scaled(nn.Module):
    """Parametrisation of a weight as a fixed scale times the trained tensor."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, raw: Tensor) -> Tensor:
        """The weight that acts, same shape as raw."""
        return self.scale * raw


def weight_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolutional layers of a model in order; the last one is its readout."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def in_degree(layer: nn.Linear | nn.Conv2d) -> int:
    """Number of inputs of each neuron of a layer (away from zero-padded borders)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels // layer.groups * math.prod(layer.kernel_size)


def weight_total(layer: nn.Linear | nn.Conv2d) -> float:
    """Sum of a layer's weights in float64, each times a factor of its own: the fingerprint in :class:`WeightLaw`.

    The plain sum would not do: a gradient step on the cross-entropy leaves that of a readout's weights as it was.
    """
    weight = layer.weight.detach().cpu().double().flatten()
    return float(weight @ torch.arange(1, len(weight) + 1, dtype=torch.float64, device="cpu").cos())


def he_(model: nn.Module, generator: torch.Generator) -> None:
    """Gaussian weights of variance 2 / in-degree in every layer: assumption (H3) of the paper."""
    for layer in weight_layers(model):
        _gaussian_(layer, 2 / in_degree(layer), generator)


def he_unit_(model: nn.Module, generator: torch.Generator) -> None:
    """As :func:`he_`, with a readout of variance 1 / in-degree, so that outputs have unit gain."""
    *hidden, readout = weight_layers(model)
    for layer in hidden:
        _gaussian_(layer, 2 / in_degree(layer), generator)
    _gaussian_(readout, 1 / in_degree(readout), generator)


def ntk_(model: nn.Module, generator: torch.Generator) -> None:
    """The NTK parametrisation: weights N(0, 1), multiplied by sqrt(2 / in-degree) in the forward pass."""
    for layer in weight_layers(model):
        scale = math.sqrt(2 / in_degree(layer))
        _gaussian_(layer, 1.0, generator)
        parametrize.register_parametrization(layer, "weight", Scaled(scale), unsafe=True)
        _record(layer, scale**2)


def mup_(model: nn.Module, generator: torch.Generator) -> None:
    """The initialisation of muP: as :func:`he_`, with a readout of variance 2 / (in-degree x width).

    The width is the number of channels (or hidden units) that enter the readout.
    """
    *hidden, readout = weight_layers(model)
    for layer in hidden:
        _gaussian_(layer, 2 / in_degree(layer), generator)
    width = hidden[-1].weight.shape[0] if hidden else in_degree(readout)
    _gaussian_(readout, 2 / (in_degree(readout) * width), generator)


def torch_(model: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default: weights and biases uniform in +-1 / sqrt(in-degree)."""
    for layer in weight_layers(model):
        _refuse_parametrised(layer)
        bound = 1 / math.sqrt(in_degree(layer))
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        _record(layer, bound**2 / 3)


#: The rules by name, as :func:`advdim.models.build` takes them.
RULES: dict[str, Callable[[nn.Module, torch.Generator], None]] = {
    "he": he_,
    "he_unit": he_unit_,
    "torch": torch_,
    "ntk": ntk_,
    "mup": mup_,
}


def _refuse_parametrised(layer: nn.Linear | nn.Conv2d) -> None:
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(
            f"the weight of {type(layer).__name__} is parametrised (by ntk, say), and drawing it would change nothing: "
            "build the network anew"
        )


def _gaussian_(layer: nn.Linear | nn.Conv2d, variance: float, generator: torch.Generator) -> None:
    _refuse_parametrised(layer)
    nn.init.normal_(layer.weight, std=math.sqrt(variance), generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    _record(layer, variance)


def _record(layer: nn.Linear | nn.Conv2d, variance: float) -> None:
    vars(layer)["weight_law"] = WeightLaw(
        variance, weight_total(layer)
    )  # past nn.Module, which keeps tensors and modules
