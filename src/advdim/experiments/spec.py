"""What an experiment's points are: frozen dataclasses of names and numbers, with a stable hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from ..data import Resize
from ..models import Network
from ..train import Recipe


@dataclass(frozen=True)
class Images:
    """A class-balanced sample of a data set at one size; see :func:`advdim.data.load` for the fields."""

    data: str
    size: int
    resize: Resize
    n: int | None = None
    split: str = "test"
    seed: int = 0


@dataclass(frozen=True)
class AtInitialisation:
    """One point of the experiment ``initialisation``: a network on images of one size, over seeds of its weights.

    Attributes:
        images: what is measured on.
        network: what is measured.
        seeds: number of seeds, counted from 0.
        eps: sizes of the one-step l_inf attacks whose damage is measured, in pixel units.
    """

    images: Images
    network: Network
    seeds: int
    eps: tuple[float, ...] = (1e-4, 4e-3)
    experiment: str = "initialisation"

    def __str__(self) -> str:
        return f"{self.images.data} {self.images.size} px {self.images.resize}, {self.network}"


@dataclass(frozen=True)
class AfterTraining:
    """One point of an experiment on trained networks: one training run, measured by epoch and attacked at its end.

    Attributes:
        images: what is measured on; training is on as many pixels.
        network: what is trained; the recipe's seed draws its weights, too.
        recipe: how it is trained, but for the size of the images.
        train: number of training images, a class-balanced sample; None takes all.
        by_epoch: number of training and of test images measured by epoch.
        eps: size of the attacks, as that of the l_inf attack, in pixel units; or several sizes, then measured as
            :mod:`advdim.experiments.trained_state` has it.
        experiment: the experiment's name.
        attacks: names of the attacks on the trained network, as :func:`advdim.experiments.after_training.run` has them;
            None takes all.
        every: epochs after which they are measured; None is 1.
        train_seed: of the sample of training images; None is that of ``images``.
        at_epochs: the epochs, counted from 1, after which they are measured, in place of ``every``.
        pgd_images: number of test images under PGD, if ``eps`` has several sizes; None is all.
        base_size: side of the images, in pixels, down to which gradients are averaged to see what survives; None
            measures this of images copied up alone.
    """

    images: Images
    network: Network
    recipe: Recipe
    train: int | None
    by_epoch: int
    eps: float | tuple[float, ...]
    experiment: str
    attacks: tuple[str, ...] | None = None
    every: int | None = None
    train_seed: int | None = None
    at_epochs: tuple[int, ...] | None = None
    pgd_images: int | None = None
    base_size: int | None = None

    def __str__(self) -> str:
        strength = f" {self.recipe.strength:g}" if self.recipe.strength else ""
        sample = "" if self.train_seed is None else f", {self.train or 'all'} images"
        where = f"{self.images.data} {self.images.size} px {self.images.resize}"
        return f"{where}, {self.network}, {self.recipe.method}{strength}{sample}, seed {self.recipe.seed}"


Spec: TypeAlias = AtInitialisation | AfterTraining


def as_dict(spec: Spec) -> dict[str, Any]:
    """The spec as JSON has it: fields that are None are left out, so that a new option keeps old hashes."""
    compact: dict[str, Any] = _compact(asdict(spec))
    return compact


def key(spec: Spec) -> str:
    """Stable name of a point: that of its dictionary."""
    return key_of(as_dict(spec))


def key_of(spec: dict[str, Any]) -> str:
    """Stable name of a spec as JSON has it: 12 hexadecimal digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _compact(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _compact(v) for k, v in value.items() if v is not None}
    return list(value) if isinstance(value, tuple) else value
