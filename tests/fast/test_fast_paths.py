"""Every fast path gives what the plain one gives: folded networks, layouts, one pass for many examples, bfloat16."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advdim import attacks, measure, models, train
from advdim.models import fast
from advdim.models.fast import fold_batch_norm
from advdim.train import objectives
from benchmarks import plain, rivals

SHAPE = (3, 8, 8)


def images(n=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(10, (n,), generator=generator)


def used(net, *, negative=False):
    """The net in float64 with batch-norms as after training: no statistic, weight or bias is that of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            if m.affine:
                nn.init.uniform_(m.weight, -1.0 if negative else 0.5, 1.5, generator=generator)
                nn.init.normal_(m.bias, 0, 0.3, generator=generator)
    return net.double().eval()


def build(name="conv_strided", **options):
    return models.build(name, SHAPE, width=6, depth=2 if name == "conv_strided" else 4, batch_norm=True, **options)


def hooked(net):
    """A copy that no fast path may touch."""
    slow = copy.deepcopy(net)
    slow.register_forward_pre_hook(lambda *_: None)
    return slow


# Folded networks

PIXELS = (torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))
NETS = {
    # name: (network, how many of its layers merge)
    "section 4.1": (lambda: build(normalise="batch"), 3),
    "section 4.2": (lambda: build("conv_dilated", normalise=PIXELS), 5),
    "zero padding": (lambda: build(normalise="batch", padding="zeros"), 2),
    "circular padding": (lambda: build(normalise=PIXELS, padding="circular"), 3),
    "average pooling": (lambda: build("conv_dilated", pooling="average"), 4),
    "mlp": (lambda: models.build("mlp", SHAPE, width=6, batch_norm=True), 2),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), nn.Flatten()),
        1,
    ),
    "no weights": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()), 1),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.Flatten()), 1),
    "groups after": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3), nn.Flatten()), 0),
    "padded average": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, padding=1), nn.BatchNorm2d(4), nn.Flatten()),
        0,
    ),
    "batch-norm twice": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten()),
        1,
    ),
}


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_folded_network_has_the_same_outputs_and_gradients(name, negative):
    make, merged = NETS[name]
    net, (x, _) = used(make(), negative=negative), images()
    before = copy.deepcopy(net.state_dict())
    folded = fold_batch_norm.fold(net)
    leaves = [m for m in net.modules() if not list(m.children())]
    if negative and "4.2" in name:  # a batch-norm of negative weights turns a maximum into a minimum: it has to stay
        assert 0 < len(leaves) - len(list(folded)) < merged
    else:
        assert len(leaves) - len(list(folded)) == merged
    found = []
    for model in (net, folded):
        leaf = x.clone().requires_grad_()
        outputs = model(leaf)
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view_as(outputs)
        found.append((outputs.detach(), torch.autograd.grad((weights * outputs).sum(), leaf)[0]))
    for plainly, quickly in zip(*found, strict=True):
        torch.testing.assert_close(quickly, plainly, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(m.training for m in net.modules())


def test_a_layer_that_stands_in_several_places_is_passed_in_each():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten())
    net, (x, _) = used(net), images()
    folded = fold_batch_norm.fold(net)
    assert folded is not net
    torch.testing.assert_close(folded(x), net(x), rtol=1e-10, atol=1e-12)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("kind", ["hook", "train mode", "another forward", "no running statistics"])
def test_what_must_not_be_folded_is_not(kind):
    net = used(build())
    if kind == "hook":
        net[1].register_forward_hook(lambda *_: None)
    elif kind == "train mode":
        net.train()
    elif kind == "another forward":
        net = Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).double().eval()
    else:
        net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).double().eval()
    folded = fold_batch_norm.fold(net)
    if kind == "train mode":  # only its ReLUs are others
        assert all(a is b or type(a) is type(b) is nn.ReLU for a, b in zip(folded, net, strict=True))
    else:
        assert folded is net


@pytest.mark.parametrize("overwritten", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_a_relu_overwrites_only_what_nothing_else_needs(overwritten, train):
    safe = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.AvgPool2d(2)]
    unsafe = [None, nn.Tanh(), nn.Identity(), nn.Flatten(0, 0), nn.Sigmoid(), nn.Upsample(scale_factor=2)]
    for layer in safe if overwritten else unsafe:
        front = [] if layer is None else [layer]
        net = nn.Sequential(*front, nn.ReLU(), nn.Flatten()).double().train(train)
        folded = fold_batch_norm.fold(net)
        x = images()[0] - 0.5
        leaf, kept, found = x.clone().requires_grad_(), x.clone(), []
        for module in (net, folded):
            if train and isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
            outputs = module(leaf)
            (g,) = torch.autograd.grad((outputs * torch.linspace(-1, 1, outputs.shape[1])).sum(), leaf)
            found.append((outputs.detach(), g))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
        folded(kept)
        assert torch.equal(kept, x)
        assert [m.inplace for m in folded.modules() if isinstance(m, nn.ReLU)] == [overwritten]
        assert not any(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))


def test_a_folded_network_refuses_what_the_network_refuses():
    with pytest.raises(ValueError, match="resize"):
        fold_batch_norm.fold(used(build()))(torch.rand(1, 3, 9, 9).double())


