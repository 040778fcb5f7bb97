"""NaN and infinity go on to the result, or are refused by the image that has them: nothing turns them into a number."""

import math

import pytest
import torch
from helpers.nets import batch, relu_net
from helpers.objectives import EVERY, gradients, seeded
from torch import nn

from advdim import attacks, measure, models, norms, theory

INF, NAN = math.inf, math.nan
EXPONENTS = (1, 1.5, 2, 3, INF)
BROKEN = 3  # the image at which the networks below fail


class Broken(nn.Module):
    """A net whose outputs, or their gradients alone, are NaN or infinite for one image, and right elsewhere."""

    def __init__(self, value=NAN, where="outputs"):
        super().__init__()
        self.net, self.value, self.where = relu_net(), value, where

    def forward(self, x):
        outputs = self.net(x)
        here = (x[:, :1].flatten(1).mean(1) - x[:, 1:].flatten(1).mean(1) > 0.7)[:, None]  # attacked or not
        if self.where == "outputs":
            return torch.where(here, self.value, outputs)  # and with a gradient of 0
        if outputs.requires_grad:
            outputs.register_hook(lambda g: torch.where(here, self.value, g))
        return outputs


def given():
    x, y = batch()
    x[BROKEN, 0], x[BROKEN, 1] = 1, 0
    return x, y


# Norms


