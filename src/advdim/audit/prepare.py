"""What stands before the measuring: the sizes, the networks, the pre-flight, and how long it will take."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import models
from ..measure.gradients import cross_entropy, gradients_and_outputs
from ..theory import norms
from ..train import Recipe, fit
from . import layers, preflight
from .adapt import Adapted, Refusal, adapted, batch_norms, fresh_batch_norms, randomise
from .cells import counted_norm
from .images import Images, Upsample, default_sizes, gather, resized, to_train_on
from .plan import CHECKPOINT, FRESH, Plan

MULTIPLES = (4, 8, 16, 32)  # of a patch or a total stride, to which default sizes are rounded


@dataclass(frozen=True)
class Options:
    """What :func:`advdim.audit.audit` was called with, but for networks and images."""

    p: float
    eps: float
    layers: bool
    device: torch.device
    dtype: torch.dtype
    logits: Callable[[Any], Tensor] | None
    mean: Any
    std: Any
    calibrate: bool | str
    upsample: Upsample | None
    randomise_head: bool
    recipe: Recipe | None
    train_images: Images | None


@dataclass(frozen=True)
class Ready:
    """What the pre-flight found.

    Attributes:
        notes: to print.
        kept: the boundaries of the layer budget.
        classes: outputs of the network.
        counts: whether paths can be counted.
        calibrated: how many batch-norms are calibrated, or should be.
        seconds: that the measuring will take.
        identity: what tells this audit from others.
    """

    notes: list[str]
    kept: list[tuple[str, int]]
    classes: int
    counts: bool
    calibrated: int
    seconds: float
    identity: dict[str, Any]


def usable(device: str | torch.device) -> torch.device:
    """A device that is there; "auto" for the best at hand."""
    try:
        where = models.device() if device == "auto" else torch.device(device)
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError) as error:  # so does torch without CUDA
        words = str(error).splitlines()[0]
        raise Refusal(f"the device {str(device)!r} cannot be used ({words}): say cpu, or auto for the best") from error
    return where


def check_channels(options: Options, channels: int) -> None:
    """Refuse a normalisation that is not one number, or one per channel of the images."""
    for name, value in (("mean", options.mean), ("std", options.std)):
        numbers = 1 if value is None else torch.as_tensor(value).numel()
        if numbers not in (1, channels):
            raise Refusal(f"{name} has {numbers} numbers, the images have {channels} channels: give one per channel")


def training_images(data: Any, train_data: Any) -> Images:
    """The images to train on: those given, or the training split of a named set."""
    if train_data is None and isinstance(data, str | Path):
        return to_train_on(data)
    if train_data is None:
        raise Refusal("training needs train_data=(x, y): images that are not measured on")
    return gather(train_data, 10**9)


def choose_sizes(
    started: Plan, found: Images, sizes: Sequence[int] | None, options: Options
) -> tuple[list[int], list[str]]:
    """Sizes to measure, increasing: those asked for, or else those that the network takes."""
    wanted = sizes or started.sizes
    if wanted is not None:
        chosen = sorted(set(wanted))
        if chosen[0] < 1:
            raise Refusal(f"sizes are in pixels, got {chosen[0]}")
        if started.sizes is not None and not set(chosen) <= set(started.sizes):
            raise Refusal(f"there are networks for the sizes {started.sizes}, asked for {chosen}")
        larger = [size for size in chosen if size > found.native]
        if larger:
            found.at(larger[0], options.upsample)  # refused here unless allowed
            which = ", ".join(map(str, larger))
            return chosen, [
                f"! {which} px are enlarged ({options.upsample}): exponents are inflated on enlarged images"
            ]
        return chosen, []
    chosen, notes, multiple = [], [], 1
    for size in default_sizes(found.native):
        fits = _fitting(started, found, size, multiple, options)
        if fits is None:
            notes.append(f"{size} px left out: the network does not take it")
        elif fits[1] not in chosen:
            multiple = fits[0]
            chosen.append(fits[1])
    if not chosen:
        prepare(started, found, found.native, 0, options, tested=True)  # says why not
        raise Refusal("no default size fits: give sizes= (--sizes)")
    return sorted(chosen), notes


def _fitting(started: Plan, found: Images, size: int, least: int, options: Options) -> tuple[int, int] | None:
    """A multiple, and the size near the one wanted: one whose images are looked at in whole, or else one taken."""
    taken = []
    for m in (least, *(m for m in MULTIPLES if m > least)):
        px = max(m, round(size / m) * m)
        takes, whole = (False, False) if px > found.native else _takes(started, found, px, options)
        if whole:
            return m, px
        taken += [(m, px)] if takes else []
    return taken[0] if taken else None


def _takes(started: Plan, found: Images, size: int, options: Options) -> tuple[bool, bool]:
    try:
        net = _network(started, size, (started.seeds or (0,))[0], options)
        return preflight.takes(net, to_device(found.at(size)[:1], options))
    except Refusal:
        raise
    except Exception:  # a factory may refuse a size in any way
        return False, False


def to_device(x: Tensor, options: Options) -> Tensor:
    """Images where, and in the dtype in which, the network is measured."""
    return x.to(device=options.device, dtype=options.dtype)


def _network(started: Plan, size: int, seed: int, options: Options) -> Adapted:
    try:
        model = started.build(size, seed)
    except Refusal:
        raise
    except Exception as error:
        words = str(error).splitlines()[0] if str(error) else "no message"
        raise Refusal(f"the factory fails at {size} px ({type(error).__name__}: {words})") from error
    if options.randomise_head:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            randomise(model)
    return adapted(
        model,
        logits=options.logits,
        mean=options.mean,
        std=options.std,
        dtype=options.dtype,
        device=options.device,
        own=started.own,
    )


def prepare(
    started: Plan, found: Images, size: int, seed: int, options: Options, *, tested: bool = False
) -> tuple[Adapted, int]:
    """A network ready to be measured at a size, and how many batch-norms were calibrated (or are to be)."""
    net = _network(started, size, seed, options)
    if tested:
        preflight.forward(net, to_device(found.at(size, options.upsample)[:2], options))
    fresh = started.question != CHECKPOINT and started.own and options.recipe is None
    some = batch_norms(net) if options.calibrate is True else fresh_batch_norms(net) if fresh else []
    if some and options.calibrate:
        models.calibrate_batch_norm(net, to_device(resized(found.calibration, size, options.upsample), options))
    if options.recipe is not None and options.train_images is not None and not tested:
        train = options.train_images
        net.requires_grad_(True)
        fit(net, train.at(size, options.upsample), train.y, replace(options.recipe, seed=seed), progress=False)
        net.requires_grad_(False)
    return net, len(some)


def _counts(net: Adapted, x: Tensor, q: float) -> bool:
    """Whether the network's paths can be counted, by trying."""
    try:
        counted_norm(net, x, q)
    except Exception:  # a stranger's network raises anything
        return False
    return True


