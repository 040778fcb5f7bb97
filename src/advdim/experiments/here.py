"""Measuring a grid from a notebook: with a progress bar, on the device at hand, going on from what is done."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .. import models
from ..analysis.records import Record
from . import grids, runner, store
from .spec import key


def measure_grid(
    experiment: str,
    data: str,
    scale: str,
    *,
    folder: Path = Path("runs"),
    first: int | None = None,
    device: torch.device | None = None,
) -> list[Record]:
    """Measure the points of a grid that are not there yet, as ``advdim run`` does, and return those that are done.

    Args:
        experiment: a name of :data:`advdim.experiments.grids.GRIDS`.
        data: the data set; one that torchvision downloads is fetched when missing.
        scale: "quick", "medium", "short" or "paper".
        folder: of the points' files, in a folder of the experiment's name; an interrupted call goes on from there.
        first: only so many points of the grid, which come seed by seed; None takes all.
        device: where to measure; None is :func:`advdim.models.device`.

    Raises:
        ValueError: for an unknown experiment or scale, or a data set without a grid.
        MissingDataError: if the data set is not there.
    """
    from tqdm import tqdm

    for name, known in ((experiment, grids.GRIDS), (scale, grids.SCALES)):
        if name not in known:
            raise ValueError(f"no experiment or scale {name!r}: there are {', '.join(known)}")
    points = list(grids.GRIDS[experiment](scale, data))[:first]
    where, own = device or models.device(), folder / experiment
    command = f"advdim run {experiment} --data {data} --scale {scale}"
    for point in tqdm(points, unit="point", file=sys.stderr):
        runner.run([point], own, device=where, command=command)
    found = [store.load(own, key(point)) for point in points]
    return [record for record in found if record is not None and record["status"] == "done"]
