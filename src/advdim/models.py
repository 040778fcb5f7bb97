"""The networks of the paper and their variations, built from a seed."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from . import initialise

READOUTS = ("fc", "average", "max")
POOLINGS = ("stride", "average", "max", "none")
PADDINGS = ("reflect", "zeros", "circular")


class Normalise(nn.Module):
    """First layer that maps images in [0, 1] to (x - mean) / std per channel, so that eps stays in pixel units.

    Args:
        mean: [C], per channel.
        std: [C], positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], normalised."""
        return (x - self.mean) / self.std


class Net(nn.Sequential):
    """A sequential network that knows the shape of its images and refuses others.

    Attributes:
        image_shape: (C, H, W).
        classes: number of outputs.
    """

    def __init__(self, *layers: nn.Module, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(*layers)
        self.image_shape = image_shape
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]; raises ValueError for images of another shape."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"the network takes images {self.image_shape}, got {tuple(x.shape[1:])}: resize them first"
            )
        for layer in self:
            x = layer(x)
        return x

    def __getitem__(self, index: slice | int) -> nn.Module:
        """One layer, or some of them as a plain sequence (for the maps inside the network, say)."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


def build(
    name: str,
    image_shape: tuple[int, ...] | torch.Size,
    classes: int = 10,
    *,
    init: str = "he",
    seed: int = 0,
    width: int = 64,
    depth: int | None = None,
    readout: str | None = None,
    pooling: str | None = None,
    padding: str | None = None,
    batch_norm: bool = False,
    normalise: str | tuple[Tensor, Tensor] | None = None,
    base_size: int | None = None,
    project: int | None = None,
) -> Net:
    r"""Build a network and draw its weights; the same arguments give the same weights.

    ``mlp``
        depth linear layers (3), ReLU between them.
    ``conv_strided``
        The net of section 4.1: depth (6) times 3x3 convolution, batch-norm, ReLU, halving the image in every layer but
        the first; readout by global average.
    ``conv_dilated``
        The net of section 4.2: depth (8) times 3x3 convolution of dilation size / base_size, pooling after every second
        one, batch-norm, ReLU; readout by global maximum.

    Args:
        name: one of the three above.
        image_shape: (C, H, W), square images.
        classes: number of logits, at least 1.
        init: a rule of :mod:`advdim.initialise`: "he", "he_unit", "torch", "ntk" or "mup".
        seed: of the weights.
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

    Returns:
        The network on the CPU in float32 and in eval mode; images [N, C, H, W] in [0, 1] to logits [N, classes].

    Raises:
        ValueError: for an unknown name or choice, a number below 1, or images too small for the depth and padding.
    """
    channels, height, side = _check_shape(image_shape)
    _choose("name", name, ("mlp", "conv_strided", "conv_dilated"))
    _choose("init", init, tuple(initialise.RULES))
    for what, number in (("classes", classes), ("width", width), ("depth", 1 if depth is None else depth)):
        if number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    layers = _projection(project, side) + _normalisation(normalise, channels)
    if name == "mlp":
        if (readout, pooling, padding, base_size) != (None, None, None, None):
            raise ValueError(
                "an mlp has no readout, pooling, padding or base_size: leave them out, or build a conv net"
            )
        layers += _mlp(channels * height * side, classes, width, 3 if depth is None else depth, batch_norm)
    else:
        strided = name == "conv_strided"
        readout = _choose("readout", readout or ("average" if strided else "max"), READOUTS)
        pooling = _choose("pooling", pooling or ("stride" if strided else "max"), POOLINGS)
        padding = _choose("padding", padding or "reflect", PADDINGS)
        depth = (6 if strided else 8) if depth is None else depth
        if strided and base_size is not None:
            raise ValueError("base_size sets the dilation of conv_dilated; conv_strided has none")
        dilation = 1 if strided else _dilation(side, base_size)
        # Which layers halve the image: all but the first in the strided net, every second one in the dilated net.
        halving = [i > 0 if strided else i % 2 == 1 for i in range(depth)]
        trunk, side = _trunk(channels, side, width, halving, dilation, pooling, padding, batch_norm)
        layers += trunk + _readout(readout, width, side, classes)
    net = Net(*layers, image_shape=(channels, height, height), classes=classes)
    initialise.RULES[init](net, torch.Generator().manual_seed(seed))
    return net.eval()


