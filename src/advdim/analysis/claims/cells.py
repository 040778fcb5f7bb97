"""What the training runs of one series measured, by seed and size, and statistics of it by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .verdicts import PerSeed

Point = dict[str, Any]
#: (seed, size in pixels) to the record of a point.
Cells = dict[tuple[int, int], Point]
#: A number that a point's record gives, or None where it gives none.
Metric = Callable[[Point], float | None]

#: Predictions that have to change for a vulnerability to enter an exponent.
FEWEST_CHANGED = 20
#: The size of attack that claims on small attacks are about, and that of the paper; in pixel units.
SMALL, PAPER = 0.0008, 0.004
#: Training losses at which networks are compared; the first one decides.
LOSSES = (0.5, 1.0, 0.1)


def gather(points: Iterable[Point], chosen: Callable[[dict[str, Any]], bool]) -> Cells:
    """The points whose spec is chosen, by seed and size.

    Raises:
        ValueError: if two of them have seed and size in common: the choice mixes series.
    """
    cells: Cells = {}
    for point in points:
        spec = point["spec"]
        if chosen(spec):
            place = (spec["recipe"]["seed"], spec["images"]["size"])
            if place in cells:
                raise ValueError(f"two points of seed {place[0]} at {place[1]} px: {cells[place]['spec']} and {spec}")
            cells[place] = point
    return cells


def sizes(cells: Cells) -> tuple[int, ...]:
    """The three sizes that exponents are fitted over: 1, 2 and 4 times that down to which gradients are averaged."""
    bases = {point["spec"]["base_size"] for point in cells.values()}
    return tuple(factor * base for base in bases for factor in (1, 2, 4))


def whole(*several: Cells) -> list[int]:
    """The seeds that have a run at every one of the three sizes, in each of several series."""
    found = [
        {seed for seed, _ in cells if all((seed, size) in cells for size in sizes(cells))} if cells else set()
        for cells in several
    ]
    return sorted(set.intersection(*found))


def slopes(cells: Cells, metric: Metric) -> PerSeed:
    """Least-squares slope of log(metric) against log(d) over the three sizes, of the whole seeds that have it."""
    found: PerSeed = {}
    for seed in whole(cells):
        chosen = sizes(cells)
        values = [metric(cells[seed, size]) for size in chosen]
        if all(value is not None and value > 0 for value in values):
            log_d = 2 * np.log(chosen)
            centred = log_d - log_d.mean()
            found[seed] = float(centred @ np.log(np.array(values, float)) / (centred @ centred))
    return found


def beyond_fit(cells: Cells, metric: Metric) -> PerSeed:
    """Log of a metric at a fourth, larger size, less what the power law of the seed's three sizes predicts there."""
    found: PerSeed = {}
    growth = slopes(cells, metric)
    for (seed, size), point in cells.items():
        value = metric(point)
        if seed in growth and size > max(sizes(cells)) and value is not None and value > 0:
            fitted = [math.log(metric(cells[seed, s]) or math.nan) for s in sizes(cells)]
            middle = float(np.mean(np.log(sizes(cells))))
            found[seed] = math.log(value) - float(np.mean(fitted)) - 2 * growth[seed] * (math.log(size) - middle)
    return found


def less(first: PerSeed, second: PerSeed) -> PerSeed:
    """Differences within seeds, of those that have both."""
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def at_end(split: str, name: str) -> Metric:
    """A mean over the images of a split ("train" or "test"), of the final network."""
    return lambda point: float(point["metrics"][split][name])


def before_training(name: str) -> Metric:
    """A mean over test images, of the network as it was initialised."""
    return lambda point: float(point["metrics"]["initial"][name])


def at_epoch(name: str, epoch: float) -> Metric:
    """A column of the history after so many epochs; of a run that had stopped by then, at its end."""

    def value(point: Point) -> float | None:
        history = point["metrics"]["history"]
        before = [v for e, v in zip(history["epoch"], history[name], strict=True) if e < epoch]
        return float(before[-1]) if before else None

    return value


def at_loss(name: str, level: float) -> Metric:
    """A column of the history where the clean loss on training images first falls to a level; see :func:`crossing`."""

    def value(point: Point) -> float | None:
        history = point["metrics"]["history"]
        return crossing(history["train_loss"], history[name], level)

    return value


