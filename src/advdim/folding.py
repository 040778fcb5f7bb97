"""Networks at rest, made quick for many passes: batch-norms merged into the convolutions beside them, and more."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .models import Net, Normalise

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def folded(model: nn.Module) -> nn.Module:
    """A network of the same outputs and gradients up to rounding, with fewer layers; or the model, if none merge.

    In eval mode a batch-norm is an affine map per channel, as :class:`advdim.models.Normalise` is. It merges into the
    convolution or linear layer before it, across a pooling layer too, or else into the convolution after it, unless
    zeros are padded in between. Only sequences of layers are folded, without hooks; the model stays as it is, and the
    layers that do not change are shared with it.

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
    if all(a is b for a, b in zip_longest(layers, leaves)):
        return model
    if isinstance(model, Net):
        return Net(*layers, image_shape=model.image_shape, classes=model.classes)
    return nn.Sequential(*layers)


def _quick(layer: nn.Module) -> nn.Module:
    """A convolution with the layout of weights and the way back that are fastest on a CPU; any other layer as it is."""
    if type(layer) is not nn.Conv2d or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return layer
    if not layer.weight.is_contiguous(memory_format=torch.channels_last):
        layer = copy.deepcopy(layer)
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FromPixels(layer) if _from_pixels(layer) else layer


def _from_pixels(layer: nn.Conv2d) -> bool:
    """Whether a convolution has few channels, as of images, weights that rest, and the same sums at every pixel."""
    if layer.in_channels > 4 or layer.weight.requires_grad or isinstance(layer.padding, str):
        return False
    fits = all(k > 1 and p < k for k, p in zip(layer.kernel_size, layer.padding, strict=True))
    return fits and (layer.groups, layer.stride, layer.dilation) == (1, (1, 1), (1, 1))


class FromPixels(nn.Module):
    """A convolution of images, its gradient in them computed for blocks of 2x2 pixels; its weights must rest.

    That gradient is itself a convolution, to 3 channels, which oneDNN pads to the 16 of its vectors. Here, the pixels
    of a block are 12 channels of a convolution of stride 2, whose kernel of 4x4 holds the flipped one, of 3x3, at four
    offsets: 16 products of vectors for four pixels in place of 4 x 9. It takes 0.5 to 0.6 of the time.

    Args:
        layer: with groups, stride and dilation 1, and less padding than its kernel is wide.
    """

    blocks: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        flipped = layer.weight.detach().flip(2, 3).transpose(0, 1)
        channels, _, height, width = flipped.shape
        blocks = flipped.new_zeros(channels, 2, 2, layer.out_channels, height + 1, width + 1)
        for i in range(2):
            for j in range(2):
                blocks[:, i, j, :, i : i + height, j : j + width] = flipped
        self.register_buffer("blocks", blocks.flatten(0, 2).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for images [N, C, H, W]."""
        height, width = (int(p) for p in self.layer.padding)
        if self.layer.padding_mode != "zeros":
            x, height, width = F.pad(x, (width, width, height, height), self.layer.padding_mode), 0, 0
        arguments = x, self.layer.weight, self.layer.bias, self.blocks, (height, width)
        outputs: Tensor = _ByBlocks.apply(*arguments)  # type: ignore[no-untyped-call]
        return outputs


class _ByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Tensor, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.odd = [size % 2 for size in x.shape[2:]]
        # Of an odd number of rows, or columns, the first block lies one before the image.
        ctx.padding = [k - 2 - p + odd for k, p, odd in zip(blocks.shape[2:], padding, ctx.odd, strict=True)]
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (blocks,) = gradients, ctx.saved_tensors
        places = F.conv2d(g, blocks.to(g.dtype), stride=2, padding=ctx.padding).contiguous()
        return F.pixel_shuffle(places, 2)[..., ctx.odd[0] :, ctx.odd[1] :], None, None, None, None


def _leaves(model: nn.Sequential) -> list[nn.Module]:
    # Not of model.children(), which has a layer that stands in several places only once.
    nested = (_leaves(child) if type(child) is nn.Sequential else [child] for child in model)
    return [leaf for leaves in nested for leaf in leaves]


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift per channel, each [C], in float64, of a layer that does nothing else."""
    if type(layer) is Normalise:
        std, mean = layer.std.double().flatten(), layer.mean.double().flatten()
        return 1 / std, -mean / std
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d) or layer.training or layer.running_mean is None:
        return None
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert layer.running_var is not None
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight.detach().double()
    shift = -layer.running_mean.double() * scale
    return scale, shift if layer.bias is None else shift + layer.bias.detach().double()


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
    weight = layer.weight.detach().double()
    bias = torch.zeros_like(weight.flatten(1)[:, 0]) if layer.bias is None else layer.bias.detach().double()
    if at_input:
        bias = bias + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
        weight = weight * scale.view(1, -1, 1, 1)
    else:
        bias = bias * scale + shift
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    merged = copy.deepcopy(layer)
    merged.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
    merged.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
    return merged
