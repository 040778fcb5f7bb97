"""Which of the assumptions of the paper's section 3 a given network meets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ..models.initialise import in_degree, weight_layers, weight_total
from .graph import branches, straightened
from .path_counting import area, batch_norm_scale, known_layers, path_second_moment

UNSEEN = "true of freshly drawn weights, not of trained ones; which these are cannot be seen"


@dataclass(frozen=True)
class Assumption:
    """One assumption of the theorem, judged on a network.

    Attributes:
        name: "H1" to "H5" or "S".
        status: "holds", "in effect" (not to the letter, but as far as the proof needs it), "fails", "unknown" (the
            network alone cannot show it) or "not covered" (the theorem says nothing of such networks).
        why: the reason.
    """

    name: str
    status: str
    why: str

    def __str__(self) -> str:
        return f"{self.name:<2}  {self.status:<9}  {self.why}"


@dataclass(frozen=True)
class Assumptions:
    """The judgement of :func:`check_assumptions`; printing it gives one line per assumption."""

    items: tuple[Assumption, ...]

    def __getitem__(self, name: str) -> Assumption:
        return next(item for item in self.items if item.name == name)

    def __str__(self) -> str:
        width = max(9, *(len(item.status) for item in self.items))
        return "\n".join(f"{item.name:<2}  {item.status:<{width}}  {item.why}" for item in self.items)

    @property
    def hold(self) -> bool:
        """Whether none fails, and the theorems cover the network: they then apply, as far as can be known."""
        return all(item.status not in ("fails", "not covered") for item in self.items)


def check_assumptions(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> Assumptions:
    """Which of the assumptions (H1) to (H5) and (S) of Theorems 4 and 5 a freshly built network meets, and why not.

    Args:
        model: any module. Judged are sequential networks of the layers of :func:`advdim.models.build`, nested as they
            may be, with identities, and dropout in eval mode; of others, ``torch.fx`` shows whether paths branch.
            Weights that :mod:`advdim.models.initialise` has drawn are compared with what they were; of others, the
            sample variance counts, and whether training has correlated them is unknown.
        image_shape: (C, H, W); default ``model.image_shape``.

    Returns:
        The six judgements, printable; "not covered" where the theorem does not speak of such a network.

    Raises:
        TypeError: if the model has no weights, or is no module.
        ValueError: if a sequential network has no ``image_shape``, and none is given.
    """
    flat, why = straightened(model, image_shape)
    if flat is None:
        return _not_covered(model, why)
    model, layers = flat, known_layers(flat)
    averages = [m for m in layers if isinstance(m, nn.AvgPool2d) and area(m) > 1]
    maxima = [m for m in layers if isinstance(m, nn.MaxPool2d) and area(m) > 1]
    norms = [m for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm) and not _is_identity(m)]
    return Assumptions(
        (
            _gates(layers, averages, maxima, norms),
            Assumption("H2", "holds", "the network is a sequence of layers, and a path crosses each of them once"),
            _variances(model, averages, norms),
            _between_layers(model, norms),
            _within_neurons(model, averages),
            _symmetry(model, image_shape),
        )
    )


def _not_covered(model: nn.Module, why: str) -> Assumptions:
    """What is to be said of a network whose paths are not those of the theorem."""
    if not weight_layers(model):
        raise TypeError("the network has no weights")
    found = branches(model)
    smooth = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.GELU | nn.SiLU | nn.Hardswish)})
    gates = Assumption("H1", "not covered", why)
    if smooth:
        gates = Assumption("H1", "fails", f"{', '.join(smooth)} is no ReLU: a gate is neither open nor shut")
    paths = Assumption("H2", "not covered", found or "whether a path crosses each layer once could not be traced")
    rest = "the theorem's sums over paths are not this network's; advdim.audit measures its own exponent"
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not _is_identity(m)]
    independent = _between_layers(model, norms)
    return Assumptions(
        (
            gates,
            paths,
            Assumption("H3", "not covered", rest),
            independent,
            _within_neurons(model, []),
            Assumption("S", "not covered", rest),
        )
    )


def _is_identity(layer: nn.modules.batchnorm._BatchNorm) -> bool:
    if layer.training or layer.running_mean is None:
        return False
    shift = layer.bias is None or not bool(layer.bias.any())
    return shift and not bool(layer.running_mean.any()) and bool((batch_norm_scale(layer) - 1).abs().max() < 1e-4)


def _gates(
    layers: list[nn.Module],
    averages: list[nn.AvgPool2d],
    maxima: list[nn.MaxPool2d],
    norms: list[nn.modules.batchnorm._BatchNorm],
) -> Assumption:
    weighted = [i for i, m in enumerate(layers) if isinstance(m, nn.Linear | nn.Conv2d)]
    bare = [i for i, j in pairwise(weighted) if not any(isinstance(m, nn.ReLU) for m in layers[i:j])]
    if bare:
        return Assumption("H1", "fails", f"layer {bare[0]} has no ReLU before the next weights")
    if averages:
        return Assumption("H1", "fails", "averages are neurons without a ReLU after them")
    if maxima:
        k = max(area(m) for m in maxima)
        return Assumption(
            "H1", "fails", f"a maximum over {k} inputs opens one path of {k}, and rarely shuts all of them"
        )
    if any(m.training for m in norms):
        return Assumption("H1", "fails", "batch-norm in train mode ties the gates of different images")
    return Assumption("H1", "in effect", "a gate depends on its weights, but flips with their sign: open half the time")


def _variances(
    model: nn.Module, averages: list[nn.AvgPool2d], norms: list[nn.modules.batchnorm._BatchNorm]
) -> Assumption:
    why = []
    ratios = {}
    for i, layer in enumerate(weight_layers(model), start=1):
        weight = layer.weight.detach().cpu().double()  # not every device has float64
        square, n = weight.square(), weight.numel()
        error = float(square.std()) / math.sqrt(n) if n > 1 else math.inf
        if not abs(float(square.mean()) - 2 / in_degree(layer)) <= 5 * error + 1e-6 / in_degree(layer):  # or NaN
            ratios[i] = float(square.mean()) * in_degree(layer) / 2
        if not abs(float(weight.mean())) <= 5 * math.sqrt(float(square.mean()) / n):
            why.append(f"the mean of weight layer {i} is {float(weight.mean()):.2g}, not 0")
    if ratios:
        which = ", ".join(map(str, ratios))
        low, high = min(ratios.values()), max(ratios.values())
        times = f"{low:.2g}" if high < 1.1 * low else f"{low:.2g} to {high:.2g}"
        why.append(f"the variance is {times} times 2 / in-degree in weight layer {which}")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.padding != "valid"]
    if any(m.padding_mode == "zeros" and any(m.padding) for m in convolutions):
        why.append("zero padding lowers the in-degree at the border")
    if averages:
        why.append("the weights of an average are fixed, of mean 1/k")
    if norms:
        why.append("batch-norm rescales the weights")
    status, reason = ("fails", "; ".join(why)) if why else ("holds", "mean 0, variance 2 / in-degree")
    return Assumption("H3", status, reason)


def _changed(model: nn.Module) -> bool:
    drawn = [(m, vars(m).get("weight_law")) for m in weight_layers(model)]
    return any(
        d is not None and not math.isclose(d.total, weight_total(m), rel_tol=1e-5, abs_tol=1e-5) for m, d in drawn
    )


def _drawn_here(model: nn.Module) -> bool:
    """Whether every layer's weights were drawn by :mod:`advdim.models.initialise`."""
    return all("weight_law" in vars(layer) for layer in weight_layers(model))


