"""The audit of anybody's network: how its vulnerability grows with the size of its images, and which layer makes it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..theory import norms
from ..train import Recipe
from . import verdict
from .adapt import Refusal
from .cells import Cell, Store, measure_cell
from .images import Images, Upsample, gather
from .plan import FRESH, TRAINED, Plan, plan
from .prepare import Options, Ready, check_channels, choose_sizes, prepare, take_off, to_device, training_images, usable
from .result import Audit


def audit(
    make: Any,
    data: Any,
    *,
    sizes: Sequence[int] | None = None,
    seeds: int = 5,
    images: int = 32,
    weights: str | Path = "fresh",
    p: float = math.inf,
    eps: float = 1 / 255,
    layers: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    logits: Callable[[Any], Tensor] | None = None,
    mean: Any = None,
    std: Any = None,
    calibrate: bool | str = "auto",
    budget_s: float | None = None,
    size_arg: str | None = None,
    upsample: Upsample | None = None,
    randomise_head: bool = False,
    recipe: Recipe | None = None,
    train_data: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Audit:
    """How a network's first-order vulnerability grows with the size of its images, and which layers make it do so.

    What is given names the question. A factory, or a dict {size: factory}, asks it of *fresh* networks, one per seed;
    it is called with whichever of size, img_size, image_size, side and seed it takes. A module, or a factory with
    ``weights``, is *one checkpoint*, tried on images of several sizes. A dict {(size, seed): module}, or a factory with
    a ``recipe``, is *trained per size*. Whatever is given is left as it was found.

    Args:
        make: the factory, module or dict. Networks give logits [N, K], or an object in which they are found.
        data: (x [N, C, H, W] in [0, 1], y int64 [N]), a DataLoader of such batches, a folder of images by class, or the
            name of a data set. Sizes below the images' own are reached by exact area averages.
        sizes: sides in pixels; default up to four, halving from the images' own, rounded to what the network takes.
        seeds: how many fresh or trained networks, with the seeds 0, 1, ...
        images: how many images to measure on.
        weights: "fresh", or a file of weights for the factory's network; read with ``weights_only=True``.
        p: the attacker's norm, in [1, inf]; gradients are measured in the dual one.
        eps: size of the attack on trained networks, in pixel units.
        layers: whether to split the exponent over the layers.
        device: "auto" for the best at hand.
        dtype: networks are converted to it.
        logits: takes what the network gives out to its logits.
        mean: per channel, subtracted from the images first; None if the network normalises them itself.
        std: per channel, by which they are then divided.
        calibrate: whether batch-norms get the statistics of 64 images at each size; "auto" for those that have never
            seen an image, of fresh networks.
        budget_s: seconds after which no further seed is begun.
        size_arg: the factory's argument for the size, if it has another name.
        upsample: "copy" or "bilinear", to allow sizes above the images' own.
        randomise_head: whether layers whose weights are all 0 are drawn anew.
        recipe: how to train the factory's network at each size; its seed is that of the network.
        train_data: like ``data``, images to train on; default the training split, where ``data`` is a name.
        out: a folder that keeps what is measured; the same call goes on from there, and may ask for more seeds.
        progress: whether to draw a bar, on a terminal.
        say: is told what the pre-flight found, and how long it will take.

    Returns:
        Tables, exponent, layer budget and verdict; printable. After Ctrl-C, those of the seeds that were done.

    Raises:
        Refusal: a ValueError, of what no honest number can come from; it names the cure.
    """
    norms.dual(p)
    if not 0 < eps < math.inf:
        raise Refusal(f"eps must be positive and finite, got {eps}")
    if seeds < 1:
        raise Refusal(f"seeds must be at least 1, got {seeds}")
    if budget_s is not None and not budget_s > 0:
        raise Refusal(f"budget_s must be positive, in seconds, got {budget_s}")
    where = usable(device)
    found = gather(data, images)
    started = plan(make, weights=weights, size_arg=size_arg, native=found.native)
    if recipe is not None:
        if started.question != FRESH:
            raise Refusal("a recipe trains the networks of a factory: give one, without weights")
        started = replace(started, question=TRAINED)
    options = Options(
        p,
        eps,
        layers,
        where,
        dtype,
        logits,
        mean,
        std,
        calibrate,
        upsample,
        randomise_head,
        recipe,
        None if recipe is None else training_images(data, train_data),
    )
    check_channels(options, found.x.shape[1])
    which = started.seeds or tuple(range(seeds))
    chosen, notes = choose_sizes(started, found, sizes, options)
    ready = take_off(started, found, chosen, which, options)
    if len(found.y) < images:
        notes.append(f"{_many(len(found.y), 'image')} to measure on, of {images} asked for: there are no more")
    notes += ready.notes
    for note in notes if say else ():
        say(note)  # type: ignore[misc]
    if say:
        counts = (len(chosen), "size"), (len(which), "seed"), (len(found.y), "image")
        say(f"about {_duration(ready.seconds)}: {', '.join(starmap(_many, counts))}")
    store = Store(None if out is None else Path(out), ready.identity)
    interrupted = _measure(started, found, chosen, which, options, ready, store, budget_s, progress)
    done = [seed for seed in which if all((size, seed) in store.cells for size in chosen)]
    if not done:
        raise KeyboardInterrupt if interrupted else Refusal(f"no seed was done in {budget_s} s: allow for more time")
    cells = [store.cells[size, seed] for seed in done for size in chosen]
    return _result(started, found, chosen, which, cells, notes, options, ready)


def _measure(
    started: Plan,
    found: Images,
    chosen: Sequence[int],
    which: Sequence[int],
    options: Options,
    ready: Ready,
    store: Store,
    budget_s: float | None,
    progress: bool,
) -> bool:
    """Measure what is not there yet, seed by seed; whether it was interrupted."""
    from tqdm import tqdm

    begun = time.perf_counter()
    eps = None if started.question == FRESH else options.eps
    todo = [(size, seed) for seed in which for size in chosen if (size, seed) not in store.cells]
    work = sum(size**2 for size, _ in todo) / 1e3
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=work, disable=None if progress else True, bar_format=form) as bar:
        try:
            for size, seed in todo:
                if budget_s is not None and time.perf_counter() - begun > budget_s:
                    break
                bar.set_description(f"{size} px, seed {seed}")
                net, _ = prepare(started, found, size, seed, options)
                x, y = to_device(found.at(size, options.upsample), options), found.y.to(options.device)
                measured = partial(measure_cell, net, x, y, ready.kept, p=options.p, eps=eps, count=ready.counts)
                store.add(measured(size=size, seed=seed))
                bar.update(size**2 / 1e3)
        except KeyboardInterrupt:
            return True
    return False


def _result(
    started: Plan,
    found: Images,
    chosen: Sequence[int],
    which: Sequence[int],
    cells: Sequence[Cell],
    notes: list[str],
    options: Options,
    ready: Ready,
) -> Audit:
    settings = {
        **ready.identity,
        "p": options.p,
        "q": norms.dual(options.p),
        "classes": ready.classes,
        "sizes": list(chosen),
        "seeds": sorted({cell.seed for cell in cells}),
        "calibration": _calibration(ready, options, len(found.calibration)),
        "resize": _resize(found, chosen, options),
        "device": str(options.device),
        "torch": torch.__version__,
    }
    done = len(settings["seeds"])
    if done < len(which):
        notes = [*notes, f"! {done} of {len(which)} seeds: the same call goes on, if out= names a folder"]
    return verdict.concluded(
        started.question,
        started.name,
        found.name,
        cells,
        settings,
        notes,
        channels=found.x.shape[1],
        complete=done == len(which),
    )


def _calibration(ready: Ready, options: Options, images: int) -> str:
    if not ready.calibrated:
        return "batch-norm as found" if options.recipe is None else "batch-norm as trained"
    return f"batch-norm calibrated on {images} images per size" if options.calibrate else "batch-norm NOT calibrated"


def _resize(found: Images, chosen: Sequence[int], options: Options) -> str:
    ways = {size: "area" if size < found.native else options.upsample for size in chosen if size != found.native}
    if not ways:
        return f"images as they are, {found.native} px"
    how = " and ".join(sorted({str(way) for way in ways.values()}))
    return f"resized from {found.native} px by {how}"


def _many(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{seconds / 60:.0f} min"
