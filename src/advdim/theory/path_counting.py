"""Counting paths: the second moments of a network's input gradient at initialisation (section 3 of the paper)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..models.device import full_float32
from ..models.initialise import WeightLaw, weight_layers
from ..models.layers import Normalise
from .graph_walk import graph_moment, refuse_non_finite, trace

KNOWN = (
    nn.Flatten,
    nn.Linear,
    nn.Conv2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.modules.batchnorm._BatchNorm,
    Normalise,
)


def path_second_moment(
    model: nn.Module, image_shape: tuple[int, ...] | None = None, *, x: Tensor | None = None
) -> Tensor:
    r"""Second moment :math:`\mathbb{E}\,(\partial f_k / \partial x_i)^2` by counting paths (proof of Theorem 5).

    The sum over all paths from :math:`x_i` to :math:`f_k` of the product, along the path, of the weights' variances and
    of the chances that the gates are open. It is computed by one backward pass through the network in which every
    weight is replaced by its variance and every gate by its chance.

    With gates that are open half the time this is exact for ReLU networks at any width if no neuron averages others
    and there is no maximum (convolutions of any stride, dilation and padding with a fully connected readout), for
    images that vanish on no receptive field. For the rest it is the value under gates that are independent of the
    weights: an average over k inputs keeps 1/k of the mass, and a maximum over k inputs keeps one of them, each with
    chance 1/k. Real maxima prefer large inputs, and leave more gates open than half; black patches shut them. With
    images x, the chances are the shares of gates, layer by layer, that are open on these images.

    Networks that are no plain sequence (:class:`advdim.models.Residual` blocks, nested modules, torchvision's ResNets)
    are followed as graphs: a shortcut carries its moment on, and a sum of two branches adds theirs, which is right
    where they differ in a random weight. With images x, the gates and maxima of such a network are those of each
    image, neuron by neuron, and the result is the mean over the images. Without x they are coins, which misses the
    level where a ReLU follows a shortcut, because its gate is open more than half the time.

    With images x, weights that were not drawn by this package count with their own squares: the second moment is then
    one over their signs, given their sizes. In wide layers that comes to the same. In a depthwise convolution with
    batch-norm behind it does not: a channel has few weights, of which a map of one place uses the middle one alone, and
    the running variance by which it is divided has their squares in it.

    Args:
        model: a network of the layers that :func:`advdim.models.build` uses, in a sequence or joined by sums, with
            dropout in eval mode and adaptive averages besides. Batch-norm acts through its running statistics.
        image_shape: (C, H, W); default that of x, or ``model.image_shape``.
        x: [N, C, H, W], images in the model's dtype on which to count open gates; default 1/2 for every gate.

    Returns:
        [C, H, W], float64, on the model's device (on the CPU for Apple's MPS, which has no float64); its sum is
        :math:`\mathbb{E} \lVert \nabla f_k \rVert_2^2`, the mean over classes k, which all have one value where the law
        of the weights is known.

    Raises:
        TypeError: if the model has layers whose paths are not known here, or x is no tensor of images.
        ValueError: if no image shape is known, or x has another shape, no image, or a NaN or an infinity; or if the
            model has one on the way from x.
    """
    shape = image_shape or (x.shape[1:] if x is not None else getattr(model, "image_shape", None))
    if shape is None:
        raise ValueError("the model has no image_shape: pass image_shape=(C, H, W)")
    device = weight_layers(model)[0].weight.device if weight_layers(model) else torch.device("cpu")
    device = torch.device("cpu") if device.type == "mps" else device
    with torch.inference_mode(False), torch.enable_grad():
        start = torch.ones(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        if not is_plain(model):
            return graph_moment(trace(model, KNOWN), partial(_squared, own=x is not None), start, x)
        layers = known_layers(model)
        chances = [0.5 if isinstance(m, nn.ReLU) else 1.0 for m in layers] if x is None else open_gate_shares(model, x)
        h: Tensor = start
        for layer, chance in zip(layers, chances, strict=True):
            h = chance * _squared(layer, h, own=x is not None)
        (moment,) = torch.autograd.grad(h[0].mean(0), start)
    return moment[0]


def open_gate_shares(model: nn.Module, x: Tensor) -> list[float]:
    """Share of gates that are open on images x, for each layer of a sequential network.

    It is 1 for layers without gates. A maximum right after a ReLU picks open gates where there are any: its entry is
    the share of open ones among the picked, divided by the ReLU's, so that products along a path are right.

    Args:
        model: as for :func:`path_second_moment`.
        x: [N, C, H, W], in the model's dtype.

    Returns:
        One share per layer.

    Raises:
        TypeError: as :func:`path_second_moment`.
        ValueError: if x is not [N, C, H, W], has no image, or a NaN or an infinity; or if the model has one.
    """
    data.check(x)
    layers = known_layers(model)
    shares = []
    before = 1.0
    with torch.no_grad(), full_float32():  # a gate near 0 would open or shut by rounding
        for i, layer in enumerate(layers):
            x = layer(x)
            refuse_non_finite(x, layer)
            share = 1.0
            if isinstance(layer, nn.ReLU):
                share = before = int((x > 0).sum()) / x.numel()
            elif isinstance(layer, nn.MaxPool2d) and isinstance(layers[i - 1], nn.ReLU) and before > 0:
                share = int((x > 0).sum()) / x.numel() / before
            shares.append(share)
    return shares


def predicted_norms(
    model: nn.Module, image_shape: tuple[int, ...] | None = None, *, x: Tensor | None = None
) -> dict[float, float]:
    r"""Path-counting prediction of the root-mean-square l_2 norm and of the l_1 norm of :math:`\nabla_x f_k`.

    With :math:`v_i` the second moments of :func:`path_second_moment`, these are :math:`\sqrt{\sum_i v_i}` and, for
    Gaussian gradient entries, :math:`\sqrt{2/\pi} \sum_i \sqrt{v_i}`: under (S) the latter is
    :math:`\sqrt{2d/\pi}` times the former.

    Args:
        model: as for :func:`path_second_moment`.
        image_shape: as for :func:`path_second_moment`.
        x: as for :func:`path_second_moment`.

    Returns:
        {1: l_1 norm, 2: l_2 norm}, per pixel unit.
    """
    v = path_second_moment(model, image_shape, x=x)
    return {1: math.sqrt(2 / math.pi) * float(v.sqrt().sum()), 2: math.sqrt(float(v.sum()))}


def is_plain(model: nn.Module) -> bool:
    """Whether the model is a sequence of known layers without windows over the border."""
    pools = (m for m in model.modules() if isinstance(m, nn.MaxPool2d))
    inside = all(m.padding in (0, (0, 0)) and not m.ceil_mode for m in pools)
    return inside and isinstance(model, nn.Sequential) and all(isinstance(layer, KNOWN) for layer in model)


def known_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a sequential model; raises TypeError if the paths through one of them are not known here."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"counting paths needs a sequential network, got {type(model).__name__}")
    layers = list(model)
    for layer in layers:
        if not isinstance(layer, KNOWN):
            names = ", ".join(kind.__name__.lstrip("_") for kind in KNOWN)
            raise TypeError(f"the paths through {type(layer).__name__} are not known here: use {names}")
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and (layer.padding not in (0, (0, 0)) or layer.ceil_mode):
            raise TypeError(f"the paths through windows over the border are not known here: {layer}")
    if not any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers):
        raise TypeError("the network has no weights")
    return layers


def _squared(layer: nn.Module, h: Tensor, own: bool = False) -> Tensor:
    """The layer with each weight replaced by its variance; what passes a gate or a maximum is left to the chances."""
    if isinstance(layer, nn.Linear):
        return F.linear(h, _weights_squared(layer, own).to(h))
    if isinstance(layer, nn.Conv2d):
        # With the layer's own stride, dilation and padding.
        out: Tensor = layer._conv_forward(h, _weights_squared(layer, own).to(h), None)
        return out
    if isinstance(layer, nn.ReLU):
        return h
    if isinstance(layer, nn.MaxPool2d):
        return F.avg_pool2d(h, layer.kernel_size, layer.stride)
    if isinstance(layer, nn.AvgPool2d):
        return F.avg_pool2d(h, layer.kernel_size, layer.stride) / area(layer)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return h * batch_norm_scale(layer).to(h).square().view(-1, *[1] * (h.ndim - 2))
    if isinstance(layer, Normalise):
        return h / layer.std.cpu().to(h).square()
    return h.flatten(1)


def _weights_squared(layer: nn.Linear | nn.Conv2d, own: bool) -> Tensor:
    """What weights count for, float64, on the CPU: the variance of their law; if unknown, their (mean) squares."""
    drawn: WeightLaw | None = vars(layer).get("weight_law")
    squares = layer.weight.detach().cpu().double().square()
    if drawn is None and own:
        return squares
    return torch.full_like(squares, drawn.variance if drawn else float(squares.mean()))


def area(pool: nn.MaxPool2d | nn.AvgPool2d) -> int:
    """Number of inputs in a pooling window."""
    size = pool.kernel_size
    return size * size if isinstance(size, int) else math.prod(size)


def batch_norm_scale(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """Factor by which batch-norm in eval mode multiplies each channel, [C], float64, on the CPU."""
    if layer.running_var is None:
        raise TypeError(
            "batch-norm without running statistics has no fixed scale: build it with track_running_stats=True"
        )
    scale = (layer.running_var.cpu().double() + layer.eps).rsqrt()
    return scale if layer.weight is None else scale * layer.weight.detach().cpu().double()
