"""The same numbers on a CUDA device as on the CPU, in float64, and results that stay on the device."""

import copy
import math
from dataclasses import astuple

import pytest
import torch

import advdim as ad

pytestmark = pytest.mark.gpu

close = {"rtol": 1e-9, "atol": 1e-11}
# Several steps on, each of which continues from what rounding has left of the one before.
after_steps = {"rtol": 1e-6, "atol": 1e-8}


def seeded(device="cpu"):
    return torch.Generator(device).manual_seed(0)


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


@pytest.mark.parametrize("init", ad.models.initialise.RULES)
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


def network(**options):
    net = ad.models.build("conv_strided", (3, 16, 16), width=8, depth=3, **({"batch_norm": True} | options)).double()
    ad.models.calibrate_batch_norm(net, images(32, 3, 16, 16))
    return net


def on_both(call, net, *tensors):
    """What call gives of net and tensors on the CPU, and on the GPU, copied back."""
    expected = call(net, *tensors)
    found = call(copy.deepcopy(net).cuda(), *(t.cuda() for t in tensors))
    assert found.is_cuda
    return found.cpu(), expected


attacks = {
    **{f"one step, {p}": (ad.attacks.one_step, {"p": p, "eps": 0.3}) for p in (1, 1.5, 2, math.inf)},
    **{f"pgd, {p}": (ad.attacks.pgd, {"p": p, "eps": 0.3, "steps": 5}) for p in (1, 2, math.inf)},
    "pgd, clipped": (ad.attacks.pgd, {"p": 1, "eps": 3.0, "steps": 5, "clip": True, "batch_size": 3}),
    "deepfool, 2": (ad.attacks.deepfool, {"p": 2}),
    "deepfool, inf": (ad.attacks.deepfool, {"p": math.inf, "clip": True, "batch_size": 3}),
}


@pytest.mark.parametrize("name", attacks)
def test_attacks_agree_with_the_cpu(name):
    attack, options = attacks[name]
    found, expected = on_both(
        lambda *given: attack(*given, **options), network(), images(8, 3, 16, 16), torch.arange(8)
    )
    torch.testing.assert_close(found, expected, **after_steps)


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_random_starts_from_the_cpu_are_the_same_on_both(p, early_stop):
    options = {"p": p, "eps": 0.3, "steps": 3, "random_start": True, "restarts": 3, "early_stop": early_stop}
    found, expected = on_both(
        lambda *given: ad.attacks.pgd(*given, generator=seeded(), **options),
        network(),
        images(8, 3, 16, 16),
        torch.arange(8),
    )
    torch.testing.assert_close(found, expected, **after_steps)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_random_starts_may_come_from_the_gpu(p):
    net, x, y = network().cuda(), images(8, 3, 16, 16).cuda(), torch.arange(8).cuda()
    options = {"p": p, "eps": 0.3, "steps": 2, "random_start": True, "restarts": 2}
    first, again = (ad.attacks.pgd(net, x, y, generator=seeded("cuda"), **options) for _ in range(2))
    assert first.is_cuda
    torch.testing.assert_close(first, again, **after_steps)
    assert (ad.norms.norm(first - x, p) <= 0.3 * (1 + 1e-12)).all()
    assert not torch.allclose(first, ad.attacks.pgd(net, x, y, generator=torch.Generator("cuda"), **options))


@pytest.mark.parametrize("p", [2, math.inf])
def test_autoattack_stays_on_the_device_and_leaves_its_generator(p):
    pytest.importorskip("pyautoattack", reason="needs the extra autoattack")
    net, x = network().cuda(), images(8, 3, 16, 16).cuda()
    y, before = net(x).argmax(1), torch.cuda.get_rng_state()
    first, again = (ad.attacks.auto_attack(net, x, y, p=p, eps=0.3, seed=1) for _ in range(2))
    assert first.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert (ad.norms.norm(first - x, p) <= 0.3 * (1 + 1e-12)).all()
    changed = ad.measure.vulnerability(net, x, first)
    assert changed.any()
    assert torch.equal(changed, ad.measure.vulnerability(net, x, again))