def _digest(net: Adapted, calibrated: int) -> str:
    """The sha256 of a network: its layers as they print, its weights, and the statistics that it came with."""
    buffers = {} if calibrated else dict(net.named_buffers())  # else they are of the images, at each size
    digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", repr(net.model)).encode())  # without addresses in memory
    for name, t in {**dict(net.named_parameters()), **buffers}.items():
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def take_off(started: Plan, found: Images, chosen: Sequence[int], which: Sequence[int], options: Options) -> Ready:
    """Check the network at the smallest size, find its boundaries, and time it at the largest."""
    small, large, notes = chosen[0], chosen[-1], []
    net, calibrated = prepare(started, found, small, which[0], options, tested=True)
    dtypes = {p.dtype for p in started.build(small, which[0]).parameters()} if not started.own else set()
    if dtypes - {options.dtype}:
        notes.append(f"weights of {', '.join(sorted(map(str, dtypes)))} are measured in {options.dtype}, on a copy")
    digest = _digest(net, calibrated)
    x, y = to_device(found.at(small, options.upsample)[:2], options), found.y[:2].to(options.device)
    if len(x) < 2:
        x, y = x.repeat(2, 1, 1, 1), y.repeat(2)
    classes = preflight.forward(net, x).shape[-1]
    if preflight.forward(net, x).ndim == 2 and classes > 1:
        preflight.check_labels(found.y, classes)
    notes += preflight.check(net, x, y)
    kept = layers.chain(net, x, y, cross_entropy) if options.layers else []
    if options.layers and not kept:
        notes.append("no module's output lies on every path: the layer budget has one step")
    counts = started.question == FRESH and _counts(net, x, norms.dual(options.p))
    if calibrated:
        done = "calibrated" if options.calibrate else "NOT calibrated, the identity but for scale and shift"
        mark = "" if options.calibrate else "! "
        on = f" on {len(found.calibration)} images at each size" if options.calibrate else ""
        these = "batch-norm is" if calibrated == 1 else "batch-norms are"
        notes.append(f"{mark}{calibrated} {these} fresh: {done}{on}")
    if len(chosen) > 1:
        net, _ = prepare(started, found, large, which[0], options, tested=True) if started.own else (net, 0)
    begun = time.perf_counter()
    one = to_device(found.at(large, options.upsample)[:1], options)
    preflight.forward(net, one)
    gradients_and_outputs(net, one, found.y[:1].to(options.device), batch_size=1)
    each = time.perf_counter() - begun
    passes = 1 if started.question == FRESH else 6  # attacks, and averages in front
    pixels = sum(size**2 for size in chosen) / large**2
    identity = {
        "question": started.question,
        "network": started.name,
        "smallest size": small if started.sized else None,  # that of the network whose weights these are
        "weights": digest,
        "data": found.checksum,
        "images": len(found.y),
        "p": str(options.p),
        "eps": options.eps,
        "dtype": str(options.dtype),
        "layers": options.layers,
        "calibrate": str(options.calibrate),
        "upsample": options.upsample,
        "randomise_head": options.randomise_head,
        "recipe": None if options.recipe is None else repr(replace(options.recipe, seed=0)),
        "normalise": [str(options.mean), str(options.std)],
    }
    images = len(found.y) * passes + (len(found.calibration) / 3 if calibrated else 0) + (8 if counts else 0)
    return Ready(notes, kept, classes, counts, calibrated, each * images * len(which) * pixels, identity)
