"""Training on pixel-copied images, and networks that project on them: chapter 8's theorem, step by step."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import advdim as ad

S = 3  # pixels are copied into blocks of S x S
SIZE = 4


def up(z):
    return ad.data.resize(z, S * z.shape[-1], "copy")


def on(w):
    return up(F.avg_pool2d(w, S))


@pytest.fixture
def small_images():
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(40, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return z, torch.randint(3, (40,), generator=generator)


def mlp(size, kappa):
    normalise = (torch.zeros(2), torch.full((2,), float(kappa)))
    return ad.models.build("mlp", (2, size, size), classes=3, width=7, seed=1, normalise=normalise).double()


def first(net):
    return next(layer for layer in net if isinstance(layer, nn.Linear))


def train(net, x, y, recipe, optimiser=None):
    if optimiser is None:
        ad.train.fit(net, x, y, recipe, progress=False)
        return
    net.train()
    steps = optimiser(net.parameters())
    for _ in range(12):
        steps.zero_grad()
        F.cross_entropy(net(x), y).backward()
        steps.step()


RECIPE = ad.train.Recipe(epochs=3, batch_size=8, lr=0.02, seed=2)


@pytest.mark.parametrize("optimiser", [None, torch.optim.Adam], ids=["sgd with momentum", "adam"])
def test_the_first_layer_never_moves_off_the_copied_images(small_images, optimiser):
    z, y = small_images
    net = mlp(S * SIZE, 1)
    before = first(net).weight.detach().clone().view(-1, 2, S * SIZE, S * SIZE)
    train(net, up(z), y, RECIPE, optimiser)
    after = first(net).weight.detach().view_as(before)
    moved = after - before
    assert moved.norm() > 0.01 * before.norm()
    assert (moved - on(moved)).abs().max() < 1e-14
    penalised = mlp(S * SIZE, 1)
    train(penalised, up(z), y, ad.train.Recipe("pgd-linf", 0.05, epochs=3, batch_size=8, lr=0.02, seed=2))
    moved = first(penalised).weight.detach().view_as(before) - before
    assert (moved - on(moved)).norm() > 0.01 * moved.norm(), "attacks leave the copied images"


@pytest.mark.parametrize(("kappa", "rate"), [(S, 1), (1, S**2)], ids=["rescaled", "as they are"])
def test_training_on_copies_is_training_on_small_images(small_images, kappa, rate):
    z, y = small_images
    large, small = mlp(S * SIZE, kappa), mlp(SIZE, 1)
    v = S**2 * F.avg_pool2d(first(large).weight.detach().view(-1, 2, S * SIZE, S * SIZE), S) / kappa  # V = W U / kappa
    with torch.no_grad():
        for a, b in zip(large.parameters(), small.parameters(), strict=True):
            b.copy_(v.flatten(1) if a.shape != b.shape else a)
    own = first(small).weight
    rest = [parameter for parameter in small.parameters() if parameter is not own]
    optimiser = torch.optim.SGD([{"params": rest}, {"params": [own], "lr": 0.02 * rate}], lr=0.02, momentum=0.9)
    train(large, up(z), y, RECIPE, lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9))
    train(small, z, y, RECIPE, lambda _: optimiser)
    assert (small(z) - mlp(SIZE, 1)(z)).abs().max() > 0.1, "hardly trained"
    assert (large(up(z)) - small(z)).abs().max() < 1e-11


@pytest.mark.parametrize("power", [1, 2], ids=["kappa = s", "kappa = s^2"])
def test_adam_on_copies_is_adam_on_small_images_at_another_rate(small_images, power):
    """Part 4: V has the rate s^2 / kappa times that of W, and kappa times its constant."""
    z, y = small_images
    kappa, lr, eps = S**power, 0.01, 1e-6
    large = mlp(S * SIZE, kappa)
    v = S**2 * F.avg_pool2d(first(large).weight.detach().view(-1, 2, S * SIZE, S * SIZE), S) / kappa

    def small_trained(rate, constant):
        small = mlp(SIZE, 1)
        with torch.no_grad():
            for a, b in zip(large.parameters(), small.parameters(), strict=True):
                b.copy_(v.flatten(1) if a.shape != b.shape else a)
        own = first(small).weight
        rest = [parameter for parameter in small.parameters() if parameter is not own]
        groups = [{"params": rest}, {"params": [own], "lr": rate, "eps": constant}]
        train(small, z, y, RECIPE, lambda _: torch.optim.Adam(groups, lr=lr, eps=eps))
        return small(z)

    predicted, same_rate = small_trained(lr * S**2 / kappa, kappa * eps), small_trained(lr, kappa * eps)
    train(large, up(z), y, RECIPE, lambda parameters: torch.optim.Adam(parameters, lr=lr, eps=eps))
    assert (large(up(z)) - predicted).abs().max() < 1e-10
    apart = (predicted - same_rate).abs().max()
    assert apart > 0.05 if power == 1 else apart < 1e-10  # with kappa = s, the training depends on s


def test_the_gradient_off_the_copies_is_as_predicted_after_training(small_images):
    # Given the signal beta, it is Gaussian of covariance (2/d) |beta|^2 (I - P): 200 draws of the part W_0 (I - P).
    z, y = small_images
    norms = []
    for seed in range(200):
        net = mlp(S * SIZE, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            w = first(net).weight.view(-1, 2, S * SIZE, S * SIZE)
            noise = torch.randn(w.shape, generator=generator, dtype=w.dtype) * math.sqrt(2 / w[0].numel())
            w.copy_(on(w) + noise - on(noise))
        train(net, up(z), y, RECIPE, lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9))
        g = ad.measure.input_gradients(net.eval(), up(z[:1]), y[:1])
        norms.append(ad.norms.norm(g - on(g), 1))
    layers = list(net)
    place = layers.index(first(net)) + 1
    hidden = nn.Sequential(*layers[:place])(up(z[:1])).detach().requires_grad_()
    (beta,) = torch.autograd.grad(F.cross_entropy(nn.Sequential(*layers[place:])(hidden), y[:1]), hidden)
    d0 = 2 * SIZE**2
    expected = math.sqrt(4 / math.pi * (S**2 - 1) * d0) * beta.norm()
    values = torch.cat(norms)
    assert (values.mean() - expected).abs() < 4 * values.std() / math.sqrt(len(values))
    assert values.std() / math.sqrt(len(values)) < 0.02 * expected


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_the_part_on_the_copies_is_the_small_networks_gradient(small_images, p):
    z, y = small_images
    net = ad.models.build("conv_strided", (2, 12, 12), classes=3, width=5, depth=2, seed=0).double()
    small = nn.Sequential(nn.Upsample(scale_factor=S), net).eval()  # F = f o U
    q = ad.norms.dual(p)
    part = ad.norms.norm(on(ad.measure.input_gradients(net, up(z), y)), q)
    g0 = ad.norms.norm(ad.measure.input_gradients(small, z, y), q)
    d0 = z[0].numel()
    large = ad.norms.threshold(0.01, p, S**2 * d0) * part
    assert large == pytest.approx(ad.norms.threshold(0.01, p, d0) * g0, rel=1e-10)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_a_projected_network_is_attacked_as_the_small_one(small_images, p):
    z, _ = small_images
    net = ad.models.build("conv_strided", (2, 12, 12), classes=3, width=5, depth=2, seed=0, project=SIZE).double()
    plain = ad.models.build("conv_strided", (2, 12, 12), classes=3, width=5, depth=2, seed=0).double()
    x, d0 = up(z), z[0].numel()
    large, small = (ad.norms.threshold(0.1, p, d) for d in (S**2 * d0, d0))
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    delta = delta * (large / ad.norms.norm(delta, p)).view(-1, 1, 1, 1)
    eta = F.avg_pool2d(delta, S)  # into: what is left of an attack is small enough for the small image
    assert (ad.norms.norm(eta, p) <= small * (1 + 1e-12)).all()
    assert (net(x + delta) - plain(up(z + eta))).abs().max() < 1e-12
    eta = eta * (small / ad.norms.norm(eta, p)).view(-1, 1, 1, 1)  # onto: every attack on it can be copied
    assert ad.norms.norm(up(eta), p) == pytest.approx(torch.full((len(z),), large, dtype=z.dtype), rel=1e-12)
    assert (net(x + up(eta)) - plain(up(z + eta))).abs().max() < 1e-12