def crossing(losses: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Where losses first fall to a level: log(value), interpolated linearly in the loss.

    Args:
        losses: in the order of training.
        values: positive, as many.
        level: of the loss.

    Returns:
        The value there; None if the loss never falls to the level, or is below it from the first measurement on.
    """
    if len(losses) and losses[0] == level:
        return float(values[0])
    for (before, first), (after, second) in pairwise(zip(losses, values, strict=True)):
        if before > level >= after:
            share = (before - level) / (before - after)
            return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return None


def attacked(attack: str, outcome: str, eps: float, *, few: bool = False) -> Metric:
    """An attack's outcome on test images of the final network.

    Args:
        attack: as "one-step-linf".
        outcome: "damage", "vulnerability" or "accuracy".
        eps: size of the attack, one of the spec's.
        few: on the images that are under PGD, in place of all.

    Returns:
        The mean over images; of a vulnerability with fewer than 20 changed predictions, None.
    """

    def value(point: Point) -> float | None:
        state = point["metrics"]["test"]
        state = state["pgd"] if few else state
        mean = float(state[attack][outcome][list(point["spec"]["eps"]).index(eps)])
        if outcome == "vulnerability" and round(mean * state["images"]) < FEWEST_CHANGED:
            return None
        return mean

    return value


def mean_over_sizes(cells: Cells, metric: Metric) -> PerSeed:
    """Mean of a metric over the three sizes, of the whole seeds that have it at each."""
    found: PerSeed = {}
    for seed in whole(cells):
        values = [metric(cells[seed, size]) for size in sizes(cells)]
        if all(value is not None for value in values):
            found[seed] = float(np.mean(np.array(values, float)))
    return found


def ratio(above: Metric, below: Metric) -> Metric:
    """The quotient of two metrics of a point; None where one has no value, or the second is not positive."""

    def value(point: Point) -> float | None:
        first, second = above(point), below(point)
        return None if first is None or second is None or second <= 0 else first / second

    return value


def log(metric: Metric) -> Metric:
    """The logarithm of a metric; None where it has no value, or is not positive."""

    def value(point: Point) -> float | None:
        found = metric(point)
        return None if found is None or found <= 0 else math.log(found)

    return value


def reached(cells: Cells) -> bool:
    """Whether, at each of the three sizes, at least 4 of 5 whole seeds came to the accuracy that ends training."""
    seeds = whole(cells)

    def right(seed: int, size: int) -> bool:
        point = cells[seed, size]
        return bool(point["metrics"]["history"]["train_accuracy"][-1] >= point["spec"]["recipe"]["stop_accuracy"])

    return all(5 * sum(right(seed, size) for seed in seeds) >= 4 * len(seeds) for size in sizes(cells))


def label(spec: dict[str, Any]) -> str:
    """What tells a series of trained networks apart, in words: all of its spec but size, seed and scale."""
    network, recipe = spec["network"], spec["recipe"]
    strided = network["name"] == "conv_strided"
    readout = " averaging" if strided and network.get("readout") != "fc" else ""
    parts = [("strided" if strided else "dilated") + readout]
    parts.append({"copy": "copied", "bilinear": "interpolated", "area": "natural"}[spec["images"]["resize"]])
    parts += [name for name in ("projection", "blur") if {"projection": "project"}.get(name, name) in network]
    parts += [network["activation"]] if "activation" in network else []
    parts += [f"weight decay {recipe['weight_decay']:g}"] if recipe["weight_decay"] else []
    parts += [f"{recipe['method']} {recipe['strength']:g}"] if recipe["strength"] else []
    if spec["experiment"] == "pgd-training" and "stop_accuracy" not in recipe:
        parts.append(f"{recipe['epochs']} epochs")
    if spec["experiment"] == "sample-size":
        parts += [f"{spec.get('train', 'all')} images", f"{network['width']} channels"]
    parts += ["bfloat16"] if spec["experiment"] == "precision" and recipe["bf16"] else []
    return ", ".join(parts)


def by_label(points: Sequence[Point]) -> dict[str, Cells]:
    """The points of an experiment by series, in the order of their first points."""
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(label(point["spec"]), []).append(point)
    return {name: gather(own, lambda _: True) for name, own in series.items()}
