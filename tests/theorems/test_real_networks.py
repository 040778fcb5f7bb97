"""Path sums against real ReLU networks: over all sign patterns, by Monte Carlo, and the exact law of a gradient.

Exact identities hold to 1e-12. Monte Carlo means must lie within 4 standard errors, all seeds being fixed.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision
from helpers.by_hand import images, logit_gradient
from scipy import stats
from torch import nn

from advdim import measure, models, theory
from advdim.models import initialise

# All sign patterns: the mean over them is an expectation under (H), with no sampling error at all


def gradients_for(net, weights, x):
    """Gradients of f_0 at one x for many settings of the weights, {name: [n, *shape]}: [n, *image]."""

    def gradient(own):
        return torch.func.grad(lambda z: torch.func.functional_call(net, own, z)[0, 0])(x)

    return torch.func.vmap(gradient)(weights)[:, 0].detach()


def named_weights(net):
    """{name of the parameter: its layer}."""
    layers = initialise.weight_layers(net)
    return {f"{name}.weight": layer for name, layer in net.named_modules() if layer in layers}


def all_gradients(net, x):
    """Gradients of f_0 for all signs of all weights, whose sizes sqrt(2 / in-degree) stay: [2^weights, *image]."""
    layers = named_weights(net)
    counts = [layer.weight.numel() for layer in layers.values()]
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=sum(counts))), dtype=torch.float64)
    weights = {
        name: math.sqrt(2 / initialise.in_degree(layer)) * part.view(-1, *layer.weight.shape)
        for (name, layer), part in zip(layers.items(), signs.split(counts, dim=1), strict=True)
    }
    return gradients_for(net, weights, x)


def all_signs(net, x):
    """Mean of the squared gradient over all signs."""
    return all_gradients(net, x).square().mean(0)


def net_of(*layers, shape):
    net = models.Net(*layers, image_shape=shape, classes=1).double()
    initialise.he_(net, torch.Generator().manual_seed(0))
    return net


def test_real_gates_of_an_mlp_over_all_signs():
    """Width 2 and any fixed x: a gate depends on its weights, but flips with their sign, so the path sum is exact."""
    x = images(1, 1, 1, 2)
    linears = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU()]
    net = net_of(nn.Flatten(), *linears, nn.Linear(2, 1, bias=False), shape=(1, 1, 2))
    expected = theory.path_second_moment(net)
    assert float(expected.sum()) == pytest.approx(2, rel=1e-12)
    torch.testing.assert_close(all_signs(net, x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("padding", models.PADDINGS)
def test_real_gates_of_shared_weights_over_all_signs(padding):
    """Shared weights too, with a fully connected readout: 2 + 2 kernel entries, strided, on a 1 x 6 image."""
    x = images(1, 1, 1, 6, seed=2)
    kernel = {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": padding, "bias": False}
    first, second = nn.Conv2d(1, 1, **kernel), nn.Conv2d(1, 1, stride=(1, 2), **kernel)
    net = net_of(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False), shape=(1, 1, 6))
    torch.testing.assert_close(all_signs(net, x), theory.path_second_moment(net), rtol=1e-12, atol=1e-15)


def test_weights_of_unknown_law_count_with_their_squares_over_all_signs():
    """Drawn by PyTorch, of any sizes, in a depthwise layer on one place, through batch-norm: exact over the signs."""
    torch.manual_seed(0)
    second = nn.Conv2d(2, 2, (1, 3), padding=(0, 1), groups=2, bias=False)
    norm, last = nn.BatchNorm2d(2, affine=False), nn.Linear(2, 1, bias=False)
    norm.running_var = torch.tensor([0.3, 5.0])
    layers = nn.Conv2d(1, 2, (1, 2), bias=False), second, norm, nn.Flatten(), last
    net, x = nn.Sequential(*layers).double().eval(), images(1, 1, 1, 2)
    weighted = {f"{i}.weight": net[i].weight.detach() for i in (0, 1, 4)}
    counts = [weight.numel() for weight in weighted.values()]
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=sum(counts))), dtype=torch.float64)
    parts = zip(weighted.items(), signs.split(counts, dim=1), strict=True)
    weights = {name: weight * part.view(-1, *weight.shape) for (name, weight), part in parts}
    exact = gradients_for(net, weights, x).square().mean(0)
    torch.testing.assert_close(exact, theory.path_second_moment(net, x=x), rtol=1e-12, atol=1e-15)
    by_means = theory.path_second_moment(net, (1, 1, 2))  # without images, as by a law: one variance for all
    assert float(by_means[0, 0, 0]) == pytest.approx(float(by_means[0, 0, 1]), rel=1e-12)


def test_depthwise_layers_behind_batch_norm_have_the_counted_level():
    """MNASNet at 32 px, with one place in its last maps: the mean square of all weights would be 30 times too large."""
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = torchvision.models.mnasnet0_5().eval()
    models.calibrate_batch_norm(net, x)
    leaf = x[:2].requires_grad_()
    out = net(leaf)[:, :10]
    pulled = [torch.autograd.grad(out[:, k].sum(), leaf, retain_graph=True)[0] for k in range(10)]
    level = torch.stack(pulled).double().square().sum((2, 3, 4)).mean()
    assert abs(math.log(float(level / theory.path_second_moment(net, x=x[:2].detach()).sum()))) < 1


@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_entries_are_uncorrelated_over_all_signs(padding):
    """Two pixels of one gradient, with real gates and shared weights: the mean of their product is 0."""
    kernel = {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": padding, "bias": False}
    first, second = nn.Conv2d(1, 1, **kernel), nn.Conv2d(1, 1, stride=(1, 2), **kernel)
    net = net_of(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False), shape=(1, 1, 6))
    g = all_gradients(net, images(1, 1, 1, 6, seed=2)).flatten(1)
    moments = g.T @ g / len(g)
    torch.testing.assert_close(moments, moments.diag().diag(), rtol=0, atol=1e-14)
    assert moments.diag().min() > 0


def test_real_maxima_are_not_the_independent_gates_of_the_count():
    """The docstring's caveat: a maximum prefers open gates, and the count is then a lower value."""
    x = torch.tensor([[[[0.9, 0.2, 0.3, 0.8]]]], dtype=torch.float64)
    layers = [nn.Conv2d(1, 1, (1, 2), stride=(1, 2), bias=False), nn.MaxPool2d((1, 2)), nn.ReLU(), nn.Flatten()]
    net = net_of(*layers, nn.Linear(1, 1, bias=False), shape=(1, 1, 4))
    # Of four sign patterns of the kernel, three leave the larger of its two outputs positive, and not two.
    assert float(all_signs(net, x).sum()) == pytest.approx(3, rel=1e-12)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2, rel=1e-12)


