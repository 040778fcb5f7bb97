"""A case of every public function that works on tensors, run on a device: for the tests that compare devices."""

from __future__ import annotations

import math

import torch

import advdim as ad

from .on_device import given, numbers, seeded, untouched

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
    "models.Residual": lambda g: ad.models.Residual(torch.nn.Tanh(), scale=0.5)(g.x),
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
    "norms.towards_zero": lambda g: ad.norms.towards_zero(g.x.double() / 3, torch.float32),
    "data.resize copy": lambda g: ad.data.resize(g.x, 32),
    "data.resize bilinear": lambda g: ad.data.resize(g.x, 20, "bilinear"),
    "data.resize area": lambda g: ad.data.resize(g.x, 5, "area"),
    "data.check": lambda g: (ad.data.check(g.x, g.y), 0.0)[1],
    "measure.outputs": lambda g: ad.measure.outputs(g.net, g.x, batch_size=4),
    "measure.losses": lambda g: ad.measure.losses(g.net, g.x, g.y),
    "measure.cross_entropy": lambda g: ad.measure.cross_entropy(g.x[:, 0, 0], g.y),
    "measure.logit": lambda g: ad.measure.logit(g.x[:, 0, 0], g.y),
    "measure.predictions": lambda g: ad.measure.predictions(g.net(g.x)),
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
    "attacks.deepfool from the predictions": (lambda net, x, _, **options: ad.attacks.deepfool(net, x, **options), {}),
    "attacks.deepfool 2": (ad.attacks.deepfool, {"p": 2}),
    "attacks.deepfool inf": (ad.attacks.deepfool, {"p": INF, "clip": True, "batch_size": 4}),
}
STARTS = {f"attacks.pgd from {n} starts, {p}": (n, p) for n, p in ((1, INF), (2, 1), (2, 2), (3, INF))}


def run(name, device, dtype="float64"):
    """All numbers of a case, on the CPU, checked to come from the device and to leave the network as it was."""
    g = given(device, DTYPES[dtype])
    before = untouched(g.net)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
        result = CASES[name](g)
    if name.startswith(("measure", "theory")):
        for key, value in untouched(g.net).items():
            assert torch.equal(value, before[key]), f"{name} changed {key}"
        assert all(p.requires_grad and p.grad is None for p in g.net.parameters())
    return numbers(result, g.device)


def attack(name, g, **options):
    """The images that an attack gives; ``options`` are those of random starts."""
    if name in ATTACKS:
        function, options = ATTACKS[name]
        return function(g.net, g.x, g.y, **options)
    restarts, p = STARTS[name]
    options |= {"random_start": True, "restarts": restarts, "early_stop": restarts == 3}
    return ad.attacks.pgd(g.net, g.x, g.y, p=p, eps=EPS, steps=2, **options)
