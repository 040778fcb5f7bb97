"""The networks of the paper and their variations, built from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from . import initialise
from .layers import Net, Normalise

NAMES = ("mlp", "conv_strided", "conv_dilated")
READOUTS = ("fc", "average", "max")
POOLINGS = ("stride", "average", "max", "none")
PADDINGS = ("reflect", "zeros", "circular")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "softplus": nn.Softplus}


@dataclass(frozen=True)
class Network:
    """A network but for its seed and the shape of its images; :func:`build` makes it.

    Attributes:
        name: ``mlp``: depth linear layers (3), ReLU between them. ``conv_strided``, the net of section 4.1: depth (6)
            times 3x3 convolution, batch-norm, ReLU, halving the image in every layer but the first; readout by global
            average. ``conv_dilated``, the net of section 4.2: depth (8) times 3x3 convolution of dilation
            size / base_size, pooling after every second one, batch-norm, ReLU; readout by global maximum.
        init: a rule of :mod:`advdim.models.initialise`: "he", "he_unit", "torch", "ntk" or "mup".
        width: channels, or hidden units of the mlp.
        depth: number of layers before the readout of a conv net, of all layers of the mlp.
        readout: "fc" (all positions flattened into a linear layer), "average" or "max" (over all positions, then a
            linear layer). Default: as in the paper.
        pooling: how a conv net halves the image: "stride" in the convolution, "average" or "max" over 2x2 windows after
            it, or "none" (it does not). Default: as in the paper, "stride" for conv_strided and "max" for conv_dilated.
        padding: of the convolutions, "reflect" (default), "zeros" or "circular".
        batch_norm: whether each hidden layer has one (then without bias). The paper's nets have.
        normalise: None; "batch", a batch-norm on the images as in section 4.1; or (mean, std), each [C], in pixel
            units.
        base_size: image size at which conv_dilated has dilation 1; default 32, or the size itself if that is smaller.
        project: None, or a size of which the images' is a multiple: the network first projects its input onto the
            images copied up from that size, by averaging over blocks of pixels. Copied images pass unchanged; of an
            attack, only its mean over each block is left.
        blur: None, or an odd number of pixels: the network first replaces each pixel by the mean over the square of
            this side around it, beyond whose border the image goes on at the other side. Attacks reach at most what
            they reach without the blur.
        activation: "relu" (default), "gelu" or "softplus". The rules of initialisation are ReLU's.
    """

    name: str
    init: str = "he"
    width: int = 64
    depth: int | None = None
    readout: str | None = None
    pooling: str | None = None
    padding: str | None = None
    batch_norm: bool = False
    normalise: str | tuple[Tensor, Tensor] | None = None
    base_size: int | None = None
    project: int | None = None
    blur: int | None = None
    activation: str | None = None

    def __str__(self) -> str:
        projected = f"projected to {self.project} px" if self.project else None
        blurred = f"blurred over {self.blur} px" if self.blur else None
        norm = "batch-norm" if self.batch_norm else None
        options = [self.readout, self.pooling, self.padding, self.activation, norm, projected, blurred, self.init]
        return " ".join([self.name, *(option for option in options if option)])


def build(
    name: str | Network,
    image_shape: tuple[int, ...] | torch.Size,
    classes: int = 10,
    *,
    seed: int = 0,
    **options: Any,
) -> Net:
    """Build a network and draw its weights; the same arguments give the same weights.

    Args:
        name: a :class:`Network`, or the name of one: "mlp", "conv_strided" or "conv_dilated".
        image_shape: (C, H, W), square images.
        classes: number of logits, at least 1.
        seed: of the weights.
        options: with a name, further fields of :class:`Network`, as ``width=32``.

    Returns:
        The network on the CPU in float32 and in eval mode; images [N, C, H, W] in [0, 1] to logits [N, classes].

    Raises:
        TypeError: for an unknown option, or options beside a :class:`Network`.
        ValueError: for an unknown name or choice, a number below 1, or images too small for the depth and padding.
    """
    network = Network(name, **options) if isinstance(name, str) else name
    if options and name is network:
        raise TypeError(f"options go with a name: use dataclasses.replace(network, ...) for {', '.join(options)}")
    channels, side = _check_shape(image_shape)
    _choose("name", network.name, NAMES)
    _choose("init", network.init, tuple(initialise.RULES))
    for what, number in (("classes", classes), ("width", network.width), ("depth", network.depth)):
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    with torch.device("cpu"):  # whatever torch.set_default_device says: weights are drawn there
        layers = _projection(network.project, side) + _blur(network.blur, side)
        layers += _normalisation(network.normalise, channels)
        layers += (_mlp if network.name == "mlp" else _convolutional)(network, channels, side, classes)
        net = Net(*layers, image_shape=(channels, side, side), classes=classes)
        initialise.RULES[network.init](net, torch.Generator().manual_seed(seed))
    return net.eval()


def calibrate_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Set the running statistics of every batch-norm layer to those of the images x, by one forward pass.

    The statistics that a fresh network comes with (mean 0, variance 1) make batch-norm in eval mode the identity, and
    how gradients grow with the image size can then turn round: calibrate a fresh network, at each size, before its
    gradients are measured; :func:`advdim.audit.audit` does. Trained networks bring their statistics. Those of few
    images inflate gradients: use at least 32.

    Args:
        model: any module; its training state is left as found.
        x: [N, C, H, W], in pixel units, N at least 2.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has another shape, no image, or a NaN or an infinity.
    """
    data.check(x)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    state = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    try:
        model.eval()
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a cumulative average: after one batch, that batch's statistics
            m.train()
        with torch.no_grad():
            model(x)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for module, training in state:
            module.training = training


