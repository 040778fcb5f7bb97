"""AutoAttack: the exact robustness of linear classifiers, no less success than PGD, and the contract of an attack."""

import copy
import functools
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advdim import attacks, data, models, norms
from advdim.attacks import auto_attack

pyautoattack = pytest.importorskip("pyautoattack", reason="needs the extra autoattack")

INF = math.inf
# Attacks after which some of the images are still classified right, and some are not.
EPS = {1: 1.5, 2: 0.5, INF: 0.1}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A third of the iterations and 100 of Square's 5000 queries: on these networks the others change nothing."""
    initialise = pyautoattack.AutoAttack.__init__

    def shorter(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        self.square.n_queries = 100
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = 30

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", shorter)


def fit(net, eps_inf=0.0):
    """Train on the digits, on attacked ones for a network that stays robust for a while."""
    x, y = data.load("digits", "train")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(6):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            attacked = attacks.one_step(net, x[batch], y[batch], p=INF, eps=eps_inf) if eps_inf else x[batch]
            optimiser.zero_grad()
            F.cross_entropy(net(attacked), y[batch]).backward()
            optimiser.step()
    net.zero_grad()
    return net.eval()


@functools.cache
def linear(classes=10):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    return fit(net)


@functools.cache
def convolutional():
    return fit(models.build("conv_strided", (1, 8, 8), width=12, depth=2, readout="fc", init="torch"), 0.05)


def images(n):
    return data.load("digits", "test", n=n)


def largest_gain(weights, x, p, eps):
    """The maximum of <weights, delta> over the l_p ball, with x + delta in [0, 1]; all flat, in float64."""
    size = weights.abs()
    room = torch.where(weights > 0, 1 - x, x)
    if p == INF:
        return (size * room.clamp(max=eps)).sum()
    if p == 1:  # the largest weights first, each up to its room, until eps is spent
        order = size.argsort(descending=True)
        spent = room[order].cumsum(0) - room[order]
        return (size[order] * torch.minimum(room[order], (eps - spent).clamp(min=0))).sum()
    low, high = 0.0, 1e6  # delta = min(t |weights|, room), for the t at which its length is eps
    for _ in range(100):
        t = (low + high) / 2
        low, high = (low, t) if torch.minimum(t * size, room).norm() > eps else (t, high)
    return (size * torch.minimum(low * size, room)).sum()


def exact_margins(net, x, y, p, eps):
    """Smallest lead of the label's logit over another one under any attack, [N]: not positive, not robust."""
    weights, f = net[1].weight.detach().double(), net(x).detach().double()
    margins = []
    for image, logits, c in zip(x.flatten(1).double(), f, y, strict=True):
        rivals = [k for k in range(len(logits)) if k != c]
        gains = [largest_gain(weights[k] - weights[c], image, p, eps) for k in rivals]
        margins.append(min(logits[c] - logits[k] - gain for k, gain in zip(rivals, gains, strict=True)))
    return torch.stack(margins)


def right(net, x, y):
    with torch.no_grad():
        return net(x).argmax(1) == y


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_linear_classifier_keeps_exactly_the_images_that_no_attack_can_change(p):
    net, (x, y) = linear(), images(60)
    left = right(net, auto_attack(net, x, y, p=p, eps=EPS[p]), y)
    margins = exact_margins(net, x, y, p, EPS[p])
    decided = margins.abs() > 1e-3  # the others are on the boundary, up to the last step of an iteration
    assert decided.sum() >= 55
    assert torch.equal(left[decided], margins[decided] > 0)
    assert 10 <= left.sum() <= 50


@pytest.mark.parametrize("p", [1, 2, INF])
def test_it_fools_whatever_pgd_fools_and_more(p):
    net, (x, y) = convolutional(), images(30)
    attacked = auto_attack(net, x, y, p=p, eps=EPS[p])
    left, before = right(net, attacked, y), right(net, x, y)
    generator = torch.Generator().manual_seed(0)
    options = {"steps": 40, "random_start": True, "restarts": 2, "early_stop": True, "generator": generator}
    by_pgd = right(net, attacks.pgd(net, x, y, p=p, eps=EPS[p], clip=True, **options), y)
    assert 0 < left.sum() < by_pgd.sum() < before.sum()
    assert not (left & ~by_pgd).any()

    sizes = norms.norm((attacked - x).double(), p)
    assert (sizes <= EPS[p] * (1 + (1e-7 if p == INF else 1e-6))).all()
    assert sizes.max() > 0.99 * EPS[p]
    assert (attacked >= 0).all()
    assert (attacked <= 1).all()
    spared = left | ~before
    assert spared.any()
    assert torch.equal(attacked[spared], x[spared])


def test_the_seed_alone_decides_and_everything_is_left_as_found():
    net, (x, y) = copy.deepcopy(convolutional()), images(8)
    first, *rest = net.parameters()
    first.grad = torch.ones_like(first)
    rest[-1].requires_grad_(False)
    net[0].train()
    modes = [m.training for m in net.modules()]
    state, trace = torch.get_rng_state(), sys.gettrace()
    results = []
    try:
        for seed, moved, noticed in ((0, 1, lambda *_: None), (0, 2, trace), (1, 1, trace)):
            torch.manual_seed(moved)
            expected = torch.get_rng_state()
            sys.settrace(noticed)
            results.append(auto_attack(net, x, y, p=INF, eps=0.15, seed=seed))
            assert torch.equal(torch.get_rng_state(), expected)
            assert sys.gettrace() is noticed
    finally:
        sys.settrace(trace)
        torch.set_rng_state(state)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(first.grad, torch.ones_like(first))
    assert [p.grad is None for p in rest] == [True] * len(rest)
    assert [p.requires_grad for p in net.parameters()] == [True] * len(rest) + [False]
    assert [m.training for m in net.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_takes_float64_and_other_layouts(dtype, layout):
    net = models.build("conv_strided", (3, 8, 8), width=6, depth=2, readout="fc").to(dtype, memory_format=layout)
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = net(x).argmax(1)
    attacked = auto_attack(net, x.contiguous(memory_format=layout), y, p=2, eps=0.3)
    assert attacked.dtype == dtype
    assert not right(net, attacked, y).all()
    assert (norms.norm(attacked - x, 2) <= 0.3 * (1 + 1e-6)).all()


def test_few_classes_are_enough_but_not_fewer_than_four():
    whole, (x, y) = linear(), images(40)
    x, y = x[y < 4], y[y < 4]
    for classes in (4, 3):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        with torch.no_grad():
            net[1].weight.copy_(whole[1].weight[:classes])
            net[1].bias.copy_(whole[1].bias[:classes])
        if classes == 4:
            left = right(net, auto_attack(net, x, y, p=INF, eps=0.15), y).sum()
            assert 0 < left < right(net, x, y).sum()  # so that all four attacks had their turn
        else:
            with pytest.raises(ValueError, match="the model has 3"):
                auto_attack(net, x, y, p=INF, eps=0.3)


def test_a_layer_in_train_mode_is_warned_of():
    net, (x, y) = nn.Sequential(nn.Dropout(0.0), *linear()), images(4)
    with pytest.warns(UserWarning, match="train mode"):
        auto_attack(net, x, y, p=INF, eps=0.01)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"advdim\[autoattack\]"):
        auto_attack(linear(), *images(2), p=2, eps=0.1)
