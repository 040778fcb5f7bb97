"""Path sums against paths counted one by one, all sign patterns, and real ReLU networks; the exact law of a gradient.

Exact identities hold to 1e-12. Monte Carlo means must lie within 4 standard errors, all seeds being fixed.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from advdim import initialise, measure, models, theory


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logit_gradient(net, x, k=0):
    """Gradient of one output by plain autograd, without the package."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x)[:, k].sum(), x)[0]


# Paths, counted one by one in pure Python: a neuron is (channel, row, column), an edge carries a weight's second moment


def source(index, size, mode):
    """The pixel that a padded coordinate copies, or None where it is a zero."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "circular":
        return index % size
    return -index if index < 0 else 2 * (size - 1) - index


def edges(layer, shape):
    """The inputs of every neuron of a layer, as {neuron: [(input neuron, factor)]}, and the layer's shape."""
    channels, height, width = shape
    if isinstance(layer, nn.Linear):
        inputs = list(itertools.product(range(channels), range(height), range(width)))
        return {(k, 0, 0): [(i, layer.drawn.variance) for i in inputs] for k in range(layer.out_features)}, (
            layer.out_features,
            1,
            1,
        )
    kernel, stride = layer.kernel_size, layer.stride
    if isinstance(layer, nn.Conv2d):
        (rows, columns), steps, (pad, _), (dilation, _) = kernel, stride, layer.padding, layer.dilation
        mode, out, step = layer.padding_mode, layer.out_channels, steps[0]
    else:  # a pooling window, over one channel
        (rows, columns), pad, dilation, mode, out, step = (kernel, kernel), 0, 1, "zeros", channels, stride
    reach = dilation * (rows - 1) + 1
    high = (height + 2 * pad - reach) // step + 1
    wide = (width + 2 * pad - dilation * (columns - 1) - 1) // step + 1
    found = {}
    for o, a, b in itertools.product(range(out), range(high), range(wide)):
        taps = []
        for i, u, v in itertools.product(range(channels), range(rows), range(columns)):
            row = source(step * a + dilation * u - pad, height, mode)
            column = source(step * b + dilation * v - pad, width, mode)
            if row is None or column is None or (not isinstance(layer, nn.Conv2d) and i != o):
                continue
            if isinstance(layer, nn.Conv2d):
                factor = layer.drawn.variance
            else:  # an average has weights 1/k; a maximum lets one of k inputs through, each with chance 1/k
                factor = 1 / kernel**4 if isinstance(layer, nn.AvgPool2d) else 1 / kernel**2
            taps.append(((i, row, column), factor))
        found[o, a, b] = taps
    return found, (out, high, wide)


def count_paths(net, k=0):
    """Sum, over all paths from each pixel to output k, of the product of variances and of 1/2 per ReLU."""
    shape, levels, gates = net.image_shape, [], []
    for layer in net:
        if isinstance(layer, nn.ReLU):
            gates[-1] *= 0.5
        elif not isinstance(layer, nn.Flatten):
            inputs, shape = edges(layer, shape)
            levels.append(inputs)
            gates.append(1.0)
    moment, paths = np.zeros(net.image_shape), 0

    def walk(level, neuron, product):
        nonlocal paths
        if level < 0:
            moment[neuron] += product
            paths += 1
            return
        for before, factor in levels[level][neuron]:
            walk(level - 1, before, product * factor * gates[level])

    walk(len(levels) - 1, (k, 0, 0), 1.0)
    return moment, paths


