"""Which of the theorem's assumptions a network meets, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch
from helpers.by_hand import images
from torch import nn

from advdim import models, theory
from advdim.models import initialise


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
    net[3].weight, net[3].weight_law = net[1].weight, net[1].weight_law
    return net


def calibrated():
    net = conv(batch_norm=True)
    models.calibrate_batch_norm(net, images(16, 1, 8, 8).float())
    return net


def sparse(stride):
    """A strided 1x1 convolution that sees one pixel in 16, or in 4, which leaves half of the l_1 norm."""
    readout = nn.Linear(8 * (8 // stride) ** 2, 10)
    net = models.Net(
        nn.Conv2d(1, 8, 1, stride=stride), nn.ReLU(), nn.Flatten(), readout, image_shape=(1, 8, 8), classes=10
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
        del layer.weight_law
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
    (lambda: sparse(4), "S"),
    (lambda: sparse(2), "S"),
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
        del layer.weight_law
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
    assert f"by up to a factor {v.max() / v.min():.3g}," in theory.check_assumptions(net)["S"].why


# Refusals


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([nn.Flatten(), nn.Linear(16, 4), nn.Sigmoid(), nn.Linear(4, 2)], "Sigmoid"),
        ([nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)], "LayerNorm"),
        ([nn.Flatten()], "no weights"),
        ([nn.AvgPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(4, 2)], "padding"),
        ([nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(4, 2)], "ceil_mode"),
    ],
)
def test_unknown_layers_are_named(layers, match):
    net = nn.Sequential(*layers)
    with pytest.raises(TypeError, match=match):
        theory.path_second_moment(net, (1, 4, 4))
    if match == "no weights":
        with pytest.raises(TypeError, match=match):
            theory.check_assumptions(net)
    elif match != "Sequential":  # which is unrolled
        report = theory.check_assumptions(net)
        assert not report.hold
        assert report["S"].status == "not covered"
        assert match in report["H1"].why


def test_nesting_identities_and_sleeping_dropout_change_no_judgement():
    net = conv(padding="circular")
    *body, readout = list(net)
    nested = nn.Sequential(nn.Sequential(nn.Identity(), nn.Sequential(*body)), nn.Dropout(0.5), readout).eval()
    plain, found = theory.check_assumptions(net), theory.check_assumptions(nested, net.image_shape)
    assert str(found) == str(plain)
    assert theory.check_assumptions(nested.train(), net.image_shape)["H1"].status == "not covered"


def test_an_average_over_all_places_is_one_over_a_window():
    torch.manual_seed(0)
    first, last = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Linear(4, 10)
    pools = (nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), nn.AvgPool2d(8))
    nets = [nn.Sequential(first, nn.ReLU(), pool, nn.Flatten(), last) for pool in pools]
    adaptive, pair, windows = (theory.check_assumptions(net, (1, 8, 8)) for net in nets)
    assert str(adaptive) == str(pair) == str(windows)
    assert adaptive["H5"].status == "fails"


def test_whether_training_correlated_somebody_elses_weights_is_unknown():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images(10, 1, 8, 8).float()), torch.arange(10)).backward()
        optimiser.step()
    report = theory.check_assumptions(net, (1, 8, 8))
    assert {report["H4"].status, report["H5"].status} == {"unknown"}
    assert "cannot be seen" in str(report)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x):
        return self.last((x + self.inside(x).relu()).flatten(1))


def test_branches_are_shown_by_tracing_and_not_covered():
    report = theory.check_assumptions(Residual())
    assert not report.hold
    assert report["H2"].status == "not covered"
    assert "meet again in 1 sums:" in report["H2"].why
    assert "Residual is no sequence of layers" in report["H1"].why
    assert report["H4"].status == "unknown"


class Gated(Residual):
    def forward(self, x):
        gates = self.inside(x).sigmoid() * 2  # by a number: no second path
        return self.last(torch.cat([x[:, :, :4], (x * gates)[:, :, 4:]], 2).flatten(1))


def test_sums_concatenations_and_products_are_counted_apart():
    assert "meet again in 1 concatenations, 1 products:" in theory.check_assumptions(Gated())["H2"].why


def test_an_average_over_one_place_is_none():
    layers = [nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    plain = nn.Sequential(*layers)
    initialise.he_(plain, torch.Generator().manual_seed(0))
    for kind in (nn.AvgPool2d, nn.MaxPool2d):
        net = nn.Sequential(*layers[:2], kind(1), *layers[2:])
        assert str(theory.check_assumptions(net, (1, 8, 8))) == str(theory.check_assumptions(plain, (1, 8, 8)))


def test_a_network_that_cannot_be_traced_is_said_to_be_so():
    class Decides(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    assert "could not be traced" in theory.check_assumptions(Decides())["H2"].why


def test_batch_norm_in_branches_counts_where_it_does_something():
    net = Residual().eval()
    net.norm = nn.BatchNorm2d(1).eval()
    assert theory.check_assumptions(net)["H4"].status == "unknown"
    net.norm.running_mean += 0.5
    net.norm.running_var *= 2
    assert theory.check_assumptions(net)["H4"].status == "fails"


def test_a_line_of_unknown_operations_is_said_to_be_one():
    class Line(Residual):
        def forward(self, x):
            return self.last(self.inside(x).sigmoid().flatten(1))

    assert "traced to a line of operations" in theory.check_assumptions(Line())["H2"].why


def test_gelu_is_no_relu():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))
    assert theory.check_assumptions(net, (1, 8, 8))["H1"].status == "fails"
    assert "GELU is no ReLU" in str(theory.check_assumptions(net, (1, 8, 8)))


def test_windows_over_the_border_have_path_sums_and_no_judgement():
    """Their path sums are known, but (H1) to (H5) are judged for other sequences only."""
    net = nn.Sequential(nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(4, 2))
    report = theory.check_assumptions(net, (1, 4, 4))
    assert not report.hold
    assert "padding" in report["H1"].why


def test_networks_that_have_no_shape_are_refused():
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


@pytest.mark.parametrize(("padding", "status"), [("valid", "holds"), (0, "holds"), ("same", "fails"), (1, "fails")])
def test_only_padding_that_adds_zeros_lowers_the_in_degree(padding, status):
    side = 6 if padding in ("valid", 0) else 8
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=padding), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side**2, 2))
    initialise.he_(net, torch.Generator().manual_seed(0))
    assert theory.check_assumptions(net, image_shape=(1, 8, 8))["H3"].status == status


@pytest.mark.parametrize(("init", "ratio", "layers"), [("torch", 1 / 6, "1, 2, 3"), ("he_unit", 0.5, "3")])
def test_the_ratio_of_variances_is_printed(init, ratio, layers):
    """Uniform weights in +-1 / sqrt(n) have variance 1 / (3 n), a sixth of He's; a readout of unit gain has half."""
    net = models.build("mlp", (1, 16, 16), 40, init=init, width=200)
    why = theory.check_assumptions(net)["H3"].why
    said = re.search(r"the variance is (\S+) times 2 / in-degree in weight layer (.*)$", why)
    assert float(said[1]) == pytest.approx(ratio, rel=0.04)
    assert said[2] == layers


