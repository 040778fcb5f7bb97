"""Records as tables: the measurements of each network over its sizes, and one row per training run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..models import Network
from .power_law import PowerLaw, exponent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Series:
    """One network over image sizes.

    Attributes:
        data: the data set.
        resize: how its images came to their size.
        network: the network.
        sizes: [S], side of the images in pixels, increasing.
        d: [S], input dimension.
        metrics: name to [S, seeds], see :func:`advdim.experiments.at_initialisation.run`.
    """

    data: str
    resize: str
    network: Network
    sizes: NDArray[np.int64]
    d: NDArray[np.int64]
    metrics: dict[str, NDArray[np.float64]]


def series(points: Iterable[dict[str, Any]]) -> list[Series]:
    """The series of a record's points, networks in the order of their names.

    Args:
        points: of the experiment ``initialisation``, as :func:`advdim.analysis.recorded` returns them.

    Raises:
        ValueError: if two points are of one network at one size.
    """
    groups: dict[tuple[str, str, Network], dict[int, dict[str, list[float]]]] = {}
    for point in points:
        images = point["spec"]["images"]
        group = groups.setdefault((images["data"], images["resize"], Network(**point["spec"]["network"])), {})
        if images["size"] in group:
            raise ValueError(f"two points are of one network at one size: {point['spec']}")
        group[images["size"]] = point["metrics"]
    out = []
    for (data, resize, network), by_size in sorted(groups.items(), key=lambda item: (*item[0][:2], str(item[0][2]))):
        sizes = np.array(sorted(by_size))
        metrics = {name: np.array([by_size[s][name] for s in sizes]) for name in by_size[int(sizes[0])]}
        out.append(Series(data, resize, network, sizes, _channels(data) * sizes**2, metrics))
    return out


def runs(points: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per training run, in the order of data set, size, method, strength and seed.

    Args:
        points: of an experiment on trained networks, as :func:`advdim.analysis.recorded` returns them.

    Returns:
        Columns ``data``, ``size``, ``resize``, ``d`` (input dimension), ``network``, ``method``, ``strength``,
        ``seed``, ``epochs``, every metric that is a single number (:func:`advdim.experiments.after_training.run`), also
        those of ``train`` and ``test``, as ``train_NAME`` and ``test_NAME``, and, as ``initial_NAME``, those before
        training. Where a seed draws its own training images, ``images`` says how many.
    """
    rows = []
    for point in points:
        single = {name: value for name, value in point["metrics"].items() if not isinstance(value, list | dict)}
        for split in ("train", "test"):
            state = point["metrics"].get(split, {})
            single |= {f"{split}_{name}": value for name, value in state.items() if not isinstance(value, list | dict)}
        initial = {f"initial_{name}": value for name, value in point["metrics"].get("initial", {}).items()}
        rows.append(_settings(point["spec"]) | single | initial)
    return _sorted(rows)


def epochs(points: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per training run and epoch: the columns of :func:`runs` that are settings, ``epoch`` and the history."""
    rows = []
    for point in points:
        history = point["metrics"]["history"]
        for values in zip(*history.values(), strict=True):
            rows.append(_settings(point["spec"]) | dict(zip(history, values, strict=True)))
    return _sorted(rows)


def exponents(table: pd.DataFrame, column: str, by: str) -> dict[str, PowerLaw]:
    """Exponents in the input dimension of what training runs measured, paired by seed, with their intervals.

    Args:
        table: one row per run, with columns ``d`` and ``seed``, as :func:`runs` gives it.
        column: what is fitted, positive.
        by: the column that tells the series apart.

    Returns:
        Value of that column to exponent, in the order of first appearance.

    Raises:
        ValueError: if a series lacks a seed at some size, or as :func:`advdim.analysis.exponent`.
    """
    fits = {}
    for name, own in table.groupby(by, sort=False):
        values = own.pivot(index="d", columns="seed", values=column)
        if values.isna().any(axis=None):
            raise ValueError(f"{by} = {name}: a seed is missing at some size:\n{values}")
        fits[str(name)] = exponent(values.index, values.to_numpy())
    return fits


def _settings(spec: dict[str, Any]) -> dict[str, Any]:
    images, recipe = spec["images"], spec["recipe"]
    return {
        **{name: images[name] for name in ("data", "size", "resize")},
        "d": _channels(images["data"]) * images["size"] ** 2,
        "network": str(Network(**spec["network"])),
        **{name: recipe[name] for name in ("method", "strength", "seed", "epochs")},
        **({"images": spec.get("train", "all")} if "train_seed" in spec else {}),
    }


def _channels(data: str) -> int:
    return 1 if data == "digits" else 3


def _sorted(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    order = ["data", "size", "resize", "network", "method", "strength", "seed"]
    return pd.DataFrame(rows).sort_values(order, kind="stable", ignore_index=True)
