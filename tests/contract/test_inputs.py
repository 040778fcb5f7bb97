"""What every public function takes: any shape, dtype, layout, number of images and classes, with a graph or without."""

import copy
import math

import pytest
import torch
from helpers.nets import batch, relu_net
from helpers.objectives import EVERY, gradients, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advdim import attacks, data, measure, models, norms, theory
from advdim.train import crop_and_flip, objectives

INF = math.inf
few = settings(derandomize=True, deadline=None, max_examples=15)
HALF = (torch.float16, torch.bfloat16)

MEASURES = {
    "outputs": lambda net, x, y: measure.outputs(net, x),
    "losses": measure.losses,
    "input_gradients": measure.input_gradients,
    "gradient_norms": lambda net, x, y: torch.stack(list(measure.gradient_norms(net, x, y, (1, 1.5, 2, INF)).values())),
    "damage": lambda net, x, y: measure.damage(net, x, y, (x + 0.1).detach()),
    "vulnerability": lambda net, x, y: measure.vulnerability(net, x, 1 - x.detach()),
    "evaluate": lambda net, x, y: torch.tensor(measure.evaluate(net, x, y, (x + 0.1).detach(), p=2, eps=9).damage),
}
ATTACKS = {
    **{f"one_step {p}": lambda *a, p=p: attacks.one_step(*a, p=p, eps=0.1) for p in (1, 1.5, 2, INF)},
    **{f"pgd {p}": lambda *a, p=p: attacks.pgd(*a, p=p, eps=0.1, steps=2) for p in (1, 2, INF)},
    "pgd, restarted": lambda *a: attacks.pgd(
        *a, p=2, eps=0.1, steps=2, random_start=True, restarts=2, early_stop=True, generator=seeded()
    ),
    **{f"deepfool {p}": lambda net, x, y, p=p: attacks.deepfool(net, x, p=p, steps=3) for p in (2, INF)},
}
OBJECTIVES = {name: lambda *a, f=f: f(*a, 0.02, seeded()) for name, f in EVERY.items()} | {"plain": objectives.plain}
THEORY = {
    "open_gate_shares": lambda net, x, y: torch.tensor(theory.open_gate_shares(net, x)),
    "path_second_moment": lambda net, x, y: theory.path_second_moment(net, x=x),
}
#: Need gradients, so that they have no place in inference mode.
DIFFERENTIATE = {**ATTACKS, **EVERY, **{n: MEASURES[n] for n in ("input_gradients", "gradient_norms", "evaluate")}}


def given_images(n=3, channels=2, side=6, classes=4, dtype=torch.float64, seed=0):
    net = models.build("mlp", (channels, side, side), classes, width=5, depth=2, init="torch").to(dtype)
    return net, *batch(n, shape=(channels, side, side), classes=classes, dtype=dtype, seed=seed)


shapes = {
    "n": st.integers(1, 5),
    "channels": st.integers(1, 4),
    "side": st.integers(1, 7),
    "classes": st.integers(2, 6),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "seed": st.integers(0, 99),
}


@few
@given(**shapes)
def test_every_shape_number_of_images_and_of_classes_is_taken(**shape):
    net, x, y = given_images(**shape)
    for name, function in (MEASURES | ATTACKS | OBJECTIVES | THEORY).items():
        found = function(net, x, y)
        assert found.isfinite().all(), name
        if name in ATTACKS or name == "input_gradients":
            assert found.shape == x.shape, name
            assert found.dtype == x.dtype, name
        if name == "losses":
            assert found.shape == y.shape


