"""The same numbers on a CUDA device as on the CPU, in float64, and results that stay on the device."""

import math

import pytest
import torch

import advdim as ad

pytestmark = pytest.mark.gpu

close = {"rtol": 1e-9, "atol": 1e-11}


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_best_device_is_the_gpu():
    assert ad.device().type == "cuda"


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_norms_agree_with_the_cpu(p):
    x = images(4, 3, 8, 8) - 0.5
    q = ad.norms.dual(p)
    for call in (
        lambda t: ad.norms.norm(t, q),
        lambda t: ad.norms.steepest(t, p),
        lambda t: ad.norms.project(t, p, 0.7) if p != 1.5 else t,
        lambda t: ad.norms.project(t, p, t.flatten(1).abs().mean(1)) if p != 1.5 else t,
    ):
        found = call(x.cuda())
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), call(x), **close)


@pytest.mark.parametrize("name", ["mlp", "conv_strided", "conv_dilated"])
def test_measurements_agree_with_the_cpu(name):
    options = {} if name == "mlp" else {"depth": 4, "batch_norm": True}
    net = ad.models.build(name, (3, 32, 32), width=8, **options).double()
    x, y = images(8, 3, 32, 32), torch.arange(8)
    ad.models.calibrate_batch_norm(net, x)
    attacked = x + 0.1 * ad.norms.steepest(ad.measure.input_gradients(net, x, y), 2)
    expected = ad.measure.gradient_norms(net, x, y)
    damage = ad.measure.damage(net, x, y, attacked)
    changed = ad.measure.vulnerability(net, x, attacked)
    net, x, y, attacked = net.cuda(), x.cuda(), y.cuda(), attacked.cuda()
    for q, found in ad.measure.gradient_norms(net, x, y, batch_size=3).items():
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected[q], **close)
    torch.testing.assert_close(ad.measure.damage(net, x, y, attacked).cpu(), damage, **close)
    assert torch.equal(ad.measure.vulnerability(net, x, attacked).cpu(), changed)
    assert {p.device.type for p in net.parameters()} == {"cuda"}


@pytest.mark.parametrize("init", ad.initialise.RULES)
def test_theory_agrees_with_the_cpu(init):
    net = ad.models.build("conv_strided", (3, 16, 16), init=init, width=8, depth=3, readout="fc")
    expected, judged = ad.theory.path_second_moment(net), str(ad.theory.check_assumptions(net))
    net = net.cuda()
    found = ad.theory.path_second_moment(net)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, **close)
    assert str(ad.theory.check_assumptions(net)) == judged


def test_calibration_agrees_with_the_cpu():
    net = ad.models.build("conv_strided", (3, 16, 16), width=8, depth=3, batch_norm=True).double()
    x = images(32, 3, 16, 16)
    ad.models.calibrate_batch_norm(net, x)
    expected = {key: value.clone() for key, value in net.state_dict().items()}
    net.cuda()
    ad.models.calibrate_batch_norm(net, x.cuda())
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value.cpu(), expected[key], **close)