# Monte Carlo over real He networks of width 8

NETS = {
    "mlp": ("mlp", (1, 4, 4), {}),
    "strided, reflect": ("conv_strided", (1, 6, 6), {"depth": 3, "readout": "fc", "padding": "reflect"}),
    "strided, zeros": ("conv_strided", (1, 6, 6), {"depth": 3, "readout": "fc", "padding": "zeros"}),
    "strided, circular": ("conv_strided", (1, 6, 6), {"depth": 3, "readout": "fc", "padding": "circular"}),
    "dilated, reflect": (
        "conv_dilated",
        (1, 6, 6),
        {"depth": 2, "readout": "fc", "pooling": "none", "base_size": 3},
    ),
}


def sample(name, shape, options, n, init="he"):
    """Gradients of the one logit of n networks of width 8 at one x, [n, *shape], weights drawn by the layers' laws."""
    net = models.build(name, shape, 1, init=init, width=8, **options).double()
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: math.sqrt(layer.weight_law.variance)
        * torch.randn(n, *layer.weight.shape, generator=generator, dtype=torch.float64)
        for key, layer in named_weights(net).items()
    }
    return gradients_for(net, weights, images(1, *shape, seed=4))


@pytest.mark.parametrize("which", NETS)
def test_real_networks_have_the_counted_second_moments(which):
    name, shape, options = NETS[which]
    squares = sample(name, shape, options, 1000).square()
    v = theory.path_second_moment(models.build(name, shape, 1, width=8, **options))
    error = squares.std(0) / math.sqrt(len(squares))
    z = (squares.mean(0) - v) / error
    assert float(z.abs().max()) < 4
    total = squares.flatten(1).sum(1)
    assert abs(float(total.mean() - v.sum())) < 4 * float(total.std()) / math.sqrt(len(total))
    assert float(total.std() / total.mean()) / math.sqrt(len(total)) < 0.05  # the test can see a bias of a fifth


