"""The points of each experiment, by scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..data import Resize
from ..models import Network
from ..train import PAPER, Recipe
from . import method_grids, trained_grids
from .spec import AfterTraining, AtInitialisation, Images, Spec

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
        scale: "quick" (3 sizes, 4 seeds, 8 images), else 4 sizes, 8 seeds and 16 images.
        data: "digits", or a name that begins with "cifar10" or "imagenette".

    Raises:
        ValueError: for another data set.
    """
    kinds = {"digits": DIGITS, "cifar10": CIFAR, "imagenette": IMAGENETTE}
    kind = _kind(data, tuple(kinds))
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


#: Size of the attacks on trained networks, that of the l_inf attack, in pixel units: the paper's.
EPS = 0.004

#: Strengths of the methods of section 4.1 whose strength is the size of an attack.
STRENGTHS: tuple[float, ...] = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
#: Those of the cross-Lipschitz penalty, whose strength multiplies squared norms.
CROSS_LIPSCHITZ: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def section_4_1(scale: str, data: str) -> list[AfterTraining]:
    """Section 4.1: usual training, and six methods of regularisation over a range of strengths, on one network.

    Args:
        scale: "quick" (3 strengths, 2 seeds, and a network of 32 channels for 3 epochs of 4,000 images), "medium" (5
            strengths, 2 seeds, 5 epochs of 8,000 images), "paper" (6 strengths, 3 seeds, the paper's network and
            schedule, all images) or "short" (the same for 20 epochs, one-cycle). Below these, cross-Lipschitz is
            estimated with random signs.
        data: "digits", or a name that begins with "cifar10".

    Raises:
        ValueError: for another data set.
    """
    size = {"digits": 8, "cifar10": 32}[_kind(data, ("digits", "cifar10"))]
    network = Network("conv_strided", init="he_unit", batch_norm=True, normalise="batch")
    short = Recipe(lr=0.1, batch_size=64, augment=data != "digits", bf16=True)
    full = scale in ("short", "paper")
    if full:
        images, train, by_epoch, seeds = None, None, 1000, 3
        recipe = PAPER if scale == "paper" else replace(short, epochs=20, batch_size=128)
    elif scale == "medium":
        images, train, by_epoch, seeds, recipe = 500, 8000, 200, 2, replace(short, epochs=5)
    else:
        images, train, by_epoch, seeds, recipe = 300, 4000, 100, 2, replace(short, epochs=3)
    chosen = {"medium": slice(1, None), "quick": slice(1, None, 2)}.get(scale, slice(None))
    if not full:
        network = replace(network, width=32)
    if data == "digits":
        network, train = for_digits(network), None
    lipschitz = "cross-lipschitz" if full else "cross-lipschitz-random"
    sized = ("gradient-l1", "gradient-l2", "augment-linf", "augment-l2", "pgd-linf")
    strengths: dict[str, Sequence[float]] = {"none": (0.0,), **dict.fromkeys(sized, STRENGTHS[chosen])}
    strengths[lipschitz] = CROSS_LIPSCHITZ[chosen]
    return [
        AfterTraining(
            images=Images(data, size, "copy", images),
            network=network,
            recipe=replace(recipe, method=method, strength=strength, seed=seed),
            train=train,
            by_epoch=by_epoch,
            eps=EPS,
            experiment="4.1",
        )
        for half in (slice(0, None, 2), slice(1, None, 2))  # what is done first makes a coarser grid
        for seed in range(seeds)
        for method, values in strengths.items()
        for strength in values[half]
    ]


#: Size of the attacks of section 4.2 in pixel units: .004 of normalised pixels, whose deviation is about a fifth.
SMALL_EPS = 0.0008
#: Strengths of PGD training there.
PGD_STRENGTHS: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
#: The attacks measured on the networks of section 4.2, as in the paper.
GRADIENT_ATTACKS = ("one-step-linf", "pgd-linf")


def section_4_2(scale: str, data: str) -> list[AfterTraining]:
    """Section 4.2: usual and PGD training on one data set at several sizes, from which no information is gained.

    The paper's network on images copied up; the same on images interpolated up, because copies tie its maxima; and the
    strided network with a fully connected readout, which has none.

    Args:
        scale: "quick" (3 sizes, 3 seeds, networks of 16 channels, 20 epochs of 300 images; the paper's network after
            PGD training of one strength, too), "medium" (the same, with PGD training of three strengths), "short" (3
            sizes, 3 strengths, 3 seeds, the paper's networks for 20 epochs of all images) or "paper" (4 sizes, 6
            strengths, 3 seeds, 200 epochs).
        data: "digits", or a name that begins with "cifar10".

    Raises:
        ValueError: for another data set.
    """
    sizes = {"digits": DIGITS, "cifar10": CIFAR}[_kind(data, ("digits", "cifar10"))]
    dilated = Network("conv_dilated", init="he_unit", batch_norm=True, normalise="batch")
    strided = Network("conv_strided", readout="fc", init="he_unit", batch_norm=True, normalise="batch")
    series: tuple[tuple[Network, Resize], ...] = ((dilated, "copy"), (dilated, "bilinear"), (strided, "copy"))
    return _by_size(scale, data, sizes, series, experiment="4.2")