@pytest.mark.parametrize("q", EXPONENTS)
def test_the_norm_of_what_is_not_finite_is_not_finite(q):
    """One NaN among many numbers once made 0 of it, for 1 < q < inf."""
    x = torch.tensor([[1.0, NAN], [INF, 1.0], [NAN, INF], [3.0, 4.0]], dtype=torch.float64)
    found = norms.norm(x, q)
    assert found[:3].isfinite().tolist() == [False] * 3
    assert found[[0, 2]].isnan().all()
    assert found[1] == INF
    assert found[3] == norms.norm(x[3:], q)[0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("p", EXPONENTS)
def test_what_is_not_finite_has_no_direction_and_no_projection(p, bad):
    """The sign of NaN is 0: such an image would look robust. The others are what they are without it."""
    g = torch.randn(3, 2, 4, 4, generator=seeded(), dtype=torch.float64)
    sound = g[[0, 2]].clone()
    g[1, 0, 2, 1] = bad
    results = [lambda t: norms.steepest(t, p)]
    if p in (1, 2, INF):
        results += [lambda t: norms.project(t, p, 0.5), lambda t: norms.project(t, p, 1e9)]
    for result in results:
        assert result(g)[1].isnan().all()
        assert torch.equal(result(g)[[0, 2]], result(sound))


# Measurements


@pytest.mark.parametrize(("value", "where"), [(NAN, "outputs"), (NAN, "gradient")])
def test_gradients_and_their_norms_are_nan_at_the_image_alone(value, where):
    net, (x, y) = Broken(value, where), given()
    others = [i for i in range(len(x)) if i != BROKEN]
    assert measure.input_gradients(net, x, y)[others].isfinite().all()
    for q, found in measure.gradient_norms(net, x, y, EXPONENTS).items():
        assert not found[BROKEN].isfinite(), q
        assert found[others].isfinite().all()


@pytest.mark.parametrize("value", [NAN, INF])
def test_losses_and_damage_are_nan_at_the_image_alone(value):
    net, (x, y) = Broken(value), given()
    for found in (measure.losses(net, x, y), measure.damage(net, x, y, x)):
        assert (~found.isfinite()).nonzero().tolist() == [[BROKEN]]


def test_a_nan_network_predicts_nothing_and_is_not_robust():
    net, (x, _) = Broken(), given()
    outputs = measure.outputs(net, x)
    expected = outputs.argmax(1).masked_fill(torch.arange(len(x)) == BROKEN, -1)
    assert torch.equal(measure.predictions(outputs), expected)
    for label in range(4):  # argmax takes a NaN for the largest, and would find some label right
        assert measure.zero_one(outputs, torch.full((len(x),), label))[BROKEN] == 1
    assert measure.vulnerability(net, x, x).nonzero().tolist() == [[BROKEN]]
    ruled_out = torch.tensor([[0.0, -INF, 1.0]])  # minus infinity rules a class out, and is no accident
    assert measure.predictions(ruled_out).tolist() == [2]


@pytest.mark.parametrize(("value", "where"), [(NAN, "outputs"), (INF, "outputs"), (NAN, "gradient")])
def test_an_evaluation_flags_what_is_not_finite(value, where):
    net, (x, _) = Broken(value, where), given()
    y = measure.outputs(net.net, x).argmax(1)
    found = measure.evaluate(net, x, y, x, p=2, eps=0.1)
    assert found.flags["not finite"] == 1 / len(x)
    if math.isnan(value) and where == "outputs":
        assert found.accuracy == found.attacked_accuracy == 1 - 1 / len(x)
        assert found.vulnerability == 1 / len(x)
        assert math.isnan(found.damage)
    assert measure.evaluate(net.net, x, y, x, p=2, eps=0.1).flags["not finite"] == 0


def test_an_evaluation_flags_what_the_attack_made_nan():
    net, (x, y) = Broken(), given()
    clean = x.clone()
    clean[BROKEN] = 0.5
    found = measure.evaluate(net, clean, y, x, p=2, eps=0.5)
    assert found.flags["not finite"] == found.vulnerability == 1 / len(x)


# Attacks

ATTACKS = {
    **{f"one_step {p}": lambda *a, p=p, **o: attacks.one_step(*a, p=p, eps=0.1, **o) for p in EXPONENTS},
    **{f"pgd {p}": lambda *a, p=p, **o: attacks.pgd(*a, p=p, eps=0.1, steps=3, **o) for p in (1, 2, INF)},
    "pgd, stopped": lambda *a, **o: attacks.pgd(*a, p=2, eps=0.1, steps=3, early_stop=True, **o),
    "pgd, restarted": lambda *a, **o: attacks.pgd(
        *a, p=2, eps=0.1, steps=3, random_start=True, restarts=2, generator=seeded(), **o
    ),
    **{f"deepfool {p}": lambda net, x, _, p=p, **o: attacks.deepfool(net, x, p=p, **o) for p in (2, INF)},
    "auto_attack": lambda *a, **o: attacks.auto_attack(*a, p=INF, eps=0.1, **o),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [(n, w) for n in ATTACKS for w in ("outputs", "gradient") if (n, w) != ("auto_attack", "gradient")],
)
@pytest.mark.parametrize("batch_size", [2, 100])
def test_attacks_refuse_a_nan_by_its_image(name, where, batch_size):
    net, (x, y) = Broken(where=where), given()
    with pytest.raises(ValueError, match=rf"NaN.*first at example {BROKEN}: "):
        ATTACKS[name](net, x, y, batch_size=batch_size)


def test_autoattack_refuses_a_network_that_is_nan_at_attacked_images_alone():
    """Its library takes the first of NaNs for the class: an image of that class would seem robust."""
    net, (x, y) = relu_net(), batch()
    y = measure.outputs(net, x).argmax(1)

    class UnderAttack(nn.Module):
        def forward(self, images):
            moved = torch.cdist(images.flatten(1).double(), x.flatten(1)).amin(1) > 1e-3
            return net(images).masked_fill(moved[:, None], NAN)

    assert measure.outputs(UnderAttack(), x).isfinite().all()
    with pytest.raises(ValueError, match="NaN outputs at attacked images"):
        attacks.auto_attack(UnderAttack(), x, y, p=INF, eps=0.1)


# The rest


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("what", ["image", "weight"])
def test_objectives_pass_a_nan_on_so_that_training_notices(name, what):
    """One NaN gradient of one image once left the penalty of q = 2 finite."""
    net, (x, y) = relu_net(), batch()
    if what == "image":
        x[2, 0, 3, 3] = NAN
    else:
        net[0].weight.data[0, 0, 0, 0] = NAN
    if name in ("pgd-l1", "pgd-l2") and what == "image":  # of the public function; the loop checks images once
        with pytest.raises(ValueError, match=r"NaN.*example 2"):
            EVERY[name](net, x, y, 0.1, seeded())
        return
    value = EVERY[name](net, x, y, 0.1, seeded())
    assert value.isnan()
    assert not gradients(net, value).isfinite().all()


def test_the_gradient_penalty_of_a_nan_gradient_is_nan():
    """The loss itself is finite: only the norm tells."""
    x, y = given()
    for name in ("gradient-l1", "gradient-l2", "gradient-l1.5", "gradient-linf"):
        assert not EVERY[name](Broken(where="gradient"), x, y, 0.1, seeded()).isfinite(), name


def test_the_theory_of_a_nan_network_says_so():
    net = models.build("mlp", (2, 6, 6), 4)
    del net[1].weight_law  # or the law would be believed, and not the weights
    net[1].weight.data[0, 0] = NAN
    assert theory.path_second_moment(net).isnan().all()
    assert all(math.isnan(value) for value in theory.predicted_norms(net).values())
    judged = theory.check_assumptions(net)
    assert judged["H3"].status == judged["S"].status == "fails"
    assert not judged.hold


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("joined", [False, True])
def test_paths_through_a_nan_are_refused(bad, joined):
    """Its gates would count as shut: the prediction was 0, of a network without any paths."""
    net, (x, _) = models.build("mlp", (2, 6, 6), 4).double(), batch()
    if joined:
        net = nn.Sequential(nn.Flatten(), models.Residual(nn.Linear(72, 72), nn.ReLU(), nn.Linear(72, 72)), nn.ReLU())
        net = net.append(nn.Linear(72, 4)).double()
    next(m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)).weight.data[0, 0] = bad
    for counts in (theory.path_second_moment, theory.predicted_norms):
        with pytest.raises(ValueError, match="NaN or infinite activations at"):
            counts(net, x=x)
    if not joined:
        with pytest.raises(ValueError, match="NaN or infinite activations at Linear"):
            theory.open_gate_shares(net, x)
