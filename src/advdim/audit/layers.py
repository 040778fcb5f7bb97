r"""The layer budget: an exponent split, exactly, over the layers of a network.

Let :math:`h_0 = x, h_1, \dots, h_m` be tensors inside a network, in order. Whatever they are,

.. math::
    \lVert \nabla_x L \rVert_q = d^{1/q - 1/2} \cdot s \cdot
    \frac{\lVert \partial L / \partial h_0 \rVert_2}{\lVert \partial L / \partial h_1 \rVert_2} \cdots
    \frac{\lVert \partial L / \partial h_{m-1} \rVert_2}{\lVert \partial L / \partial h_m \rVert_2} \cdot
    \lVert \partial L / \partial h_m \rVert_2,

where s, the spread, says how evenly the gradient lies over the pixels (at most 1 for q below 2). A log-log slope is
linear in logarithms, so the slopes of the factors add up to that of the left side, with no remainder. The tensors taken
here are those that every path from the images to the loss crosses, so that a step belongs to what lies between two
neighbours; functions that are no modules count with the module after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis import PowerLaw, exponent
from ..measure.gradients import Loss
from ..theory import norms

#: An output of a step of the autograd graph: the step, and the number of the output.
Slot = tuple[object, int]


@dataclass(frozen=True)
class Term:
    """One part of a layer budget.

    Attributes:
        name: "pixels", "spread", "loss", or the module at whose output the step ends.
        exponent: its part of the exponent.
        low: lower end of its confidence interval; that of the pixels is a point.
        high: upper end of it.
    """

    name: str
    exponent: float
    low: float
    high: float


@dataclass(frozen=True)
class Budget:
    """The parts of an exponent, which add up to it.

    Attributes:
        terms: from the pixels to the loss, in the order of the network.
    """

    terms: tuple[Term, ...]

    @property
    def total(self) -> float:
        """The exponent of the gradient norm: the sum of the terms."""
        return sum(term.exponent for term in self.terms)

    def __getitem__(self, name: str) -> Term:
        return next(term for term in self.terms if term.name == name)

    def __str__(self) -> str:
        width = max(len(term.name) for term in self.terms)
        known = not math.isnan(self.terms[-1].low)  # as of one seed
        lines = [
            f"{t.name:<{width}}  {t.exponent:+.2f}" + (f" [{t.low:+.2f}, {t.high:+.2f}]" if known else "")
            for t in self.terms
        ]
        return "\n".join([*lines, f"{'together':<{width}}  {self.total:+.2f}"])

    def summary(self, most: int = 3, least: float = 0.1) -> str:
        """The pixels, the largest steps, and the rest in one number."""
        pixels, *others = self.terms
        large = sorted(others, key=lambda t: -abs(t.exponent))[:most]
        named = [t for t in others if t in large and abs(t.exponent) >= least]
        rest = [t for t in others if t not in named]
        parts = [f"{pixels.exponent:+.2f} pixels", *(f"{t.exponent:+.2f} {t.name}" for t in named)]
        if rest:
            largest = max(rest, key=lambda t: abs(t.exponent))
            parts.append(
                f"{sum(t.exponent for t in rest):+.2f} the rest (largest: {largest.name} {largest.exponent:+.2f})"
            )
        return "  ".join(parts)


def budget(
    d: list[int], gradient: np.ndarray, boundaries: dict[str, np.ndarray], q: float, confidence: float = 0.95
) -> Budget:
    """Split the exponent of a gradient norm over the boundaries of a network.

    Args:
        d: [S], numbers of input dimensions.
        gradient: [S, n], norms of the gradient in the images, for the exponent q; columns are seeds or images.
        boundaries: for "x" first, then for each boundary in order, [S, n], the l_2 norms of the gradients there.
        q: the norm's exponent, in [1, inf].
        confidence: level of the intervals.

    Raises:
        ValueError: as :func:`advdim.analysis.exponent`.
    """
    share = 1 / q - 0.5
    dimensions = np.asarray(d, float)[:, None]
    names = list(boundaries)
    parts = {"spread": gradient / (dimensions**share * boundaries[names[0]])}
    for before, after in pairwise(names):
        parts[after] = boundaries[before] / boundaries[after]
    parts["loss"] = boundaries[names[-1]]
    fits: dict[str, PowerLaw] = {name: exponent(d, part, confidence=confidence) for name, part in parts.items()}
    terms = [Term(name, fit.slope, fit.low, fit.high) for name, fit in fits.items()]
    return Budget((Term("pixels", share, share, share), *terms))


def chain(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> list[tuple[str, int]]:
    """The modules whose outputs every path from the images to the loss crosses, in order.

    Args:
        net: the network; its parameters must need no gradient.
        x: [N, C, H, W], N at least 2.
        y: [N].
        loss: a loss per example.

    Returns:
        Names of modules, and which of its calls it was (from 0). Of several modules that give out one tensor, it is
        the outermost that has no other boundary inside.
    """
    found: list[tuple[str, int, Slot, tuple[int, ...]]] = []
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        with _watched(net, lambda name, call, out: found.append((name, call, _slot(out), tuple(out.shape)))):
            total = loss(net(leaf), y).sum()
    crossed = _on_every_path(total, leaf, [slot for _, _, slot, _ in found])
    by_slot: dict[Slot, list[tuple[str, int]]] = {}
    for name, call, slot, shape in found:
        if slot in crossed and name and shape[0] == len(x):
            by_slot.setdefault(slot, []).append((name, call))
    kept: list[tuple[str, int]] = []
    for names in by_slot.values():  # in order of execution; the outermost module returns last
        inside = [n for n in names if not any(k.startswith(f"{n[0]}.") for k, _ in kept)]
        kept.append(inside[-1] if inside else names[0])
    return kept


@contextmanager
def boundary_norms(net: nn.Module, kept: list[tuple[str, int]]) -> Iterator[dict[str, list[Tensor]]]:
    """Meanwhile, each pass back through the network adds the l_2 norms [N] of its gradients at the boundaries kept."""
    wanted = {key: label for key, label in zip(kept, labels(net, kept), strict=True)}
    norms_of: dict[str, list[Tensor]] = {label: [] for label in wanted.values()}

    def watch(name: str, call: int, out: Tensor) -> None:
        if (name, call) in wanted and out.requires_grad:
            into = norms_of[wanted[name, call]]
            # On the tensor, not the module: a later layer may write into it, and its gradient is still that of now.
            out.register_hook(lambda g: into.append(norms.norm(g.detach(), 2)))  # type: ignore[no-untyped-call]

    with _watched(net, watch):
        yield norms_of


def labels(net: nn.Module, kept: list[tuple[str, int]]) -> list[str]:
    """Names of boundaries as they are shown: numbered layers with their kind, later calls of a layer with a number."""
    shown = []
    for name, call in kept:
        kind = f":{type(net.get_submodule(name)).__name__}" if name.rpartition(".")[2].isdecimal() else ""
        shown.append(name.removeprefix("model.") + kind + (f"#{call + 1}" if call else ""))
    return shown


@contextmanager
def _watched(net: nn.Module, watch: object) -> Iterator[None]:
    calls: dict[str, int] = {}

    def hook_for(name: str) -> object:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            count = calls.get(name, 0)
            calls[name] = count + 1
            if isinstance(out, Tensor) and out.requires_grad and out.ndim:
                watch(name, count, out)  # type: ignore[operator]

        return hook

    def start(module: nn.Module, inputs: object) -> None:
        calls.clear()  # each pass counts its own calls

    # The outermost module's hook is the first to be called of a pass.
    handles = [net.register_forward_pre_hook(start)]
    handles += [m.register_forward_hook(hook_for(name)) for name, m in net.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _slot(out: Tensor) -> Slot:
    return out.grad_fn, out.output_nr


def _on_every_path(total: Tensor, leaf: Tensor, slots: list[Slot]) -> set[Slot]:
    """Those outputs of steps through which every path goes from the total back to the leaf: counted, exactly."""
    order: list[object] = []
    state: dict[object, bool] = {}
    stack: list[object] = [total.grad_fn]
    while stack:  # depth first: a step stands in the order after all that it leads to
        step = stack[-1]
        if step in state:
            stack.pop()
            if not state[step]:
                state[step] = True
                order.append(step)
            continue
        state[step] = False
        stack += [following for following, _ in step.next_functions if following is not None and following not in state]  # type: ignore[attr-defined]
    down: dict[object, int] = {}
    for step in order:
        following_steps = [f for f, _ in step.next_functions if f is not None]  # type: ignore[attr-defined]
        down[step] = (getattr(step, "variable", None) is leaf) + sum(down[f] for f in following_steps)
    arriving: dict[Slot, int] = {(total.grad_fn, 0): 1}
    reaching: dict[object, int] = {total.grad_fn: 1}
    for step in reversed(order):
        for following, number in step.next_functions:  # type: ignore[attr-defined]
            if following is not None:
                paths = reaching.get(step, 0)
                arriving[following, number] = arriving.get((following, number), 0) + paths
                reaching[following] = reaching.get(following, 0) + paths
    every = down[total.grad_fn]
    return {slot for slot in slots if every and arriving.get(slot, 0) * down.get(slot[0], 0) == every}