def test_an_evaluation_agrees_with_the_cpu():
    net, x, y = network(), images(8, 3, 16, 16), torch.arange(8)
    attacked = ad.attacks.one_step(net, x, y, p=2, eps=0.3)
    expected = ad.measure.evaluate(net, x, y, attacked, p=2, eps=0.3)
    found = ad.measure.evaluate(net.cuda(), x.cuda(), y.cuda(), attacked.cuda(), p=2, eps=0.3)
    assert found.flags == pytest.approx(expected.flags)
    assert astuple(found)[:-1] == pytest.approx(astuple(expected)[:-1], rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv_strided", "conv_dilated"])
def test_gradient_norms_agree_with_the_cpu_in_float32(name):
    """To 1e-4 per image, which TF32, the default of convolutions on a GPU, would miss."""
    net = ad.models.build(name, (3, 32, 32), width=32, **({} if name == "mlp" else {"depth": 4}))
    x, y = images(8, 3, 32, 32).float(), torch.arange(8)
    exponents = (1, 1.5, 2, math.inf)
    found, expected = on_both(
        lambda *given: torch.stack(list(ad.measure.gradient_norms(*given, exponents, batch_size=3).values())), net, x, y
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ad.train.objectives.METHODS)
def test_objectives_agree_with_the_cpu(method, training):
    def value_and_gradients(net, x, y):
        loss = ad.train.objectives.objective(method)(net, x, y, 0.0 if method == "none" else 0.05, seeded())
        loss.backward()
        return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in net.parameters())])

    net = network(init="torch").train(training)
    found, expected = on_both(value_and_gradients, net, images(8, 3, 16, 16), torch.arange(8))
    torch.testing.assert_close(found, expected, **after_steps)


def recipe(method="none", **options):
    strength = 0.0 if method == "none" else 0.02
    return ad.train.Recipe(
        method, strength, epochs=2, batch_size=12, augment=True, size=16, validation=0.2, keep="best", **options
    )


def trained(device, recipe, *, net=None, **options):
    """A network after a few steps on 40 bytes-valued images, and the numbers of its history, apart from the time."""
    net = network(init="torch") if net is None else net
    x, y = (images(40, 3, 8, 8) * 255).to(torch.uint8), torch.arange(40) % 10
    result = ad.train.fit(net.to(device), x, y, recipe, x_test=x[:7], y_test=y[:7], progress=False, **options)
    rows = [[value for name, value in row.items() if name != "seconds"] for row in result.history]
    return net.cpu().state_dict(), torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("method", ad.train.objectives.METHODS)
def test_training_agrees_with_the_cpu_and_with_itself(method):
    """The draws come from the CPU, whatever the device: the weights are the same up to the rounding of some steps."""
    expected = trained("cpu", recipe(method))
    for _ in range(2):
        weights, history = trained("cuda", recipe(method))
        torch.testing.assert_close(history, expected[1], **after_steps)
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[0][name], **after_steps, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("method", ["none", "gradient-l1", "augment-linf", "pgd-linf"])
def test_training_in_bf16_stays_near_float32_and_repeats_itself(method):
    start = network(init="torch").float()
    full, rounded, again = (
        trained("cuda", recipe(method, bf16=bf16), net=copy.deepcopy(start)) for bf16 in (False, True, True)
    )
    assert all(value.isfinite().all() for value in rounded[0].values())
    loss = 1  # column of the history
    torch.testing.assert_close(rounded[1][:, loss], full[1][:, loss], rtol=0.05, atol=0)
    assert not torch.allclose(rounded[1][:, loss], full[1][:, loss], rtol=1e-5)
    torch.testing.assert_close(again[1][:, loss], rounded[1][:, loss], rtol=0.01, atol=0)


class InterruptedRunError(Exception):
    """A run ended from outside."""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", ["none", "pgd-linf"])
def test_a_run_begun_on_the_gpu_resumes_there_or_on_the_cpu(method, device, tmp_path):
    expected, history = trained("cuda", recipe(method))
    net, steps = network(init="torch"), iter(range(100))

    def interrupt(*_):
        if net.training and next(steps) == (4 if method == "none" else 4 * 8):  # in the second epoch
            raise InterruptedRunError

    net.register_forward_pre_hook(interrupt)
    options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(InterruptedRunError):
        trained("cuda", recipe(method), net=net, **options)
    weights, resumed = trained(device, recipe(method), **options)
    torch.testing.assert_close(resumed, history, **after_steps)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], **after_steps)