def law_of_squared_norm(d, widths, c, n, rng):
    r"""Samples of c * prod_l (2 / n_l) chi2_{B_l} * chi2_d / d with B_l ~ Binomial(n_l, 1/2).

    For fixed u, |D W u|^2 has the law |u|^2 (2 / n_in) chi2_B: a gate flips with its row's sign, and so is independent
    of the square. Hence the law of u . grad f depends on |u| alone, for each u; by Cramer and Wold grad f is a Gaussian
    vector times an independent length, and its squared norm has the law of (u . grad f)^2 with chi2_1 made chi2_d.
    """
    product = c * rng.chisquare(d, n) / d
    for width in widths:
        open_gates = rng.binomial(width, 0.5, n)
        product *= 2 / width * np.where(open_gates > 0, rng.chisquare(np.maximum(open_gates, 1)), 0.0)
    return product


@pytest.mark.parametrize(("depth", "init", "c"), [(2, "he_unit", 1), (3, "he", 2)])
def test_exact_law_of_an_mlps_gradient_norm(init, c, depth):
    """Two-sample Kolmogorov-Smirnov test, p above 1e-3; then the relative fourth moment prod (1 + 5/n_l) (1 + 2/d)."""
    d, width, n = 9, 8, 2000
    gradients = sample("mlp", (1, 3, 3), {"depth": depth}, n, init=init).flatten(1)
    squared = gradients.square().sum(1).numpy()
    widths = [width] * (depth - 1)
    simulated = law_of_squared_norm(d, widths, c, 100 * n, np.random.default_rng(0))
    assert stats.ks_2samp(squared, simulated).pvalue > 1e-3
    for wrong in (
        law_of_squared_norm(d, widths[1:], c, 100 * n, np.random.default_rng(0)),
        law_of_squared_norm(10 * d, widths, c, 100 * n, np.random.default_rng(0)),
    ):  # the test can tell a layer, or a dimension, from another
        assert stats.ks_2samp(squared, wrong).pvalue < 1e-3

    relative = math.prod(1 + 5 / m for m in widths) * (1 + 2 / d)
    fourth = (squared / c) ** 2
    assert abs(squared.mean() / c - 1) < 4 * (squared / c).std() / math.sqrt(n)
    assert abs(fourth.mean() - relative) < 4 * fourth.std() / math.sqrt(n)
    assert (simulated**2).mean() / simulated.mean() ** 2 == pytest.approx(relative, rel=0.05)
    # Isotropy: the direction is uniform, so each coordinate of grad / |grad| has mean square 1/d.
    share = gradients.square() / gradients.square().sum(1, keepdim=True)
    share = share[~share.isnan().any(1)]  # all gates of a layer may be shut
    assert ((share.mean(0) - 1 / d).abs() < 4 * share.std(0) / math.sqrt(len(share))).all()


def test_gradients_of_the_loss_follow_those_of_the_logits():
    """|grad L|^2 is a combination of the logits' gradients whose coefficients sum to 0."""
    net = models.build("mlp", (1, 4, 4), 5, width=8).double()
    x, y = images(3, 1, 4, 4), torch.tensor([0, 3, 4])
    coefficients = torch.softmax(net(x), 1) - nn.functional.one_hot(y, 5)
    logits = torch.stack([logit_gradient(net, x, k) for k in range(5)], dim=1)
    combined = (coefficients[:, :, None, None, None] * logits).sum(1)
    torch.testing.assert_close(measure.input_gradients(net, x, y), combined.detach(), rtol=1e-12, atol=1e-14)
