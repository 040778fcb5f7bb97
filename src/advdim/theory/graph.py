"""How the layers of anybody's network are joined: in a line, or in branches."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .graph_walk import SUMS
from .path_counting import known_layers

_JOINS = (torch.cat, torch.concat, torch.stack, "cat")


def straightened(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> tuple[nn.Sequential | None, str]:
    """The same layers in one sequence, without those that do nothing; or None, and why there is no such sequence.

    Nested sequences are unrolled; identities, and dropout in eval mode, are left out; an average over all places takes
    its side from the shape of the images. The other layers are the model's own.

    Args:
        model: any module.
        image_shape: (C, H, W); default ``model.image_shape``.

    Raises:
        TypeError: if the model has no weights, or is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    layers = _unrolled(model)
    if layers is None:
        return None, f"{type(model).__name__} is no sequence of layers: its paths are not those of the theorem"
    flat = nn.Sequential(*_sized(layers, image_shape or getattr(model, "image_shape", None)))
    flat.training = model.training
    for name in ("image_shape", "classes"):
        if hasattr(model, name):
            vars(flat)[name] = getattr(model, name)
    try:
        known_layers(flat)
    except TypeError as error:
        if "no weights" in str(error):
            raise
        return None, str(error)
    return flat, ""


def _sized(layers: list[nn.Module], image_shape: tuple[int, ...] | None) -> list[nn.Module]:
    """The layers, with averages over all places as averages over windows of that side."""
    sized: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) and image_shape:
            weight = next((p for before in sized for p in before.parameters()), torch.empty(0))
            with torch.no_grad():
                maps = nn.Sequential(*sized)(torch.zeros(1, *image_shape).to(weight))
            layer = nn.AvgPool2d(tuple(maps.shape[2:]))
        sized.append(layer)
    return sized


def _unrolled(model: nn.Module) -> list[nn.Module] | None:
    if isinstance(model, nn.Sequential):
        if type(model).forward is not nn.Sequential.forward and not hasattr(model, "image_shape"):
            return None  # a forward of somebody's own
        parts = [_unrolled(layer) for layer in model]
        return None if any(part is None for part in parts) else [m for part in parts for m in part or []]
    if isinstance(model, nn.Identity):
        return []
    if isinstance(model, nn.modules.dropout._DropoutNd) and not model.training:
        return []
    own = type(model).__module__.startswith(("torch.nn.", "advdim."))
    return [model] if own and not isinstance(model, nn.ModuleList | nn.ModuleDict) else None


def branches(model: nn.Module) -> str:
    """Where paths branch and meet again, in words; empty where ``torch.fx`` cannot trace the network."""
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception:  # control flow that depends on the images, say: tracing raises whatever it meets
        return ""
    sums = joins = products = 0
    for node in graph.nodes:
        inputs = {str(n) for n in node.all_input_nodes}
        sums += _is(node, SUMS) and len(inputs) > 1
        joins += _is(node, _JOINS)
        products += _is(node, (operator.mul, torch.mul, torch.matmul, operator.matmul)) and len(inputs) > 1
    products += sum(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    found = [f"{n} {what}" for n, what in ((sums, "sums"), (joins, "concatenations"), (products, "products")) if n]
    if not found:
        return "it is traced to a line of operations, some of which the theorem does not know"
    return f"paths branch and meet again in {', '.join(found)}: those past a branch cross fewer layers"


def _is(node: Any, targets: Collection[Any]) -> bool:
    return node.op in ("call_function", "call_method") and any(node.target is t or node.target == t for t in targets)
