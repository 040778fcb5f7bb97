"""Batch-norms in eval mode merged into the layers beside them, for the many passes of a network at rest."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..layers import Net, Normalise
from .block_convolution import ImageConvolution, fits
from .trained_convolution import TrainedConvolution

Layer = TypeVar("Layer", bound=nn.Module)
_FORGETFUL = (nn.Conv2d, ImageConvolution, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold(model: nn.Module) -> nn.Module:
    """A network of the same outputs and gradients up to rounding, in fewer passes; or the model, if it is as quick.

    In eval mode a batch-norm is an affine map per channel, as :class:`advdim.models.Normalise` is. It merges into the
    convolution or linear layer before it, across a pooling layer too, or else into the convolution after it, unless
    zeros are padded in between. ReLUs overwrite what they are given where it is not needed again. Only sequences of
    layers are folded, without hooks; the model stays as it is, and the layers that do not change are shared with it.

    Args:
        model: any module.

    Returns:
        A module to be used while the model does not change: merged layers have copies of its weights.
    """
    if type(model) not in (nn.Sequential, Net) or any(getattr(m, hooks) for m in model.modules() for hooks in _HOOKS):
        return model
    assert isinstance(model, nn.Sequential)
    leaves = _leaves(model)
    layers: list[nn.Module] = []
    for layer in leaves:
        if (affine := _affine(layer)) is not None and (place := _before(layers, affine[0])) is not None:
            layers[place] = _merged(layers[place], *affine)
        elif _unpadded(layer) and layers and (affine := _affine(layers[-1])) is not None:
            layers[-1] = _merged(layer, *affine, at_input=True)
        else:
            layers.append(layer)
    layers = [_quick(layer) for layer in layers]
    layers = [_in_place(layer, before) for before, layer in zip([None, *layers], layers, strict=False)]
    if all(a is b for a, b in zip_longest(layers, leaves)):
        return model
    if isinstance(model, Net):
        return Net(*layers, image_shape=model.image_shape, classes=model.classes)
    return nn.Sequential(*layers)


def _quick(layer: nn.Module) -> nn.Module:
    """A layer that rests, its parameters in the dtype of autocast; on a CPU with the fastest layout and way back."""
    if type(layer) not in (nn.Conv2d, nn.Linear) or layer.weight.requires_grad or layer.weight.dtype != torch.float32:
        return layer
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    device = layer.weight.device.type
    # Autocast would cast parameters that rest anew in each pass. The meta device, which counts costs, has none.
    casts = torch.amp.autocast_mode.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casts else torch.float32
    on_cpu = device == "cpu" and isinstance(layer, nn.Conv2d)
    layout = torch.channels_last if on_cpu else torch.preserve_format
    if dtype != torch.float32 or (on_cpu and not layer.weight.is_contiguous(memory_format=layout)):
        parameters = {"weight": layer.weight.detach().to(dtype, memory_format=layout)}
        if layer.bias is not None:
            parameters["bias"] = layer.bias.detach().to(dtype)
        layer = _copy(layer, **parameters)
    if not on_cpu:
        return layer
    assert isinstance(layer, nn.Conv2d)
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    return ImageConvolution(layer) if fits(layer.weight, *how) else layer


def _in_place(layer: nn.Module, before: nn.Module | None) -> nn.Module:
    """A ReLU that overwrites outputs which the layer before does not need on the way back; any other as it is."""
    return nn.ReLU(inplace=True) if type(layer) is nn.ReLU and type(before) in _FORGETFUL else layer


def _leaves(model: nn.Sequential) -> list[nn.Module]:
    # Not of model.children(), which has a layer that stands in several places only once.
    plain = (nn.Sequential, TrainedConvolution)
    nested = (_leaves(m) if isinstance(m, nn.Sequential) and type(m) in plain else [m] for m in model)
    return [leaf for leaves in nested for leaf in leaves]


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift per channel, each [C], as :func:`_float64` has them, of a layer that does nothing else."""
    if type(layer) is Normalise:
        std, mean = _float64(layer.std).flatten(), _float64(layer.mean).flatten()
        return 1 / std, -mean / std
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d) or layer.training or layer.running_mean is None:
        return None
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert layer.running_var is not None
    scale = (_float64(layer.running_var) + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * _float64(layer.weight)
    shift = -_float64(layer.running_mean) * scale
    return scale, shift if layer.bias is None else shift + _float64(layer.bias)


def _float64(t: Tensor) -> Tensor:
    """In double precision, on its device, or on the CPU where that is Apple's MPS, which has none."""
    return (t.cpu() if t.device.type == "mps" else t).detach().double()


def _before(layers: list[nn.Module], scale: Tensor) -> int | None:
    """Index of the last layer, if it takes an affine map of its outputs; or of the one before a pooling layer."""
    place = len(layers) - 1
    if place > 0 and (
        (type(layers[place]) is nn.MaxPool2d and bool((scale > 0).all()))  # a negative factor makes maxima minima
        or (type(layers[place]) is nn.AvgPool2d and layers[place].padding in (0, (0, 0)))
    ):
        place -= 1
    return place if place >= 0 and type(layers[place]) in (nn.Conv2d, nn.Linear) else None


def _unpadded(layer: nn.Module) -> bool:
    """Whether a layer is a convolution in whose padding a constant stays the same constant."""
    if type(layer) is not nn.Conv2d or layer.groups != 1:
        return False
    return layer.padding_mode != "zeros" or layer.padding in ((0, 0), "valid")


def _merged(layer: nn.Module, scale: Tensor, shift: Tensor, *, at_input: bool = False) -> nn.Module:
    """The layer after or, ``at_input``, before which x goes to scale * x + shift; a copy, whose weights rest."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = _float64(layer.weight)
    bias = torch.zeros_like(weight.flatten(1)[:, 0]) if layer.bias is None else _float64(layer.bias)
    if at_input:
        bias = bias + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
        weight = weight * scale.view(1, -1, 1, 1)
    else:
        bias = bias * scale + shift
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return _copy(layer, weight=weight.to(layer.weight), bias=bias.to(layer.weight))


def _copy(layer: Layer, **parameters: Tensor) -> Layer:
    """The layer with other parameters, which rest; sooner than a deep copy, which is felt where images are few."""
    other = copy.copy(layer)
    other._parameters = dict(layer._parameters)
    for name, value in parameters.items():
        setattr(other, name, nn.Parameter(value, requires_grad=False))
    return other
