"""The points of each experiment, by scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .spec import AtInitialisation, Images, Network, Resize

#: Networks whose exponent at initialisation chapter 5 measures, and what each of them is there to show.
INITIAL_NETWORKS = (
    Network("mlp"),  # Theorem 4
    Network("mlp", init="torch"),  # another variance
    Network("mlp", init="mup"),
    Network("conv_strided", readout="fc"),  # Corollary 6
    Network("conv_strided", readout="fc", init="torch"),
    Network("conv_strided", readout="fc", init="ntk"),
    Network("conv_strided", readout="fc", init="mup"),
    Network("conv_strided", readout="fc", padding="circular"),
    Network("conv_strided", readout="fc", padding="zeros"),  # paths lost at the border
    Network("conv_strided", readout="fc", pooling="average"),  # windows of fixed size
    Network("conv_strided", readout="fc", pooling="max"),
    Network("conv_strided", readout="average"),  # a window that grows with the image
    Network("conv_strided", init="he_unit", batch_norm=True, normalise="batch"),  # section 4.1 as it is
    Network("conv_dilated", readout="fc", pooling="none"),
    Network("conv_dilated", readout="average", pooling="none"),
    Network("conv_dilated"),  # section 4.2 without batch-norm
    Network("conv_dilated", init="he_unit", batch_norm=True),  # section 4.2 as it is
)

#: Sizes, and how a data set gets there: Imagenette comes at 224 px, CIFAR-10 at 32 and the digits at 8.
DIGITS, CIFAR, IMAGENETTE = (8, 16, 32, 64), (32, 64, 128, 256), (32, 64, 128, 224)


def initialisation(scale: str, data: str) -> list[AtInitialisation]:
    """Chapter 5's table: every network of INITIAL_NETWORKS at several sizes of one data set.

    Networks with maxima are measured on images copied up and on images interpolated up; Imagenette is sized down.

    Args:
        scale: "quick" (3 sizes, 4 seeds, 8 images) or "paper" (4 sizes, 8 seeds, 16 images).
        data: "digits", or a name that begins with "cifar10" or "imagenette".

    Raises:
        ValueError: for another data set.
    """
    kinds = {"digits": DIGITS, "cifar10": CIFAR, "imagenette": IMAGENETTE}
    kind = next((k for k in kinds if data.startswith(k)), None)
    if kind is None:
        raise ValueError(f"no grid for the data set {data!r}: take digits, or a cifar10 or imagenette set")
    sizes, images, seeds = (kinds[kind][:3], 8, 4) if scale == "quick" else (kinds[kind], 16, 8)
    points = []
    for network in INITIAL_NETWORKS:
        if kind == "digits":
            network = for_digits(network)
        resizings: tuple[Resize, ...] = ("copy", "bilinear") if has_maxima(network) else ("copy",)
        for resize in ("area",) if kind == "imagenette" else resizings:
            points += [AtInitialisation(Images(data, size, resize, images), network, seeds) for size in sizes]
    return points


def has_maxima(network: Network) -> bool:
    """Whether the network takes maxima, which tie on pixel-copied images."""
    by_default = network.name == "conv_dilated"
    return any(choice == "max" or (choice is None and by_default) for choice in (network.pooling, network.readout))


def for_digits(network: Network) -> Network:
    """The network at a depth that 8 px allow."""
    if network.name == "mlp":
        return network
    return replace(network, depth=4, base_size=8 if network.name == "conv_dilated" else None)


#: The grids by experiment: (scale, data set) to points.
GRIDS: dict[str, Callable[[str, str], list[AtInitialisation]]] = {"initialisation": initialisation}