def _between_layers(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> Assumption:
    if len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters())):
        return Assumption("H4", "fails", "two layers share their weights")
    if norms:
        return Assumption("H4", "fails", "batch-norm divides by what the layers below made of the images")
    if _changed(model):
        return Assumption("H4", "fails", "the weights have changed since they were drawn: training correlates layers")
    if not _drawn_here(model):
        return Assumption("H4", "unknown", UNSEEN)
    return Assumption("H4", "holds", "the layers were drawn independently")


def _within_neurons(model: nn.Module, averages: list[nn.AvgPool2d]) -> Assumption:
    if averages:
        return Assumption("H5", "fails", "the weights of an average are all the same number")
    if _changed(model):
        return Assumption("H5", "fails", "the weights have changed since they were drawn: training correlates them")
    if not _drawn_here(model):
        return Assumption("H5", "unknown", UNSEEN)
    return Assumption("H5", "holds", "the weights of a neuron were drawn independently")


def _symmetry(model: nn.Module, image_shape: tuple[int, ...] | None) -> Assumption:
    v = path_second_moment(model, image_shape)
    if float(v.max() - v.min()) < 1e-9 * float(v.max()):
        return Assumption("S", "holds", "the path sums of all pixels are equal")
    share = float(v.sqrt().sum() / (v.numel() * v.sum()).sqrt())
    spread = float(v.max() / v.min())
    why = f"path sums differ by up to a factor {spread:.3g}, which takes {100 * (1 - share):.1f}% off the l_1 norm"
    return Assumption("S", "in effect" if share > 0.5 else "fails", why)
