"""A convolution of images, its gradient in them computed by blocks of pixels: that of the convolution itself."""

import pytest
import torch
from torch import nn

from advdim.models import fast
from advdim.models.fast import block_convolution, fold_batch_norm

CONVOLUTIONS = {
    # name: (options of the layer, size of the images)
    "reflect": ({"padding": 1, "padding_mode": "reflect"}, (4, 4)),
    "circular": ({"padding": 1, "padding_mode": "circular"}, (4, 5)),
    "zeros": ({"padding": 1}, (5, 4)),
    "most zeros": ({"padding": 2}, (5, 5)),
    "no padding": ({}, (5, 6)),
    "no bias": ({"padding": 1, "bias": False}, (5, 5)),
    "large kernel": ({"kernel_size": 5, "padding": 2, "padding_mode": "reflect"}, (5, 6)),
    "oblong kernel": ({"kernel_size": (2, 4), "padding": (1, 2)}, (4, 5)),
}


def convolution(channels=3, dtype=torch.float64, outputs=5, **options):
    torch.manual_seed(2)
    return nn.Conv2d(channels, outputs, **{"kernel_size": 3, **options}).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_gradient_convolve_by_blocks_of_pixels_is_that_of_the_convolution(name, channels):
    options, size = CONVOLUTIONS[name]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        layer = convolution(channels, dtype, **options)
        quick = block_convolution.ImageConvolution(layer)
        x = torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
        outputs = layer(x)
        assert torch.equal(quick(x), outputs)
        direction = torch.randn_like(outputs)
        found = [torch.autograd.grad(module(x), x, direction)[0] for module in (quick, layer)]
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
    x = x.detach()[:1].double().requires_grad_()
    quick = block_convolution.ImageConvolution(convolution(channels, outputs=2, **options))
    assert torch.autograd.gradcheck(quick, x)
    assert torch.autograd.gradgradcheck(lambda x: quick(x).square(), x)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_in_training_the_gradients_convolve_by_blocks_are_those_of_the_convolution(name):
    options, size = CONVOLUTIONS[name]
    layer = convolution(**options).requires_grad_(True)
    padding = layer.padding if layer.padding_mode == "zeros" else 0

    def outputs(x, way):
        found = way(x, layer.weight, layer.bias, (1, 1), padding, 1, 1)
        by_blocks = way is block_convolution.convolve_by_blocks
        assert found.grad_fn.name() == ("_ByBlocksBackward" if by_blocks else "ConvolutionBackward0")
        return found

    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    parameters = [x, *layer.parameters()]
    direction = torch.randn_like(outputs(x, torch.conv2d))
    ways = (block_convolution.convolve_by_blocks, torch.conv2d)
    found = [torch.autograd.grad(outputs(x, way), parameters, direction) for way in ways]
    assert len(found[0]) == (2 if layer.bias is None else 3)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_training_in_bfloat16_goes_convolve_by_blocks_where_an_image_s_gradient_is_asked_for():
    layer = convolution(dtype=torch.float32, padding=1, padding_mode="reflect").requires_grad_(True)
    x = torch.randn(4, 3, 8, 8)
    found = []
    for quick in (True, False):
        leaf = x.clone().requires_grad_()
        outputs = layer(leaf)
        if quick:
            with fast.autocast(x.device):
                assert layer(x).grad_fn.name() == "ConvolutionBackward0"
                outputs = layer(leaf)
        assert (outputs.grad_fn.name() == "_ByBlocksBackward") == quick
        found.append(torch.autograd.grad(outputs.float().square().mean(), [leaf, *layer.parameters()]))
    for g, exact in zip(*found, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_an_image_without_a_batch_goes_the_usual_way():
    layer, x = convolution(dtype=torch.float32, padding=1), torch.randn(3, 8, 8, requires_grad=True)
    with fast.autocast(x.device):
        outputs = layer(x)
    assert torch.autograd.grad(outputs.sum(), x)[0].shape == x.shape


def test_in_bfloat16_too_the_gradient_convolve_by_blocks_is_that_of_the_convolution():
    layer = convolution(dtype=torch.float32, padding=1, padding_mode="reflect")
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    found = []
    for module in (block_convolution.ImageConvolution(layer), layer):
        with fast.autocast(x.device):
            outputs = module(x)
            assert outputs.dtype == torch.bfloat16
        found.append(torch.autograd.grad(outputs.sum(), x)[0])
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


def test_weights_that_rest_are_cast_once():
    net = nn.Sequential(convolution(dtype=torch.float32, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 3), nn.Flatten())
    x = torch.randn(4, 3, 8, 8)
    with fast.autocast(x.device), fast.at_rest(net) as frozen:
        convolutions = [m for m in frozen.modules() if isinstance(m, nn.Conv2d)]
        assert [m.weight.dtype for m in convolutions] == [torch.bfloat16] * 2
        assert torch.equal(frozen(x), net(x))
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    with fast.at_rest(net) as frozen:
        assert {p.dtype for p in frozen.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("quick", "options"),
    [
        (True, {}),
        (True, {"channels": 4, "padding": 1, "padding_mode": "reflect"}),
        (False, {"channels": 5}),
        (False, {"stride": 2}),
        (False, {"dilation": 2}),
        (False, {"groups": 1, "padding": "same"}),
        (False, {"padding": 3}),
        (False, {"kernel_size": 1}),
        (False, {"dtype": torch.float64}),
    ],
)
def test_only_some_convolutions_go_convolve_by_blocks_and_only_at_rest(quick, options):
    layer = convolution(**{"dtype": torch.float32, **options})
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    assert any(isinstance(m, block_convolution.ImageConvolution) for m in fold_batch_norm.fold(net)) == quick
    layer.requires_grad_(True)
    assert not any(isinstance(m, block_convolution.ImageConvolution) for m in fold_batch_norm.fold(net))
    with fast.at_rest(net) as frozen:
        assert any(isinstance(m, block_convolution.ImageConvolution) for m in frozen) == quick
