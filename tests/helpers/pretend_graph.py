"""CUDA graphs on the pretended device: what is launched during a capture is noted, and launched again by a replay.

As on a GPU, a capture itself computes nothing: afterwards, tensors that were there before are as they were, and those
made meanwhile hold no numbers until the first replay. A replay works on the same tensors. What is Python's, numbers
among the arguments included, stays as it was captured. What has the host wait is refused during a capture.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext

import torch


class Graph:
    """In place of torch.cuda.CUDAGraph.

    Attributes:
        replays: how often it was replayed.
    """

    def __init__(self, device):
        self.device, self.launches, self.replays = device, [], 0

    def replay(self):
        if not self.launches:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture")
        self.replays += 1
        self.device.operators["graph"] += 1
        for func, known, target, args, kwargs, out in self.launches:
            again = self.device.compute(func, known, target, args, kwargs)
            for old, new in zip(_flat(out), _flat(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def note(self, func, known, target, args, kwargs):
        """One operator during the capture."""
        for i in known.changed:
            for t in _flat([args[i]]) if i < len(args) else ():
                storage = t.untyped_storage()
                if storage.data_ptr() not in self.made and storage.data_ptr() not in self.before:
                    self.before[storage.data_ptr()] = storage, storage.clone()
        out = self.device.compute(func, known, target, args, kwargs)
        if known.launches:
            self.launches.append((func, known, target, args, kwargs, out))
            own = {t.untyped_storage().data_ptr() for t in _flat([*args, *kwargs.values()])}
            fresh = {t.untyped_storage().data_ptr(): t for t in _flat(out) if t.numel()}
            self.made |= {place: t for place, t in fresh.items() if place not in own}
        return out

    @contextmanager
    def capturing(self):
        if self.device.capture is not None:
            raise RuntimeError("a capture is under way already")
        self.made, self.before, self.device.capture = {}, {}, self
        try:
            yield
        finally:
            self.device.capture = None
            for storage, content in self.before.values():
                storage.copy_(content)
            for t in self.made.values():
                if t.is_floating_point():
                    t.fill_(math.nan)


class Stream:
    """In place of torch.cuda.Stream, on which all happens at once."""

    def wait_stream(self, other):
        pass


def replacements(device):
    """What stands in for names of torch.cuda."""
    return {
        "CUDAGraph": lambda keep_graph=False: Graph(device),
        "graph": lambda graph, **_: graph.capturing(),
        "Stream": lambda *_, **__: Stream(),
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda *_: Stream(),
    }


def _flat(values):
    values = [values] if isinstance(values, torch.Tensor) else values or []
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _flat(value)
