"""The backward walk through networks that are no plain sequence of layers: residual blocks, torchvision's ResNets."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .. import data
from ..models.device import full_float32

RELUS = {F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
FLATTENS = {torch.flatten, "flatten"}
MEANS = {torch.mean, "mean"}
PASSED_ON = (nn.Identity, nn.Dropout)
WEIGHTS = (nn.Linear, nn.Conv2d)

Kinds = tuple[type[nn.Module], ...]
Squared = Callable[[nn.Module, Tensor], Tensor]


class _Tracer(fx.Tracer):
    """Stops at the layers whose paths are known, and looks into every other module."""

    def __init__(self, known: Kinds) -> None:
        super().__init__()
        self.known = known

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.known) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, known: Kinds) -> fx.GraphModule:
    """The network as a graph of known layers, sums and reshapings; raises TypeError if it is none."""
    if isinstance(model, nn.Sequential):
        model = nn.Sequential(*model)  # without the check of shapes that our own networks make
    try:
        graph = _Tracer(known).trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        name = type(model).__name__
        message = f"the paths through {name} cannot be followed: its forward pass depends on values: {error}"
        raise TypeError(message) from error
    traced = fx.GraphModule(model, graph, type(model).__name__)
    _check(traced, known, model)
    return traced


def _layer(traced: nn.Module, node: fx.Node) -> nn.Module:
    return traced.get_submodule(str(node.target))


def _check(traced: fx.GraphModule, known: Kinds, model: nn.Module) -> None:
    """That each step is known, and that two paths between the same neurons differ in a random weight."""
    used: set[int] = set()
    fixed: dict[fx.Node, set[fx.Node]] = {}  # from which nodes one comes here through no random weight
    for node in traced.graph.nodes:
        into = node.all_input_nodes
        fixed[node] = {node}.union(*(fixed[n] for n in into))
        if node.op == "call_module":
            layer = _layer(traced, node)
            if not isinstance(layer, (*known, *PASSED_ON, nn.AdaptiveAvgPool2d)):
                raise TypeError(f"the paths through {type(layer).__name__} are not known here: {node.target}")
            if isinstance(layer, WEIGHTS):
                if id(layer) in used:
                    raise TypeError(f"{node.target} is used twice: two paths can then share all their weights")
                used.add(id(layer))
                fixed[node] = {node}
            if isinstance(layer, nn.AvgPool2d) and (layer.padding not in (0, (0, 0)) or layer.ceil_mode):
                raise TypeError(f"the paths through windows over the border are not known here: {layer}")
            if isinstance(layer, nn.Dropout) and layer.training and layer.p > 0:
                raise TypeError(f"{node.target} is a dropout in train mode: call model.eval() first")
        elif node.op in ("call_function", "call_method"):
            if node.target in SUMS:
                _check_sum(node, fixed)
            elif node.target in PRODUCTS:
                if len(into) != 1:
                    raise TypeError(f"a product of two values has no path sum: {node.format_node()}")
            elif node.target not in RELUS | FLATTENS | MEANS:
                raise TypeError(f"the paths through {node.target} are not known here: {node.format_node()}")
        elif node.op == "get_attr":
            owner = type(
                model.get_submodule(str(node.target).rpartition(".")[0])
            ).__name__  # traced, it has lost its name
            raise TypeError(
                f"{owner} uses the tensor {node.target} outside of its layers: its paths are not known here"
            )
    if not used:
        raise TypeError("the network has no weights")


def _check_sum(node: fx.Node, fixed: dict[fx.Node, set[fx.Node]]) -> None:
    first, second = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return  # plus a number: no path
    if fixed[first] & fixed[second]:
        raise TypeError(
            f"both terms of {node.format_node()} come from one value without a random weight between: their paths "
            "are correlated, and squares do not add up"
        )


def refuse_non_finite(value: Any, where: object) -> None:
    """Refuse activations that are no numbers: the gates behind them would count as shut, and their paths as none.

    Raises:
        ValueError: a NaN or an infinity is among them; the message says where.
    """
    if isinstance(value, Tensor) and not bool(value.isfinite().all()):
        raise ValueError(f"the model has NaN or infinite activations at {where}: no paths can be counted through them")


class _Gates(fx.Interpreter):
    """One forward pass on images that notes which gates are open and which input each maximum picks."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.open: dict[str, Tensor] = {}
        self.picked: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module":
            layer = _layer(self.module, n)
            value = self.env[n.all_input_nodes[0]]
            if isinstance(layer, nn.ReLU):
                self.open[n.name] = value > 0
            elif isinstance(layer, nn.MaxPool2d):
                size, stride = layer.kernel_size, layer.stride
                self.picked[n.name] = F.max_pool2d(
                    value, size, stride, layer.padding, layer.dilation, layer.ceil_mode, return_indices=True
                )[1]
        elif n.target in RELUS:
            self.open[n.name] = self.env[n.all_input_nodes[0]] > 0
        found = super().run_node(n)
        refuse_non_finite(found, n.name)
        return found


