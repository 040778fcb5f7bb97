"""A network in training: its layout, and convolutions whose gradients in the weights take less time.

On CPUs without AVX-512, oneDNN has no kernel for the gradient of a dilated convolution in its weights, and takes four
times as long as without dilation. Pixels a dilation apart form images of their own, the phases, on which the same sums
are those of a convolution without dilation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from ..layers import Net
from . import switch
from .layout import channels_last

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def in_training(model: nn.Module, *, twice: bool) -> Iterator[nn.Module]:
    """Give the network to call during steps of training: the same function of the same parameters, computed sooner.

    Args:
        model: any module; its parameters are in the channels-last layout meanwhile, see :mod:`.layout`.
        twice: whether gradients are differentiated again: :func:`advdim.models.fast.double_backward` then has the
            layers that are quicker.
    """
    on_cpu = all(p.is_cpu for p in model.parameters())
    with channels_last(model, twice=twice):
        yield _quicker(model) if switch.enabled() and on_cpu and not twice else model


def _quicker(model: nn.Module) -> nn.Module:
    """A sequence of layers with quicker convolutions, which shares all layers; any other model as it is."""
    if type(model) not in (nn.Sequential, Net) or any(getattr(m, hooks) for m in model.modules() for hooks in _HOOKS):
        return model
    assert isinstance(model, nn.Sequential)
    layers = list(model)
    if _is_before_images(layers[:2]):
        layers[:2] = [TrainedConvolution(*layers[:2])]
    layers = [TrainedConvolution(m) if type(m) is nn.Conv2d and max(m.dilation) > 1 else m for m in layers]
    if isinstance(model, Net):
        return Net(*layers, image_shape=model.image_shape, classes=model.classes)
    return nn.Sequential(*layers)


def _is_before_images(layers: list[nn.Module]) -> bool:
    """Whether they are a batch-norm and a convolution in whose padding a constant stays the same constant."""
    if [type(layer) for layer in layers] != [nn.BatchNorm2d, nn.Conv2d]:
        return False
    norm, layer = layers
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(layer, nn.Conv2d)
    plain = norm.affine and norm.track_running_stats and norm.momentum is not None and layer.groups == 1
    return plain and (layer.padding_mode != "zeros" or layer.padding in ((0, 0), "valid"))


class TrainedConvolution(nn.Sequential):
    """A convolution in training, or the batch-norm of the images and the first convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """What the layers give one after the other."""
        *norms, layer = self
        assert isinstance(layer, nn.Conv2d)
        weight, bias = layer.weight, layer.bias
        for norm in norms:
            assert isinstance(norm, nn.BatchNorm2d)
            if x.requires_grad or not norm.training:
                x = norm(x)
                continue
            # W (w z + b) = (W w) z + W b, for images z without a gradient: that in w and b is then one of weights.
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None
            norm.num_batches_tracked.add_(1)
            x = F.batch_norm(x, norm.running_mean, norm.running_var, None, None, True, norm.momentum, norm.eps)
            shift = (weight.sum(dim=(2, 3)) * norm.bias).sum(dim=1)
            weight, bias = weight * norm.weight.view(1, -1, 1, 1), shift if bias is None else bias + shift
        if layer.padding_mode == "reflect" and pays(x, weight, layer.stride, layer.dilation, layer.groups):
            height, width = (int(p) for p in layer.padding)
            x = F.pad(x, (width, width, height, height), "reflect")
            return _Dilated.apply(x, weight, bias, layer.dilation)  # type: ignore[no-any-return,no-untyped-call]
        outputs: Tensor = layer._conv_forward(x, weight, bias)
        return outputs


def pays(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether the gradient of a convolution of x [N, C, H, W] in its weight is quicker by phases."""
    if max(dilation) == 1 or max(stride) > 1 or groups > 1 or weight.shape[1] <= 4:  # few channels gain nothing
        return False
    full = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return full and torch.backends.cpu.get_cpu_capability() == "AVX2"


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """Gradient in the weight of a dilated convolution of x, like the weight, by phases.

    Args:
        g: [N, K, H, W], gradient in its outputs.
        x: [N, C, H', W'], what it was taken of, without padding.
        weight: [K, C, h, w], only a shape here.
        dilation: of both directions; where it does not divide H and W, rows and columns of zeros are added.
    """
    more = [-size % d for size, d in zip(g.shape[2:], dilation, strict=True)]
    if any(more):
        g, x = (F.pad(t, (0, more[1], 0, more[0])) for t in (g, x))
    how = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(_phases(g, dilation), _phases(x, dilation), weight, *how)[1]
    return found


def _phases(t: Tensor, dilation: Sequence[int]) -> Tensor:
    """Images of the pixels that are a dilation apart, [N d d', C, H / d, W / d'] channels-last, of t [N, C, H, W]."""
    (n, c, h, w), (down, right) = t.shape, dilation
    pixels = t.permute(0, 2, 3, 1).view(n, h // down, down, w // right, right, c)
    return pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, h // down, w // right, c).permute(0, 3, 1, 2)


class _Dilated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.biases = dilation, None if bias is None else list(bias.shape)
        return F.conv2d(x, weight, bias, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        how = ctx.biases, [1, 1], [0, 0], list(ctx.dilation), False, [0, 0], 1, [of_x, False, of_bias]
        in_x, _, in_bias = torch.ops.aten.convolution_backward(g, x, weight, *how)
        return in_x, weight_gradient(g, x, weight, ctx.dilation) if of_weight else None, in_bias, None