@pytest.mark.parametrize("init", ["he", "he_unit", "torch", "ntk", "mup"])
def test_path_sums_of_an_mlp_are_the_paths_counted(init):
    net = models.build("mlp", (2, 2, 2), init=init, width=4, depth=3)
    counted, paths = count_paths(net)
    assert paths == 8 * 4 * 4
    np.testing.assert_allclose(theory.path_second_moment(net), counted, rtol=1e-12)


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("pooling", models.POOLINGS)
@pytest.mark.parametrize("readout", models.READOUTS)
def test_path_sums_of_conv_nets_are_the_paths_counted(padding, pooling, readout):
    net = models.build(
        "conv_strided", (1, 5, 5), width=2, depth=2, padding=padding, pooling=pooling, readout=readout, classes=2
    )
    for k in (0, 1):
        np.testing.assert_allclose(theory.path_second_moment(net), count_paths(net, k)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("padding", models.PADDINGS)
def test_path_sums_of_a_dilated_net_are_the_paths_counted(padding):
    net = models.build("conv_dilated", (1, 6, 6), width=1, depth=2, padding=padding, base_size=3, readout="fc")
    assert net[0].dilation == (2, 2)
    np.testing.assert_allclose(theory.path_second_moment(net), count_paths(net)[0], rtol=1e-12, atol=1e-15)


# Sums


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("pooling", ["stride", "none", "max"])
@pytest.mark.parametrize(("init", "c"), [("he", 2), ("he_unit", 1), ("ntk", 2), ("torch", None)])
def test_the_sum_of_all_paths_is_that_of_the_readout(padding, pooling, init, c):
    """Theorem 5: 1/in-degree times in-degree at every neuron, whatever strides, dilations, depths and sizes."""
    for name, size, depth, base in (
        ("conv_strided", 8, 1, None),
        ("conv_strided", 9, 3, None),
        ("conv_dilated", 8, 4, 8),
        ("conv_dilated", 24, 2, 8),
        ("conv_dilated", 32, 3, 8),
    ):
        net = models.build(
            name,
            (3, size, size),
            init=init,
            width=3,
            depth=depth,
            padding=padding,
            pooling=pooling,
            readout="fc",
            base_size=base,
        )
        # Under "torch" each hidden layer has a sixth of He's variance, and so has the readout.
        expected = 2 / 6 ** (depth + 1) if c is None else c
        if pooling == "max" and size == 9:
            expected = None  # a window that does not divide the map leaves its last row and column out
        total = float(theory.path_second_moment(net).sum())
        if expected is None:
            assert total < c if c else total
        else:
            assert total == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_zero_padding_loses_the_paths_over_the_border(size):
    """One layer, by hand: of 9 (n + 2)^2 pairs, a kernel at the border misses 3 per side and 1 more per corner."""
    net = models.build("conv_strided", (1, size, size), width=2, depth=1, padding="zeros", readout="fc")
    expected = 2 * (3 * size - 2) ** 2 / (3 * size) ** 2
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(expected, rel=1e-12)
    deeper = models.build("conv_strided", (1, size, size), width=2, depth=3, padding="zeros", readout="fc")
    assert float(theory.path_second_moment(deeper).sum()) < expected


@pytest.mark.parametrize("k", [1, 2, 4])
def test_an_average_over_k_inputs_keeps_one_in_k(k):
    options = {"width": 2, "padding": "circular"}
    net = models.build("conv_strided", (1, 8, 8), depth=k, pooling="average", readout="fc", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2 / 4 ** (k - 1), rel=1e-12)
    net = models.build("conv_strided", (1, 2 * k, 2 * k), depth=1, readout="average", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2 / (2 * k) ** 2, rel=1e-12)
    net = models.build("conv_strided", (1, 2 * k, 2 * k), depth=1, readout="max", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2, rel=1e-12)


def test_normalisation_and_batch_norm_scale_the_path_sums():
    mean, std = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.5])
    bare = theory.path_second_moment(models.build("mlp", (2, 3, 3), width=4))
    scaled = theory.path_second_moment(models.build("mlp", (2, 3, 3), width=4, normalise=(mean, std)))
    torch.testing.assert_close(scaled, bare / std.double().view(2, 1, 1) ** 2, rtol=1e-12, atol=0)
    net = models.build("mlp", (2, 3, 3), width=4, batch_norm=True)
    norms = [m for m in net if isinstance(m, nn.BatchNorm1d)]
    for m in norms:
        m.running_var.fill_(4.0)
        nn.init.constant_(m.weight, 3.0)
    torch.testing.assert_close(theory.path_second_moment(net), bare * (9 / (4 + norms[0].eps)) ** 2, rtol=1e-12, atol=0)


def test_predicted_norms():
    net = models.build("mlp", (1, 5, 5), width=4)
    predicted = theory.predicted_norms(net)
    assert predicted[2] == pytest.approx(math.sqrt(2), rel=1e-12)
    assert predicted[1] == pytest.approx(math.sqrt(2 * 25 / math.pi) * math.sqrt(2), rel=1e-12)
    zeros = models.build("conv_strided", (1, 8, 8), width=4, depth=2, padding="zeros", readout="fc")
    v = theory.path_second_moment(zeros)
    assert theory.predicted_norms(zeros)[1] == pytest.approx(
        sum(math.sqrt(2 * float(a) / math.pi) for a in v.flatten())
    )


# All sign patterns: the mean over them is an expectation under (H), with no sampling error at all


