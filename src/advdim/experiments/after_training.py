"""Measuring one training run of an experiment: by epoch, and under several attacks at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import attacks, data, measure, models, train
from ..theory import norms
from ..train.evaluation import Metrics as EpochMetrics
from . import trained_state
from .spec import AfterTraining

#: Metrics of a point: numbers, lists of numbers, and the history by epoch.
Metrics = dict[str, Any]

#: Parts of equal size into which the images are binned by the norm of their gradient.
BINS = 10

#: Images, at least, whose statistics a batch-norm starts with where attacks have several sizes.
CALIBRATION = 64

#: Attacks of a given size, by name: exponent of the attacker's norm, and the function.
FIXED_EPS_ATTACKS: dict[str, tuple[float, Callable[..., Tensor]]] = {
    "one-step-linf": (math.inf, attacks.one_step),
    "one-step-l2": (2, attacks.one_step),
    "pgd-linf": (math.inf, attacks.pgd),  # 10 steps of eps / 7.5 without a random start, as in the paper
    "pgd-l2": (2, attacks.pgd),
}
#: Attacks that look for the nearest boundary, by name: exponent of the norm.
MIN_NORM_ATTACKS: dict[str, float] = {"deepfool-linf": math.inf, "deepfool-l2": 2}


def run(spec: AfterTraining, device: torch.device, root: Path | None = None, checkpoint: Path | None = None) -> Metrics:
    r"""Train a network, and attack it on test images.

    Metrics: ``history``, name to one value per epoch measured (:class:`advdim.train.Result`, and for train and test
    images what :func:`by_epoch` measures); ``initial``, the same of test images before training; of the final network,
    ``accuracy``, ``loss``, and ``l1`` and ``l2``, mean norms of :math:`\nabla_x L`; per attack ``ATTACK_damage``,
    ``ATTACK_vulnerability``, ``ATTACK_accuracy``; for DeepFool the share of the images whose prediction it changed at
    all, ``ATTACK_found``, their mean ``ATTACK_distance``, and, for its vulnerability and accuracy, only distances up
    to eps counted; and of the l_inf attacks, by image: ``ATTACK_remainder``, the mean of
    :math:`\lvert \Delta L - \varepsilon \lVert \nabla L \rVert_1 \rvert` over that of
    :math:`\varepsilon \lVert \nabla L \rVert_1`, and ``ATTACK_bins``, means of the damage over tenths of the images in
    order of ``bins``, the means of :math:`\varepsilon \lVert \nabla L \rVert_1`. ``flags`` are the largest over the
    attacks of those of :class:`advdim.measure.Evaluation`.

    With several sizes of attack, in place of all these: ``history`` and ``initial`` of what
    :func:`advdim.experiments.trained_state.by_epoch` measures, and ``train`` and ``test``, of the final network on up
    to ``spec.images.n`` images of each, as :func:`advdim.experiments.trained_state.measure_split` has it.

    Args:
        spec: the point.
        device: where to train and measure.
        root: the data folder, see :func:`advdim.data.root`.
        checkpoint: a file from which an interrupted run resumes, see :func:`advdim.train.fit`.

    Raises:
        DivergenceError: if training diverges.
        ValueError: if a metric is not finite.
    """
    images, recipe = spec.images, spec.recipe
    native = images.size if images.resize == "area" else None  # enlarging waits until a batch is on the device
    sample = images.seed if spec.train_seed is None else spec.train_seed
    x, y = data.load(images.data, "train", size=native, resize=images.resize, n=spec.train, seed=sample, root=root)
    few, labels = data.load(
        images.data, images.split, size=native, resize=images.resize, n=images.n, seed=images.seed, root=root
    )
    if images.resize != "area":
        recipe = replace(recipe, size=images.size, resize=images.resize)
    net = models.build(spec.network, (x.shape[1], images.size, images.size), seed=recipe.seed).to(device)
    if spec.network.batch_norm or spec.network.normalise == "batch":  # else the first steps' averages are of noise
        calibration = max(recipe.batch_size, CALIBRATION) if isinstance(spec.eps, tuple) else recipe.batch_size
        models.calibrate_batch_norm(net, _sized(x[:calibration], spec).to(device))
    blocks = images.size // (spec.base_size or (x.shape[-1] if images.resize == "copy" else images.size))
    epoch: EpochMetrics = partial(trained_state.by_epoch, blocks=blocks)
    if not isinstance(spec.eps, tuple):
        epoch = partial(by_epoch, eps=spec.eps, blocks=blocks)
    followed = spec.by_epoch if isinstance(spec.eps, tuple) else len(few)  # along the training run
    metrics: Metrics = {"initial": _initial(net, few[: spec.by_epoch], labels[: spec.by_epoch], spec, epoch, device)}
    result = train.fit(
        net,
        x,
        y,
        recipe,
        x_test=few[:followed],
        y_test=labels[:followed],
        checkpoint=checkpoint,
        progress=False,
        eval_images=spec.by_epoch,
        eval_every=spec.at_epochs or spec.every or 1,
        metrics=epoch,
    )
    measured = [row for row in result.history if "test_accuracy" in row]
    metrics["history"] = {name: [row[name] for row in measured] for name in measured[0]}
    if isinstance(spec.eps, tuple):
        state = partial(trained_state.measure_split, net, eps=spec.eps, blocks=blocks, sized=partial(_sized, spec=spec))
        metrics["train"] = state(x[: images.n], y[: images.n], pgd_images=0)
        metrics["test"] = state(few, labels, pgd_images=len(few) if spec.pgd_images is None else spec.pgd_images)
    else:
        metrics |= attacked(net, _sized(few, spec).to(device), labels.to(device), spec.eps, spec.attacks)
    _refuse_non_finite(metrics)
    return metrics


def by_epoch(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, blocks: int = 1) -> dict[str, float]:
    r"""Sums over the images of what is measured by epoch.

    ``damage`` and ``vulnerability``, of the paper's attack, ten steps of PGD in l_inf. Of images copied up by a factor,
    ``on_l1`` and ``on_l2``: the norms of the gradient's projection on the images that are so copied, its mean over each
    block of pixels. As an attack that has to copy its pixels too gains :math:`\varepsilon` times the first to first
    order, it is the on-manifold part of the vulnerability.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], in pixel units.
        y: [N], int64 labels.
        eps: size of the attack, in pixel units.
        blocks: the factor, side of the blocks in pixels; 1 where images are not copied.
    """
    found = measure.evaluate(model, x, y, attacks.pgd(model, x, y, p=math.inf, eps=eps), p=math.inf, eps=eps)
    sums = {"damage": found.damage * len(y), "vulnerability": found.vulnerability * len(y)}
    if blocks > 1:
        means = F.avg_pool2d(measure.input_gradients(model, x, y), blocks)
        sums["on_l1"] = float(norms.norm(means, 1).sum()) * blocks**2
        sums["on_l2"] = float(norms.norm(means, 2).sum()) * blocks
    return sums


def _initial(
    net: nn.Module, x: Tensor, y: Tensor, spec: AfterTraining, metrics: EpochMetrics, device: torch.device
) -> dict[str, float]:
    x, y = _sized(x, spec).to(device), y.to(device)
    sums = metrics(net, x, y)
    if "l1" not in sums:
        sums = {f"l{q}": float(n.sum()) for q, n in measure.gradient_norms(net, x, y).items()} | sums
    return {name: value / len(y) for name, value in sums.items()}


def attacked(model: nn.Module, x: Tensor, y: Tensor, eps: float, names: Collection[str] | None = None) -> Metrics:
    """Accuracy, gradient norms and the outcomes of the named attacks, or of all, as :func:`run` names them."""
    g = measure.gradient_norms(model, x, y)
    outputs = measure.outputs(model, x)
    loss, predictions = measure.cross_entropy(outputs, y), measure.predictions(outputs)
    first_order = eps * g[1]
    order = first_order.argsort()
    metrics: Metrics = {"l1": _mean(g[1]), "l2": _mean(g[2]), "loss": _mean(loss), "bins": _bins(first_order, order)}
    metrics["accuracy"] = _mean(predictions == y)
    flags: dict[str, float] = {}
    for name, (p, attack) in FIXED_EPS_ATTACKS.items():
        if names is not None and name not in names:
            continue
        size = norms.threshold(eps, p, x[0].numel())
        images = attack(model, x, y, p=p, eps=size)
        found = measure.evaluate(model, x, y, images, p=p, eps=size)
        metrics |= {f"{name}_damage": found.damage, f"{name}_vulnerability": found.vulnerability}
        metrics[f"{name}_accuracy"] = found.attacked_accuracy
        flags = {flag: max(share, flags.get(flag, 0.0)) for flag, share in found.flags.items()}
        if p == math.inf:
            damage = measure.losses(model, images, y) - loss
            metrics[f"{name}_bins"] = _bins(damage, order)
            metrics[f"{name}_remainder"] = _mean((damage - first_order).abs()) / _mean(first_order)
    flags.pop("out of range", None)  # the paper's protocol does not clip
    flags.pop("not finite", None)  # such numbers are no result
    for name, p in MIN_NORM_ATTACKS.items():
        if names is not None and name not in names:
            continue
        images = attacks.deepfool(model, x, p=p)  # from the prediction, whether it is right or wrong
        moved = measure.predictions(measure.outputs(model, images)) != predictions
        distance = norms.norm(images - x, p)
        near = moved & (distance <= norms.threshold(eps, p, x[0].numel()))
        metrics |= {f"{name}_found": _mean(moved), f"{name}_distance": _mean(distance[moved])}
        metrics |= {f"{name}_vulnerability": _mean(near), f"{name}_accuracy": _mean((predictions == y) & ~near)}
    return metrics | {"flags": flags}


def _sized(x: Tensor, spec: AfterTraining) -> Tensor:
    return data.resize(x, spec.images.size, spec.images.resize)


def _bins(values: Tensor, order: Tensor) -> list[float]:
    """Means over parts of equal size of the images in the given order."""
    return [_mean(part) for part in torch.tensor_split(values[order], min(BINS, len(values)))]


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _refuse_non_finite(metrics: Metrics, path: str = "") -> None:
    for name, value in metrics.items():
        if isinstance(value, dict):
            _refuse_non_finite(value, f"{path}{name} ")
        elif not all(math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}{name} = {value}")
