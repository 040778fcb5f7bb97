"""Interleaved repeats, their medians, and the table."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: Ratios of the other's time to ours to be reached, on two CPU cores with bfloat16 instructions, by (what, whom).
REQUIRED = {
    ("PGD linf", "Foolbox"): 1.9,
    ("PGD l2", "Foolbox"): 1.9,
    ("PGD linf", "ART"): 1.9,
    ("PGD l2", "ART"): 1.9,
    ("PGD linf", "torchattacks"): 1.5,
    ("PGD l2", "torchattacks"): 1.5,
    ("one step linf", "Foolbox"): 2.3,
    ("one step l2", "Foolbox"): 2.3,
    ("PGD linf", "adv-lib"): 1.5,
    ("DeepFool l2", "Foolbox"): 5.0,
    ("DeepFool l2", "adv-lib"): 1.5,
    ("DeepFool linf", "Foolbox"): 1.5,
    ("DeepFool linf", "adv-lib"): 1.5,
    ("gradient norms", "one by one"): 5.0,
    ("gradient norms", "one by one, backward()"): 5.0,
    ("gradient norms", "vmap(grad)"): 1.4,
    ("train none", "plain loop"): 2.5,
    ("train augment-linf", "plain loop"): 2.4,
    ("train gradient-l1", "plain loop"): 1.4,
    ("train gradient-l2", "plain loop"): 1.4,
    ("train pgd-linf 4.1", "plain loop"): 2.0,
    ("train pgd-linf 4.2", "plain loop"): 2.5,
}


TURN = 0.5  # seconds


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        net: "4.1", "4.2" or "resnet18".
        what: was timed.
        whom: it is compared with.
        ours: seconds of each repeat.
        theirs: the same, of the other.
        work: what shows that both did the same, ours and theirs.
    """

    net: str
    what: str
    whom: str
    ours: Sequence[float]
    theirs: Sequence[float]
    work: str

    @property
    def ratio(self) -> float:
        """How many times as long the other takes, by medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def required(self) -> float | None:
        """The ratio to be reached, or None."""
        return REQUIRED.get((f"{self.what} {self.net}", self.whom), REQUIRED.get((self.what, self.whom)))


def side_by_side(
    contestants: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of each contestant, in turns, after a call or two to warm up.

    Whoever is first changes with the repeat. A turn is as many calls as fill half a second: the first after another
    contestant's finds the allocator as that one left it.
    """
    calls = {}
    for name, run in contestants.items():
        once = _seconds(run, 1, device)
        calls[name] = 1 if once > TURN else math.ceil(TURN / _seconds(run, 1, device))  # the first call warms up
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_seconds(contestants[name], calls[name], device))
    return seconds


def _seconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / calls


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products.

    PyTorch's own FlopCounterMode follows modules by hooks that refuse gradients in the input alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count it."""
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lines(rows: Sequence[Row]) -> list[str]:
    """The table, times in milliseconds: median [least, most] of the repeats."""
    head = ("net", "what", "against", "ours ms", "theirs ms", "ratio", "required", "", "work: ours | theirs")
    cells = [head]
    for row in rows:
        met = "" if row.required is None else "met" if row.ratio >= row.required else "NOT MET"
        required = "" if row.required is None else f"{row.required:.1f}"
        times = [
            f"{1e3 * statistics.median(t):.0f} [{1e3 * min(t):.0f}, {1e3 * max(t):.0f}]" for t in (row.ours, row.theirs)
        ]
        cells.append((row.net, row.what, row.whom, *times, f"{row.ratio:.2f}", required, met, row.work))
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
