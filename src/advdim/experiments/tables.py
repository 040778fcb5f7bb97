"""Records as tables: the measurements of each network over its sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .spec import Network


@dataclass(frozen=True)
class Series:
    """One network over image sizes.

    Attributes:
        data: the data set.
        resize: how its images came to their size.
        network: the network.
        sizes: [S], side of the images in pixels, increasing.
        d: [S], input dimension.
        metrics: name to [S, seeds], see :func:`advdim.experiments.point.run`.
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
        points: as :func:`advdim.experiments.recorded` returns them.

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
        channels = 1 if data == "digits" else 3
        out.append(Series(data, resize, network, sizes, channels * sizes**2, metrics))
    return out