class _Walk(fx.Interpreter):
    """The network with each weight replaced by its variance and each gate by its chance, or by what it is on images."""

    def __init__(self, traced: fx.GraphModule, squared: Squared, gates: _Gates | None) -> None:
        super().__init__(traced)
        self.squared, self.gates = squared, gates

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        into = [self.env[node] for node in n.all_input_nodes]
        h: Tensor = into[0]
        if n.op == "call_module":
            return self._through(_layer(self.module, n), n.name, h)
        if n.target in RELUS:
            return self._gate(n.name, h)
        if n.target in SUMS:
            return h + into[1] if len(into) > 1 else h
        if n.target in PRODUCTS:
            numbers = [a for a in n.args if not isinstance(a, fx.Node)]
            return h * float(numbers[0]) ** 2  # type: ignore[arg-type]
        if n.target in FLATTENS:
            return super().run_node(n)
        mean = super().run_node(n)
        return mean / (h.numel() / mean.numel())

    def _gate(self, name: str, h: Tensor) -> Tensor:
        return h / 2 if self.gates is None else h * self.gates.open[name]

    def _through(self, layer: nn.Module, name: str, h: Tensor) -> Tensor:
        if isinstance(layer, nn.ReLU):
            return self._gate(name, h)
        if isinstance(layer, PASSED_ON):
            return h
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            size = layer.output_size
            out = size if isinstance(size, tuple) else (size, size)
            wanted = [n if m is None else m for m, n in zip(out, h.shape[-2:], strict=True)]
            if any(n % m for m, n in zip(wanted, h.shape[-2:], strict=True)):
                raise TypeError(
                    f"windows of different sizes in {layer} on maps of {tuple(h.shape[-2:])}: not known here"
                )
            return F.adaptive_avg_pool2d(h, layer.output_size) * math.prod(wanted) / math.prod(h.shape[-2:])
        if isinstance(layer, nn.MaxPool2d):
            if self.gates is not None:
                index = self.gates.picked[name]
                return h.flatten(2).gather(2, index.flatten(2)).view_as(index)
            if layer.dilation not in (1, (1, 1)) or layer.ceil_mode:
                raise TypeError(f"the paths through dilated or ceiled windows need images x: {layer}")
            return F.avg_pool2d(h, layer.kernel_size, layer.stride, layer.padding, count_include_pad=False)
        return self.squared(layer, h)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards each of its modules in the mode that it had."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def graph_moment(traced: fx.GraphModule, squared: Squared, start: Tensor, x: Tensor | None) -> Tensor:
    """Path sums into an output, mean over them, [C, H, W], float64: a mean over images x, or with gates at 1/2.

    Args:
        traced: of :func:`trace`.
        squared: what a known layer without gates does to second moments.
        start: [1, C, H, W], ones in float64.
        x: [N, C, H, W] in the model's dtype, on whose gates and maxima the walk depends, or None.
    """
    gates = None
    if x is not None:
        data.check(x)
        gates = _Gates(traced)
        with torch.no_grad(), full_float32(), evaluating(traced):
            gates.run(x)
        start = start.expand(len(x), *start.shape[1:])
    start = start.detach().clone().requires_grad_()
    h = _Walk(traced, squared, gates).run(start)
    (moment,) = torch.autograd.grad(h.mean(1).sum(), start)
    return moment.mean(0)