def natural(scale: str, data: str) -> list[AfterTraining]:
    """Natural images at several resolutions: section 4.2's network on Imagenette, averaged down from 224 px.

    Args:
        scale: as for :func:`section_4_2`.
        data: a name that begins with "imagenette".

    Raises:
        ValueError: for another data set.
    """
    _kind(data, ("imagenette",))
    dilated = Network("conv_dilated", init="he_unit", batch_norm=True, normalise="batch")
    return _by_size(scale, data, IMAGENETTE, ((dilated, "area"),), experiment="natural")


def readouts(scale: str, data: str) -> list[AfterTraining]:
    """What training does to a readout that averages, and to the part of the gradient within copied blocks of pixels.

    Section 4.1's network, whose readout averages; the same with a fully connected one; and that behind a projection on
    the copied images, on images copied up.

    Args:
        scale: as for :func:`section_4_2`.
        data: "digits", or a name that begins with "cifar10".

    Raises:
        ValueError: for another data set.
    """
    sizes = {"digits": DIGITS, "cifar10": CIFAR}[_kind(data, ("digits", "cifar10"))]
    averaged = Network("conv_strided", init="he_unit", batch_norm=True, normalise="batch")
    connected = replace(averaged, readout="fc")
    projected = replace(connected, project=sizes[0])
    return _by_size(scale, data, sizes, tuple((n, "copy") for n in (averaged, connected, projected)), "readouts", 0)


def _by_size(
    scale: str,
    data: str,
    sizes: Sequence[int],
    series: Sequence[tuple[Network, Resize]],
    experiment: str,
    attacked: int = 1,
) -> list[AfterTraining]:
    """Usual and PGD training of every series at every size; below "short", PGD training of the first ``attacked``."""
    recipe, some = Recipe(batch_size=128, lr=0.1, augment=data != "digits", bf16=True), PGD_STRENGTHS[1::2]
    images: int | None = 2000
    train: int | None = None
    every: int | None = None
    by_epoch, width = 500, 64
    first = others = some
    if scale in ("quick", "medium"):
        # Few images, learnt by heart: of many, as many steps would be hardly any training.
        images, train, by_epoch, every, width = 200, 300, 50, 5, 16
        recipe = replace(recipe, batch_size=16, lr=0.02, augment=False)
        first, others = some[1:2] if scale == "quick" else some, ()
    elif scale == "paper":
        images, by_epoch, recipe = None, 1000, replace(PAPER, batch_size=32)
        first = others = PGD_STRENGTHS
    return [
        AfterTraining(
            images=Images(data, size, resize, images),
            network=for_digits(replace(network, width=width)) if data == "digits" else replace(network, width=width),
            recipe=replace(recipe, method="pgd-linf" if strength else "none", strength=strength, seed=seed),
            train=train,
            by_epoch=by_epoch,
            eps=SMALL_EPS,
            experiment=experiment,
            attacks=GRADIENT_ATTACKS,
            every=every,
        )
        for seed in range(3)
        for place, (network, resize) in enumerate(series)
        for strength in (0.0, *(first if place < attacked else others))
        for size in (sizes if scale == "paper" else sizes[:3])
    ]


def _kind(data: str, known: Sequence[str]) -> str:
    """The one of the known data sets that the name begins with."""
    for kind in known:
        if data.startswith(kind):
            return kind
    raise ValueError(f"no grid for the data set {data!r}: take one whose name begins with {' or '.join(known)}")


#: The grids by experiment: (scale, data set) to points.
GRIDS: dict[str, Callable[[str, str], Sequence[Spec]]] = {
    "initialisation": initialisation,
    "4.1": section_4_1,
    "4.2": section_4_2,
    "natural": natural,
    "readouts": readouts,
    "usual-training": trained_grids.usual_training,
    "pgd-training": trained_grids.pgd_training,
    "sample-size": trained_grids.sample_size,
    "readouts-and-cures": trained_grids.readouts_and_cures,
    "methods": method_grids.methods,
    "precision": method_grids.precision,
}
#: The data set of each experiment, unless another is chosen.
DATA = {"initialisation": "digits", "4.1": "cifar10", "4.2": "cifar10", "natural": "imagenette", "readouts": "cifar10"}
DATA |= dict.fromkeys(("usual-training", "pgd-training", "sample-size", "methods", "precision"), "cifar10-jpeg")
DATA["readouts-and-cures"] = "imagenette-224"
#: The scales: up to twenty minutes on two CPU cores, up to a few hours there; on a GPU, training for 20 epochs, and
#: the paper's.
SCALES = ("quick", "medium", "short", "paper")
