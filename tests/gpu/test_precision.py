"""Measurements and decisions are in full float32, whatever PyTorch is allowed to compute in."""

import math
from contextlib import contextmanager

import pytest
import torch
from helpers.on_device import given, images, network, numbers
from torch import nn

import advdim as ad
from advdim.models.device import full_float32

pytestmark = pytest.mark.gpu(noise=True)

INF = math.inf
backends = torch.backends


def setter(where, name, value):
    return lambda: setattr(where, name, value)


# PyTorch's switches, of both generations, and what brings each back.
SWITCHES = {
    "none": lambda: None,
    "everything": setter(backends, "fp32_precision", "tf32"),
    "CUDA's": setter(backends.cudnn, "fp32_precision", "tf32"),
    "CUDA's, exact": setter(backends.cudnn, "fp32_precision", "ieee"),
    "its recurrent layers'": setter(backends.cudnn.rnn, "fp32_precision", "ieee"),
    "its convolutions'": setter(backends.cudnn.conv, "fp32_precision", "ieee"),
    "its products'": setter(backends.cuda.matmul, "fp32_precision", "tf32"),
    "the CPU's": setter(backends.mkldnn, "fp32_precision", "bf16"),
    "the CPU's products'": setter(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old, of convolutions": setter(backends.cudnn, "allow_tf32", False),
    "old, of products": setter(backends.cuda.matmul, "allow_tf32", True),
}
KINDS = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
KINDS += [backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul]


def state():
    """What all switches say now, those that cannot be read included."""
    readers = [lambda k=k: k.fp32_precision for k in (backends, backends.cudnn, backends.mkldnn, *KINDS)]
    readers += [lambda: backends.cudnn.allow_tf32, lambda: backends.cuda.matmul.allow_tf32]
    found = []
    for read in (*readers, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("unreadable")
    return found


@contextmanager
def switched(name):
    """Turn a switch, and bring PyTorch's defaults back."""
    before = state()
    SWITCHES[name]()
    try:
        yield
    finally:
        backends.mkldnn.fp32_precision = "none"  # and with it, as it happens, the one for everything
        backends.fp32_precision = backends.cudnn.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        for kind in KINDS:
            kind.fp32_precision = "none"
        backends.cudnn.allow_tf32 = True
        assert state() == before


def error_of_norms(net, x, y):
    """Of l_1 and l_2 norms of gradients in float32, relative to those in float64."""
    exact = numbers(ad.measure.gradient_norms(net.double(), x.double(), y))
    return float((numbers(ad.measure.gradient_norms(net.float(), x.float(), y)) / exact - 1).abs().max())


@pytest.mark.parametrize("name", SWITCHES)
def test_measurements_are_in_float32_whatever_the_switches_say(name):
    g = given("cuda", torch.float32, batch_norm=False)
    mlp = ad.models.build("mlp", g.x.shape[1:], 4).cuda()
    with switched(name):
        for net in (g.net, mlp):
            assert error_of_norms(net, g.x, g.y) < 2e-5


@pytest.mark.parametrize("name", SWITCHES)
def test_all_switches_are_then_as_they_were(name):
    with switched(name):
        before = state()
        with full_float32():
            assert {kind.fp32_precision for kind in KINDS} <= {"none", "ieee"}
            with full_float32():
                pass
            assert {kind.fp32_precision for kind in KINDS} <= {"none", "ieee"}
        assert state() == before
        with pytest.raises(ZeroDivisionError), full_float32():
            raise ZeroDivisionError
        assert state() == before


def test_other_code_may_read_the_older_switches_meanwhile():
    with full_float32(), backends.cudnn.flags(enabled=False):
        assert not backends.cudnn.enabled


def test_without_it_the_gpu_rounds_to_tf32():
    """So that the tests above can fail."""
    x, weight = images(4, 3, 16, 16).float(), images(8, 3, 3, 3).float()
    exact = nn.functional.conv2d(x.double(), weight.double())
    for precise in (False, True):
        with full_float32() if precise else switched("none"):
            found = nn.functional.conv2d(x.cuda(), weight.cuda()).cpu()
        assert (float((found / exact - 1).abs().max()) < 5e-6) == precise


@pytest.mark.parametrize("p", [2, INF])
def test_deepfool_finds_every_boundary_that_the_cpu_finds(p):
    g, cpu = (given(d, torch.float32, n=24, readout="fc", batch_norm=False) for d in ("cuda", "cpu"))
    attacked = ad.attacks.deepfool(g.net, g.x, p=p)
    expected = ad.attacks.deepfool(cpu.net, cpu.x, p=p)
    assert ad.measure.vulnerability(cpu.net, cpu.x, expected).all()
    assert ad.measure.vulnerability(g.net, g.x, attacked).all()
    sizes = [float(ad.norms.norm(a - b, p).mean()) for a, b in ((attacked, g.x), (expected, cpu.x))]
    assert sizes[0] == pytest.approx(sizes[1], rel=2e-3)


def passes_in(dtype_of_pass):
    """A network that notes, per pass forward, whether convolutions may be in TF32 then."""

    class Noting(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            dtype_of_pass.append(backends.cudnn.conv.fp32_precision)
            return self.net(x)

    return Noting


@pytest.mark.parametrize(("early_stop", "restarts"), [(False, 1), (True, 1), (False, 3), (True, 3)])
def test_pgd_decides_in_float32_and_climbs_in_what_is_allowed(early_stop, restarts):
    seen = []
    g = given("cuda", torch.float32)
    net = passes_in(seen)(g.net).eval()
    generator = torch.Generator().manual_seed(0)
    options = {"random_start": True, "generator": generator, "early_stop": early_stop, "restarts": restarts}
    ad.attacks.pgd(net, g.x, g.y, p=INF, eps=1e-4, steps=2, **options)
    scores = restarts if restarts > 1 else 0
    steps = 2 * restarts
    assert len(seen) == steps + scores
    assert seen.count("none") == (steps if early_stop else 0) + scores  # passes in full float32
    assert backends.cudnn.conv.fp32_precision == "tf32"


def test_path_sums_count_gates_in_float32():
    seen = []
    g = given("cuda", torch.float32, batch_norm=False)
    for layer in g.net:
        layer.register_forward_pre_hook(lambda *_: seen.append(backends.cudnn.conv.fp32_precision))
    ad.theory.open_gate_shares(g.net, g.x)
    assert set(seen) == {"none"}


def test_training_in_float32_is_in_tf32():
    """Which is PyTorch's default, and what the records on a GPU were computed in."""
    seen = []
    net = network(width=4).float().cuda()
    net.register_forward_pre_hook(lambda m, _: seen.append(backends.cudnn.conv.fp32_precision) if m.training else None)
    recipe = ad.train.Recipe("pgd-linf", 0.01, epochs=1, batch_size=8)
    ad.train.fit(net, images(8, 3, 16, 16).float(), torch.arange(8) % 4, recipe, progress=False)
    assert set(seen) == {"tf32"}
