"""Every public function gives on a GPU what it gives on the CPU, and leaves its results there.

In float64 the numbers themselves agree. In float32 and bfloat16 an attack may take another path (the sign of a gradient
near 0 is rounding's), so that what it achieves is compared: the losses of the attacked images, and how far they are.
"""

import inspect
import math

import pytest
import torch
from helpers.on_device import assert_close, given, network, numbers, seeded, untouched

import advdim as ad

pytestmark = pytest.mark.gpu

INF = math.inf
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}
# In float64 for each number, relative to the largest of the result; else for all of them together.
TOLERANCE = {"float64": 1e-6, "float32": 1e-2, "bf16": 0.15}
EPS = 0.02


def calibrated(g):
    ad.models.calibrate_batch_norm(g.net, g.x)
    return dict(g.net.state_dict())


def parameter_gradients(loss):
    def run(g):
        value = loss(g)
        value.backward()
        gradients = [p.grad for p in g.net.parameters()]
        g.net.zero_grad()
        return value, gradients

    return run


def judged(g):
    """The judgement in words, as a number."""
    text = str(ad.theory.check_assumptions(g.net))
    return [float(ord(c)) for c in text]


# A case of each function, by its name; several where its options take other ways. Attacks are in ATTACKS.
CASES = {
    "models.Net": lambda g: g.net(g.x),
    "models.Normalise": lambda g: ad.models.Normalise(torch.tensor([0.1, 0.2, 0.3]), torch.ones(3)).to(g.x)(g.x),
    "models.calibrate_batch_norm": calibrated,
    "models.initialise.weight_total": lambda g: [
        ad.models.initialise.weight_total(m) for m in ad.models.initialise.weight_layers(g.net)
    ],
    "theory.path_second_moment": lambda g: ad.theory.path_second_moment(g.net),
    "theory.path_second_moment of images": lambda g: ad.theory.path_second_moment(g.net, x=g.x),
    "theory.open_gate_shares": lambda g: ad.theory.open_gate_shares(g.net, g.x),
    "theory.predicted_norms": lambda g: ad.theory.predicted_norms(g.net, x=g.x),
    "theory.check_assumptions": judged,
    **{f"norms.norm {q}": lambda g, q=q: ad.norms.norm(g.x - 0.5, q) for q in (1, 1.5, 2, INF)},
    **{f"norms.steepest {p}": lambda g, p=p: ad.norms.steepest(g.x - 0.5, p) for p in (1, 1.5, 2, INF)},
    **{f"norms.project {p}": lambda g, p=p: ad.norms.project(g.x - 0.5, p, 0.3) for p in (1, 2, INF)},
    "norms.project, radii": lambda g: ad.norms.project(g.x - 0.5, 1, g.x.flatten(1).mean(1)),
    "data.resize copy": lambda g: ad.data.resize(g.x, 32),
    "data.resize bilinear": lambda g: ad.data.resize(g.x, 20, "bilinear"),
    "data.resize area": lambda g: ad.data.resize(g.x, 5, "area"),
    "data.check": lambda g: (ad.data.check(g.x, g.y), 0.0)[1],
    "measure.outputs": lambda g: ad.measure.outputs(g.net, g.x, batch_size=4),
    "measure.losses": lambda g: ad.measure.losses(g.net, g.x, g.y),
    "measure.cross_entropy": lambda g: ad.measure.cross_entropy(g.x[:, 0, 0], g.y),
    "measure.logit": lambda g: ad.measure.logit(g.x[:, 0, 0], g.y),
    "measure.zero_one": lambda g: ad.measure.zero_one(g.x[:, 0, 0], g.y),
    "measure.input_gradients": lambda g: ad.measure.input_gradients(g.net, g.x, g.y, batch_size=4),
    "measure.input_gradients in float64": lambda g: ad.measure.input_gradients(g.net, g.x, g.y, dtype=torch.float64),
    "measure.gradient_norms": lambda g: ad.measure.gradient_norms(g.net, g.x, g.y, (1, 1.5, 2, INF)),
    "measure.damage": lambda g: ad.measure.damage(g.net, g.x, g.y, g.attacked),
    "measure.vulnerability": lambda g: ad.measure.vulnerability(g.net, g.x, g.attacked),
    "measure.evaluate": lambda g: ad.measure.evaluate(g.net, g.x, g.y, g.attacked, p=2, eps=1.0),
    "train.crop_and_flip": lambda g: ad.train.crop_and_flip(g.x, seeded()),
    **{
        f"train.objectives {method}": parameter_gradients(
            lambda g, method=method: ad.train.objectives.objective(method)(
                g.net.train(), g.x, g.y, 0.0 if method == "none" else 0.02, seeded()
            )
        )
        for method in ad.train.objectives.METHODS
    },
    "train.objectives gradient-l2, at rest": parameter_gradients(
        lambda g: ad.train.objectives.gradient_penalty(g.net, g.x, g.y, strength=0.02, q=2)
    ),
}

