"""Checks by behaviour, on two images: what would make every number of an audit wrong or misleading."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from ..measure.gradients import cross_entropy
from .adapt import Adapted, Refusal, zero_layers

#: How far an image's logits may move with its batch, relative to the largest: kernels round otherwise.
SLACK = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def check(net: Adapted, x: Tensor, y: Tensor) -> list[str]:
    """Refuse a network from which no honest number can come.

    Args:
        net: the network, its parameters without gradients.
        x: [2, C, S, S], on its device and in its dtype, batch-norms calibrated if they are to be.
        y: [2], the labels.

    Returns:
        What to print of what was found.

    Raises:
        Refusal: names what is wrong, and the cure.
    """
    out = forward(net, x)
    _check_shape(out, x, y)
    if not bool(out.isfinite().all()):
        raise Refusal(f"the network gives NaN or infinite outputs: {_first_not_finite(net, x)}")
    _check_repeatable(net, x, out)
    notes = _check_scale(out)
    return notes + _check_gradient(net, x, y)


def forward(net: nn.Module, x: Tensor) -> Tensor:
    """Logits without a graph; refuses what the network cannot take, with its own words."""
    size = int(x.shape[-1])
    try:
        with torch.no_grad():
            out = net(x)
    except Refusal:
        raise
    except Exception as error:  # a stranger's network raises anything
        raise Refusal(_untaken(net, x, size, error)) from error
    return torch.as_tensor(out)


def _untaken(net: nn.Module, x: Tensor, size: int, error: Exception) -> str:
    words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    channels = next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if channels is not None and channels != x.shape[1]:
        return (
            f"the network takes {channels} channels, the images have {x.shape[1]}: convert them, x.repeat(1, 3, 1, 1) "
            f"for grey ones ({words})"
        )
    return (
        f"the network takes no images of {size} px ({words}): give other sizes (--sizes), or the argument by which its "
        "factory takes the size (size_arg= or --size-arg, say image_size)"
    )


def _check_shape(out: Tensor, x: Tensor, y: Tensor) -> None:
    if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 2 or not out.is_floating_point():
        cure = "say which part of it they are, with logits=lambda out: ..."
        if out.shape[-1:] == (1,):
            cure = "give the logits of two classes, logits=lambda z: torch.cat([-z / 2, z / 2], 1)"
        raise Refusal(
            f"the outputs are {out.dtype} of shape {tuple(out.shape)} for {len(x)} images, expected logits [N, K] with "
            f"K at least 2: {cure}"
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels that the network has no output for."""
    if int(y.max()) >= classes:
        at = int(y.argmax())
        raise Refusal(
            f"label {int(y.max())} of image {at} has no output: the network has {classes}, for labels 0 to "
            f"{classes - 1}. Give a network of as many classes as the data"
        )


def _first_not_finite(net: Adapted, x: Tensor) -> str:
    found: list[str] = []

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            if isinstance(out, Tensor) and not bool(out.isfinite().all()):
                found.append(name)

        return hook

    bad = [name for name, t in net.state_dict().items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        return f"its weights do, first {bad[0].removeprefix('model.')}. Load them anew, or train with a lower rate"
    handles = [m.register_forward_hook(watch(name)) for name, m in net.named_modules() if name]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    first = found[0].removeprefix("model.") if found else "the logits"
    return f"first in {first}. Look there for a division by 0, a logarithm, or numbers too large for {x.dtype}"


def _check_repeatable(net: Adapted, x: Tensor, out: Tensor) -> None:
    slack = SLACK.get(x.dtype, 1e-3) * float(out.abs().max().clamp(min=1e-30))
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        again = forward(net, x)
    moved = float((again - out).abs().max())
    if not moved <= slack:
        raise Refusal(
            f"two calls on the same images differ by {moved:.2g}: something is drawn anew in each, such as F.dropout "
            "without training=self.training. Use nn.Dropout, or switch it off"
        )
    swapped = forward(net, x.flip(0)).flip(0)
    alone = torch.cat([forward(net, x[i : i + 1]) for i in range(2)])
    for what, found in (("alone", alone), ("after another", swapped)):
        if found.shape == out.shape and not float((found - out).abs().max()) <= slack:
            raise Refusal(
                f"the output for an image depends on its batch (by {float((found - out).abs().max()):.2g}, {what}): "
                "gradients are then not each image's own. Normalise by running statistics "
                "(track_running_stats=True, F.batch_norm with training=False)"
            )


def _check_scale(out: Tensor) -> list[str]:
    rows = out.double().cpu() if out.device.type != "mps" else out.cpu().double()
    tolerance = 1e-2 if out.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < tolerance).all()):
        raise Refusal(
            "the outputs of each image are positive and sum to 1: a softmax, through which gradients are too small. "
            "Leave it out, or give its logarithm, logits=lambda out: out.log()"
        )
    if bool(((rows >= 0) & (rows <= 1)).all()):
        return ["! all outputs lie in [0, 1]: if they are no logits, every number here is wrong"]
    return []


def _check_gradient(net: Adapted, x: Tensor, y: Tensor) -> list[str]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        try:
            total = cross_entropy(net(leaf), y).sum()
            (g,) = torch.autograd.grad(total, leaf, allow_unused=True)
        except RuntimeError as error:
            g = None
            if "does not require grad" not in str(error):
                raise Refusal(f"no gradient can be taken: {str(error).splitlines()[0]}") from error
    if g is None:
        raise Refusal(
            "no gradient reaches the images: the network detaches them, computes under no_grad, or goes through NumPy. "
            "Keep to differentiable torch operations"
        )
    if not bool(g.isfinite().all()):
        raise Refusal(
            "the gradient has NaN or infinite values although the outputs are finite: look for a sqrt or norm at 0"
        )
    if not bool(g.any()):
        zero = zero_layers(net)
        if zero:
            raise Refusal(
                f"the gradient is exactly 0 on both images: {', '.join(zero[:3])} has zero weights. Fresh, this "
                "network ignores its input. Give weights (--weights), or randomise_head=True (--randomise-head)"
            )
        raise Refusal("the gradient is exactly 0 on both images: this network ignores its input")
    return _ignored(g)


def _ignored(g: Tensor) -> list[str]:
    """What to say of pixels that have no gradient on any image."""
    size = int(g.shape[-1])
    rows, columns = border(g)
    if rows or columns:
        return [f"! at {size} px the network ignores the last {rows} rows and {columns} columns of every image"]
    share = float((g == 0).all(1).double().mean())
    return [f"! at {size} px {share:.0%} of the pixels have a gradient of exactly 0"] if share >= 0.01 else []


def border(g: Tensor) -> tuple[int, int]:
    """How many of the last rows and columns have a gradient of 0 on all images [N, C, H, W]."""
    used = (g != 0).any(0).any(0)
    rows, columns = used.any(1).nonzero(), used.any(0).nonzero()
    return int(used.shape[0] - 1 - rows.max()), int(used.shape[1] - 1 - columns.max())


def takes(net: nn.Module, x: Tensor) -> tuple[bool, bool]:
    """Whether the network takes images x [N, C, S, S], and whether it looks at all of them."""
    with suppress(Refusal, RuntimeError), torch.enable_grad():
        forward(net, x)
        leaf = x.detach().clone().requires_grad_()
        out = net(leaf)
        g = torch.autograd.grad(out.square().sum(), leaf, allow_unused=True)[0] if out.requires_grad else None
        return True, g is None or not bool(g.any()) or border(g) == (0, 0)
    return False, False
