"""The measurements of one network at one size, and the file that keeps them so that an audit can be interrupted."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import attacks, measure, theory
from ..data.atomic import json_checksum, write_text
from ..data.layout import require_file
from ..measure.gradients import cross_entropy, gradients_and_outputs
from ..models import fast
from ..theory import norms
from .adapt import Adapted, Refusal
from .layers import boundary_norms

MAP_SIDE = 32  # of the stored maps of gradients, at most
COUNTED = 2  # images on whose gates paths are counted


@dataclass(frozen=True)
class Cell:
    """What was measured of one network at one size.

    Attributes:
        size: side of the images, in pixels.
        seed: of the network.
        values: per image, [N] each: ``l_q`` and ``l_2``, norms of the gradient of the cross-entropy in the images;
            ``loss``; ``right``, 1 for a right answer; with an attack ``attacked``, 1 for a right answer after it,
            ``changed``, 1 for another answer, and ``damage``, the increase of the loss.
        boundaries: per boundary, per image: l_2 norms of the gradients there.
        averaged: by side k of the windows, what k x k averages in front of the network change: means of ``right``,
            ``attacked`` and ``l_q``.
        map: [S', S'], mean over images of the absolute gradient, summed over channels, S' at most 32.
        counted: what path counting predicts of the mean of ``l_q``, by the gates that are open on the first two images;
            None where paths are not counted.
    """

    size: int
    seed: int
    values: dict[str, list[float]]
    boundaries: dict[str, list[float]]
    averaged: dict[str, dict[str, float]] = field(default_factory=dict)
    map: list[list[float]] = field(default_factory=list)
    counted: float | None = None


def measure_cell(
    net: Adapted,
    x: Tensor,
    y: Tensor,
    kept: list[tuple[str, int]],
    *,
    size: int,
    seed: int,
    p: float,
    eps: float | None,
    count: bool = False,
) -> Cell:
    """Measure one network at one size.

    Args:
        net: the network, its parameters without gradients.
        x: [N, C, S, S], on its device, in its dtype.
        y: [N].
        kept: boundaries, as :func:`advdim.audit.layers.chain` gives them; none for no layer budget.
        size: S.
        seed: of the network.
        p: the attacker's norm.
        eps: of the attack, in pixel units, or None for no attack.
        count: whether to count paths.

    Raises:
        Refusal: if a number is not finite, before or after an attack, or the gradient is 0 on every image.
    """
    batch = fast.images_per_pass(x)
    if kept:
        with fast.disable(), boundary_norms(net, kept) as found:  # merged layers would give out other tensors
            g, out = gradients_and_outputs(net, x, y, batch_size=batch)
    else:
        found = {}
        g, out = gradients_and_outputs(net, x, y, batch_size=batch)
    values: dict[str, Any] = {
        "l_q": norms.norm(g, norms.dual(p)),
        "l_2": norms.norm(g, 2),
        "loss": cross_entropy(out, y),
        "right": measure.predictions(out) == y,
    }
    if not all(bool(torch.isfinite(values[name]).all()) for name in ("l_q", "l_2", "loss")):
        raise Refusal(f"a gradient or loss is NaN or infinite at {size} px, seed {seed}")
    if not bool(values["l_q"].any()):
        raise Refusal(f"the gradient is exactly 0 on all images at {size} px, seed {seed}")
    averaged = {}
    if eps is not None:
        attacked = attacks.one_step(net, x, y, p=p, eps=eps, batch_size=batch)
        after = measure.outputs(net, attacked, batch_size=batch)
        values["attacked"] = measure.predictions(after) == y
        values["changed"] = measure.predictions(after) != measure.predictions(out)
        values["damage"] = cross_entropy(after, y) - values["loss"]
        averaged = {str(k): _averaged(net, x, y, k, p, eps, batch) for k in (2, 4) if size % k == 0}
    side = min(size, MAP_SIDE)
    shape = F.adaptive_avg_pool2d(g.abs().sum(1, keepdim=True).mean(0, keepdim=True), side)[0, 0]
    cell = Cell(
        size,
        seed,
        {name: _list(v) for name, v in values.items()},
        {name: _list(torch.cat(parts)) for name, parts in found.items() if parts},
        averaged,
        [[float(f"{v:.4g}") for v in row] for row in shape.tolist()],
        _counted(net, x, out, y, norms.dual(p)) if count else None,
    )
    if bad := next(_not_finite(asdict(cell)), None):
        raise Refusal(f"{bad} is NaN or infinite at {size} px, seed {seed}")
    return cell


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """The names of the numbers that are NaN or infinite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{name} {key}".lstrip())
    elif isinstance(value, list):
        for inner in value:
            yield from _not_finite(inner, name)
    elif value is not None and not math.isfinite(value):
        yield name


