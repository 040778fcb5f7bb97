"""Every public function gives on a GPU what it gives on the CPU, and leaves its results there.

In float64 the numbers themselves agree. In float32 and bfloat16 an attack may take another path (the sign of a gradient
near 0 is rounding's), so that what it achieves is compared: the losses of the attacked images, and how far they are.
"""

import inspect
import math

import pytest
import torch
from helpers.device_cases import ATTACKS, CASES, DTYPES, EPS, STARTS, TOLERANCE, attack, run
from helpers.on_device import assert_close, given, network, numbers, seeded

import advdim as ad

pytestmark = pytest.mark.gpu(noise=False)

INF = math.inf

# What is measured under autocast to bfloat16, too; the other methods train in it in test_training.py.
BF16 = {"models.Net", "measure.outputs", "measure.input_gradients", "measure.damage", "train.objectives gradient-l1"}
BF16 |= {"attacks.one_step inf", "attacks.pgd 2", "attacks.deepfool 2", "attacks.pgd from 3 starts, inf"}
# Differences, and gradients in the weights: of few images, whose gates rounding opens and shuts.
LOOSE = {"float32": 0.1, "bf16": 0.5}


@pytest.mark.gpu(noise="by dtype")
@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in CASES for d in DTYPES if d != "bf16" or n in BF16])
def test_a_function_agrees_with_the_cpu(name, dtype):
    found, expected = (run(name, device, dtype) for device in ("cuda", "cpu"))
    loose = dtype in LOOSE and name.startswith(("train.objectives", "measure.damage"))
    assert_close(found, expected, (LOOSE if loose else TOLERANCE)[dtype], each=dtype == "float64")


@pytest.mark.gpu(noise="by dtype")
@pytest.mark.parametrize(
    ("name", "dtype"), [(n, d) for n in (*ATTACKS, *STARTS) for d in DTYPES if d != "bf16" or n in BF16]
)
def test_an_attack_agrees_with_the_cpu(name, dtype):
    results = []
    for device in ("cuda", "cpu"):
        g = given(device, DTYPES[dtype])
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            attacked = attack(name, g, generator=seeded())
        assert attacked.device == g.device
        assert attacked.dtype == DTYPES[dtype]
        results.append(attacked.detach().cpu().double())
    found, expected = results
    if dtype == "float64":
        assert_close(found - given("cpu", torch.float64).x, expected - given("cpu", torch.float64).x, 1e-6)
    found, expected = map(achieved, results)
    assert_close(found, expected, TOLERANCE[dtype], each=dtype == "float64")


def achieved(attacked):
    """Losses after the attack, and sizes of the perturbations, in float64 on the CPU."""
    g = given("cpu", torch.float64)
    sizes = [ad.norms.norm(attacked - g.x, p) for p in (2, INF)]
    return torch.cat([ad.measure.losses(g.net, attacked, g.y), *sizes])


@pytest.mark.parametrize("name", STARTS)
def test_random_starts_may_come_from_the_gpu(name):
    g = given("cuda", torch.float64)
    first, again = (attack(name, g, generator=seeded("cuda")) for _ in range(2))
    assert first.device == g.device
    assert_close(numbers(first), numbers(again), 1e-6)
    p = STARTS[name][1]
    assert (ad.norms.norm(first - g.x, p) <= EPS * (1 + 1e-12)).all()
    assert not torch.allclose(first, attack(name, g, generator=seeded("cuda", 1)))


@pytest.mark.parametrize("draws", ["pgd-linf", "cross-lipschitz-random", "crop_and_flip"])
def test_training_may_draw_on_the_gpu(draws):
    g = given("cuda", torch.float64)

    def value(seed):
        generator = seeded("cuda", seed)
        if draws == "crop_and_flip":
            return ad.train.crop_and_flip(g.x, generator).mean(dim=(1, 2, 3))
        return ad.train.objectives.objective(draws)(g.net, g.x, g.y, 0.05, generator)

    assert_close(numbers(value(0), g.device), numbers(value(0), g.device), 1e-6)
    assert not torch.allclose(value(0), value(1), rtol=1e-5)


@pytest.mark.parametrize("p", [2, INF])
def test_deepfool_with_labels_leaves_what_is_misclassified(p):
    g = given("cuda", torch.float64)
    right = g.net(g.x).argmax(1) == g.y
    assert right.any()
    assert not right.all()
    attacked = ad.attacks.deepfool(g.net, g.x, g.y, p=p)
    assert torch.equal((attacked != g.x).flatten(1).any(1), right)


