"""What all attacks promise: independence of batches, layouts and devices; a model left as found; clear refusals."""

import copy
import inspect
import math
import warnings

import pytest
import torch
from helpers.nets import Bomb, batch, relu_net
from torch import nn

from advdim import attacks, measure, models
from advdim.models import fast

INF = math.inf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_step(p):
    return lambda net, x, y, **options: attacks.one_step(net, x, y, p=p, eps=0.5, **options)


def pgd(p, **fixed):
    return lambda net, x, y, **options: attacks.pgd(net, x, y, p=p, eps=0.5, steps=4, **fixed, **options)


def restarted(p, **fixed):
    return lambda net, x, y, **options: pgd(p, random_start=True, restarts=2, **fixed)(
        net, x, y, generator=seeded(), **options
    )


def deepfool(p):
    return lambda net, x, y, **options: attacks.deepfool(net, x, p=p, **options)


ATTACKS = {
    **{f"one_step {p}": one_step(p) for p in (1, 1.5, 2, INF)},
    **{f"pgd {p}": pgd(p) for p in (1, 2, INF)},
    **{f"pgd {p}, stopped": pgd(p, early_stop=True) for p in (1, 2, INF)},
    **{f"pgd {p}, restarted": restarted(p) for p in (1, 2, INF)},
    "pgd 2, restarted and stopped": restarted(2, early_stop=True),
    **{f"deepfool {p}": deepfool(p) for p in (2, INF)},
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
close = {"rtol": 0, "atol": 1e-10}


def calibrated(**options):
    net = relu_net(batch_norm=True, **options)
    models.calibrate_batch_norm(net, batch(40)[0])
    return net


@every_attack
def test_results_do_not_depend_on_batches(attack):
    net, (x, y) = calibrated(), batch(7)
    whole = attack(net, x, y)
    assert not torch.equal(whole, x)
    for batch_size in (1, 3, 100):
        torch.testing.assert_close(attack(net, x, y, batch_size=batch_size), whole, **close)


@every_attack
def test_results_do_not_depend_on_layouts_and_keep_them(attack):
    net, (x, y) = calibrated(), batch(7)
    layout = torch.channels_last
    expected = attack(net, x, y)
    assert expected.is_contiguous()
    found = attack(net.to(memory_format=layout), x.to(memory_format=layout), y)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected, **close)


def test_random_starts_are_drawn_example_by_example():
    """Whoever splits the images by hand, or works in float64, gets the same starts."""
    net, (x, y) = calibrated(), batch(7)
    for p in (1, 2, INF):
        options = {"p": p, "eps": 0.5, "steps": 2, "random_start": True, "restarts": 2}
        whole = attacks.pgd(net, x, y, **options, generator=seeded())
        generator = seeded()
        parts = [attacks.pgd(net, x[s], y[s], **options, generator=generator) for s in (slice(0, 2), slice(2, 7))]
        torch.testing.assert_close(torch.cat(parts), whole, **close)
        assert not torch.equal(attacks.pgd(net, x, y, **options, generator=seeded(1)), whole)
        single = attacks.pgd(copy.deepcopy(net).float(), x.float(), y, **options, generator=seeded())
        assert ((single - whole).abs() < 1e-4).flatten(1).all(1).double().mean() > 0.8


def test_each_example_has_its_own_eps():
    net, (x, y) = calibrated(), batch(4)
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for p in (1, 2, INF):
        for attack in (attacks.one_step, attacks.pgd):
            together = attack(net, x, y, p=p, eps=eps, batch_size=3)
            alone = [attack(net, x[i : i + 1], y[i : i + 1], p=p, eps=float(eps[i])) for i in range(4)]
            torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-8)
            step = attacks.pgd(net, x, y, p=p, eps=eps, step_size=eps / 4)
            assert not torch.equal(step, attacks.pgd(net, x, y, p=p, eps=eps, step_size=0.01))


@every_attack
def test_an_image_without_gradient_stays_where_it_is(attack):
    net, (x, y) = relu_net(), batch(6)
    dead = nn.Sequential(net, nn.Hardtanh(-1e-9, 1e-9), nn.Linear(4, 4).double())  # flat but for a sliver
    attacked = attack(dead, x, y)
    started = [ATTACKS[name] for name in ATTACKS if "restarted" in name]
    assert torch.equal(attacked, x) == (attack not in started)