@settings(derandomize=True, deadline=None, max_examples=4)
@given(k=st.integers(2, 5), **{**shapes, "dtype": st.just(torch.float64), "side": st.integers(3, 7)})
def test_an_image_s_result_does_not_depend_on_its_layout_in_memory(k, **shape):
    """Slices with gaps, transposed, reversed twice, expanded: the numbers are the same, so are the results."""
    net, x, y = given_images(**shape)
    gaps = torch.zeros(len(x) * k, *x.shape[1:], dtype=x.dtype)
    gaps[::k] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    layouts = (gaps[::k], turned, x.contiguous(memory_format=torch.channels_last))
    for name, function in (MEASURES | ATTACKS | OBJECTIVES).items():
        expected = function(net, x, y)
        for laid in layouts:
            assert laid.shape == x.shape
            torch.testing.assert_close(function(net, laid, y), expected, rtol=1e-9, atol=1e-11, msg=name)


def test_one_image_expanded_is_many():
    """Images that share their memory, as expand gives them, are attacked each by itself, and stay as they were."""
    net, x, y = given_images(1)
    before = x.clone()
    for name, function in (MEASURES | {n: f for n, f in ATTACKS.items() if n != "pgd, restarted"}).items():
        found = function(net, x.expand(3, -1, -1, -1), y.expand(3))
        if name not in ("gradient_norms", "evaluate"):
            torch.testing.assert_close(found[2:], found[:1], rtol=1e-12, atol=0)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", MEASURES | ATTACKS | OBJECTIVES | THEORY)
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_images_with_a_graph_and_no_grad_change_nothing(name, context):
    """Results are the same; those of measurements and attacks have no graph, those of objectives have one."""
    function = (MEASURES | ATTACKS | OBJECTIVES | THEORY)[name]
    net, x, y = given_images()
    expected = function(net, x, y)
    leaf = x.clone().requires_grad_()
    with context():
        found = function(net, leaf, y)
        assert torch.is_grad_enabled() == (context is torch.enable_grad)
    assert torch.equal(found, expected)
    assert found.requires_grad == (name in OBJECTIVES)
    if name in OBJECTIVES:
        assert gradients(net, found).any()
    assert leaf.grad is None


@pytest.mark.parametrize("name", DIFFERENTIATE)
def test_inference_mode_is_refused_in_one_line(name):
    """Where gradients are needed; torch's own message speaks of its internals."""
    function = (MEASURES | ATTACKS | OBJECTIVES)[name]
    net, x, y = given_images()
    with torch.inference_mode():
        made, labels = x.clone(), y.clone()
        foreign = copy.deepcopy(net)
        with pytest.raises(RuntimeError, match=r"inference_mode has none: use torch\.no_grad"):
            function(net, x, y)
    expected = function(net, x, y)
    for what, arguments in (("x", (net, made, y)), ("y", (net, x, labels)), ("the model", (foreign, x, y))):
        if (what == "x" and name.startswith("pgd")) or (what == "y" and name.startswith("deepfool")):
            assert torch.equal(function(*arguments), expected)  # nothing needs the gradient in it, or of it
            continue
        with pytest.raises(RuntimeError, match=f"{what} was made in torch.inference_mode, and allows no gradients"):
            function(*arguments)
    assert torch.equal(function(net, made.clone(), labels.clone()), expected)  # the cure


@pytest.mark.parametrize("name", ["outputs", "losses", "damage", "vulnerability"])
def test_what_needs_no_gradient_works_in_inference_mode(name):
    net, x, y = given_images()
    expected = MEASURES[name](net, x, y)
    with torch.inference_mode():
        assert torch.equal(MEASURES[name](net, x.clone(), y), expected)
        foreign = copy.deepcopy(net)
    assert torch.equal(MEASURES[name](foreign, x, y), expected)


def test_no_images_have_norms_and_directions_and_nothing_else():
    for shape in ((0, 3), (0, 1, 2, 2)):
        x = torch.ones(*shape)
        for q in (1, 1.5, 2, INF):
            assert norms.norm(x, q).shape == (0,)
            assert norms.steepest(x, q).shape == shape
        for p in (1, 2, INF):
            assert norms.project(x, p, 1.0).shape == shape
    for function in (norms.norm, norms.steepest, lambda x, p: norms.project(x, p, 1.0)):
        for p in (1, 2, INF):
            with pytest.raises(ValueError, match=r"without a number have no norm, got shape \(3, 0\)"):
                function(torch.ones(3, 0), p)
    net, x, y = given_images()
    for name, function in (MEASURES | ATTACKS).items():
        with pytest.raises(ValueError, match="empty"):
            function(net, x[:0], y[:0])
        assert name


