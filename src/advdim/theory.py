"""What the paper's section 3 predicts of a given network: its path sums, and which assumptions it meets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialise import Drawn, in_degree, weight_layers, weight_total
from .models import Normalise


@dataclass(frozen=True)
class Assumption:
    """One assumption of the theorem, judged on a network.

    Attributes:
        name: "H1" to "H5" or "S".
        status: "holds", "in effect" (not to the letter, but as far as the proof needs it) or "fails".
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
        return "\n".join(str(item) for item in self.items)

    @property
    def hold(self) -> bool:
        """Whether none fails, so that Theorems 4 and 5 apply."""
        return all(item.status != "fails" for item in self.items)


def path_second_moment(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> Tensor:
    r"""Second moment :math:`\mathbb{E}\,(\partial f_k / \partial x_i)^2` by counting paths (proof of Theorem 5).

    The sum over all paths from :math:`x_i` to :math:`f_k` of the product, along the path, of the weights' variances and
    of the chances that the gates are open. It is computed by one backward pass through the network in which every
    weight is replaced by its variance and every gate by its chance.

    Exact for ReLU networks at any width if no neuron averages others (convolutions of any stride, dilation and padding
    with a fully connected readout). For the rest it is the value under gates that are independent of the weights: an
    average over k inputs keeps 1/k of the mass, and a maximum over k inputs keeps one of them, each with chance 1/k.
    Real maxima prefer large inputs, which leaves more gates open than half: the value is then a lower one, of the right
    order in d.

    Args:
        model: a sequential network of the layers that :func:`advdim.models.build` uses. Batch-norm acts through its
            running statistics.
        image_shape: (C, H, W); default ``model.image_shape``.

    Returns:
        [C, H, W], float64, on the model's device; its sum is :math:`\mathbb{E} \lVert \nabla f_k \rVert_2^2`, one value
        for all classes k.

    Raises:
        TypeError: if the model has layers whose paths are not known here.
        ValueError: if no image shape is known.
    """
    shape = image_shape or getattr(model, "image_shape", None)
    if shape is None:
        raise ValueError("the model has no image_shape: pass image_shape=(C, H, W)")
    layers = _layers(model)
    device = weight_layers(model)[0].weight.device
    x = torch.ones(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
    h: Tensor = x
    for layer in layers:
        h = _squared(layer, h)
    (moment,) = torch.autograd.grad(h[0, 0], x)
    return moment[0]


def predicted_norms(model: nn.Module) -> dict[float, float]:
    r"""Path-counting prediction of the root-mean-square l_2 norm and of the l_1 norm of :math:`\nabla_x f_k`.

    With :math:`v_i` the second moments of :func:`path_second_moment`, these are :math:`\sqrt{\sum_i v_i}` and, for
    Gaussian gradient entries, :math:`\sqrt{2/\pi} \sum_i \sqrt{v_i}`: under (S) the latter is
    :math:`\sqrt{2d/\pi}` times the former.

    Args:
        model: as for :func:`path_second_moment`.

    Returns:
        {1: l_1 norm, 2: l_2 norm}, per pixel unit.
    """
    v = path_second_moment(model)
    return {1: math.sqrt(2 / math.pi) * float(v.sqrt().sum()), 2: math.sqrt(float(v.sum()))}


def check_assumptions(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> Assumptions:
    """Which of the assumptions (H1) to (H5) and (S) of Theorems 4 and 5 a freshly built network meets, and why not.

    Args:
        model: a network of :func:`advdim.models.build`, or a sequential one of the same kinds of layers. Weights that
            :mod:`advdim.initialise` has drawn are compared with what they were; of others, the sample variance counts.
        image_shape: (C, H, W); default ``model.image_shape``.

    Returns:
        The six judgements, printable.

    Raises:
        TypeError: if the model has layers that are not known here.
    """
    layers = _layers(model)
    averages = [m for m in layers if isinstance(m, nn.AvgPool2d) and _area(m) > 1]
    maxima = [m for m in layers if isinstance(m, nn.MaxPool2d) and _area(m) > 1]
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


def _layers(model: nn.Module) -> list[nn.Module]:
    known = (
        nn.Flatten,
        nn.Linear,
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.modules.batchnorm._BatchNorm,
        Normalise,
    )
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"counting paths needs a sequential network, got {type(model).__name__}")
    layers = list(model)
    for layer in layers:
        if not isinstance(layer, known):
            names = ", ".join(kind.__name__.lstrip("_") for kind in known)
            raise TypeError(f"the paths through {type(layer).__name__} are not known here: use {names}")
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and (layer.padding not in (0, (0, 0)) or layer.ceil_mode):
            raise TypeError(f"the paths through windows over the border are not known here: {layer}")
    if not any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers):
        raise TypeError("the network has no weights")
    return layers


def _squared(layer: nn.Module, h: Tensor) -> Tensor:
    """The layer with each weight replaced by its variance and each gate by its chance to be open."""
    if isinstance(layer, nn.Linear):
        return F.linear(h, h.new_full((layer.out_features, layer.in_features), variance(layer)))
    if isinstance(layer, nn.Conv2d):
        weight = h.new_full(
            (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size), variance(layer)
        )
        out: Tensor = layer._conv_forward(h, weight, None)  # with the layer's own stride, dilation and padding
        return out
    if isinstance(layer, nn.ReLU):
        return h / 2
    if isinstance(layer, nn.MaxPool2d):
        return F.avg_pool2d(h, layer.kernel_size, layer.stride)
    if isinstance(layer, nn.AvgPool2d):
        return F.avg_pool2d(h, layer.kernel_size, layer.stride) / _area(layer)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return h * _batch_norm_scale(layer).to(h.dtype).square().view(-1, *[1] * (h.ndim - 2))
    if isinstance(layer, Normalise):
        return h / layer.std.to(h.dtype).square()
    return h.flatten(1)


def variance(layer: nn.Linear | nn.Conv2d) -> float:
    """Variance of a layer's weights: what they were drawn from, or else their mean square."""
    drawn: Drawn | None = vars(layer).get("drawn")
    return drawn.variance if drawn else float(layer.weight.detach().double().square().mean())


def _area(pool: nn.MaxPool2d | nn.AvgPool2d | None) -> int:
    size = pool.kernel_size if pool else 1
    return size * size if isinstance(size, int) else math.prod(size)


def _batch_norm_scale(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    if layer.running_var is None:
        raise TypeError(
            "batch-norm without running statistics has no fixed scale: build it with track_running_stats=True"
        )
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    return scale if layer.weight is None else scale * layer.weight.detach().double()


def _is_identity(layer: nn.modules.batchnorm._BatchNorm) -> bool:
    if layer.training or layer.running_mean is None:
        return False
    shift = layer.bias is None or not bool(layer.bias.any())
    return shift and not bool(layer.running_mean.any()) and bool((_batch_norm_scale(layer) - 1).abs().max() < 1e-4)


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
        k = max(_area(m) for m in maxima)
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
        weight = layer.weight.detach().double()
        square, n = weight.square(), weight.numel()
        error = float(square.std()) / math.sqrt(n) if n > 1 else math.inf
        if abs(float(square.mean()) - 2 / in_degree(layer)) > 5 * error + 1e-6 / in_degree(layer):
            ratios[i] = float(square.mean()) * in_degree(layer) / 2
        if abs(float(weight.mean())) > 5 * math.sqrt(float(square.mean()) / n):
            why.append(f"the mean of weight layer {i} is {float(weight.mean()):.2g}, not 0")
    if ratios:
        which = ", ".join(map(str, ratios))
        low, high = min(ratios.values()), max(ratios.values())
        times = f"{low:.2g}" if high < 1.1 * low else f"{low:.2g} to {high:.2g}"
        why.append(f"the variance is {times} times 2 / in-degree in weight layer {which}")
    if any(isinstance(m, nn.Conv2d) and m.padding_mode == "zeros" and any(m.padding) for m in model.modules()):
        why.append("zero padding lowers the in-degree at the border")
    if averages:
        why.append("the weights of an average are fixed, of mean 1/k")
    if norms:
        why.append("batch-norm rescales the weights")
    status, reason = ("fails", "; ".join(why)) if why else ("holds", "mean 0, variance 2 / in-degree")
    return Assumption("H3", status, reason)


def _changed(model: nn.Module) -> bool:
    drawn = [(m, vars(m).get("drawn")) for m in weight_layers(model)]
    return any(
        d is not None and not math.isclose(d.total, weight_total(m), rel_tol=1e-5, abs_tol=1e-5) for m, d in drawn
    )


def _between_layers(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> Assumption:
    if len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters())):
        return Assumption("H4", "fails", "two layers share their weights")
    if norms:
        return Assumption("H4", "fails", "batch-norm divides by what the layers below made of the images")
    if _changed(model):
        return Assumption("H4", "fails", "the weights have changed since they were drawn: training correlates layers")
    return Assumption("H4", "holds", "the layers were drawn independently")


def _within_neurons(model: nn.Module, averages: list[nn.AvgPool2d]) -> Assumption:
    if averages:
        return Assumption("H5", "fails", "the weights of an average are all the same number")
    if _changed(model):
        return Assumption("H5", "fails", "the weights have changed since they were drawn: training correlates them")
    return Assumption("H5", "holds", "the weights of a neuron were drawn independently")


def _symmetry(model: nn.Module, image_shape: tuple[int, ...] | None) -> Assumption:
    v = path_second_moment(model, image_shape)
    if float(v.max() - v.min()) < 1e-9 * float(v.max()):
        return Assumption("S", "holds", "the path sums of all pixels are equal")
    share = float(v.sqrt().sum() / (v.numel() * v.sum()).sqrt())
    spread = float(v.max() / v.min())
    why = f"path sums differ by up to a factor {spread:.3g}, which takes {100 * (1 - share):.1f}% off the l_1 norm"
    return Assumption("S", "in effect" if share > 0.5 else "fails", why)
