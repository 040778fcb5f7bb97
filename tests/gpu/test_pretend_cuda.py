"""The pretended GPU refuses, counts and rounds as a GPU does; what a GPU itself can show, it is asked, too."""

import copy
import io

import numpy as np
import pytest
import torch
from helpers.pretend_cuda import CUDATensor, pretend_cuda, why_not
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.gpu(noise=False)

pretended = pytest.mark.skipif(torch.cuda.is_available(), reason="of the pretended GPU")


@pytest.fixture
def x():
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).cuda()


def seeded(device):
    return torch.Generator(device).manual_seed(0)


REFUSED = {
    "a sum of both": lambda x: x + torch.ones(3),
    "a product of both": lambda x: x @ torch.ones(3),
    "a choice from both": lambda x: torch.where(x > 0, x, torch.ones(4, 3)),
    "joining both": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "writing a number of the device into the CPU's": lambda x: torch.ones(4, 3).add_(x),
    "indices on the device, of the CPU's": lambda x: torch.ones(4)[torch.arange(2).cuda()],
    "a gather with the CPU's places": lambda x: x.gather(1, torch.zeros(4, 1, dtype=torch.long)),
    "labels on the CPU": lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.long)),
    "a layer on the CPU": lambda x: nn.Linear(3, 2)(x),
    "a number of the CPU in a clamp": lambda x: x.clamp(torch.tensor(0.0), torch.tensor(1.0)),
    "numpy()": lambda x: x.numpy(),
    "numpy.asarray": lambda x: np.asarray(x),
    "draws by the CPU's generator": lambda x: torch.rand(3, generator=seeded("cpu"), device="cuda"),
    "draws on the CPU by its own": lambda x: torch.rand(3, generator=seeded("cuda")),
    "a second GPU": lambda x: x.to(f"cuda:{torch.cuda.device_count()}"),
}
ACCEPTED = {
    "a number": lambda x: x + 1.5,
    "a number of the CPU, in a tensor": lambda x: x + torch.tensor(1.5),
    "a number of the CPU in a choice": lambda x: torch.where(x > 0, x, torch.tensor(0.5)),
    "a number of the CPU to fill with": lambda x: x.masked_fill(x > 0.5, torch.tensor(0.5)),
    "indices on the CPU": lambda x: x[torch.tensor([2, 0])],
    "a mask": lambda x: x[x > 0.5],
    "writing to indices": lambda x: x.clone().index_put_((torch.tensor([1]),), torch.tensor(2.0)),
    "a copy from the CPU": lambda x: x.clone().copy_(torch.ones(4, 3)),
    "a change of shape in place": lambda x: x[:, :1].clone().squeeze_(1),
    "sorting": lambda x: x.sort(dim=1).values,
    "a list": lambda x: torch.tensor(x.tolist(), device="cuda"),
    "statistics": lambda x: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what, x):
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[what](x)


@pytest.mark.parametrize("what", ACCEPTED)
def test_it_accepts(what, x):
    found = ACCEPTED[what](x)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), ACCEPTED[what](x.cpu()).cpu())


def test_autograd_optimiser_and_copies(x):
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    other = copy.deepcopy(net).cuda()
    assert all(p.is_cuda and isinstance(p, nn.Parameter) for p in other.parameters())
    for model, images in ((net, x.cpu()), (other, x)):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            model(images).square().mean().backward()
            optimiser.step()
    for mine, other_ in zip(net.parameters(), copy.deepcopy(other).cpu().parameters(), strict=True):
        torch.testing.assert_close(mine, other_)


def test_a_file_gives_tensors_back_on_the_cpu_when_asked_to(x):
    file = io.BytesIO()
    torch.save({"x": x, "view": x[1:]}, file)
    file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    assert not found["x"].is_cuda
    assert torch.equal(found["view"], x[1:].cpu())


def test_generators_of_both_devices_draw_other_numbers_and_repeat_their_own():
    first, again = (torch.rand(5, generator=seeded("cuda"), device="cuda").cpu() for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(5, generator=seeded("cpu")))
    torch.manual_seed(3)
    drawn, cpu = torch.rand(5, device="cuda"), torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5), cpu)
    assert torch.equal(torch.rand(5, device="cuda"), drawn)


def test_tf32_is_the_default_of_convolutions_and_not_of_products():
    weight, x = torch.rand(4, 3, 3, 3), torch.rand(2, 3, 8, 8)
    exact = F.conv2d(x.double(), weight.double())
    error = (F.conv2d(x.cuda(), weight.cuda()).cpu() - exact).abs().max() / exact.abs().max()
    assert 1e-5 < float(error) < 1e-3
    product = x.double().flatten(1) @ x.double().flatten(1).T
    error = ((x.flatten(1).cuda() @ x.flatten(1).T.cuda()).cpu() - product).abs().max() / product.abs().max()
    assert float(error) < 1e-6