def calibrate_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Set the running statistics of every batch-norm layer to those of the images x, by one forward pass.

    The statistics that a fresh network comes with (mean 0, variance 1) say nothing about its activations. Statistics of
    few images inflate gradients: use at least 32.

    Args:
        model: any module; its training state is left as found.
        x: [N, C, H, W], in pixel units, N at least 2.
    """
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


def _check_shape(image_shape: tuple[int, ...] | torch.Size) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image_shape)
    if len(shape) != 3 or min(shape) < 1 or shape[1] != shape[2]:
        raise ValueError(f"image_shape must be (channels, size, size) with square images, got {shape}")
    return shape[0], shape[1], shape[2]


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
    mean, std = (torch.as_tensor(v) for v in normalise)
    if mean.shape != (channels,) or std.shape != (channels,) or not bool((std > 0).all()):
        raise ValueError(f"normalise takes mean and positive std of shape [{channels}], got {mean} and {std}")
    return [Normalise(mean, std)]


def _projection(project: int | None, side: int) -> list[nn.Module]:
    if project is None:
        return []
    if project < 1 or side % project:
        raise ValueError(f"project must be a size of which the images' is a multiple, got {project} and {side}")
    return [nn.AvgPool2d(side // project), nn.Upsample(scale_factor=side // project, mode="nearest")]


def _mlp(d: int, classes: int, width: int, depth: int, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [d] + [width] * (depth - 1)
    for before, after in pairwise(sizes):
        layers.append(nn.Linear(before, after, bias=not batch_norm))
        layers += [nn.BatchNorm1d(after)] if batch_norm else []
        layers.append(nn.ReLU())
    return [*layers, nn.Linear(sizes[-1], classes)]


def _dilation(side: int, base_size: int | None) -> int:
    base = min(side, 32) if base_size is None else base_size
    if base < 1 or side % base:
        raise ValueError(f"conv_dilated needs a size that is a multiple of base_size, got {side} and {base}")
    return side // base


def _trunk(
    channels: int,
    side: int,
    width: int,
    halving: list[bool],
    dilation: int,
    pooling: str,
    padding: str,
    batch_norm: bool,
) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    windows = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
    for i, halve in enumerate(halving):
        reach = dilation if padding == "reflect" else dilation - 1
        if (padding != "zeros" and side <= reach) or (halve and pooling != "none" and side < 2):
            raise ValueError(
                f"the image is {side} px wide before layer {i + 1} of {len(halving)}, too small for {padding} padding "
                f"by {dilation} and {pooling} pooling: use a larger image" + (f" or depth = {i}" if i else "")
            )
        stride = 2 if halve and pooling == "stride" else 1
        layers.append(
            nn.Conv2d(
                channels,
                width,
                kernel_size=3,
                stride=stride,
                padding=dilation,
                dilation=dilation,
                padding_mode=padding,  # type: ignore[arg-type]  # checked above
                bias=not batch_norm,
            )
        )
        side = (side + stride - 1) // stride
        if halve and pooling in windows:
            layers.append(windows[pooling](2))
            side //= 2
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU())
        channels = width
    return layers, side


def _readout(readout: str, width: int, side: int, classes: int) -> list[nn.Module]:
    if readout == "fc":
        return [nn.Flatten(), nn.Linear(width * side * side, classes)]
    pool = nn.AvgPool2d(side) if readout == "average" else nn.MaxPool2d(side)
    return [pool, nn.Flatten(), nn.Linear(width, classes)]