def all_signs(net, x):
    """Mean of the squared gradient of f_0 over all signs of all weights, whose sizes sqrt(2 / in-degree) stay."""
    layers = initialise.weight_layers(net)
    entries = [w for layer in layers for w in layer.weight.detach().view(-1).split(1)]  # views, one per weight
    for layer in layers:
        nn.init.constant_(layer.weight, math.sqrt(2 / initialise.in_degree(layer)))
        del layer.drawn
    total = torch.zeros_like(x[0])
    for signs in itertools.product((1.0, -1.0), repeat=len(entries)):
        for entry, sign in zip(entries, signs, strict=True):
            entry.abs_().mul_(sign)
        total += logit_gradient(net, x)[0] ** 2
    return total / 2 ** len(entries)


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
    """Gradients of the one logit of n networks of width 8 at one x, [n, *shape]."""
    x = images(1, *shape, seed=4)
    nets = (models.build(name, shape, 1, init=init, seed=seed, width=8, **options) for seed in range(n))
    return torch.stack([logit_gradient(net.double(), x)[0] for net in nets])


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


@pytest.mark.parametrize("name", ["mlp", "conv_strided"])
def test_theorems_4_and_5_from_the_path_sums_alone(name):
    """|grad|_2 does not depend on d, the l_1 norm grows as sqrt(d), and so does eps_p |grad|_q for every p."""
    options = {} if name == "mlp" else {"depth": 2, "readout": "fc", "padding": "circular", "pooling": "none"}
    one, two = [], []
    for size in (4, 8, 16):
        predicted = theory.predicted_norms(models.build(name, (1, size, size), width=4, **options))
        one.append(predicted[1])
        two.append(predicted[2])
    assert two == pytest.approx([math.sqrt(2)] * 3, rel=1e-12)
    assert np.diff(np.log(one)) / math.log(4) == pytest.approx([0.5, 0.5], rel=1e-12)


# Assumptions


def judged(net):
    return {item.name: item.status for item in theory.check_assumptions(net).items}


def step(net, rate=0.1):
    """One step of gradient descent on the cross-entropy of four images."""
    x = images(4, *net.image_shape).to(next(net.parameters()).dtype)
    nn.functional.cross_entropy(net(x), torch.arange(4)).backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= rate * p.grad
    return net


def conv(**options):
    return models.build("conv_strided", (1, 8, 8), **{"width": 8, "depth": 3, "readout": "fc", **options})


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("init", ["he", "ntk"])
def test_the_theorems_own_networks_meet_every_assumption(name, init):
    net = models.build("mlp", (1, 8, 8), init=init, width=8) if name == "mlp" else conv(init=init, padding="circular")
    report = theory.check_assumptions(net)
    assert report.hold
    statuses = {item.name: item.status for item in report.items}
    assert statuses["H1"] == "in effect"
    assert [statuses[h] for h in ("H2", "H3", "H4", "H5")] == ["holds"] * 4
    assert statuses["S"] == ("holds" if name == "mlp" else "in effect")
    assert str(report).splitlines()[2].split()[:2] == ["H3", "holds"]
    assert report["H4"].status == "holds"


def two_linear_layers():
    net = models.Net(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10), image_shape=(1, 8, 8), classes=10)
    initialise.he_(net, torch.Generator().manual_seed(0))
    return net


def shared():
    layer = nn.Linear(64, 64)
    net = models.Net(
        nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(64, 10), image_shape=(1, 8, 8), classes=10
    )
    initialise.he_(net, torch.Generator().manual_seed(0))
    return net


def tied():
    net = models.build("mlp", (1, 8, 8), width=64)
    net[3].weight, net[3].drawn = net[1].weight, net[1].drawn
    return net


def calibrated():
    net = conv(batch_norm=True)
    models.calibrate_batch_norm(net, images(16, 1, 8, 8).float())
    return net


def sparse():
    """A strided 1x1 convolution that sees one pixel in 16."""
    net = models.Net(
        nn.Conv2d(1, 8, 1, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10), image_shape=(1, 8, 8), classes=10
    )
    initialise.he_(net, torch.Generator().manual_seed(0))
    return net


def shifted():
    net = models.build("mlp", (1, 8, 8), width=8)
    with torch.no_grad():
        net[1].weight += 0.3
    return net


def positive():
    """The mean square stays that of (H3), the mean does not."""
    net = models.build("mlp", (1, 8, 8), width=8)
    for layer in initialise.weight_layers(net):
        layer.weight.data.abs_()
        del layer.drawn
    return net


