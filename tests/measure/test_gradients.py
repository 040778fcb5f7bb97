"""Input gradients against torch.func and finite differences, what measuring leaves behind, and what it refuses."""

import copy
import math
import warnings

import pytest
import torch
from helpers.nets import Bomb, batch, relu_net, smooth_net
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from advdim import measure, models, norms

INF = math.inf


def one_by_one(net, x, y, loss=measure.cross_entropy):
    """Per-example gradients by torch.func.vmap, in which no sum over a batch occurs."""
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return vmap(grad(lambda xi, yi: loss(functional_call(net, state, (xi[None],)), yi[None])[0]))(x, y)


def square(outputs, y):
    return (outputs - (y[:, None] == torch.arange(outputs.shape[1])).to(outputs.dtype)).square().sum(1)


# Gradients


@pytest.mark.parametrize("loss", [measure.cross_entropy, measure.logit, square])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_are_those_of_each_example_alone(loss, batch_norm):
    net, (x, y) = relu_net(batch_norm=batch_norm), batch()
    if batch_norm:
        models.calibrate_batch_norm(net, batch(40)[0])
    torch.testing.assert_close(
        measure.input_gradients(net, x, y, loss=loss), one_by_one(net, x, y, loss), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("loss", [measure.cross_entropy, measure.logit])
def test_gradients_are_central_differences(loss):
    net, (x, y) = smooth_net(), batch(2)
    g, h = measure.input_gradients(net, x, y, loss=loss), 1e-5
    steps = h * torch.eye(x[0].numel(), dtype=x.dtype).view(-1, 1, *x.shape[1:])
    differences = [
        (measure.losses(net, x + step, y, loss=loss) - measure.losses(net, x - step, y, loss=loss)) / (2 * h)
        for step in steps
    ]
    torch.testing.assert_close(g.flatten(1), torch.stack(differences, dim=1), rtol=1e-7, atol=1e-9)


def test_gradient_of_a_linear_classifier_in_closed_form():
    net = models.build("mlp", (2, 6, 6), 4, depth=1).double()
    x, y = batch()
    weight = net[1].weight.detach()
    error = torch.softmax(x.flatten(1) @ weight.T, 1) - F.one_hot(y, 4)
    torch.testing.assert_close(measure.input_gradients(net, x, y).flatten(1), error @ weight, rtol=1e-12, atol=1e-15)
    logit = measure.input_gradients(net, x, y, loss=measure.logit)
    torch.testing.assert_close(logit.flatten(1), weight[y], rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100, None])
def test_results_do_not_depend_on_batches(batch_size):
    net, (x, y) = relu_net(batch_norm=True), batch(7)
    attacked = x + 0.01
    alone = torch.cat([measure.input_gradients(net, x[i : i + 1], y[i : i + 1]) for i in range(7)])
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(measure.input_gradients(net, x, y, batch_size=batch_size), alone, **close)
    for q, value in measure.gradient_norms(net, x, y, q=(1, 2, INF), batch_size=batch_size).items():
        torch.testing.assert_close(value, norms.norm(alone, q), **close)
    torch.testing.assert_close(measure.outputs(net, x, batch_size=batch_size), net(x).detach(), **close)
    torch.testing.assert_close(
        measure.damage(net, x, y, attacked, batch_size=batch_size),
        (measure.cross_entropy(net(attacked), y) - measure.cross_entropy(net(x), y)).detach(),
        **close,
    )
    changed = measure.vulnerability(net, x, attacked, batch_size=batch_size)
    assert torch.equal(changed, net(x).argmax(1) != net(attacked).argmax(1))


def test_norms_are_those_of_the_gradients():
    net, (x, y) = relu_net(), batch()
    g = measure.input_gradients(net, x, y).flatten(1)
    found = measure.gradient_norms(net, x, y, q=(1, 2, 3, INF))
    assert list(found) == [1, 2, 3, INF]
    for q, expected in ((1, g.abs().sum(1)), (2, g.square().sum(1).sqrt()), (INF, g.abs().amax(1))):
        torch.testing.assert_close(found[q], expected, rtol=1e-12, atol=0)
    assert set(measure.gradient_norms(net, x, y)) == {1, 2}


