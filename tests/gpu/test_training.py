"""Training on a GPU: the weights of the CPU up to rounding, in each precision, and resumed on either device."""

import copy

import pytest
import torch
from helpers.on_device import CLASSES, images, network

import advdim as ad

pytestmark = pytest.mark.gpu(noise=False)

METHODS = tuple(ad.train.objectives.METHODS)
# After several steps, each of which continues from what rounding has left of the one before.
close = {"rtol": 1e-6, "atol": 1e-8}


def recipe(method="none", **options):
    strength = 0.0 if method == "none" else 0.02
    given = {"epochs": 2, "batch_size": 10, "augment": True, "size": 16, "validation": 0.2, "keep": "best"}
    return ad.train.Recipe(method, strength, **(given | options))


def start():
    return network(init="torch", width=4)


def trained(device, recipe, *, net=None, x=None, **options):
    """The weights after a few steps on 20 images of bytes, and the numbers of the history, apart from the time."""
    net = start() if net is None else net
    x = (images(20, 3, 8, 8) * 255).to(torch.uint8) if x is None else x
    y = torch.arange(20) % CLASSES
    given = {"x_test": x[:5], "y_test": y[:5], "progress": False}
    result = ad.train.fit(net.to(device), x, y, recipe, **(given | options))
    assert {p.device.type for p in net.parameters()} == {torch.device(device).type}
    rows = [[value for name, value in row.items() if name != "seconds"] for row in result.history]
    return net.cpu().state_dict(), torch.tensor(rows, dtype=torch.float64)


def assert_same(found, expected):
    torch.testing.assert_close(found[1], expected[1], **close)
    for name, value in found[0].items():
        torch.testing.assert_close(value, expected[0][name], **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_training_agrees_with_the_cpu(method):
    """The draws come from the CPU, whatever the device."""
    assert_same(trained("cuda", recipe(method, epochs=1)), trained("cpu", recipe(method, epochs=1)))


def test_images_may_be_numbers_on_the_device_already():
    x = images(20, 3, 16, 16)
    expected = trained("cpu", recipe(size=None), x=x)
    assert_same(trained("cuda", recipe(size=None), x=x.cuda()), expected)


@pytest.mark.parametrize("options", [{"schedule": "paper", "halve_every": 1, "epochs": 3}, {"early_stopping": 1}])
def test_schedules_agree_with_the_cpu(options):
    assert_same(trained("cuda", recipe(**options)), trained("cpu", recipe(**options)))


@pytest.mark.gpu(noise=True)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("method", ["none", "gradient-l1", "pgd-linf"])
def test_training_in_float32_and_bf16_stays_near_the_cpu(method, bf16):
    """The loss, which is the history's second column; on a GPU float32 is TF32."""
    loss, options, before = 1, {"bf16": bf16, "epochs": 1}, start().float()
    devices = ("cpu", "cuda", "cuda") if bf16 else ("cpu", "cuda")
    expected, *found = (trained(device, recipe(method, **options), net=copy.deepcopy(before)) for device in devices)
    for weights, history in found:
        assert all(value.isfinite().all() for value in weights.values())
        torch.testing.assert_close(history[:, loss], expected[1][:, loss], rtol=0.1 if bf16 else 0.02, atol=0)


def test_bf16_is_another_arithmetic():
    before = start().float()
    losses = [trained("cuda", recipe(bf16=bf16), net=copy.deepcopy(before))[1][:, 1] for bf16 in (False, True)]
    assert not torch.allclose(*losses, rtol=1e-5)


def test_a_metric_sees_the_device():
    seen = []

    def metric(net, x, y):
        seen.append({x.device.type, y.device.type, next(net.parameters()).device.type})
        return {"mean": float(net(x).detach().sum())}

    trained("cuda", recipe(), metrics=metric)
    assert seen
    assert all(devices == {"cuda"} for devices in seen)


def test_divergence_is_noticed():
    with pytest.raises(ad.train.DivergenceError, match="diverged in epoch"):
        trained("cuda", recipe(lr=1e30), net=start().float())


class InterruptedRunError(Exception):
    """A run ended from outside."""


@pytest.mark.parametrize("to", ["cpu", "cuda"])
@pytest.mark.parametrize("begun", ["cpu", "cuda"])
def test_a_run_resumes_on_either_device(begun, to, tmp_path):
    method = "cross-lipschitz-random"  # whose draws go on where they stopped, as those of augmentation do
    expected = trained(begun, recipe(method))
    net, passes = start(), iter(range(1000))

    def interrupt(*_):
        if net.training and next(passes) == 3:  # in the second epoch's last step
            raise InterruptedRunError

    net.register_forward_pre_hook(interrupt)
    options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(InterruptedRunError):
        trained(begun, recipe(method), net=net, **options)
    assert_same(trained(to, recipe(method), **options), expected)
