"""Layers whose gradient is differentiated again: what PyTorch's own give, sooner, and in the channels-last layout.

PyTorch differentiates the gradient of a batch-norm in some ten passes over the maps, that of a convolution in its
weights by another convolution whose kernel is as large as a map, and adds maps of zeros for every padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import switch
from .trained_convolution import pays, weight_gradient

_aten = torch.ops.aten


def double_backward(device: torch.device) -> DoubleBackward | PlainDoubleBackward:
    """Layers that can be differentiated twice in less time, as a context for the pass forward; see its ``gradient``.

    They are for CPUs; on another device, PyTorch's own.
    """
    return DoubleBackward() if switch.enabled() and device.type == "cpu" else PlainDoubleBackward()


class PlainDoubleBackward(nullcontext[None]):
    """PyTorch's own layers, with the same ``gradient``."""

    def gradient(self, values: Tensor, leaf: Tensor) -> Tensor:
        """Gradient of every example's value in its own image, with a graph."""
        (g,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
        return g


class DoubleBackward(TorchFunctionMode):
    """In this context, on a CPU alone, layers compute as they always do, but can be differentiated twice in less time.

    They are convolutions, batch-norms in train mode and padding by reflection. The first time is for :meth:`gradient`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_images = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A function by its substitute, if it has one."""
        kwargs = kwargs or {}
        ways: dict[Any, Callable[..., Tensor | None]] = {
            torch.conv2d: self._convolution,
            F.batch_norm: self._batch_norm,
            F.pad: self._pad,
        }
        outputs = ways[func](*args, **kwargs) if func in ways else None
        return func(*args, **kwargs) if outputs is None else outputs

    def gradient(self, values: Tensor, leaf: Tensor) -> Tensor:
        """Gradient of every example's value in its own image, with a graph, and without those in the weights."""
        self.of_images = True
        try:
            (g,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
        finally:
            self.of_images = False
        return g

    def _convolution(
        self,
        input: Tensor,  # the name that it has in PyTorch
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if input.device.type != "cpu" or input.ndim != 4 or isinstance(padding, str):
            return None
        x = input
        if torch.is_autocast_enabled("cpu"):
            x, weight = _cast(x), _cast(weight)
            bias = None if bias is None else _cast(bias)
        how = [[n, n] if isinstance(n, int) else list(n) for n in (stride, padding, dilation)]
        return _Convolution.apply(x, weight, bias, (*how, groups), self)  # type: ignore[no-any-return,no-untyped-call]

    def _batch_norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if x.device.type != "cpu" or not training or x.numel() <= x.shape[1]:
            return None
        running = mean, variance, momentum
        return _BatchNorm.apply(x, weight, bias, running, eps, self)  # type: ignore[no-any-return,no-untyped-call]

    def _pad(self, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor | None:
        if x.device.type != "cpu" or mode != "reflect" or len(pad) != 4:
            return None
        return _Reflection.apply(x, list(pad))  # type: ignore[no-any-return,no-untyped-call]


def _cast(t: Tensor) -> Tensor:
    """What autocast makes of a convolution's arguments; it leaves double precision alone."""
    return t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype("cpu"))


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any, mode: DoubleBackward) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.mode, ctx.biases = how, mode, None if bias is None else list(bias.shape)
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        if ctx.mode.of_images:
            return _ConvolutionBack.apply(g, weight, x.detach(), ctx.how), *[None] * 4  # type: ignore[no-untyped-call]
        return *_gradients(g, x, weight, ctx.biases, ctx.how, ctx.needs_input_grad[:3]), None, None


class _ConvolutionBack(Function):
    """The gradient in x, linear in g and in the weight; x itself is only a shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, how: Any) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        return _gradients(g, x, weight, None, how, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # <v, A^T g> = <A v, g> for the convolution A: v takes the place of x in its gradient in the weight.
        (v,), (g, weight) = gradients, ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            again = F.conv2d(v, weight, None, *ctx.how)
        return again, _gradients(g, v, weight, None, ctx.how, [False, ctx.needs_input_grad[1], False])[1], None, None


def _gradients(g: Tensor, x: Tensor, weight: Tensor, biases: Any, how: Any, wanted: Sequence[bool]) -> list[Tensor]:
    stride, padding, dilation, groups = how
    by_phases = wanted[1] and max(padding) == 0 and pays(x, weight, stride, dilation, groups)
    asked = [wanted[0], wanted[1] and not by_phases, wanted[2]]
    found = list(_aten.convolution_backward(g, x, weight, biases, *how[:3], False, [0, 0], groups, asked))
    if by_phases:
        found[1] = weight_gradient(g, x, weight, dilation)
    return found


class _Reflection(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: list[int]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pad = pad
        with torch.autocast("cpu", enabled=False):
            return _aten.reflection_pad2d(x, pad)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # With x itself, only a shape here, its gradient would be a map of zeros.
        return _aten.reflection_pad2d_backward(gradients[0], ctx.saved_tensors[0].detach(), ctx.pad), None


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Any, eps: float, mode: DoubleBackward
    ) -> Tensor:
        y, mean, scale = _aten.native_batch_norm(x, weight, bias, *running[:2], True, running[2], eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps, ctx.mode = eps, mode
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, mean, scale) = gradients, ctx.saved_tensors
        if ctx.mode.of_images:
            return _BatchNormBack.apply(g, x, weight, mean, scale, ctx.eps), *[None] * 5  # type: ignore[no-untyped-call]
        wanted = list(ctx.needs_input_grad[:3])
        back = _aten.native_batch_norm_backward(g, x, weight, None, None, mean, scale, True, ctx.eps, wanted)
        return *back, None, None, None


class _BatchNormBack(Function):
    r"""The gradient of a batch-norm in x, and its own.

    Per channel of M numbers, with s = (var x + eps)^{-1/2}, z = s (x - mean x), weight w, and bars for means, the
    gradient in x is w s G with G = g - \bar g - z \overline{gz}. Let V be the same of v. As V comes of v by a
    projection, <v, w s G> = <w s V, g>, so that w s V is the gradient of <v, w s G> in g. By ds/dx = -s^2 z / M and
    d<u, z>/dx = s (u - \bar u - z \overline{uz}), that in x is

        -w s^2 (z t + \overline{gz} V + \overline{vz} G), where t = \overline{vG} = \overline{vg} - \bar v \bar g -
        \overline{vz} \overline{gz},

    a sum of v, g and x with four factors per channel; that in w is M s t.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        ctx.eps = eps
        back, gz, ones = _aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, scale, True, eps, [True, True, True]
        )
        ctx.save_for_backward(g, x, weight, mean, scale, gz, ones)
        return back  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a batch-norm in train mode has no third derivative here: leave out create_graph=True")
        (v,), (g, x, weight, mean, s, *sums) = gradients, ctx.saved_tensors
        m = x.numel() // x.shape[1]
        all_three = [True, True, True]
        in_g, *of_v = _aten.native_batch_norm_backward(v, x, weight, None, None, mean, s, True, ctx.eps, all_three)
        # The sum of products with x - 0, divided by 1: one pass, whatever the layout, and no rounding of products.
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        vg = _aten.native_batch_norm_backward(v, g, one, None, None, zero, one, True, 0.0, [False, True, False])[1]
        (gz, g_mean), (vz, v_mean) = [t / m for t in sums], [t / m for t in of_v]
        t = vg / m - v_mean * g_mean - vz * gz
        factor = -s.square() if weight is None else -weight * s.square()
        of_x = factor * s * (t - 2 * vz * gz)
        constant = -factor * (gz * v_mean + vz * g_mean) - of_x * mean
        shape = [1, -1] + [1] * (x.ndim - 2)
        a, b, c, d = (f.to(x.dtype).view(shape) for f in (factor * gz, factor * vz, of_x, constant))
        in_x = torch.addcmul(d, a, v).addcmul_(b, g).addcmul_(c, x)
        return in_g, in_x, None if weight is None else m * s * t, None, None, None