@pytest.mark.parametrize(("factors", "expected"), [([2, 2, 2], [4]), ([0.5, 2, 2], [0.25, 4])])
def test_ratios_that_differ_are_printed_as_a_range(factors, expected):
    net = models.build("mlp", (1, 16, 16), 40, init="he", width=200)
    for layer, factor in zip(initialise.weight_layers(net), factors, strict=True):
        layer.weight.data *= factor
    said = re.search(r"the variance is (\S+)(?: to (\S+))? times", theory.check_assumptions(net)["H3"].why)
    assert [float(number) for number in said.groups() if number] == pytest.approx(expected, rel=0.1)


def pooled(kind, **options):
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), kind(2, **options), nn.Flatten())
    return nn.Sequential(*trunk, nn.Linear(trunk(torch.zeros(1, 1, 8, 8)).shape[1], 2))


def test_windows_over_the_border_are_taken_for_maxima_and_refused_for_averages():
    for kind in (nn.MaxPool2d, nn.AvgPool2d):
        for inside in ({}, {"padding": 0}, {"padding": (0, 0)}):
            theory.path_second_moment(pooled(kind, **inside), (1, 8, 8))
    net = pooled(nn.MaxPool2d, padding=1)
    for layer in (net[0], net[4]):  # (H3), so that paths lose nothing but at the corners' and borders' windows
        layer.weight_law = initialise.WeightLaw(2 / initialise.in_degree(layer), initialise.weight_total(layer))
    # Of 36 maps' entries, 4 have a window of their own, 16 share one with another, 16 with three: each window gives
    # what its place gets to one of them, chosen with equal chances, and the readout has 16 places of 2 channels.
    assert float(theory.path_second_moment(net, (1, 8, 8)).sum()) == pytest.approx(2, rel=1e-9)
    for over in (1, (1, 0), (0, 1)):
        assert theory.path_second_moment(pooled(nn.MaxPool2d, padding=over), (1, 8, 8)).sum() > 0
    for over in ({"padding": 1}, {"padding": (1, 0)}, {"padding": (0, 1)}, {"ceil_mode": True}):
        with pytest.raises(TypeError):
            theory.path_second_moment(pooled(nn.AvgPool2d, **over), (1, 8, 8))
    with pytest.raises(TypeError, match="ceiled windows need images"):
        theory.path_second_moment(pooled(nn.MaxPool2d, ceil_mode=True), (1, 8, 8))
