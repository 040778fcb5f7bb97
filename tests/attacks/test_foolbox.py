"""The attacks against Foolbox's, on one small net trained on digits, with the same images and budgets."""

import copy
import functools
import math
import warnings

import pytest
import torch
from torch.nn import functional as F

from advdim import attacks, data, measure, models, norms

with warnings.catch_warnings():  # one of its many modules imports from a place that SciPy has left
    warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
    import foolbox

INF = math.inf


@functools.cache
def trained():
    """A conv net that has learned the digits in a second, in eval mode; 150 test images."""
    x, y = data.load("digits", "train")
    net = models.build("conv_strided", (1, 8, 8), width=16, depth=3, batch_norm=True, readout="fc", init="torch")
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(3):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    net.eval()
    x, y = data.load("digits", "test", n=150)
    assert 0.9 < (net(x).argmax(1) == y).float().mean() < 1
    return net, x, y


def run(attack, net, x, y, eps):
    """Foolbox's images after the attack; its bounds clip, so ours are clipped too."""
    return attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]


def fooled(net, x, y):
    return net(x).argmax(1) != y


def agree(net, x, y, ours, theirs):
    """Equal perturbations, and success, save where the two largest logits differ by rounding alone."""
    torch.testing.assert_close(ours - x, theirs - x, rtol=0, atol=1e-5)
    two = net(theirs).topk(2).values
    apart = fooled(net, ours, y) != fooled(net, theirs, y)
    assert (two[apart, 0] - two[apart, 1] < 1e-3).all()
    assert apart.sum() <= 1


@pytest.mark.parametrize("eps_inf", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("p", [2, INF])
def test_one_step_is_foolbox_s(p, eps_inf):
    net, x, y = trained()
    eps = norms.threshold(eps_inf, p, 64)
    attack = {2: foolbox.attacks.L2FastGradientAttack, INF: foolbox.attacks.LinfFastGradientAttack}[p]()
    ours = attacks.one_step(net, x, y, p=p, eps=eps, clip=True)
    agree(net, x, y, ours, run(attack, net, x, y, eps))
    assert fooled(net, ours, y).sum() > fooled(net, x, y).sum()


@pytest.mark.parametrize("eps_inf", [0.01, 0.05])
@pytest.mark.parametrize("p", [2, INF])
def test_pgd_is_foolbox_s(p, eps_inf):
    net, x, y = trained()
    # In float64: in float32 a gate or a sign on which two orders of summation disagree can send an image elsewhere.
    net, x, eps = copy.deepcopy(net).double(), x.double(), norms.threshold(eps_inf, p, 64)
    kind = {
        2: foolbox.attacks.L2ProjectedGradientDescentAttack,
        INF: foolbox.attacks.LinfProjectedGradientDescentAttack,
    }
    theirs = run(kind[p](steps=10, rel_stepsize=1 / 7.5, random_start=False), net, x, y, eps)
    ours = attacks.pgd(net, x, y, p=p, eps=eps, clip=True)
    agree(net, x, y, ours, theirs)
    assert fooled(net, ours, y).sum() > fooled(net, x, y).sum()


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("p", [2, INF])
def test_deepfool_goes_as_far_as_foolbox_s(p, labels):
    net, x, y = trained()
    before = net(x).argmax(1)
    target = y if labels else before
    attack = {2: foolbox.attacks.L2DeepFoolAttack, INF: foolbox.attacks.LinfDeepFoolAttack}[p]()
    theirs = run(attack, net, x, target, None)
    ours = attacks.deepfool(net, x, y if labels else None, p=p, clip=True)
    assert torch.equal(fooled(net, ours, target), fooled(net, theirs, target))
    assert fooled(net, ours, target).all()
    wrong = before != target
    assert wrong.any() == labels
    assert torch.equal(ours[wrong], x[wrong])
    assert torch.equal(theirs[wrong], x[wrong])
    distances = [norms.norm(attacked - x, p)[~wrong] for attacked in (ours, theirs)]
    assert (distances[0].median() / distances[1].median() - 1).abs() < 0.01
    assert ((distances[0] / distances[1] - 1).abs().median()) < 0.01
    assert measure.vulnerability(net, x, ours)[~wrong].all()
