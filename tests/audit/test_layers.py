"""The layer budget adds up exactly, and each step is the one that theory gives where there is a closed form."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advdim import analysis
from advdim.audit import audit, layers
from advdim.measure import cross_entropy


class Residual(nn.Module):
    """A branch beside an identity, with ReLUs in place."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.second(self.relu(self.first(x))))


def residual_net():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        Residual(6),
        Residual(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def attention_net(size):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(2, 8, 4, stride=4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            t = self.patches(x).flatten(2).transpose(1, 2)
            return self.head((t + self.attention(t, t, t)[0]).mean(1))

    return Attends()


def mlp(size):
    wide = nn.Sequential(nn.Flatten(), nn.Linear(2 * size**2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(wide, nn.Linear(256, 5))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 2, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("make", [lambda: residual_net(), attention_net, mlp], ids=["residual", "attention", "mlp"])
@pytest.mark.parametrize("p", [math.inf, 2.0, 3.0])
def test_the_terms_add_up_to_the_exponent(make, p, images):
    found = audit(make, images, sizes=[8, 16, 32], seeds=3, p=p, dtype=torch.float64, device="cpu")
    q = found.settings["q"]
    assert found.budget.total == pytest.approx(found.exponent.slope, abs=1e-13)
    assert found.budget["pixels"].exponent == pytest.approx(1 / q - 1 / 2)
    # By hand, without any boundary inside: the exponent of the norms as stored.
    norms = [[np.mean(c.values["l_q"]) for c in found.cells if c.size == size] for size in (8, 16, 32)]
    assert found.exponent.slope == pytest.approx(analysis.exponent([2 * s**2 for s in (8, 16, 32)], norms).slope)


def test_one_checkpoint_adds_up_image_by_image(images):
    torch.manual_seed(0)
    net = residual_net().double()
    nn.init.constant_(net[6].bias[:1], 5.0)  # so that it answers 0, rightly, at every size
    found = audit(net, (images[0], torch.zeros(4).long()), sizes=[16, 32], dtype=torch.float64, device="cpu")
    assert found.budget.total == pytest.approx(found.exponent.slope, abs=1e-13)
    assert found.exponent.seeds == 4  # the images


def test_an_average_over_all_places_takes_half_away(images):
    """Each of n places gets 1/n of the gradient, so its l_2 norm falls by sqrt(n): -1/2 in the number of pixels."""
    found = audit(lambda: residual_net(), images, sizes=[8, 16, 32], seeds=2, dtype=torch.float64, device="cpu")
    pool = next(t for t in found.budget.terms if "AdaptiveAvgPool2d" in t.name)
    assert pool.exponent == pytest.approx(-0.5, abs=1e-12)
    assert pool.low == pytest.approx(-0.5, abs=1e-12)


def test_a_maximum_over_all_places_takes_nothing_away(images):
    """It passes the gradient on to one place, whole."""

    def make():
        return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5))

    found = audit(make, images, sizes=[8, 16, 32], seeds=2, dtype=torch.float64, device="cpu")
    pool = next(t for t in found.budget.terms if "AdaptiveMaxPool2d" in t.name)
    assert pool.exponent == pytest.approx(0, abs=1e-12)


def test_the_first_layer_of_an_mlp_is_what_path_counting_gives(images):
    """Weights of variance c / in-degree carry the second moment on, times c: the l_2 norm keeps its size, +0."""

    def make(size):
        net = nn.Sequential(nn.Flatten(), nn.Linear(2 * size**2, 2000, bias=False), nn.ReLU(), nn.Linear(2000, 5))
        nn.init.normal_(net[1].weight, std=math.sqrt(2 / (2 * size**2)))
        return net

    found = audit(make, images, sizes=[8, 16, 32], seeds=3, dtype=torch.float64, device="cpu")
    # ||W^T v||_2^2 = sum over d inputs of variance 2/d, times ||v||^2: no dependence on d.
    assert found.budget["1:Linear"].exponent == pytest.approx(0, abs=0.03)
    assert found.exponent.slope == pytest.approx(0.5, abs=0.05)


def test_boundaries_are_crossed_by_every_path(images):
    """Cutting the gradient at a boundary leaves none in the images; at a tensor inside a branch it leaves some."""
    torch.manual_seed(0)
    net = residual_net().double().requires_grad_(False)
    x, y = images[0].double(), images[1]
    kept = layers.chain(net, x, y, cross_entropy)
    assert [name for name, _ in kept] == ["0", "1", "2", "3", "4", "5", "6"]
    for name in ["2", "3", "2.second"]:
        leaf = x.clone().requires_grad_()
        handle = net.get_submodule(name).register_forward_hook(lambda module, inputs, out: out.detach().clone())
        total = cross_entropy(net(leaf), y).sum()
        handle.remove()
        if name in ("2", "3"):
            assert not total.requires_grad
        else:
            assert torch.autograd.grad(total, leaf)[0].any()


def test_boundary_norms_survive_layers_that_write_into_their_input(images):
    """The norm at a convolution before a ReLU in place is that before the ReLU, as with a ReLU that is not."""
    torch.manual_seed(0)
    net = residual_net().double().requires_grad_(False)
    x, y = images[0].double(), images[1]
    kept = layers.chain(net, x, y, cross_entropy)
    with layers.boundary_norms(net, kept) as found:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(net(leaf), y).sum(), leaf)
    h = net[0](x).requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(net[2:](F.relu(h)), y).sum(), h)
    assert torch.allclose(found["0:Conv2d"][0], g.flatten(1).norm(dim=1), rtol=1e-12)


def test_the_network_is_left_as_it_was(images):
    torch.manual_seed(0)
    net = residual_net().train()
    before = copy.deepcopy(net.state_dict())
    audit(net, images, sizes=[16, 32], device="cpu")
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert not any(m._forward_hooks for m in net.modules())