ATTACKS = {
    **{f"attacks.one_step {p}": (ad.attacks.one_step, {"p": p, "eps": EPS}) for p in (1, 1.5, 2, INF)},
    **{f"attacks.pgd {p}": (ad.attacks.pgd, {"p": p, "eps": EPS, "steps": 3}) for p in (1, 2, INF)},
    "attacks.pgd, clipped": (ad.attacks.pgd, {"p": 1, "eps": 1.0, "steps": 3, "clip": True, "batch_size": 4}),
    "attacks.pgd, its length of steps": (ad.attacks.pgd, {"p": 2, "eps": EPS, "steps": 2, "step_size": EPS / 3}),
    "attacks.deepfool 2": (ad.attacks.deepfool, {"p": 2}),
    "attacks.deepfool inf": (ad.attacks.deepfool, {"p": INF, "clip": True, "batch_size": 4}),
}
STARTS = {f"attacks.pgd from {n} starts, {p}": (n, p) for n, p in ((1, INF), (2, 1), (2, 2), (3, INF))}


# What is measured under autocast to bfloat16, too; the other methods train in it in test_training.py.
BF16 = {"models.Net", "measure.outputs", "measure.input_gradients", "measure.damage", "train.objectives gradient-l1"}
BF16 |= {"attacks.one_step inf", "attacks.pgd 2", "attacks.deepfool 2", "attacks.pgd from 3 starts, inf"}
# Differences, and gradients in the weights: of few images, whose gates rounding opens and shuts.
LOOSE = {"float32": 0.1, "bf16": 0.5}


@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in CASES for d in DTYPES if d != "bf16" or n in BF16])
def test_a_function_agrees_with_the_cpu(name, dtype):
    found, expected = (run(name, CASES[name], device, dtype) for device in ("cuda", "cpu"))
    loose = dtype in LOOSE and name.startswith(("train.objectives", "measure.damage"))
    assert_close(found, expected, (LOOSE if loose else TOLERANCE)[dtype], each=dtype == "float64")


def run(name, case, device, dtype):
    g = given(device, DTYPES[dtype])
    before = untouched(g.net)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
        result = case(g)
    if name.startswith(("measure", "theory")):
        for key, value in untouched(g.net).items():
            assert torch.equal(value, before[key]), f"{name} changed {key}"
        assert all(p.requires_grad and p.grad is None for p in g.net.parameters())
    return numbers(result, g.device)


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, d) for n in (*ATTACKS, *STARTS) for d in DTYPES if d != "bf16" or n in BF16]
)
def test_an_attack_agrees_with_the_cpu(name, dtype):
    results = []
    for device in ("cuda", "cpu"):
        g = given(device, DTYPES[dtype])
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            attacked = of_attack(name, g, generator=seeded())
        assert attacked.device == g.device
        assert attacked.dtype == DTYPES[dtype]
        results.append(attacked.detach().cpu().double())
    found, expected = results
    if dtype == "float64":
        assert_close(found - given("cpu", torch.float64).x, expected - given("cpu", torch.float64).x, 1e-6)
    found, expected = map(achieved, results)
    assert_close(found, expected, TOLERANCE[dtype], each=dtype == "float64")


def of_attack(name, g, **options):
    if name in ATTACKS:
        attack, options = ATTACKS[name]
        return attack(g.net, g.x, g.y, **options)
    restarts, p = STARTS[name]
    options |= {"random_start": True, "restarts": restarts, "early_stop": restarts == 3}
    return ad.attacks.pgd(g.net, g.x, g.y, p=p, eps=EPS, steps=2, **options)


def achieved(attacked):
    """Losses after the attack, and sizes of the perturbations, in float64 on the CPU."""
    g = given("cpu", torch.float64)
    sizes = [ad.norms.norm(attacked - g.x, p) for p in (2, INF)]
    return torch.cat([ad.measure.losses(g.net, attacked, g.y), *sizes])


@pytest.mark.parametrize("name", STARTS)
def test_random_starts_may_come_from_the_gpu(name):
    g = given("cuda", torch.float64)
    first, again = (of_attack(name, g, generator=seeded("cuda")) for _ in range(2))
    assert first.device == g.device
    assert_close(numbers(first), numbers(again), 1e-6)
    p = STARTS[name][1]
    assert (ad.norms.norm(first - g.x, p) <= EPS * (1 + 1e-12)).all()
    assert not torch.allclose(first, of_attack(name, g, generator=seeded("cuda", 1)))


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