def _counted(net: Adapted, x: Tensor, out: Tensor, y: Tensor, q: float) -> float | None:
    try:
        length = (out.softmax(1) - F.one_hot(y, out.shape[1])).double().square().sum(1).mean().sqrt()
        return float(counted_norm(net, x[:COUNTED], q) * length)
    except TypeError:  # at this size, an average over windows of several sizes, say
        return None


def counted_norm(net: Adapted, x: Tensor, q: float) -> float:
    """What path counting predicts of the l_q norm of a logit's gradient, entries taken for Gaussian.

    Args:
        net: the network.
        x: [N, C, S, S], on whose gates and maxima the walk depends.
        q: in [1, inf).

    Raises:
        TypeError: if the network's paths cannot be followed.
    """
    if net.takes_logits_out or q == math.inf:
        raise TypeError("no paths are counted of this output, or in the norm for q = inf")
    model = net.model if net.normalise is None else torch.nn.Sequential(net.normalise, net.model)
    root = theory.path_second_moment(model, x=x).sqrt()
    moment = 2 ** (q / 2) * math.gamma((q + 1) / 2) / math.sqrt(math.pi)  # E|z|^q of a standard Gaussian
    return float((moment * (root**q).sum()) ** (1 / q))


def _averaged(net: Adapted, x: Tensor, y: Tensor, k: int, p: float, eps: float, batch: int) -> dict[str, float]:
    """The same network behind averages over k x k pixels, copied back up."""
    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(k), torch.nn.Upsample(scale_factor=k, mode="nearest"), net).eval()
    g, out = gradients_and_outputs(pooled, x, y, batch_size=batch)
    attacked = attacks.one_step(pooled, x, y, p=p, eps=eps, batch_size=batch)
    after = measure.outputs(pooled, attacked, batch_size=batch)
    found = {"right": measure.predictions(out) == y, "attacked": measure.predictions(after) == y}
    found["l_q"] = norms.norm(g, norms.dual(p))
    return {name: sum(_list(v)) / len(y) for name, v in found.items()}


def _list(values: Tensor) -> list[float]:
    return [float(v) for v in values.detach().cpu().double().tolist()]


class Store:
    """Finished cells in a folder, or in memory only: one line of JSON each, below a line that says of which audit.

    Every cell has its checksum. A line that is not what was written is named on stderr and not used; it stays.

    Args:
        folder: where ``cells.jsonl`` lies; None for memory only.
        identity: what tells this audit from others.

    Raises:
        Refusal: if the folder holds the cells of another audit, or what is no file of cells.
        OSError: if the file cannot be written; the message names it.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.path = None if folder is None else folder / "cells.jsonl"
        self.cells: dict[tuple[int, int], Cell] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"cannot make the folder {self.path.parent} ({error.strerror}): name another") from error
        try:
            require_file(self.path)
        except FileNotFoundError:
            write_text(self.path, json.dumps(identity) + "\n")
            return
        except ValueError as error:
            raise Refusal(f"{error}: name another folder") from error
        first, *lines = self.path.read_bytes().split(b"\n")
        theirs = _read(first)
        if not theirs:
            raise Refusal(
                f"{self.path} is damaged: its first line says of no audit; move it away, or name another folder"
            )
        different = [name for name in identity if theirs.get(name) != json.loads(json.dumps(identity[name]))]
        if different:
            raise Refusal(
                f"{self.path.parent} holds another audit ({', '.join(different)} differ): name another folder, or "
                f"delete {self.path}"
            )
        if lines[-1:] != [b""]:  # cut short with its process: the next line begins a new one
            self._append("\n")
        for number, line in enumerate(lines, 2):
            found = _read(line)
            if found and found.pop("checksum", None) == json_checksum(found):
                cell = Cell(**found)
                self.cells[cell.size, cell.seed] = cell
            elif line:
                said = f"advdim: line {number} of {self.path} is damaged or cut short, and not used"
                print(f"{said}: what it held is measured again", file=sys.stderr, flush=True)

    def add(self, cell: Cell) -> None:
        """Keep a cell, on the disk at once."""
        self.cells[cell.size, cell.seed] = cell
        if self.path is not None:
            content = asdict(cell)
            self._append(json.dumps(content | {"checksum": json_checksum(content)}, allow_nan=False) + "\n")

    def _append(self, text: str) -> None:
        assert self.path is not None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error


def _read(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # the last line of a process that was killed, or a damaged one
        return {}
    return found if isinstance(found, dict) else {}
