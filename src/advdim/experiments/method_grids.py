"""The grids of section 4.1's methods on trained networks whose seeds share nothing, and of the check of precision."""

from __future__ import annotations

from dataclasses import replace

from ..models import Network
from ..train import Recipe
from .spec import AfterTraining
from .trained_grids import BY_SCALE, DILATED, SIZES, STRENGTHS, STRIDED, point_of

#: The methods whose strength is the size of an attack, and their strengths, in pixel units.
SIZED, OF_SIZE = ("gradient-l1", "gradient-l2", "augment-linf", "augment-l2", "pgd-linf"), (0.002, 0.008, 0.032)
#: Strengths of the cross-Lipschitz penalty, which multiply squared norms.
CROSS_LIPSCHITZ = (0.003, 0.03, 0.3)
#: The smooth activations, which the gradient penalty has in place of ReLU.
SMOOTH = ("gelu", "softplus")
#: Sizes of the attacks, in pixel units.
BUDGETS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03)


def methods(scale: str, data: str) -> list[AfterTraining]:
    """Section 4.1's six methods at three strengths, and the gradient penalty with smooth activations.

    Args:
        scale: "quick" (4 channels, 3 epochs of 300 images, 2 seeds), "medium" (32 channels, 15 epochs of 20,000 images,
            2 seeds), "short" (the paper's network, 20 epochs of all images, 3 seeds) or "paper" (200 epochs). Below
            "short", cross-Lipschitz is estimated with random signs.
        data: "digits", or a name that begins with "cifar10".

    Raises:
        ValueError: for another data set.
    """
    size = _side(data)
    chosen = replace(BY_SCALE[scale], width={"quick": 4, "medium": 32}.get(scale, 64), pgd_images=500)
    if scale == "quick":
        chosen = replace(chosen, pgd_images=50)
    images, epochs, batch, rate, seeds = {
        "quick": (300, 3, 16, 0.02, 2),
        "medium": (20_000, 15, 64, 0.1, 2),
        "short": (None, 20, 128, 0.1, 3),
        "paper": (None, 200, 128, 0.1, 3),
    }[scale]
    large = scale in ("short", "paper")
    recipe = Recipe(epochs=epochs, batch_size=batch, lr=rate, augment=data != "digits", bf16=large)
    lipschitz = "cross-lipschitz" if large else "cross-lipschitz-random"
    network = replace(STRIDED, readout=None)
    runs: list[tuple[Network, str, float]] = [(network, "none", 0.0)]
    runs += [(network, method, strength) for method in SIZED for strength in OF_SIZE]
    runs += [(network, lipschitz, strength) for strength in CROSS_LIPSCHITZ]
    for activation in SMOOTH:
        smooth = replace(network, activation=activation)
        runs += [(smooth, "none", 0.0), *((smooth, "gradient-l1", strength) for strength in OF_SIZE)]
    return [
        replace(
            point_of(
                "methods",
                chosen,
                data,
                size,
                (one, "copy"),
                replace(recipe, method=method, strength=strength),
                seed,
                images,
            ),
            eps=BUDGETS,
        )
        for seed in range(seeds)
        for one, method, strength in runs
    ]


def precision(scale: str, data: str) -> list[AfterTraining]:
    """Training in bfloat16 against float32: usual training, and PGD training at the smallest strength.

    The settings of :func:`advdim.experiments.trained_grids.pgd_training`, on the smallest images.

    Args:
        scale: "quick" (3 epochs, 2 seeds), "medium" (60 epochs, 3 seeds), "short" or "paper" (20 epochs of 10,000
            images, 3 seeds).
        data: "digits", or a name that begins with "cifar10".

    Raises:
        ValueError: for another data set.
    """
    size, chosen = _side(data), BY_SCALE[scale]
    few = scale in ("quick", "medium")
    images, epochs, seeds = {"quick": (100, 3, 2), "medium": (300, 60, 3)}.get(scale, (10_000, 20, 3))
    recipe = Recipe(epochs=epochs, batch_size=16 if few else 128, lr=0.02 if few else 0.0566, stop_accuracy=0.99)
    return [
        point_of(
            "precision",
            chosen,
            data,
            size,
            (DILATED, "copy"),
            replace(recipe, method="pgd-linf" if strength else "none", strength=strength, bf16=bf16),
            seed,
            images,
        )
        for seed in range(seeds)
        for strength in (0.0, STRENGTHS[0])
        for bf16 in (False, True)
    ]


def _side(data: str) -> int:
    if data == "digits":
        return 8
    if data.startswith("cifar10"):
        return SIZES[0]
    raise ValueError(f"no grid for the data set {data!r}: take digits, or a name that begins with cifar10")