def test_one_number_per_example_is_an_example():
    """Tensors of one axis: each number has its size for all its norms, and itself for its projection."""
    x = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    for q in (1, 2, 3, INF):
        assert norms.norm(x, q).tolist() == [3, 4, 0]
        assert norms.steepest(x, q).tolist() == [1, -1, 0]
    for p in (1, 2, INF):
        assert norms.project(x, p, 3.5).tolist() == [3, -3.5, 0]


# One class, two, and as many as there are images


def test_with_a_single_class_the_loss_is_0_and_nothing_moves():
    net, x, y = given_images(classes=2)
    net = nn.Sequential(*net[:-1], nn.Linear(5, 1).double())
    y = y * 0
    assert not measure.losses(net, x, y).any()
    assert not measure.input_gradients(net, x, y).any()
    for name, function in ATTACKS.items():
        if not name.startswith(("deepfool", "pgd, restarted")):
            assert torch.equal(function(net, x, y), x), name
    assert measure.evaluate(net, x, y, x, p=2, eps=0.1).flags["no gradient"] == 1


# Half precision


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_norms_of_half_precision_neither_overflow_nor_stand_still(p, dtype):
    """At 200,000 equal entries, sums of squares in float16 are infinite, and sums in bfloat16 end at 256."""
    x = torch.ones(2, 200_000, dtype=dtype)
    x[1, ::2] = -0.5
    exact, q = x.double(), norms.dual(p)
    found = norms.norm(x, q)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), norms.norm(exact, q), rtol=1e-6, atol=0)
    direction = norms.steepest(x, p)
    assert direction.dtype == dtype
    torch.testing.assert_close(direction.double(), norms.steepest(exact, p), rtol=torch.finfo(dtype).eps, atol=1e-7)
    if p in (1, 2, INF):
        for eps in (0.1, 300.0):
            inside = norms.project(x, p, eps)
            assert inside.dtype == dtype
            exactly = norms.project(exact, p, torch.tensor(eps).double())
            torch.testing.assert_close(inside.double(), exactly, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
            assert (inside.double().abs() <= exactly.abs() * (1 + 1e-6) + 1e-7).all()  # rounded towards 0


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_refuse_images_in_half_precision(name, dtype):
    """PGD's perturbations were .6 of eps in bfloat16, and up to half of it for p = 1 in float16; none said so."""
    net, x, y = given_images(dtype=dtype)
    with pytest.raises(ValueError, match=rf"float32 or float64, got {dtype}.*x\.float\(\)"):
        ATTACKS[name](net, x, y)


class Cast(nn.Module):
    """A network in half precision that takes and gives float32: the cure that the refusal names."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.to(self.net[1].weight.dtype)).float()


@pytest.mark.parametrize("dtype", HALF)
def test_a_network_in_half_precision_is_attacked_through_a_cast(dtype):
    net, x, y = given_images(dtype=torch.float32)
    for p in (1, 2, INF):
        attacked = attacks.pgd(Cast(copy.deepcopy(net).to(dtype)), x, y, p=p, eps=0.1)
        size = norms.norm(attacked.double() - x.double(), p)
        assert (size <= 0.1).all()
        assert (size > 0.0999).all()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MEASURES)
def test_measurements_in_half_precision_are_those_of_float64_to_its_rounding(name, dtype):
    net, x, y = given_images(dtype=dtype)
    if name == "vulnerability":
        return  # whether rounding changes a class is not to be foretold
    found, exact = MEASURES[name](net, x, y), MEASURES[name](copy.deepcopy(net).double(), x.double(), y)
    atol = 0.1 if name in ("damage", "evaluate") else 0.02
    torch.testing.assert_close(found.double(), exact.double(), rtol=0.1, atol=atol)


# eps, exactly


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    p=st.sampled_from([1, 2, INF]),
    exponent=st.one_of(st.sampled_from([1, 1.5, 2, 3, INF]), st.floats(1, 20)),
    eps=st.one_of(st.sampled_from([8 / 255, 0.1, 0.3, 1 / 3]), st.floats(1e-6, 5)),
    steps=st.integers(1, 3),
    stride=st.none() | st.floats(1e-3, 10),
    clip=st.booleans(),
    start=st.booleans(),
    stop=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1.0, 1e-3, 0.0]),
    seed=st.integers(0, 99),
)
def test_no_attack_exceeds_its_eps_by_the_last_digit(
    p, exponent, eps, steps, stride, clip, start, stop, dtype, scale, seed
):
    """Measured in float64, in which differences of float32 images are exact; 8/255 lies between two float32 numbers."""
    net, (x, y) = relu_net().to(dtype), batch(3, dtype=dtype, seed=seed)
    x = scale * x.round(decimals=1)  # on the ends of the range; next to 0, sums round either way
    radii = torch.tensor([eps, 2 * eps, eps / 2], dtype=torch.float64)
    options = {"eps": radii, "clip": clip}
    one = attacks.one_step(net, x, y, p=exponent, **options)
    options |= {"steps": steps, "step_size": stride, "random_start": start, "early_stop": stop}
    many = attacks.pgd(net, x, y, p=p, **options, generator=seeded(seed))
    for q, attacked in ((exponent, one), (p, many)):
        assert attacked.dtype == dtype
        size = norms.norm(attacked.double() - x.double(), q)
        assert (size <= radii * (1 + (0 if dtype == torch.float32 else 4e-16))).all()
        if clip:
            assert attacked.min() >= 0
            assert attacked.max() <= 1


@pytest.mark.parametrize("p", [1, 2, INF])
def test_eps_holds_exactly_on_large_images(p):
    net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 28**2, 4))
    x, y = batch(2, shape=(3, 224, 224), dtype=torch.float32)
    eps = norms.threshold(4 / 255, p, x[0].numel())
    for attacked in (attacks.one_step(net, x, y, p=p, eps=eps), attacks.pgd(net, x, y, p=p, eps=eps, steps=3)):
        size = norms.norm(attacked.double() - x.double(), p)
        assert (size <= eps).all()
        assert (size > 0.99 * eps).all()


def test_an_eps_below_the_smallest_number_is_refused():
    net, x, y = given_images(dtype=torch.float32)
    for attack in (attacks.one_step, attacks.pgd):
        with pytest.raises(ValueError, match=r"eps.*1e-46"):
            attack(net, x, y, p=2, eps=1e-46)


# Images and their sizes


@few
@given(n=st.integers(1, 3), channels=st.integers(1, 4), side=st.integers(1, 6), k=st.integers(1, 4))
def test_resizing_keeps_the_mean_of_any_image(n, channels, side, k):
    x = batch(n, shape=(channels, side, side))[0]
    for laid in (x, x.transpose(2, 3).contiguous().transpose(2, 3), x.clone().requires_grad_()):
        copied = data.resize(laid, side * k)
        assert copied.shape == (n, channels, side * k, side * k)
        torch.testing.assert_close(data.resize(copied, side, "area"), x, rtol=1e-12, atol=1e-14)


@few
@given(n=st.integers(1, 4), channels=st.integers(1, 3), side=st.integers(1, 7), seed=st.integers(0, 9))
def test_augmented_images_have_the_shape_and_the_numbers_of_images(n, channels, side, seed):
    x = batch(n, shape=(channels, side, side), seed=seed)[0]
    found = crop_and_flip(x, seeded(seed), padding=2)
    assert found.shape == x.shape
    for image, before in zip(found, x, strict=True):
        assert torch.isin(image, torch.cat([before.flatten(), torch.zeros(1, dtype=x.dtype)])).all()