FAILING = [
    (positive, "H3"),
    (lambda: models.build("mlp", (1, 8, 8), width=8), ""),
    (two_linear_layers, "H1"),
    (lambda: conv(pooling="max"), "H1"),
    (lambda: conv(pooling="average"), "H1 H3 H5"),
    (lambda: conv(readout="average"), "H1 H3 H5"),
    (lambda: conv(readout="max"), "H1"),
    (lambda: conv(padding="zeros"), "H3"),
    (lambda: conv(init="torch"), "H3"),
    (lambda: conv(init="he_unit"), "H3"),
    (lambda: conv(init="mup"), "H3"),
    (shifted, "H3 H4 H5"),
    (lambda: step(models.build("mlp", (1, 8, 8), width=8), rate=0.01), "H4 H5"),
    (lambda: step(models.build("mlp", (1, 8, 8), depth=1), rate=0.1), "H4 H5"),
    (lambda: step(conv(), rate=0.01), "H4 H5"),
    (lambda: step(conv(init="ntk"), rate=0.01), "H4 H5"),
    (shared, "H4"),
    (tied, "H4"),
    (lambda: conv(batch_norm=True), ""),  # fresh statistics in eval mode are the identity
    (calibrated, "H3 H4"),
    (lambda: conv(batch_norm=True).train(), "H1 H3 H4"),
    (sparse, "S"),
]


@pytest.mark.parametrize(("make", "failing"), FAILING)
def test_which_assumptions_fail(make, failing):
    net = make()
    assert {name for name, status in judged(net).items() if status == "fails"} == set(failing.split())
    assert theory.check_assumptions(net).hold == (not failing)


def test_the_judgement_survives_copies_dtypes_and_forward_passes():
    net = conv(padding="circular")
    before = judged(net)
    net(images(2, 1, 8, 8).float())
    assert judged(net) == before
    assert judged(net.double()) == before


def test_random_signs_of_the_right_size_meet_h3():
    net = models.build("mlp", (1, 8, 8), width=8)
    for layer in initialise.weight_layers(net):
        with torch.no_grad():
            layer.weight.copy_(layer.weight.sign() * math.sqrt(2 / layer.in_features))
        del layer.drawn
    assert theory.check_assumptions(net)["H3"].status == "holds"


def test_symmetry_says_how_much_of_the_l_1_norm_is_missing():
    """S to the letter for circular shifts by the stride; else the share lost is that of Cauchy and Schwarz."""
    assert (
        judged(models.build("conv_strided", (1, 8, 8), width=4, depth=1, readout="fc", padding="circular"))["S"]
        == "holds"
    )
    net = conv()
    v = theory.path_second_moment(net).numpy()
    lost = 1 - np.sqrt(v).sum() / math.sqrt(v.size * v.sum())
    assert f"{100 * lost:.1f}%" in theory.check_assumptions(net)["S"].why


# Refusals


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([nn.Flatten(), nn.Linear(16, 4), nn.Sigmoid(), nn.Linear(4, 2)], "Sigmoid"),
        ([nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)], "LayerNorm"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(16, 2))], "Sequential"),
        ([nn.Flatten()], "no weights"),
        ([nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(4, 2)], "padding"),
        ([nn.AvgPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(4, 2)], "padding"),
        ([nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(4, 2)], "ceil_mode"),
    ],
)
def test_unknown_layers_are_refused_by_name(layers, match):
    net = nn.Sequential(*layers)
    for call in (lambda: theory.path_second_moment(net, (1, 4, 4)), lambda: theory.check_assumptions(net)):
        with pytest.raises(TypeError, match=match):
            call()


def test_networks_that_are_no_sequence_or_have_no_shape_are_refused():
    with pytest.raises(TypeError, match="Linear"):
        theory.path_second_moment(nn.Linear(3, 2), (1, 1, 3))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for call in (theory.path_second_moment, theory.check_assumptions):
        with pytest.raises(ValueError, match="image_shape"):
            call(plain)
        call(plain, image_shape=(1, 4, 4))
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    with pytest.raises(TypeError, match="track_running_stats"):
        theory.path_second_moment(nn.Sequential(norm, *plain), (1, 4, 4))


def test_gradients_of_the_loss_follow_those_of_the_logits():
    """|grad L|^2 is a combination of the logits' gradients whose coefficients sum to 0."""
    net = models.build("mlp", (1, 4, 4), 5, width=8).double()
    x, y = images(3, 1, 4, 4), torch.tensor([0, 3, 4])
    coefficients = torch.softmax(net(x), 1) - nn.functional.one_hot(y, 5)
    logits = torch.stack([logit_gradient(net, x, k) for k in range(5)], dim=1)
    combined = (coefficients[:, :, None, None, None] * logits).sum(1)
    torch.testing.assert_close(measure.input_gradients(net, x, y), combined.detach(), rtol=1e-12, atol=1e-14)