@every_attack
@pytest.mark.parametrize("after", [0, 1, 10**9])
def test_the_model_is_left_as_found_even_when_it_raises(attack, after):
    net = nn.Sequential(*calibrated(), Bomb(after))
    net[0].weight.requires_grad_(False)
    net[-3].train()  # a ReLU, to which it makes no difference
    for p in net.parameters():
        p.grad = torch.full_like(p, 7) if p.requires_grad else None
    state = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    training = [m.training for m in net.modules()]
    values = copy.deepcopy(net.state_dict())
    x, y = batch()
    x.requires_grad_()
    before = x.detach().clone()
    if after < 10**9:
        with pytest.raises(RuntimeError, match="boom"):
            attack(net, x, y, batch_size=3)
    else:
        with torch.no_grad():
            attacked = attack(net, x, y, batch_size=3)
        assert not attacked.requires_grad
    for p, (requires, gradient) in zip(net.parameters(), state, strict=True):
        assert p.requires_grad == requires
        assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)
    assert [m.training for m in net.modules()] == training
    assert all(torch.equal(v, values[k]) for k, v in net.state_dict().items())
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(x, before)


@every_attack
def test_train_mode_is_warned_of_and_eval_mode_is_not(attack):
    net, (x, y) = calibrated(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(net, x, y)
    with pytest.warns(UserWarning, match="train mode") as record:
        attack(net.train(), x, y)
    assert record[0].filename == __file__


def test_each_step_is_one_pass_forward_and_one_back():
    """And none more: no clean pass, no gradients of parameters."""
    net, (x, y) = relu_net(), batch(4)
    passed = {"forward": 0, "backward": 0}
    net.register_forward_hook(lambda *_: passed.update(forward=passed["forward"] + 1))
    learning = []
    net.register_forward_pre_hook(lambda *_: learning.extend(p.requires_grad for p in net.parameters()))
    net[-1].register_full_backward_hook(lambda *_: passed.update(backward=passed["backward"] + 1))
    attacks.one_step(net, x, y, p=2, eps=0.1)
    assert passed == {"forward": 1, "backward": 1}
    attacks.pgd(net, x, y, p=2, eps=0.1, steps=7)
    assert passed == {"forward": 8, "backward": 8}
    assert not any(learning)  # or activations would be kept for the gradients of the parameters
    assert len(learning) == 8 * len(list(net.parameters()))


def test_early_stop_spares_the_misclassified_in_steps_and_restarts():
    net, (x, _) = relu_net(), batch(8)
    y, seen = net(x).argmax(1), []
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    options = {"p": 2, "eps": 20.0, "steps": 40, "random_start": True, "early_stop": True}
    attacks.pgd(net, x, y, **options, generator=seeded())
    passed = sum(seen)
    assert passed < 40 * 8
    seen.clear()
    attacks.pgd(net, x, y, **options, restarts=6, generator=seeded())
    assert sum(seen) < 2 * passed + 11 * 8  # after one run: six looks at the losses, five at the starts


class Viewing(nn.Module):
    """A module that flattens its maps by view, which the channels-last layout forbids."""

    def __init__(self):
        super().__init__()
        self.map, self.read = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(288, 4)

    def forward(self, x):
        h = self.map(x).relu()
        return self.read(h.view(len(x), -1))


@every_attack
def test_float32_and_foreign_modules(attack):
    """In float32 the layout of passes changes, only where the model allows it, and the results by rounding alone."""
    x, y = batch(6, dtype=torch.float32)
    net, single = relu_net().double(), relu_net().float()
    single.load_state_dict(net.state_dict())
    expected, found = attack(net, x.double(), y), attack(single, x, y)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert ((found - expected).abs() < 1e-4).flatten(1).all(1).double().mean() > 0.6
    assert attack(Viewing(), x, y).shape == x.shape


def test_the_fast_layout_is_taken_on_a_cpu_and_changes_nothing():
    net, (x, y) = relu_net().float(), batch(6, dtype=torch.float32)
    seen = []
    net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    with fast.at_rest(net) as quick:
        torch.testing.assert_close(quick(x), net(x), rtol=1e-5, atol=1e-6)
    assert seen == [False, True]
    for layout in (torch.contiguous_format, torch.channels_last):  # and gradients come in that of the images
        laid = x.contiguous(memory_format=layout)
        assert measure.input_gradients(net, laid, y).is_contiguous(memory_format=layout)
    with fast.at_rest(Viewing()) as quick:
        assert quick(x).shape == (6, 4)


def test_the_defaults_stay_what_recorded_numbers_were_measured_with():
    def defaults(function):
        found = {n: p.default for n, p in inspect.signature(function).parameters.items()}
        return {n: value for n, value in found.items() if value is not inspect.Parameter.empty and not callable(value)}

    assert defaults(attacks.one_step) == {"clip": False, "batch_size": None}
    assert defaults(attacks.pgd) == {
        "steps": 10, "step_size": None, "random_start": False, "restarts": 1, "clip": False, "early_stop": False,
        "generator": None, "batch_size": None,
    }  # fmt: skip
    assert defaults(attacks.deepfool) == {
        "y": None, "p": 2, "steps": 50, "overshoot": 0.02, "clip": False, "candidates": 10, "batch_size": None
    }  # fmt: skip
