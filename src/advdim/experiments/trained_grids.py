"""The grids of the experiments on trained networks whose seeds share nothing, by scale; see this folder's README.

A seed draws the weights, the order of the batches, the training images and the test images. Points come seed by seed,
so that a grid cut short holds whole seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..data import Resize
from ..models import Network
from ..train import Recipe
from .spec import AfterTraining, Images

#: Sizes of the attacks, as those of the l_inf attack, in pixel units.
BUDGETS = (0.0002, 0.0008, 0.004, 0.016)
#: Strengths of PGD training, in pixel units.
STRENGTHS = (0.0005, 0.001, 0.004)
#: Weight decays, of every parameter.
WEIGHT_DECAYS = (0.0005, 0.005)
#: Side in pixels of the square that a blur averages over.
BLUR = 5
#: Sizes in pixels; gradients are averaged down to the first.
SIZES = (32, 64, 128)

#: Images of the data sets, to train on and to test on.
IMAGES = {"digits": (1397, 400), "cifar10": (50_000, 10_000), "imagenette": (9469, 3925)}

#: Section 4.2's network; its maxima tie on images copied up.
DILATED = Network("conv_dilated", init="he_unit", batch_norm=True, normalise="batch")
#: A network without maxima, whose readout sees every place.
STRIDED = replace(DILATED, name="conv_strided", readout="fc")

#: How a network sees images: its architecture, and how the images came to their size.
Series = tuple[Network, Resize]


@dataclass(frozen=True)
class Scale:
    """How large the networks and samples of a grid are.

    Attributes:
        width: channels.
        seeds: number of seeds, counted from 0.
        images: number of training images of the experiments that do not vary it.
        test: number of test images, and of training images at most, measured at the end.
        by_epoch: number of training and of test images measured by epoch.
        pgd_images: number of test images under PGD.
    """

    width: int
    seeds: int
    images: int
    test: int
    by_epoch: int
    pgd_images: int


#: "quick" runs in minutes on one CPU core; "medium" is the book's; "short" and "paper" are for a GPU.
BY_SCALE = {
    "quick": Scale(width=4, seeds=2, images=100, test=200, by_epoch=100, pgd_images=50),
    "medium": Scale(width=16, seeds=5, images=300, test=2000, by_epoch=300, pgd_images=100),
    "short": Scale(width=64, seeds=5, images=10_000, test=2000, by_epoch=1000, pgd_images=500),
    "paper": Scale(width=64, seeds=3, images=50_000, test=10_000, by_epoch=1000, pgd_images=1000),
}


def usual_training(scale: str, data: str) -> list[AfterTraining]:
    """Usual training on several sizes of the same images, or on photographs averaged down to several sizes.

    Args:
        scale: "quick" (2 seeds), "medium" (8 seeds; the paper's network at a fourth size with the first 4), "short"
            (5 seeds, 4 sizes) or "paper" (3 seeds, 4 sizes, all images).
        data: "digits", or a name that begins with "cifar10" or "imagenette".

    Raises:
        ValueError: for another data set.
    """
    chosen, series, sizes = BY_SCALE[scale], _series(data), _sizes(data)
    seeds = range(8 if scale == "medium" else chosen.seeds)
    small, large = list(_each(sizes[:3], series, seeds)), list(_each(sizes[3:], series, seeds))
    if scale == "quick":
        large = []
    if scale == "medium":  # hours a seed: the networks with maxima
        large = [(seed, one, size) for seed, one, size in large if seed < 4 and one[0] == DILATED]
    recipe = replace(_recipe(scale, data), epochs=30 if scale in ("quick", "medium") else 20)
    return [
        point_of("usual-training", chosen, data, size, one, recipe, seed, chosen.images)
        for seed, one, size in small + large
    ]


def pgd_training(scale: str, data: str) -> list[AfterTraining]:
    """Usual and PGD training until 99% of the training images are right, over strengths and sizes of the images.

    Args:
        scale: as for :func:`usual_training`, with 3 sizes and the paper's network alone: at most 60 epochs; and in
            "medium", then, 200 epochs whatever the accuracy at the largest strength, 2 seeds.
        data: as for :func:`usual_training`.

    Raises:
        ValueError: for another data set.
    """
    chosen, (one, *_), sizes = BY_SCALE[scale], _series(data), _sizes(data)[:3]
    until = replace(_recipe(scale, data), epochs=20 if scale == "quick" else 60, stop_accuracy=0.99)
    longer = replace(until, epochs=200, stop_accuracy=None)
    pairs = [(replace(until, method="pgd-linf" if s else "none", strength=s), chosen.seeds) for s in (0.0, *STRENGTHS)]
    if scale == "medium":
        pairs.append((replace(longer, method="pgd-linf", strength=STRENGTHS[-1]), 2))
    short = [(recipe, seed) for seed in range(chosen.seeds) for recipe, _ in pairs[: 1 + len(STRENGTHS)]]
    long = [(recipe, seed) for recipe, seeds in pairs[1 + len(STRENGTHS) :] for seed in range(seeds)]
    return [
        point_of("pgd-training", chosen, data, size, one, recipe, seed, chosen.images)
        for recipe, seed in short + long
        for size in sizes
    ]


def sample_size(scale: str, data: str) -> list[AfterTraining]:
    """Usual training with crops and flips, on more and more images.

    Args:
        scale: "quick" (100 and 300 images, 2 seeds), "medium" (300, 1,000 and 3,000 images with 5 seeds; 10,000 and,
            twice as wide, 3,000 with 3), "short" (1,000, 10,000 and all images, 3 seeds) or "paper" (all images).
        data: as for :func:`usual_training`; of Imagenette's, the largest sample is all 9,469.

    Raises:
        ValueError: for another data set.
    """
    chosen, series, sizes = BY_SCALE[scale], _series(data), _sizes(data)[:3]
    if "cifar10" in data or data == "digits":  # with and without ties, at equal architecture
        series = series[:2]
    by_scale: dict[str, list[tuple[int | None, int, int, int, int]]] = {  # images, epochs, width, batch size, seeds
        "quick": [(100, 3, 4, 16, 2), (300, 3, 4, 16, 2)],
        "medium": [
            (300, 40, 16, 16, 5),
            (1000, 30, 16, 16, 5),
            (3000, 15, 16, 16, 5),
            (10_000, 15, 16, 16, 3),
            (3000, 15, 32, 16, 3),
        ],
        "short": [(1000, 40, 64, 32, 3), (10_000, 20, 64, 128, 3), (None, 20, 64, 128, 3)],
        "paper": [(None, 200, 64, 128, 3)],
    }
    points = []
    for images, epochs, width, batch, seeds in by_scale[scale]:
        recipe = replace(
            _recipe(scale, data), epochs=epochs, batch_size=batch, lr=_rate(batch), augment=data != "digits"
        )
        own = replace(chosen, width=width)
        points += [
            point_of("sample-size", own, data, size, one, recipe, seed, images)
            for seed, one, size in _each(sizes, series, range(seeds))
        ]
    return list(dict.fromkeys(points))  # the digits' largest samples are one


def readouts_and_cures(scale: str, data: str) -> list[AfterTraining]:
    """Usual training with an averaging readout against a fully connected one, and with what may stop the growth.

    The strided network with either readout; section 4.2's behind a projection on images of the smallest size, with two
    strengths of weight decay, and behind a blur over as many pixels at every size. What they are compared with is in
    :func:`usual_training`: the same samples, networks and epochs. (A network trained on images averaged down to the
    smallest size needs no run: attacked through the averaging, it has the damage that it has on small images.)

    Args:
        scale: as for :func:`usual_training`, with 3 sizes and 5 seeds at "medium".
        data: as for :func:`usual_training`.

    Raises:
        ValueError: for another data set.
    """
    chosen, (one, *_), sizes = BY_SCALE[scale], _series(data), _sizes(data)[:3]
    resize, recipe = one[1], replace(_recipe(scale, data), epochs=30 if scale in ("quick", "medium") else 20)
    pairs = [
        (network, recipe) for network in (STRIDED, replace(STRIDED, readout=None), replace(DILATED, project=sizes[0]))
    ]
    pairs += [(DILATED, replace(recipe, weight_decay=decay)) for decay in WEIGHT_DECAYS]
    pairs.append((replace(DILATED, blur=BLUR), recipe))
    return [
        point_of("readouts-and-cures", chosen, data, size, (network, resize), own, seed, chosen.images)
        for seed in range(chosen.seeds)
        for network, own in pairs
        for size in sizes
    ]


def _each(sizes: Sequence[int], series: Sequence[Series], seeds: Sequence[int]) -> Iterator[tuple[int, Series, int]]:
    """Seed by seed, then series by series, then size by size."""
    for seed in seeds:
        for one in series:
            for size in sizes:
                yield seed, one, size


def _series(data: str) -> tuple[Series, ...]:
    if data.startswith("imagenette"):
        return ((DILATED, "area"),)
    if data == "digits" or data.startswith("cifar10"):
        return ((DILATED, "copy"), (DILATED, "bilinear"), (STRIDED, "copy"))
    raise ValueError(f"no grid for the data set {data!r}: take digits, or a name with cifar10 or imagenette in front")


def _sizes(data: str) -> tuple[int, ...]:
    return (8, 16, 32, 64) if data == "digits" else (*SIZES, 224) if data.startswith("imagenette") else (*SIZES, 256)


def _rate(batch: int) -> float:
    """Learning rate: with momentum .9, .02 for 16 images at a time, and in proportion to the square root of these."""
    return round(0.02 * math.sqrt(batch / 16), 4)


def _recipe(scale: str, data: str) -> Recipe:
    few = scale in ("quick", "medium")
    batch = 16 if few else 128
    # Below "short" in float32: CPUs without its instructions are several times slower in bfloat16.
    return Recipe(batch_size=batch, lr=_rate(batch), bf16=not few)


def _measured(epochs: int) -> tuple[int, ...]:
    """The epochs that are measured: the first ones, then every sixth part of the training."""
    return tuple(sorted({1, 2, 4, epochs} & set(range(epochs + 1)) | {-(-epochs * part // 6) for part in range(1, 7)}))


def point_of(
    experiment: str,
    scale: Scale,
    data: str,
    size: int,
    series: Series,
    recipe: Recipe,
    seed: int,
    train: int | None,
) -> AfterTraining:
    """One point of a grid.

    Args:
        experiment: its name.
        scale: the samples, and the channels.
        data: the data set.
        size: of the images, side in pixels.
        series: network, and how the images come to their size.
        recipe: of training; its seed is replaced.
        seed: draws the weights, the order, the training images and the test images.
        train: number of training images; None takes all.
    """
    network, resize = series
    if data == "digits":
        network = replace(network, depth=4, base_size=8 if network.name == "conv_dilated" else None)
    most, tests = next(counts for name, counts in IMAGES.items() if data.startswith(name))
    train = None if train is None or train >= most else train
    return AfterTraining(
        images=Images(data, size, resize, min(scale.test, tests), seed=seed),
        network=replace(network, width=scale.width),
        recipe=replace(recipe, seed=seed),
        train=train,
        by_epoch=min(train or most, scale.by_epoch),
        eps=BUDGETS,
        experiment=experiment,
        train_seed=seed,
        at_epochs=_measured(recipe.epochs),
        pgd_images=scale.pgd_images,
        base_size=8 if data == "digits" else SIZES[0],
    )