def _check_shape(image_shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    shape = tuple(int(n) for n in image_shape)
    if len(shape) != 3 or min(shape) < 1 or shape[1] != shape[2]:
        raise ValueError(f"image_shape must be (channels, size, size) with square images, got {shape}")
    return shape[0], shape[1]


def _choose(what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
    return value


def _normalisation(normalise: str | tuple[Tensor, Tensor] | None, channels: int) -> list[nn.Module]:
    if normalise is None:
        return []
    if isinstance(normalise, str):
        _choose("normalise", normalise, ("batch",))
        return [nn.BatchNorm2d(channels)]
    mean, std = (torch.as_tensor(v).cpu() for v in normalise)
    if mean.shape != (channels,) or std.shape != (channels,) or not bool((std > 0).all()):
        raise ValueError(f"normalise takes mean and positive std of shape [{channels}], got {mean} and {std}")
    return [Normalise(mean, std)]


def _projection(project: int | None, side: int) -> list[nn.Module]:
    if project is None:
        return []
    if project < 1 or side % project:
        raise ValueError(f"project must be a size of which the images' is a multiple, got {project} and {side}")
    return [nn.AvgPool2d(side // project), nn.Upsample(scale_factor=side // project, mode="nearest")]


def _blur(blur: int | None, side: int) -> list[nn.Module]:
    if blur is None:
        return []
    if not (1 <= blur <= side and blur % 2):
        raise ValueError(f"blur must be an odd number of pixels, at most the image's {side}, got {blur}")
    return [nn.CircularPad2d(blur // 2), nn.AvgPool2d(blur, stride=1)]


def _activation(network: Network) -> nn.Module:
    name = network.activation or "relu"
    _choose("activation", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]()


def _mlp(network: Network, channels: int, side: int, classes: int) -> list[nn.Module]:
    if (network.readout, network.pooling, network.padding, network.base_size) != (None, None, None, None):
        raise ValueError("an mlp has no readout, pooling, padding or base_size: leave them out, or build a conv net")
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [channels * side**2] + [network.width] * ((network.depth or 3) - 1)
    for before, after in pairwise(sizes):
        layers.append(nn.Linear(before, after, bias=not network.batch_norm))
        layers += [nn.BatchNorm1d(after)] if network.batch_norm else []
        layers.append(_activation(network))
    return [*layers, nn.Linear(sizes[-1], classes)]


def _convolutional(network: Network, channels: int, side: int, classes: int) -> list[nn.Module]:
    strided = network.name == "conv_strided"
    readout = _choose("readout", network.readout or ("average" if strided else "max"), READOUTS)
    pooling = _choose("pooling", network.pooling or ("stride" if strided else "max"), POOLINGS)
    padding = _choose("padding", network.padding or "reflect", PADDINGS)
    if strided and network.base_size is not None:
        raise ValueError("base_size sets the dilation of conv_dilated; conv_strided has none")
    dilation = 1 if strided else _dilation(side, network.base_size)
    depth = network.depth or (6 if strided else 8)
    layers: list[nn.Module] = []
    for i in range(depth):
        # All but the first layer halve the image in the strided net, every second one in the dilated net.
        halve = (i > 0 if strided else i % 2 == 1) and pooling != "none"
        reach = dilation if padding == "reflect" else dilation - 1
        if (padding != "zeros" and side <= reach) or (halve and side < 2):
            raise ValueError(
                f"the image is {side} px wide before layer {i + 1} of {depth}, too small for {padding} padding "
                f"by {dilation} and {pooling} pooling: use a larger image" + (f" or depth = {i}" if i else "")
            )
        stride = 2 if halve and pooling == "stride" else 1
        where = {"stride": stride, "padding": dilation, "dilation": dilation, "padding_mode": padding}
        layers.append(nn.Conv2d(channels, network.width, 3, **where, bias=not network.batch_norm))  # type: ignore[arg-type]
        side, channels = (side + stride - 1) // stride, network.width
        if halve and pooling in ("max", "average"):
            layers.append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
            side //= 2
        layers += [nn.BatchNorm2d(network.width)] if network.batch_norm else []
        layers.append(_activation(network))
    if readout == "fc":
        return [*layers, nn.Flatten(), nn.Linear(channels * side * side, classes)]
    pool = nn.AvgPool2d(side) if readout == "average" else nn.MaxPool2d(side)
    return [*layers, pool, nn.Flatten(), nn.Linear(channels, classes)]


def _dilation(side: int, base_size: int | None) -> int:
    base = min(side, 32) if base_size is None else base_size
    if base < 1 or side % base:
        raise ValueError(f"conv_dilated needs a size that is a multiple of base_size, got {side} and {base}")
    return side // base
