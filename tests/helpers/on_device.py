"""What the tests of devices share: small networks and images, and the comparison of results with those of the CPU."""

from __future__ import annotations

import copy
import functools
from dataclasses import astuple, dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

import advdim as ad

CLASSES = 4
SHAPE = (3, 16, 16)


def seeded(device="cpu", seed=0):
    return torch.Generator(device).manual_seed(seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(name="conv_strided", **options):
    """A network in float64 whose batch-norms, if it has them, have seen images."""
    return copy.deepcopy(_network(name, tuple(options.items())))


@functools.cache
def _network(name, options):
    options = dict(options)
    options = ({"depth": 3, "batch_norm": True} if name == "conv_strided" else {}) | options
    net = ad.models.build(name, SHAPE, CLASSES, **({"width": 8} | options)).double()
    ad.models.calibrate_batch_norm(net, images(32, *SHAPE, seed=1))
    return net


@dataclass(frozen=True)
class Given:
    """What a case gets: a network of its own, images, labels, attacked images, all on one device."""

    net: nn.Module
    x: Tensor
    y: Tensor
    attacked: Tensor

    @property
    def device(self):
        return self.x.device


def given(device, dtype, n=6, **options):
    """The same numbers on any device, in any dtype."""
    x = images(n, *SHAPE).to(dtype)
    attacked = images(n, *SHAPE, seed=2).to(dtype)
    net = network(**({"init": "torch"} | options)).to(dtype).to(device)
    return Given(net, x.to(device), (torch.arange(n) % CLASSES).to(device), attacked.to(device))


def numbers(result: Any, device: torch.device | None = None) -> Tensor:
    """All numbers of a result, [M] in float64 on the CPU; its tensors must lie on the device, if one is given."""
    if isinstance(result, Tensor):
        assert device is None or result.device.type == device.type, f"a result on {result.device}, not on {device}"
        return result.detach().cpu().double().flatten()
    if is_dataclass(result):
        result = astuple(result)
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return torch.cat([numbers(part, device) for part in result]) if result else torch.empty(0, dtype=torch.float64)
    return torch.tensor([float(result)], dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, *, each: bool = True) -> None:
    """Each number within the tolerance, relative to the largest of them; or else all together, by their l_2 norms."""
    assert expected.isfinite().all()
    if each:
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    else:  # a gate that is opened or shut by rounding changes single numbers by much
        error, size = (float(torch.linalg.vector_norm(t)) for t in (found - expected, expected))
        assert error <= tolerance * size, f"off by {error:.3g} in {size:.3g}, more than the share {tolerance}"


def untouched(net: nn.Module) -> dict[str, Tensor]:
    """What a measurement must leave as it was."""
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
