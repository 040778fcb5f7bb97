"""The networks: every combination runs, and the identities that their layers promise hold exactly."""

import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advdim import data, measure, models
from advdim.models import initialise


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kinds(net):
    return [type(layer).__name__ for layer in net]


# Every combination


@pytest.mark.parametrize("name", ["conv_strided", "conv_dilated"])
@pytest.mark.parametrize("readout", models.READOUTS)
@pytest.mark.parametrize("pooling", models.POOLINGS)
def test_every_conv_net_runs(name, readout, pooling):
    x = images(2, 3, 16, 16)
    for padding, batch_norm, normalise in itertools.product(models.PADDINGS, (False, True), (None, "batch")):
        options = {"readout": readout, "pooling": pooling, "padding": padding, "batch_norm": batch_norm}
        net = models.build(name, (3, 16, 16), 7, width=4, depth=3, normalise=normalise, **options)
        y = net(x)
        assert y.shape == (2, 7)
        assert torch.isfinite(y).all()
        assert not any(module.training for module in net.modules())
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert kinds(net).count("BatchNorm2d") == 3 * batch_norm + (normalise == "batch")
        convs = [m for m in net if isinstance(m, nn.Conv2d)]
        assert {m.padding_mode for m in convs} == {padding}
        assert {m.bias is None for m in convs} == {batch_norm}
        # All but the first layer of the strided net halve the image, every second one of the dilated net.
        halvings = 0 if pooling == "none" else (2 if name == "conv_strided" else 1)
        trunk = list(net)[: max(i for i, m in enumerate(net) if isinstance(m, nn.ReLU)) + 1]
        assert nn.Sequential(*trunk)(x).shape == (2, 4, 16 // 2**halvings, 16 // 2**halvings)


@pytest.mark.parametrize("init", initialise.RULES)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_mlp_runs(init, batch_norm, depth):
    net = models.build("mlp", (2, 5, 5), 3, init=init, depth=depth, width=6, batch_norm=batch_norm)
    assert net(images(4, 2, 5, 5)).shape == (4, 3)
    shapes = [tuple(layer.weight.shape) for layer in initialise.weight_layers(net)]
    sizes = [50] + [6] * (depth - 1) + [3]
    assert shapes == list(zip(sizes[1:], sizes[:-1], strict=True))
    assert kinds(net).count("ReLU") == depth - 1


def test_defaults_are_the_papers_nets():
    strided = models.build("conv_strided", (3, 32, 32), batch_norm=True)
    convs = [m for m in strided if isinstance(m, nn.Conv2d)]
    assert [m.stride for m in convs] == [(1, 1)] + [(2, 2)] * 5
    assert {(m.out_channels, m.kernel_size, m.padding_mode, m.dilation) for m in convs} == {
        (64, (3, 3), "reflect", (1, 1))
    }
    assert kinds(strided)[-3:] == ["AvgPool2d", "Flatten", "Linear"]
    dilated = models.build("conv_dilated", (3, 64, 64), batch_norm=True)
    convs = [m for m in dilated if isinstance(m, nn.Conv2d)]
    assert {(m.stride, m.dilation, m.padding) for m in convs} == {((1, 1), (2, 2), (2, 2))}
    assert kinds(dilated)[:7] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert kinds(dilated)[-3:] == ["MaxPool2d", "Flatten", "Linear"]
    assert len(convs) == 8
    assert kinds(models.build("mlp", (1, 8, 8))) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_the_strided_net_is_its_layers_written_out():
    net = models.build("conv_strided", (1, 8, 8), 3, init="torch", width=4, depth=3, normalise=None).double()
    x = images(2, 1, 8, 8, dtype=torch.float64)
    h = x
    *convs, readout = initialise.weight_layers(net)
    for i, conv in enumerate(convs):
        h = F.relu(F.conv2d(F.pad(h, (1, 1, 1, 1), "reflect"), conv.weight, conv.bias, stride=2 if i else 1))
    torch.testing.assert_close(net(x), h.mean((2, 3)) @ readout.weight.T + readout.bias, rtol=1e-12, atol=1e-12)


def test_same_arguments_same_net_other_seed_other_net():
    x = images(1, 3, 16, 16)
    a, b, c = (models.build("conv_strided", (3, 16, 16), seed=s, width=4, depth=3)(x) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# Identities


def test_normalise_is_the_explicit_formula_inside_the_net():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    x = images(2, 3, 8, 8)
    with_layer = models.build("conv_strided", (3, 8, 8), width=4, depth=2, normalise=(mean, std))
    without = models.build("conv_strided", (3, 8, 8), width=4, depth=2)
    explicit = (x - mean[None, :, None, None]) / std[None, :, None, None]
    assert torch.equal(with_layer(x), without(explicit))


def test_batch_normalise_is_an_affine_map_of_the_images():
    net = models.build("mlp", (2, 4, 4), normalise="batch", width=8)
    x = images(40, 2, 4, 4)
    models.calibrate_batch_norm(net, x)
    normalised = net[0](x)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalised.var((0, 2, 3)), torch.ones(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_dilated_convolutions_of_a_pixel_copied_image_are_the_copied_maps(scale, padding):
    """A dilation of `scale` reads, of each block of copies, one pixel: the enlarged image tells the net nothing new."""
    options = {"width": 4, "depth": 3, "pooling": "none", "padding": padding, "base_size": 6}
    small, large = (models.build("conv_dilated", (2, size, size), **options).double() for size in (6, 6 * scale))
    x = images(2, 2, 6, 6, dtype=torch.float64)
    copied = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    maps = nn.Sequential(*list(small)[:-3])(x)
    enlarged = nn.Sequential(*list(large)[:-3])(copied)
    torch.testing.assert_close(
        enlarged, maps.repeat_interleave(scale, 2).repeat_interleave(scale, 3), rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(large(copied), small(x), rtol=1e-13, atol=1e-13)  # the global maximum is that of the map


@pytest.mark.parametrize("name", ["mlp", "conv_strided", "conv_dilated"])
def test_a_projected_net_sees_the_means_of_blocks(name):
    """On copied images it is the net without projection, and its gradient is constant over each block."""
    options = {} if name == "mlp" else {"depth": 2}
    plain, projected = (models.build(name, (3, 12, 12), width=5, project=p, **options).double() for p in (None, 4))
    copied = data.resize(images(2, 3, 4, 4, dtype=torch.float64), 12, "copy")
    torch.testing.assert_close(projected(copied), plain(copied), rtol=1e-12, atol=1e-12)
    noise = images(2, 3, 12, 12, seed=1, dtype=torch.float64)
    within = noise - data.resize(F.avg_pool2d(noise, 3), 12, "copy")
    torch.testing.assert_close(projected(copied + within), plain(copied), rtol=1e-12, atol=1e-12)
    assert (plain(copied + within) - plain(copied)).abs().max() > 1e-3
    g = measure.input_gradients(projected, noise, torch.tensor([0, 1]))
    torch.testing.assert_close(g, data.resize(g[..., ::3, ::3], 12, "copy"), rtol=1e-12, atol=1e-15)


def test_a_blurred_net_sees_circular_means():
    """Each pixel is the mean over the square around it, and rows and columns of the map sum to 1, as a lemma asks."""
    plain, blurred = (models.build("conv_strided", (1, 6, 6), width=3, depth=2, blur=b).double() for b in (None, 3))
    x = images(2, 1, 6, 6, dtype=torch.float64)
    shifts = [x.roll((i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    torch.testing.assert_close(blurred(x), plain(torch.stack(shifts).mean(0)), rtol=1e-12, atol=1e-12)
    blur = blurred[:2](torch.eye(36, dtype=torch.float64).view(36, 1, 6, 6)).flatten(1)
    assert (blur > 0).sum() == 36 * 9
    for sums in (blur.sum(0), blur.sum(1)):
        torch.testing.assert_close(sums, torch.ones(36, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "kind"), [("gelu", nn.GELU), ("softplus", nn.Softplus), ("relu", nn.ReLU)])
def test_an_activation_takes_the_place_of_every_relu(name, kind):
    for net in ("mlp", "conv_dilated"):
        options = {"width": 3, "depth": 3, "batch_norm": True}
        plain, other = (models.build(net, (1, 8, 8), activation=a, **options) for a in (None, name))
        assert kinds(other) == [kind.__name__ if k == "ReLU" else k for k in kinds(plain)]
        assert "ReLU" in kinds(plain)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))


def test_dilation_is_the_size_over_the_base():
    def dilation(size, **options):
        return models.build("conv_dilated", (1, size, size), width=2, depth=1, **options)[0].dilation[0]

    assert [dilation(size) for size in (8, 32, 64, 128)] == [1, 1, 2, 4]
    assert dilation(16, base_size=4) == 4
    with pytest.raises(ValueError, match=r"48.*32"):
        dilation(48)
    with pytest.raises(ValueError, match=r"16.*0"):
        dilation(16, base_size=0)


@pytest.mark.parametrize("readout", ["average", "max"])
def test_circular_nets_without_halving_do_not_see_shifts(readout):
    options = {"width": 4, "depth": 2, "pooling": "none", "padding": "circular", "readout": readout}
    net = models.build("conv_dilated", (1, 8, 8), **options).double()
    x = images(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x.roll((3, 1), (2, 3))), net(x), rtol=1e-12, atol=1e-12)


# Calibration of batch-norm


def test_calibrated_statistics_are_those_of_the_batch():
    """One layer: eval differs from train by the factor n / (n - 1) of the unbiased variance, and by nothing else."""
    net = models.build("conv_strided", (2, 6, 6), width=5, depth=1, batch_norm=True).double()
    x = images(10, 2, 6, 6, dtype=torch.float64)
    models.calibrate_batch_norm(net, x)
    conv, norm = net[0], net[1]
    h = conv(x)
    n = h.numel() // 5
    torch.testing.assert_close(norm.running_mean, h.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, h.var((0, 2, 3), correction=1), rtol=1e-12, atol=0)
    norm.eps, factor = 1e-300, ((n - 1) / n) ** 0.5
    evaluated = norm(h)
    torch.testing.assert_close(evaluated, factor * norm.train()(h), rtol=1e-10, atol=1e-10)


def test_calibrated_deep_net_agrees_with_train_mode():
    """Each of 3 layers is off by at most 1 / (n - 1) in the variance, with n = 64 images x the positions of its map."""
    net = models.build("conv_strided", (1, 8, 8), width=8, depth=3, batch_norm=True, normalise="batch").double()
    x = images(64, 1, 8, 8, dtype=torch.float64)
    models.calibrate_batch_norm(net, x)
    evaluated = net(x).detach()
    trained = net.train()(x).detach()
    assert float((evaluated - trained).abs().max() / trained.abs().max()) < 0.01
    assert float((evaluated - trained).abs().max()) > 0


def test_calibration_leaves_the_state_as_found_and_forgets_the_past():
    net = models.build("conv_strided", (1, 8, 8), width=4, depth=2, batch_norm=True)
    norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
    norms[0].momentum, norms[1].momentum = 0.3, None
    norms[1].train()
    state = [m.training for m in net.modules()]
    weights = [p.clone() for p in net.parameters()]
    for _ in range(2):  # the second time replaces the first
        models.calibrate_batch_norm(net, 5 + images(8, 1, 8, 8, seed=1))
        models.calibrate_batch_norm(net, images(8, 1, 8, 8))
    once = models.build("conv_strided", (1, 8, 8), width=4, depth=2, batch_norm=True)
    models.calibrate_batch_norm(once, images(8, 1, 8, 8))
    for a, b in zip(net.buffers(), once.buffers(), strict=True):
        assert torch.equal(a, b)
    assert [m.training for m in net.modules()] == state
    assert (norms[0].momentum, norms[1].momentum) == (0.3, None)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match="resize"):
        models.calibrate_batch_norm(net, images(8, 1, 9, 9))
    assert [m.training for m in net.modules()] == state
    assert norms[0].momentum == 0.3


# Refusals


@pytest.mark.parametrize(
    ("name", "shape", "options", "match"),
    [
        ("resnet", (3, 8, 8), {}, "'resnet'"),
        ("mlp", (3, 8, 8), {"init": "xavier"}, "'xavier'"),
        ("mlp", (3, 8, 9), {}, r"\(3, 8, 9\)"),
        ("mlp", (8, 8), {}, r"\(8, 8\)"),
        ("mlp", (0, 8, 8), {}, r"\(0, 8, 8\)"),
        ("mlp", (3, 8, 8), {"depth": 0}, "0"),
        ("mlp", (3, 8, 8), {"readout": "fc"}, "readout"),
        ("mlp", (3, 8, 8), {"padding": "zeros"}, "padding"),
        ("mlp", (3, 8, 8), {"width": 0}, "width.*0"),
        ("mlp", (3, 8, 8), {"classes": 0}, "classes.*0"),
        ("mlp", (3, 8, 8), {"normalise": "layer"}, "'layer'"),
        ("mlp", (3, 8, 8), {"normalise": ([0.5], [0.1])}, r"0\.5"),
        ("mlp", (1, 8, 8), {"normalise": ([0.5], [0.0])}, r"0\."),
        ("conv_strided", (3, 8, 8), {"readout": "mean"}, "'mean'"),
        ("conv_strided", (3, 8, 8), {"pooling": "median"}, "'median'"),
        ("conv_strided", (3, 8, 8), {"padding": "same"}, "'same'"),
        ("conv_strided", (3, 8, 8), {"base_size": 4}, "base_size"),
        ("conv_strided", (3, 8, 8), {"depth": -2}, "-2"),
        ("conv_strided", (3, 8, 8), {}, r"1 px.*depth = 4"),
        ("conv_dilated", (3, 8, 8), {"pooling": "max"}, r"1 px.*depth = 6"),
        ("conv_strided", (3, 1, 1), {"padding": "reflect"}, "1 px"),
        ("conv_dilated", (1, 16, 16), {"base_size": 1, "padding": "reflect"}, "16 px.*by 16"),
        ("mlp", (3, 8, 8), {"project": 3}, "got 3 and 8"),
        ("mlp", (3, 8, 8), {"project": 0}, "got 0 and 8"),
        ("mlp", (3, 8, 8), {"blur": 4}, "odd.*got 4"),
        ("mlp", (3, 8, 8), {"blur": 9}, "at most the image's 8, got 9"),
        ("mlp", (3, 8, 8), {"activation": "tanh"}, "'tanh'.*relu, gelu, softplus"),
    ],
)
def test_what_cannot_be_built_is_refused_by_value(name, shape, options, match):
    with pytest.raises(ValueError, match=match):
        models.build(name, shape, **options)


def attempt(name, size, depth, **options):
    """The net, or none and the depth that the refusal advises."""
    try:
        return models.build(name, (1, size, size), depth=depth, **options), None
    except ValueError as error:
        advice = re.search(r"px wide before layer.*use a larger image(?: or depth = ([1-9]))?$", str(error))
        return None, int(advice[1] or 0)


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("pooling", models.POOLINGS)
@pytest.mark.parametrize("name", ["conv_strided", "conv_dilated"])
def test_what_is_built_runs_and_the_depth_that_the_refusal_names_builds(name, pooling, padding):
    for size in (1, 2, 3, 4, 6, 8):
        options = {"width": 2, "pooling": pooling, "padding": padding, "base_size": 2 if name[5] == "d" else None}
        if name == "conv_dilated" and size % 2:
            continue
        for depth in (1, 4, 7):
            net, advised = attempt(name, size, depth, **options)
            if advised:
                net, _ = attempt(name, size, advised, **options)
            elif net is None:
                continue  # not even one layer fits
            assert net is not None
            assert net(images(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (2, 3, 16, 16), (3, 8, 8)])
def test_images_of_another_shape_are_refused_by_value(shape):
    net = models.build("conv_strided", (3, 8, 8), width=4, depth=2)
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        net(torch.zeros(shape))


def test_a_slice_of_a_network_is_its_layers():
    net = models.build("conv_strided", (1, 8, 8), depth=2, width=4, batch_norm=True)
    x = torch.rand(3, 1, 8, 8)
    readout = net[-1]
    assert isinstance(readout, torch.nn.Linear)
    torch.testing.assert_close(readout(net[:-1](x)), net(x), rtol=0, atol=0)
    assert net[1:3][0] is net[1]
