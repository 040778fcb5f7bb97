"""Measuring a network at initialisation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import data, measure, models, theory
from ..theory import norms
from .spec import AtInitialisation, Images

#: Metrics of a point: per name, one value per seed.
Metrics = dict[str, list[float]]

#: Images of the training split that set the running statistics of batch-norm.
CALIBRATION = 64


def run(spec: AtInitialisation, device: torch.device, root: Path | None = None) -> Metrics:
    r"""Gradient norms, their support and one-step damage of a network at initialisation, averaged over images.

    Metrics, one value per seed: ``l1``, ``l2``, ``linf``, means over images of :math:`\lVert \nabla_x L \rVert_q`;
    ``support``, the mean share of gradient entries that are not 0; ``damage_EPS``, for each size of attack, the mean
    damage of the one-step l_inf attack divided by eps; ``walk_l1`` and ``walk_l2``, what path counting with the shares
    of open gates on these images predicts of l1 and l2 (:func:`advdim.theory.predicted_norms`), times the root mean
    square length of :math:`\partial L / \partial f`.

    Args:
        spec: the point.
        device: where to measure.
        root: the data folder, see :func:`advdim.data.root`.

    Raises:
        ValueError: if a gradient is not finite.
    """
    x, y = (t.to(device) for t in _load(spec.images, root))
    calibration = None
    if spec.network.batch_norm or spec.network.normalise == "batch":
        calibration = _load(replace(spec.images, split="train", n=CALIBRATION), root)[0].to(device)
    metrics: Metrics = {}
    for seed in range(spec.seeds):
        net = models.build(spec.network, x.shape[1:], seed=seed).to(device)
        if calibration is not None:
            models.calibrate_batch_norm(net, calibration)
        g = measure.input_gradients(net, x, y)
        if not g.isfinite().all():
            raise ValueError(f"{int((~g.isfinite()).sum())} gradient entries are NaN or infinite at seed {seed}")
        logits = measure.outputs(net, x)
        clean = measure.cross_entropy(logits, y)
        coefficients = logits.softmax(1) - F.one_hot(y, logits.shape[1])
        walk = theory.predicted_norms(net, x=x)
        values: dict[str, Tensor | float] = {
            "l1": norms.norm(g, 1).mean(),
            "l2": norms.norm(g, 2).mean(),
            "linf": norms.norm(g, math.inf).mean(),
            "support": int(g.count_nonzero()) / g.numel(),
            **{f"walk_l{q}": walk[q] * coefficients.square().sum(1).mean().sqrt() for q in (1, 2)},
        }
        for eps in spec.eps:
            attacked = measure.losses(net, x + eps * norms.steepest(g, math.inf), y)
            values[f"damage_{eps:g}"] = (attacked - clean).mean() / eps
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} = {value} at seed {seed}")
            metrics.setdefault(name, []).append(float(value))
    return metrics


def _load(images: Images, root: Path | None) -> tuple[Tensor, Tensor]:
    return data.load(
        images.data, images.split, size=images.size, resize=images.resize, n=images.n, seed=images.seed, root=root
    )