def test_autocast_computes_in_bfloat16(x):
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        assert x.log_softmax(1).dtype == torch.float32


@pretended
def test_an_index_out_of_bounds_loses_the_device(x):
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        F.cross_entropy(x, torch.tensor([0, 1, 2, 3]).cuda())
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        x + 1


@pretended
def test_it_counts_launches_and_waits(x, cuda_device):
    y = torch.ones(4, 3)
    pinned = y.pin_memory()
    for action, launches, waits in (
        (lambda: x[1:].T.unsqueeze(0), 0, 0),
        (lambda: (x * 2).sum(), 2, 0),
        (lambda: x.sum().item(), 2, 1),
        (lambda: bool((x > 2).any()), 3, 1),
        (lambda: y.cuda(), 1, 1),
        (lambda: pinned[:2].to("cuda", non_blocking=True), 1, 0),
        (lambda: x.clone().copy_(pinned, non_blocking=True), 2, 0),
        (lambda: y.to("cuda", non_blocking=True), 1, 1),
        (lambda: x.cpu(), 1, 1),
        (lambda: x[x > 0.5], 2, 1),
        (lambda: x[torch.tensor([1])], 1, 1),
        (lambda: torch.cuda.synchronize(), 0, 1),
        (lambda: torch.full((3,), 2.0, device="cuda"), 1, 0),
        (lambda: torch.tensor([1.0, 2.0], device="cuda"), 1, 1),
        (lambda: x.to("cuda"), 0, 0),
        (lambda: torch.rand(3) + 1, 0, 0),
    ):
        before = cuda_device.operators.total(), cuda_device.waits.total()
        action()
        after = cuda_device.operators.total(), cuda_device.waits.total()
        assert (after[0] - before[0], after[1] - before[1]) == (launches, waits)


@pretended
@pytest.mark.gpu(noise="both")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_of_some_roundings_and_never_the_same(cuda_device, dtype):
    x = torch.rand(1000).to(dtype).cuda()
    first, again = ((x[:, None] * torch.eye(3, dtype=dtype).cuda()[0]).sum(1).cpu() for _ in range(2))
    error = ((first - x.cpu()).abs() / (x.cpu().abs() * torch.finfo(dtype).eps)).max()
    if cuda_device.roundings:
        assert 1 <= float(error) <= cuda_device.roundings / 2 + 1
        assert not torch.equal(first, again)
    else:
        assert torch.equal(first, x.cpu())
    assert torch.equal((x * 2).cpu(), x.cpu() * 2)  # which every device rounds alike


@pretended
def test_it_says_why_it_is_not_there(monkeypatch):
    assert why_not() is None
    monkeypatch.setattr(torch, "__version__", "2.4.0")
    assert "leans on internals of torch 2.11; this is torch 2.4.0" in why_not()


@pretended
def test_afterwards_there_is_no_gpu_as_before(x):
    assert isinstance(x, CUDATensor)
    with pretend_cuda() as inner:
        assert torch.cuda.is_available()
        assert inner.operators.total() == 0
    assert torch.cuda.is_available()  # that of this test


def captured(step):
    """A graph of the step, after steps on another stream as CUDA wants them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def test_a_graph_repeats_on_the_same_tensors_what_was_captured(x):
    total = torch.zeros(4, 3, device="cuda")

    def step():
        total.add_(x)
        return (total * 2).sum(1)

    graph, out = captured(step)
    torch.testing.assert_close(total.cpu(), 3 * x.cpu())  # the capture itself adds nothing
    for k in (4, 5):
        graph.replay()
        torch.testing.assert_close(total.cpu(), k * x.cpu())
        torch.testing.assert_close(out.cpu(), 2 * k * x.cpu().sum(1))
    before = total.cpu()
    x.fill_(1)
    graph.replay()
    torch.testing.assert_close(total.cpu(), before + 1)


def test_a_graph_trains_as_the_steps_do(x):
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).cuda()
        rate = torch.tensor(0.1, device="cuda")
        optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, fused=True)

        def step(net=net, optimiser=optimiser):
            optimiser.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimiser.step()
            return loss

        if graphed:
            graph, loss = captured(step)
        else:
            loss = [step() for _ in range(3)][-1]
        for k in range(4):
            rate.fill_(0.1 / (k + 1))
            if graphed:
                graph.replay()
            else:
                loss = step()
        results.append([loss.detach().cpu(), *(t.cpu() for t in net.state_dict().values())])
    for eager, replayed in zip(*results, strict=True):
        torch.testing.assert_close(eager, replayed)


@pretended
def test_a_capture_refuses_what_waits(x):
    for action in (lambda: x.sum().item(), lambda: torch.ones(3).cuda(), lambda: x[x > 0.5]):
        with (
            pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            action()
    assert float(x.sum()) > 0
