"""What goes wrong with devices is refused in time, said clearly, and costs no more than it must."""

import math
import os

import pytest
import torch
from helpers.on_device import CLASSES, SHAPE, assert_close, given, images, network, numbers
from helpers.tiny import THREE

import advdim as ad
from advdim.experiments import runner, store
from advdim.experiments.spec import key

pytestmark = pytest.mark.gpu(noise=False)

pretended = pytest.mark.skipif(torch.cuda.is_available(), reason="would lose a real GPU, or needs another machine")

TOO_LARGE = {
    "one_step": lambda g, y: ad.attacks.one_step(g.net, g.x, y, p=2, eps=0.1),
    "pgd": lambda g, y: ad.attacks.pgd(g.net, g.x, y, p=2, eps=0.1, batch_size=2),
    "deepfool": lambda g, y: ad.attacks.deepfool(g.net, g.x, y),
    "input_gradients": lambda g, y: ad.measure.input_gradients(g.net, g.x, y, batch_size=2),
    "gradients of a logit": lambda g, y: ad.measure.input_gradients(g.net, g.x, y, loss=ad.measure.logit),
    "losses": lambda g, y: ad.measure.losses(g.net, g.x, y),
    "damage": lambda g, y: ad.measure.damage(g.net, g.x, y, g.attacked),
    "evaluate": lambda g, y: ad.measure.evaluate(g.net, g.x, y, g.attacked, p=2, eps=1.0),
    "fit": lambda g, y: ad.train.fit(g.net, g.x, y, ad.train.Recipe(epochs=1), progress=False),
    "fit, tested": lambda g, y: ad.train.fit(
        g.net, g.x, g.y, ad.train.Recipe(epochs=1), x_test=g.x, y_test=y, progress=False
    ),
    "fit, of a network that does not know": lambda g, y: ad.train.fit(
        torch.nn.Sequential(*g.net), g.x, y, ad.train.Recipe(epochs=1), progress=False
    ),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_label_beyond_the_outputs_is_refused_and_the_device_lives(name, device):
    g = given(device, torch.float64)
    y = g.y.clone()
    y[4] = CLASSES
    message = f"y must be below {CLASSES}, the .*outputs, got {CLASSES} in example 4"
    with pytest.raises(ValueError, match=message):
        TOO_LARGE[name](g, y)
    assert float(g.x.sum()) > 0


def test_a_loss_that_takes_no_label_for_an_index_may_have_any():
    g = given("cuda", torch.float64)
    loss = lambda outputs, y: (outputs[:, 0] - y).square()  # noqa: E731
    assert ad.measure.losses(g.net, g.x, g.y + 100, loss=loss).min() > 0


@pytest.fixture
def cuda_by_default():
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


def test_a_default_device_changes_nothing(cuda_by_default):
    fresh = ad.models.build("conv_strided", SHAPE, CLASSES, width=4, depth=2, batch_norm=True, normalise="batch")
    assert {t.device.type for t in fresh.state_dict().values()} == {"cpu"}
    net = ad.models.build("conv_strided", SHAPE, CLASSES, width=4, depth=2)
    judged, total = ad.theory.check_assumptions(net), ad.models.initialise.weight_total(net[0])
    x = images_cpu().float()
    small = [ad.data.resize(x, 5, "area"), ad.data.resize(x.cuda(), 5, "area").cpu()]
    y = torch.arange(len(x), device="cpu") % CLASSES
    recipe = ad.train.Recipe("pgd-linf", 0.01, epochs=1, batch_size=4, augment=True, validation=0.25, keep="best")
    results = []
    for default in (True, False):
        torch.set_default_device("cuda" if default else None)
        trained = ad.models.build("conv_strided", SHAPE, CLASSES, init="torch", width=4, depth=2).double().cuda()
        given_ = {"x_test": x.double(), "y_test": y, "progress": False}
        ad.train.fit(trained, x.double(), y, recipe, **given_)
        results.append(numbers(dict(trained.state_dict())))
    assert_close(*results, 1e-9)
    torch.set_default_device(None)
    assert torch.equal(*small) or torch.allclose(*small, rtol=1e-6)
    assert str(judged) == str(ad.theory.check_assumptions(net))
    assert total == ad.models.initialise.weight_total(net[0])
    again = ad.models.build("conv_strided", SHAPE, CLASSES, width=4, depth=2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def images_cpu():
    return torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")


def test_attacks_and_measurements_work_with_a_default_device(cuda_by_default):
    g = given_by_default()
    generator = torch.Generator().manual_seed(0)
    for attacked in (
        ad.attacks.pgd(g.net, g.x, g.y, p=1, eps=0.1, steps=2, random_start=True, generator=generator),
        ad.attacks.deepfool(g.net, g.x),
        ad.attacks.one_step(g.net, g.x, g.y, p=math.inf, eps=0.1),
    ):
        assert ad.measure.evaluate(g.net, g.x, g.y, attacked, p=2, eps=9.0).size > 0
    assert ad.theory.path_second_moment(g.net, x=g.x).is_cuda


def given_by_default():
    torch.set_default_device(None)
    g = given("cuda", torch.float64)
    torch.set_default_device("cuda")
    return g


class Lost:
    """In place of the measurement of a point: the second one loses the device."""

    def __init__(self):
        self.calls = 0

    def __call__(self, spec, device, root, checkpoint):
        self.calls += 1
        if self.calls > 1:
            torch.zeros(2, device=device)[torch.tensor([5], device=device)]
        return {"l1": [1.0, 2.0]}


@pretended
def test_a_lost_device_ends_the_sweep_and_keeps_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "measure", lost := Lost())
    with pytest.raises(OSError, match=r"the device is lost .*device-side assert.*goes on, in a new process"):
        runner.run(THREE, tmp_path, device=torch.device("cuda"), command="test")
    assert lost.calls == 2
    states = [(store.load(tmp_path, key(spec)) or {"status": "to do"})["status"] for spec in THREE]
    assert states == ["done", "to do", "to do"]


def test_in_a_process_of_its_own_a_lost_device_ends_the_process(tmp_path, monkeypatch):
    class ExitedError(Exception):
        pass

    def leave(status):
        raise ExitedError(status)

    def lose(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(runner, "measure", lose)
    monkeypatch.setattr(os, "_exit", leave)
    job = runner.Job(THREE[0], "cpu", 1, None, tmp_path / "checkpoint", None, expendable=True)
    with pytest.raises(ExitedError, match="1"):
        runner._measure(job)


def test_the_environment_chooses_the_device(monkeypatch):
    monkeypatch.delenv("ADVDIM_DEVICE", raising=False)
    assert ad.device().type == "cuda"
    monkeypatch.setenv("ADVDIM_DEVICE", "cpu")
    assert ad.device() == torch.device("cpu")
    monkeypatch.setenv("ADVDIM_DEVICE", "cuda")
    assert ad.device() == torch.device("cuda")
    for wrong in ("gpu", "cuda:0", "CPU"):
        monkeypatch.setenv("ADVDIM_DEVICE", wrong)
        with pytest.raises(ValueError, match=f"ADVDIM_DEVICE must be one of cpu, cuda, mps, got '{wrong}'; unset it"):
            ad.device()


@pretended
def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("ADVDIM_DEVICE", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="ADVDIM_DEVICE is 'mps', but there is only cpu, cuda; unset it, or set it"):
        ad.device()


def test_networks_and_images_on_two_devices_are_refused():
    net, x = network(), images(4, *SHAPE)
    with pytest.raises(RuntimeError, match="same device"):
        ad.measure.outputs(net.cuda(), x)