ATTACKS = {
    "one step": lambda net, x, y: attacks.one_step(net, x, y, p=2, eps=0.1),
    "pgd linf": lambda net, x, y: attacks.pgd(net, x, y, p=math.inf, eps=0.02),
    "pgd l2": lambda net, x, y: attacks.pgd(net, x, y, p=2, eps=0.3),
    "deepfool": lambda net, x, y: attacks.deepfool(net, x, y, p=2),
    "gradients": measure.input_gradients,
    "outputs": lambda net, x, y: measure.outputs(net, x),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("net", ["section 4.1", "section 4.2"])
def test_attacks_and_measurements_use_the_folded_network_to_the_same_end(name, net, monkeypatch):
    net, (x, y) = used(NETS[net][0]()), images()
    plainly = ATTACKS[name](hooked(net), x, y)
    seen = []
    fold = fold_batch_norm.fold
    monkeypatch.setattr(fold_batch_norm, "fold", lambda model: seen.append(fold(model)) or seen[-1])
    torch.testing.assert_close(ATTACKS[name](net, x, y), plainly, rtol=1e-8, atol=1e-10)
    assert seen
    assert all(len(list(model)) < len(list(net)) for model in seen)


# Layouts


@pytest.mark.parametrize("batch_norm_first", [True, False])
def test_channels_last_is_used_and_changes_nothing_but_rounding(batch_norm_first):
    net = used(build(normalise="batch" if batch_norm_first else None)).float()
    x, y = images(dtype=torch.float32)
    inner = []

    def look(_, args):
        inner.append(args[0])

    slow = hooked(net)  # hooks forbid folding, so that this is the way of any other network
    slow[-3].register_forward_pre_hook(look)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    g = measure.input_gradients(slow, x, y)
    torch.testing.assert_close(g, expected, rtol=1e-4, atol=1e-6)
    assert g.is_contiguous()
    assert inner[-1].is_contiguous(memory_format=torch.channels_last)
    quick = fold_batch_norm.fold(net)
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last) for m in quick.modules() if isinstance(m, nn.Conv2d)
    )
    assert all(m.weight.is_contiguous() for m in net.modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(measure.input_gradients(net, x, y), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_at_rest_are_in_channels_last_from_the_second_pass_on_and_are_put_back(fails):
    block = models.Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    net, (x, _) = used(nn.Sequential(block)).float(), images(dtype=torch.float32)
    conv = block.branch[0]
    kept = conv.weight.data_ptr()
    layouts = []
    try:
        with fast.at_rest(net) as quick:
            for _ in range(3):
                outputs = quick(x)
                layouts.append(conv.weight.is_contiguous(memory_format=torch.channels_last))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert layouts == [False, True, True]
    assert conv.weight.is_contiguous()
    assert conv.weight.data_ptr() == kept
    torch.testing.assert_close(outputs, net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["none", "gradient-l1", "cross-lipschitz"])
def test_training_is_in_channels_last(method):
    net, (x, y) = build().train(), images(dtype=torch.float32)
    inner = []
    net[-3].register_forward_pre_hook(lambda _, args: inner.append(args[0]))
    with fast.in_training(net, twice=method != "none") as quick:
        objectives.objective(method)(quick, x, y, 0.0 if method == "none" else 0.1, None)
    assert inner[-1].is_contiguous(memory_format=torch.channels_last)
    assert not inner[-1].is_contiguous()


@pytest.mark.parametrize("method", ["none", "pgd-linf", "gradient-l2"])
def test_training_in_channels_last_reaches_the_same_weights(method):
    x, y = images(24, torch.float32)
    recipe = train.Recipe(method, 0.0 if method == "none" else 0.01, epochs=1, batch_size=8, lr=0.01)
    nets = [build(), build()]
    train.fit(nets[0], x, y, recipe, progress=False)
    with fast.disable():
        train.fit(nets[1], x, y, recipe, progress=False)
    for quickly, plainly in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(quickly, plainly, rtol=1e-3, atol=1e-5)


# One pass for many examples, and one for parameters and images


def test_gradient_norms_are_those_of_single_images():
    net, (x, y) = used(build(normalise="batch")), images()
    quickly = measure.gradient_norms(net, x, y)
    for way in (rivals.norms_one_by_one, rivals.norms_by_vmap):
        for q, norms in way(net, x, y).items():
            torch.testing.assert_close(quickly[q], norms, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["none", "gradient-l1", "gradient-l2", "augment-linf"])
@pytest.mark.parametrize("training", [False, True])
def test_objectives_are_those_of_a_plain_loop(method, training):
    net, (x, y) = used(build(normalise="batch")), images()
    if training and method.startswith("gradient"):
        net[-1].weight.data *= 2  # in train mode, too, the gradient is that of the batch's total
    net.train(training)
    strength = 0.0 if method == "none" else 0.01
    log = []
    found = []
    for model, run in (
        (copy.deepcopy(net), lambda m: objectives.objective(method)(m, x, y, strength, None)),
        (copy.deepcopy(net), lambda m: plain.objective(m, x.clone(), y, method, strength, log)),
    ):
        value = run(model)
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters())])
    for quickly, plainly in zip(*found, strict=True):
        torch.testing.assert_close(quickly, plainly, rtol=1e-8, atol=1e-10)


# bfloat16


def test_padding_in_bfloat16_loses_nothing_to_padding_in_float32():
    net, (x, _) = build().train(), images(dtype=torch.float32)
    outputs = []
    for context in (torch.autocast("cpu", torch.bfloat16), fast.autocast(x.device)):
        with context, torch.no_grad():
            outputs.append(copy.deepcopy(net)(x))
    assert torch.equal(*outputs)
    assert outputs[0].dtype == torch.bfloat16
    with fast.autocast(x.device):
        assert F.pad(x.bfloat16(), (1, 1, 1, 1), mode="reflect").dtype == torch.bfloat16


def test_training_in_bfloat16_comes_close_to_float32():
    x, y = images(32, torch.float32)
    losses = []
    for bf16 in (False, True):
        net = build()
        recipe = train.Recipe(epochs=2, batch_size=16, lr=0.05, bf16=bf16)
        losses.append(train.fit(net, x, y, recipe, progress=False).history[-1]["loss"])
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
