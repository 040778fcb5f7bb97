"""The state of a trained network: gradients, what of them survives averaging, and attacks of several sizes.

All gradients and attacks are in float32, in eval mode, in pixel units; images are enlarged a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import attacks, measure
from ..measure.gradients import gradients_and_outputs
from ..theory import norms

#: Exponents of the attackers' norms by the names that metrics have.
NORMS = {"linf": math.inf, "l2": 2.0}

_CHUNK = 200  # images enlarged at a time: at 256 px, 160 MB
Columns = dict[str, Tensor]  # name to one value per image, [N]


def by_epoch(model: nn.Module, x: Tensor, y: Tensor, *, blocks: int) -> dict[str, float]:
    """Sums over the images of the columns of :func:`gradients`: cheap enough to be measured along a training run.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], in pixel units.
        y: [N], int64 labels.
        blocks: as for :func:`gradients`.
    """
    g, outputs = gradients_and_outputs(model, x, y)
    columns = gradients(g, blocks) | {"loss": measure.cross_entropy(outputs, y)}
    return {name: float(column.double().sum()) for name, column in columns.items()}


def gradients(g: Tensor, blocks: int) -> Columns:
    r"""Norms of gradients, and of their projections on the images that are constant over blocks of pixels.

    ``l1`` and ``l2`` are norms of each gradient; ``on_l1`` and ``on_l2`` those of its orthogonal projection, its mean
    over every block: what is left of the gradient when images are averaged down to one pixel per block. An attack that
    has to keep the images constant over blocks gains :math:`\varepsilon` times ``on_l1`` to first order.

    Args:
        g: [N, C, H, W], gradients.
        blocks: side of the blocks in pixels; with 1, the projection is the gradient.
    """
    means = F.avg_pool2d(g, blocks)
    projected = {"on_l1": norms.norm(means, 1) * blocks**2, "on_l2": norms.norm(means, 2) * blocks}
    return {"l1": norms.norm(g, 1), "l2": norms.norm(g, 2)} | projected


def measure_split(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    blocks: int,
    pgd_images: int,
    sized: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Any]:
    r"""Measure a network in eval mode on images, under one-step attacks and, on some of the images, PGD.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], in pixel units, before ``sized``.
        y: [N], int64 labels.
        eps: sizes of the attacks, as those of the l_inf attack, in pixel units; those in l_2 are of size
            :math:`\varepsilon \sqrt d` (:func:`advdim.theory.norms.threshold`).
        blocks: as for :func:`gradients`.
        pgd_images: number of images, the first ones, under PGD of 10 steps without a random start, too.
        sized: brings images to the size that the model takes.

    Returns:
        ``images``, how many there are; means over them: ``accuracy``, ``loss``, and the columns of :func:`gradients`;
        ``l1_sd`` and ``l1_median``, standard deviation and median of ``l1``; ``l2_square`` and ``on_l2_square``, mean
        squares, whose ratio is the share of the gradient's energy that survives averaging. For "one-step-linf" and
        "one-step-l2", a dictionary of ``damage``, ``vulnerability`` and ``accuracy``, lists of one mean per size. If
        some images are under PGD, ``pgd``: ``images``, how many, and such dictionaries for "one-step-linf",
        "one-step-l2", "pgd-linf" and "pgd-l2" on just these images.
    """
    device = next(model.parameters()).device
    parts, under_pgd = [], []
    for start in range(0, len(y), _CHUNK):
        xc, yc = sized(x[start : start + _CHUNK]).to(device), y[start : start + _CHUNK].to(device)
        columns = _columns(model, xc, yc, eps, blocks)
        parts.append(columns)
        if start < pgd_images:
            left = slice(0, pgd_images - start)
            own = {name: column[left] for name, column in columns.items() if name.startswith("one-step")}
            under_pgd.append(own | _pgd(model, xc[left], yc[left], eps))
    whole = _joined(parts)
    l1 = whole["l1"].double()
    found = _means(whole, eps) | {"l1_sd": float(l1.std(correction=0)), "l1_median": float(l1.median())}
    if under_pgd:
        found["pgd"] = _means(_joined(under_pgd), eps)
    return found


def _columns(model: nn.Module, x: Tensor, y: Tensor, eps: Sequence[float], blocks: int) -> Columns:
    g, outputs = gradients_and_outputs(model, x, y)
    columns = gradients(g, blocks)
    columns |= {f"{name}_square": columns[name].square() for name in ("l2", "on_l2")}
    columns |= {"loss": measure.cross_entropy(outputs, y), "accuracy": measure.predictions(outputs) == y}
    for norm, p in NORMS.items():
        step = norms.steepest(g, p)  # one gradient for all sizes
        for size in eps:
            attacked = x + norms.threshold(size, p, x[0].numel()) * step
            columns |= _outcome(f"one-step-{norm} {size}", outputs, measure.outputs(model, attacked), y)
    return columns


def _pgd(model: nn.Module, x: Tensor, y: Tensor, eps: Sequence[float]) -> Columns:
    outputs = measure.outputs(model, x)
    columns: Columns = {}
    for norm, p in NORMS.items():
        for size in eps:
            attacked = attacks.pgd(model, x, y, p=p, eps=norms.threshold(size, p, x[0].numel()))
            columns |= _outcome(f"pgd-{norm} {size}", outputs, measure.outputs(model, attacked), y)
    return columns


def _outcome(attack: str, before: Tensor, after: Tensor, y: Tensor) -> Columns:
    return {
        f"{attack} damage": measure.cross_entropy(after, y) - measure.cross_entropy(before, y),
        f"{attack} vulnerability": measure.predictions(before) != measure.predictions(after),
        f"{attack} accuracy": measure.predictions(after) == y,
    }


def _joined(parts: list[Columns]) -> Columns:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _means(columns: Columns, eps: Sequence[float]) -> dict[str, Any]:
    """Means of the columns; those of an attack in its own dictionary, in the order of the sizes."""
    found: dict[str, Any] = {"images": len(next(iter(columns.values())))}
    for name, column in columns.items():
        mean = float(column.double().mean())
        attack, *outcome = name.split(" ")
        if not outcome:
            found[name] = mean
        else:
            found.setdefault(attack, {}).setdefault(outcome[1], []).append(mean)
    return found
