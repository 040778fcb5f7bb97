"""A network in training gives what it gives layer by layer: outputs, gradients in the parameters, statistics."""

import copy

import pytest
import torch
from torch import nn

from advdim import models, train
from advdim.models import fast
from advdim.models.fast import fold_batch_norm, trained_convolution
from advdim.models.fast.trained_convolution import TrainedConvolution

SHAPE = (3, 16, 16)


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request, monkeypatch):
    """Of the CPU, as PyTorch names it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


def dilated(dtype, **options):
    given = {"width": 6, "depth": 3, "batch_norm": True, "normalise": "batch", "base_size": 8} | options
    net = models.build("conv_dilated", SHAPE, 4, **given).to(dtype).train()
    generator = torch.Generator().manual_seed(1)
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, -1.5, 1.5, generator=generator)
            nn.init.normal_(m.bias, 0, 0.3, generator=generator)
    return net


def images(dtype, n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("size", "dilation"), [((6, 8), (2, 4)), ((7, 5), (3, 2)), ((4, 4), (1, 2))])
def test_the_gradient_in_a_weight_is_that_of_the_dilated_convolution(size, dilation):
    x = torch.randn(2, 3, size[0] + 2 * dilation[0], size[1] + dilation[1], dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    outputs = nn.functional.conv2d(x, weight, dilation=dilation)
    assert outputs.shape[2:] == size
    g = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, weight, g)
    found = trained_convolution.weight_gradient(g, x, weight, dilation)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


OPTIONS = {
    "section 4.2": {},
    "a bias": {"batch_norm": False},
    "zero padding": {"padding": "zeros"},
    "circular": {"padding": "circular"},
    "no dilation": {"base_size": 16},
    "no batch-norm of images": {"normalise": None},
}


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_that_of_the_network_itself(name, of_images, capability):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        found = []
        for way in ("quick", "plain"):
            net, x = dilated(dtype, **OPTIONS[name]), images(dtype).requires_grad_(of_images)
            with fast.in_training(net, twice=False) as quick:
                outputs = (quick if way == "quick" else net)(x)
                outputs.square().sum().backward()
            gradients = [*(p.grad for p in net.parameters()), *([x.grad] if of_images else [])]
            found.append([outputs.detach(), *gradients, *net.buffers()])
        for quickly, plainly in zip(*found, strict=True):
            # A shift of all images is lost in the next batch-norm: its gradient is 0, but for rounding.
            scale = max(1.0, float(plainly.double().abs().max()))
            torch.testing.assert_close(quickly, plainly, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("method", ["none", "gradient-l1", "pgd-linf", "augment-linf"])
def test_dilated_weights_have_their_gradients_by_phases_where_that_is_quicker(method, capability, monkeypatch):
    seen = []
    original = trained_convolution._phases
    monkeypatch.setattr(trained_convolution, "_phases", lambda *arguments: seen.append(0) or original(*arguments))
    recipe = train.Recipe(method, 0.0 if method == "none" else 0.01, epochs=1, batch_size=4)
    for dtype in (torch.float32, torch.float64):
        train.fit(dilated(dtype), images(dtype), torch.arange(4) % 4, recipe, progress=False)
        assert bool(seen) == (capability == "AVX2" and dtype == torch.float32)
        seen.clear()
    train.fit(dilated(torch.float32, base_size=16), images(torch.float32), torch.arange(4) % 4, recipe, progress=False)
    assert not seen


def test_the_first_batch_norm_costs_no_gradient_in_the_images():
    net = dilated(torch.float32)
    with fast.in_training(net, twice=False) as quick:
        graph, names = [quick[0](images(torch.float32)).grad_fn], set()
        while graph:
            node = graph.pop()
            names.add(node.name())
            graph += [before for before, _ in node.next_functions if before is not None]
    assert not any("BatchNorm" in name or "Pad" in name for name in names), names


@pytest.mark.parametrize("why", ["a hook", "twice", "off", "another model", "not on a CPU"])
def test_it_is_the_model_itself_elsewhere(why):
    net = dilated(torch.float32)
    if why == "a hook":
        net[1].register_forward_hook(lambda *_: None)
    if why == "another model":
        net = nn.ModuleList([net])
    if why == "not on a CPU":
        net.to("meta")
    with fast.disable() if why == "off" else torch.enable_grad(), fast.in_training(net, twice=why == "twice") as quick:
        assert quick is net
    with fast.in_training(dilated(torch.float32), twice=False) as quick:
        assert any(type(layer) is TrainedConvolution for layer in quick)


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_another_batch_norm_stays_as_it_is(options):
    net = nn.Sequential(nn.BatchNorm2d(3, **options), nn.Conv2d(3, 4, 3), nn.Flatten())
    with fast.in_training(net, twice=False) as quick:
        assert [type(layer) for layer in quick] == [nn.BatchNorm2d, nn.Conv2d, nn.Flatten]


def test_at_rest_it_is_the_network_at_rest():
    net = dilated(torch.float32).eval()
    with fast.in_training(net, twice=False) as quick:
        assert repr(fold_batch_norm.fold(quick)) == repr(fold_batch_norm.fold(net))
        copied = copy.deepcopy(quick)
    assert copied.state_dict().keys() != net.state_dict().keys()
    assert len(copied.state_dict()) == len(net.state_dict())
