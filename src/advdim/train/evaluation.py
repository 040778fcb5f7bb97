"""What the training loop measures: images as the model takes them, accuracies, gradient norms, the caller's metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import data, measure
from ..measure.gradients import check_classes
from .recipe import Recipe

Pairs = dict[str, tuple[Tensor, Tensor]]  # images and labels, by what they are for

#: Takes (model in eval mode, x [N, C, H, W] as the model takes them, y [N]) to numbers, sums over the images.
Metrics = Callable[[nn.Module, Tensor, Tensor], dict[str, float]]

_CHUNK = 1000  # images evaluated at a time: bounds the memory for enlarged ones


def measured(
    model: nn.Module, recipe: Recipe, whole: Pairs, subsets: Pairs, metrics: Metrics | None
) -> dict[str, float]:
    """Accuracies on whole sets of images, mean gradient norms and metrics on subsets, named as in ``Result``."""
    row = {f"{name}_accuracy": accuracy(model, *pair, recipe) for name, pair in whole.items()}
    for name, (x, y) in subsets.items():
        sums: dict[str, float] = {}
        for part, yc in zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True):
            xc = model_images(part, recipe, model)
            found = metrics(model, xc, yc) if metrics else {}
            if "l1" not in found:
                found = {f"l{q}": float(n.sum()) for q, n in measure.gradient_norms(model, xc, yc).items()} | found
            sums = {what: sums.get(what, 0.0) + value for what, value in found.items()}
        row |= {f"{name}_{what}": value / len(y) for what, value in sums.items()}
    return row


def model_images(x: Tensor, recipe: Recipe, model: nn.Module) -> Tensor:
    """A few images as the model takes them: in [0, 1], in its dtype, enlarged."""
    x = x / 255 if x.dtype == torch.uint8 else x
    x = x.to(weight_of(model).dtype)
    return x if recipe.size is None else data.resize(x, recipe.size, recipe.resize)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> float:
    """Share of the images that are classified right."""
    chunks = zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True)
    outputs = [(measure.outputs(model, model_images(xc, recipe, model)), yc) for xc, yc in chunks]
    right = [(measure.predictions(found) == yc).sum() for found, yc in outputs]
    return int(torch.stack(right).sum()) / len(y)


def weight_of(model: nn.Module) -> Tensor:
    """A parameter, for the dtype and the device of them all."""
    return next(p for p in model.parameters() if p.is_floating_point())


def resident(x: Tensor, y: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels, checked, on the model's device; floating-point images in its dtype."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        data.check(x[:1].float())
        data.check(torch.zeros(len(x), 1, 1, 1, device="cpu"), y)
        return x.to(weight_of(model).device), y.to(weight_of(model).device)
    data.check(x, y)
    return x.to(weight_of(model)), y.to(weight_of(model).device)


def check_labels(model: nn.Module, x: Tensor, recipe: Recipe, *labels: Tensor) -> None:
    """Refuse labels beyond the model's outputs, which it knows itself, or else gives for the first of the images x."""
    classes = getattr(model, "classes", None)
    if not isinstance(classes, int):
        classes = measure.outputs(model.eval(), model_images(x[:1], recipe, model)).shape[1]
    for y in labels:
        check_classes(y, classes)


def subset(pair: tuple[Tensor, Tensor], among: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """At most n of the examples, whichever the recipe's seed: seeds are then compared on the same ones."""
    order = torch.randperm(len(among), generator=torch.Generator().manual_seed(0), device="cpu")
    chosen = among[order[:n]].to(pair[0].device)
    return pair[0][chosen], pair[1][chosen]