def test_measuring_in_float64_is_a_copy_of_the_model():
    net, (x, y) = relu_net().float(), batch(dtype=torch.float32)
    single = measure.input_gradients(net, x, y)
    double = measure.input_gradients(net, x, y, dtype=torch.float64)
    exact = one_by_one(copy.deepcopy(net).double(), x.double(), y)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)
    assert not torch.equal(single.double(), exact)
    assert {p.dtype for p in net.parameters()} == {x.dtype} == {torch.float32}
    assert measure.gradient_norms(net, x, y, dtype=torch.float64)[1].dtype == torch.float64


# What measuring leaves behind: nothing


@pytest.mark.parametrize("after", [0, 1, 10**9])
def test_the_model_is_left_as_found_even_when_it_raises(after):
    net = nn.Sequential(*relu_net(batch_norm=True), Bomb(after))
    net[0].weight.requires_grad_(False)
    net[-3].train()
    for p in net.parameters():
        p.grad = torch.full_like(p, 7) if p.requires_grad else None
    state = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    training = [m.training for m in net.modules()]
    values = copy.deepcopy({k: v for k, v in net.state_dict().items()})
    x, y = batch()
    x.requires_grad_()
    if after < 10**9:
        with pytest.raises(RuntimeError, match="boom"):
            measure.input_gradients(net, x, y, batch_size=3)
    else:
        measure.input_gradients(net, x, y, batch_size=3)
    for p, (requires, gradient) in zip(net.parameters(), state, strict=True):
        assert p.requires_grad == requires
        assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)
    assert [m.training for m in net.modules()] == training
    assert all(torch.equal(v, values[k]) for k, v in net.state_dict().items())
    assert x.grad is None
    assert x.requires_grad


def test_convolutions_on_a_gpu_may_not_use_tf32_while_they_are_measured():
    """It is a global setting, read by every convolution, forward and back; here it is only seen to be set."""
    net, (x, y), cudnn = relu_net(), batch(), torch.backends.cudnn
    before, seen = cudnn.allow_tf32, []
    assert before

    def look(*_):
        seen.append(cudnn.allow_tf32)

    def loss(outputs, y):
        outputs.register_hook(look)
        return measure.cross_entropy(outputs, y)

    net.register_forward_hook(look)
    measure.gradient_norms(net, x, y, loss=loss)
    measure.outputs(net, x)
    assert seen == [False] * 3
    with pytest.raises(RuntimeError, match="boom"):
        measure.outputs(nn.Sequential(net, Bomb(0)), x)
    assert cudnn.allow_tf32 == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has one setting for all layers")
def test_a_precision_set_for_convolutions_alone_is_the_caller_s():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"
        measure.outputs(relu_net(), batch()[0])
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before


def test_train_mode_is_warned_of_and_eval_mode_is_not():
    x, y = batch()
    for net in (relu_net(batch_norm=True), nn.Sequential(*relu_net(), nn.Dropout(0.1))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            measure.input_gradients(net.eval(), x, y)
        with pytest.warns(UserWarning, match="train mode") as record:
            measure.input_gradients(net.train(), x, y)
        assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure.input_gradients(relu_net().train(), x, y)  # no layer in which examples interact


def test_batch_norm_without_running_statistics_is_warned_of_in_eval_mode_too():
    net = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(72, 4)).double().eval()
    x, y = batch()
    with pytest.warns(UserWarning, match="BatchNorm2d"):
        measure.input_gradients(net, x, y)


def test_the_warning_of_a_fresh_batch_norm_names_calibration():
    """In eval mode, with the statistics it came with, it would do nothing, and exponents can turn round."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).double()
    x, y = batch()
    with pytest.warns(UserWarning, match=r"calibrate_batch_norm\(model, x\)"):
        measure.gradient_norms(net, x, y)
    models.calibrate_batch_norm(net, x)
    with pytest.warns(UserWarning, match=r"call model\.eval\(\) first$"):
        measure.gradient_norms(net, x, y)


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_batch_norm_that_has_seen_images_needs_no_calibration(statistic):
    net = models.build("conv_strided", (1, 8, 8), depth=2, width=4, batch_norm=True).train()
    layer = next(m for m in net if isinstance(m, nn.BatchNorm2d))
    getattr(layer, statistic)[1] = 0.5
    x, y = batch(2, shape=(1, 8, 8), dtype=torch.float32)
    with pytest.warns(UserWarning, match="call model.eval.. first$"):
        measure.input_gradients(net, x, y)
