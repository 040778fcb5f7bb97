"""CUDA graphs: a step whose kernels are launched again all at once, in place of one by one. Not yet run on a GPU.

Steps of small networks take a GPU less time than Python takes to launch them. A graph notes the kernels of one step
and launches them together: the same kernels, on the same tensors, into which each step's inputs are copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import switch

WARM_UP = 2  # steps as usual, in which libraries choose their kernels and get their memory
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_on = os.environ.get("ADVDIM_CUDA_GRAPHS", "0") == "1"


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Repeat steps on a GPU by graphs meanwhile; ``ADVDIM_CUDA_GRAPHS=1``, set before Python starts, does so always."""
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def repeated(function: Callable[..., Any], model: object, *, training: bool = False) -> Callable[..., Any]:
    """A function that is called again and again, on tensors of the same shapes; by a graph where that can be done.

    Args:
        function: of tensors, without draws, copies from the CPU or questions that the host has to wait for. What else
            it uses has to stay in its place.
        model: that it calls.
        training: whether batch-norms may be in train mode.

    Returns:
        A function of the same arguments; by a graph, what it returns is overwritten by the next call.
    """
    return _Repeated(function, lambda: function) if _can_repeat(model, training) else function


def training_steps(
    gradients: Callable[..., Tensor], optimiser: torch.optim.Optimizer, model: nn.Module
) -> Callable[..., Tensor]:
    """Steps of training: gradients, then a step of the optimiser; by a graph where that can be done.

    Args:
        gradients: of tensors on the model's device, leaves gradients in its parameters and returns the loss.
        optimiser: of the parameters. Its state stays its own, whoever takes the steps.
        model: in train mode; its parameters stay in their place meanwhile.

    Returns:
        A function of the same arguments, to the loss, which the next call may overwrite. With a generator among the
        arguments it is never by a graph.
    """

    def step(*inputs: Any) -> Tensor:
        loss = gradients(*inputs)
        optimiser.step()
        return loss

    if type(optimiser) is not torch.optim.SGD or not _can_repeat(model, True):
        return step
    (group,) = optimiser.param_groups
    rate = torch.tensor(group["lr"], device=group["params"][0].device, dtype=torch.float32)

    def record() -> Callable[..., Tensor]:
        options = {name: group[name] for name in ("momentum", "weight_decay")}
        fused = torch.optim.SGD(group["params"], lr=rate, fused=True, **options)
        fused.state = optimiser.state  # of which only the momenta: the same tensors, changed in place

        def recorded(*inputs: Any) -> Tensor:
            loss = gradients(*inputs)
            fused.step()
            return loss

        return recorded

    again = _Repeated(step, record)

    def at_its_rate(*inputs: Any) -> Tensor:
        rate.fill_(group["lr"])
        loss: Tensor = again(*inputs)
        return loss

    return at_its_rate


class _Repeated:
    """A function that is recorded after some calls, and then replayed for arguments of the shapes of the first call."""

    def __init__(self, function: Callable[..., Any], record: Callable[[], Callable[..., Any]]) -> None:
        self.function, self.record = function, record
        self.shapes: list[Any] | None = None
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Any] = []
        self.outputs: Any = None

    def __call__(self, *inputs: Any) -> Any:
        shapes = [(t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in inputs]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes or any(isinstance(t, torch.Generator) for t in inputs):
            return self.function(*inputs)
        self.calls += 1
        if self.calls <= WARM_UP:
            with _aside():
                return self.function(*inputs)
        if self.graph is None:
            self.inputs = [t.clone() if isinstance(t, Tensor) else t for t in inputs]
            recorded, self.graph = self.record(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = recorded(*self.inputs)
        for mine, t in zip(self.inputs, inputs, strict=True):
            if isinstance(t, Tensor):
                mine.copy_(t)
        self.graph.replay()
        return self.outputs


@contextmanager
def _aside() -> Iterator[None]:
    """On a stream of its own, as PyTorch asks of what is captured later."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _can_repeat(model: object, training: bool) -> bool:
    """Whether a graph does what the model does: known layers on a GPU, without hooks or draws."""
    if not (_on and switch.enabled() and isinstance(model, nn.Module)):
        return False
    modules, devices = list(model.modules()), {t.device.type for t in (*model.parameters(), *model.buffers())}
    if devices != {"cuda"} or torch.cuda.is_current_stream_capturing():
        return False
    known = all(type(m).__module__.startswith(("torch.nn.", "torchvision.models.", "advdim.")) for m in modules)
    draws = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in modules)
    hooks = any(getattr(m, name) for m in modules for name in HOOKS)
    moves = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in modules)
    return known and not draws and not hooks and (training or not moves)