OPTIONS = {
    "normalised": {"normalise": (torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25]))},
    "batch-norm on images": {"normalise": "batch"},
    "zero padding": {"padding": "zeros"},
    "dilated": {"name": "conv_dilated", "depth": 4, "batch_norm": True},
    "averages": {"pooling": "average", "readout": "fc"},
    "mlp": {"name": "mlp", "batch_norm": True},
    "ntk": {"init": "ntk"},
    "projected": {"project": 4},
}


@pytest.mark.gpu(noise="by dtype")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kind_of_network_agrees_with_the_cpu(name, dtype):
    """Gradients and attacks through merged layers, and path sums, of networks as ``build`` makes them."""

    def measured(device):
        g = given(device, DTYPES[dtype], **OPTIONS[name])
        attacked = ad.attacks.one_step(g.net, g.x, g.y, p=2, eps=0.5)
        walk = [] if name == "projected" else ad.theory.path_second_moment(g.net, x=g.x)
        norms = ad.measure.gradient_norms(g.net, g.x, g.y)
        return [numbers(part, g.device) for part in (norms, ad.measure.losses(g.net, attacked, g.y), walk)]

    for found, expected in zip(measured("cuda"), measured("cpu"), strict=True):
        if len(expected):  # in float32, a gate may open or shut by rounding
            assert_close(found, expected, 1e-9 if dtype == "float64" else 1e-2)


@pytest.mark.parametrize("init", ad.models.initialise.RULES)
def test_weights_are_drawn_alike_and_judged_alike(init):
    net = network(init=init, batch_norm=False, readout="fc")
    judged = str(ad.theory.check_assumptions(net))
    assert str(ad.theory.check_assumptions(net.cuda())) == judged
    drawn = network(init=init, batch_norm=False, readout="fc").state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value.cpu(), drawn[name])


@pytest.mark.parametrize("p", [2, INF])
def test_autoattack_stays_on_the_device_and_leaves_its_generator(p):
    pytest.importorskip("pyautoattack", reason="needs the extra autoattack")
    g = given("cuda", torch.float64, n=3, depth=1)
    y, before = g.net(g.x).argmax(1), torch.cuda.get_rng_state()
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # 5000 queries of Square, and 100 steps of the others, are the library's
        attacked = auto_attack_in_short(patch, g.net, g.x, y, p=p, eps=0.3, seed=1)
    assert attacked.device == g.device
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert (ad.norms.norm(attacked - g.x, p) <= 0.3 * (1 + 1e-12)).all()
    assert ((attacked >= 0) & (attacked <= 1)).all()


def auto_attack_in_short(patch, *arguments, **options):
    import pyautoattack

    standard = pyautoattack.AutoAttack.run_standard_evaluation

    def short(self, *args, **kwargs):
        for name in ("apgd", "apgd_targeted", "fab"):
            if hasattr(part := getattr(self, name, None), "n_iter"):
                part.n_iter = 3
        self.square.n_queries = 5
        return standard(self, *args, **kwargs)

    patch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", short)
    return ad.attacks.auto_attack(*arguments, **options)


# Public functions without a case above, and why; "elsewhere": in another file of this folder.
WITHOUT = {
    "models.build": "on the CPU by contract; its networks are what all cases use",
    "models.device": "elsewhere",
    "models.Network": "a record of names and numbers",
    **dict.fromkeys(("models.READOUTS", "models.POOLINGS", "models.PADDINGS"), "names"),
    "models.initialise": "a module; see test_weights_are_drawn_alike_and_judged_alike",
    "theory.norms": "a module; its functions have cases",
    "theory.Assumption": "a record of words",
    "theory.Assumptions": "a record of words",
    "measure.Evaluation": "a record of numbers",
    "measure.Loss": "a type",
    "attacks.auto_attack": "a test of its own",
    "train.PAPER": "a recipe",
    "train.Recipe": "settings",
    "train.Result": "a record",
    "train.DivergenceError": "elsewhere",
    "train.fit": "elsewhere",
    "train.objectives": "a module; its methods have cases",
}


@pytest.mark.parametrize("package", ["models", "theory", "attacks", "measure", "train"])
def test_no_public_function_is_without_a_case(package):
    covered = {name.split(",")[0].split(" ")[0] for name in (*CASES, *ATTACKS)} | set(WITHOUT)
    assert {f"{package}.{name}" for name in getattr(ad, package).__all__} <= covered


def test_no_norm_is_without_a_case():
    public = {n for n, f in inspect.getmembers(ad.norms, inspect.isfunction) if not n.startswith("_")}
    on_numbers = {"dual", "threshold"}
    assert public - on_numbers <= {name.split(" ")[0].split(",")[0].removeprefix("norms.") for name in CASES}
