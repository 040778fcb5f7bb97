"""Bugs that no CPU shows, planted one by one in the package: each is noticed by what this folder tests."""

import inspect
import types

import pytest
import torch
from helpers.device_cases import attack, run
from helpers.on_device import CLASSES, assert_close, given, images, network, seeded

import advdim as ad
from advdim.attacks import deep_fool, perturbation, projected_gradient
from advdim.experiments import after_training
from advdim.measure import gradients
from advdim.models.fast import fold_batch_norm
from advdim.theory import norms, path_counting
from advdim.train import augment, checkpoint, evaluation, objectives

pytestmark = [
    pytest.mark.gpu(noise=False),
    pytest.mark.skipif(torch.cuda.is_available(), reason="one pretended GPU is enough, and loses nothing"),
]


def agrees(name):
    return lambda tmp_path: assert_close(run(name, "cuda"), run(name, "cpu"), 1e-6)


def attack_agrees(name):
    def check(tmp_path):
        found, expected = (attack(name, given(d, torch.float64), generator=seeded()).cpu() for d in ("cuda", "cpu"))
        assert_close(found, expected, 1e-6)

    return check


def path_sums_agree(**options):
    def check(tmp_path):
        sums = [ad.theory.path_second_moment(given(d, torch.float64, **options).net) for d in ("cuda", "cpu")]
        assert_close(sums[0].cpu(), sums[1], 1e-6)

    return check


def gradients_agree(**options):
    def check(tmp_path):
        found = []
        for d in ("cuda", "cpu"):
            g = given(d, torch.float64, **options)
            found.append(ad.measure.input_gradients(g.net, g.x, g.y).cpu())
        assert_close(*found, 1e-6)

    return check


def norms_are_exact(tmp_path):
    g = given("cuda", torch.float32, batch_norm=False)
    found = ad.measure.gradient_norms(g.net, g.x, g.y)[2].cpu().double()
    exact = ad.measure.gradient_norms(g.net.double(), g.x.double(), g.y)[2].cpu()
    assert_close(found, exact, 2e-5)


def deepfool_crosses(tmp_path):
    g = given("cuda", torch.float32, n=24, readout="fc", batch_norm=False)
    assert ad.measure.vulnerability(g.net, g.x, ad.attacks.deepfool(g.net, g.x)).all()


def training(tmp_path, **options):
    net, x = network(width=4).cuda(), images(8, 3, 16, 16)
    recipe = ad.train.Recipe("pgd-linf", 0.01, epochs=1, batch_size=4)
    ad.train.fit(net, x, torch.arange(8) % CLASSES, recipe, progress=False, **options)


def training_resumes(tmp_path):
    for _ in range(2):
        training(tmp_path, checkpoint=tmp_path / "run.pt")


def metrics_agree(tmp_path):
    found, expected = (
        after_training.attacked(g.net, g.x, g.y, 0.02, ("pgd-linf",))
        for g in (given(d, torch.float64) for d in ("cuda", "cpu"))
    )
    assert found["l1"] == pytest.approx(expected["l1"])


NORMALISED = {"normalise": (torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25]))}

# Where, what stands there, the bug, and what has to notice it.
BUGS = {
    "DeepFool's labels made on the CPU": (
        deep_fool,
        "torch.full((len(x),), -1, device=x.device)",
        "torch.full((len(x),), -1)",
        attack_agrees("attacks.deepfool from the predictions"),
    ),
    "DeepFool in TF32": (
        deep_fool,
        "with fast.at_rest(model) as net, full_float32():",
        "with fast.at_rest(model) as net:",
        deepfool_crosses,
    ),
    "measurements in TF32": (
        gradients,
        "with fast.at_rest(model) as net, full_float32():",
        "with fast.at_rest(model) as net:",
        norms_are_exact,
    ),
    "path sums, batch-norm on the CPU": (
        path_counting,
        "batch_norm_scale(layer).to(h)",
        "batch_norm_scale(layer)",
        path_sums_agree(),
    ),
    "path sums, deviations on the CPU": (
        path_counting,
        "layer.std.cpu().to(h)",
        "layer.std.cpu().double()",
        path_sums_agree(**NORMALISED),
    ),
    "Normalise merged on the CPU": (
        fold_batch_norm,
        "_float64(layer.mean).flatten()",
        "_float64(layer.mean).cpu().flatten()",
        gradients_agree(**NORMALISED),
    ),
    "batch-norm merged on the CPU": (
        fold_batch_norm,
        "scale = (_float64(layer.running_var)",
        "scale = (_float64(layer.running_var).cpu()",
        gradients_agree(),
    ),
    "a radius on the CPU": (
        perturbation,
        "as_column(values.expand(len(x)).to(x.device))",
        "as_column(values.expand(len(x)))",
        attack_agrees("attacks.pgd 2"),
    ),
    "ranks of the projection on the CPU": (
        norms,
        "torch.arange(1, flat.shape[1] + 1, device=flat.device,",
        "torch.arange(1, flat.shape[1] + 1,",
        agrees("norms.project 1"),
    ),
    "random starts left on the CPU": (
        projected_gradient,
        "to_device(drawn, x.device).to(x.dtype)",
        "drawn.to(x.dtype)",
        attack_agrees("attacks.pgd from 2 starts, 2"),
    ),
    "random starts from the global generator": (
        projected_gradient,
        "u.uniform_(generator=generator)",
        "u.uniform_()",
        attack_agrees("attacks.pgd from 3 starts, inf"),
    ),
    "random starts drawn where the images are": (
        projected_gradient,
        "dtype=torch.float32, device=generator.device)",
        'dtype=torch.float32, device="cuda")',
        attack_agrees("attacks.pgd from 2 starts, 2"),
    ),
    "shifts drawn where the images are": (
        augment,
        "generator=generator, device=generator.device",
        "generator=generator, device=x.device",
        agrees("train.crop_and_flip"),
    ),
    "signs left on the CPU": (
        objectives,
        "to_device(drawn, outputs.device).to(outputs.dtype)",
        "drawn.to(outputs.dtype)",
        agrees("train.objectives cross-lipschitz-random"),
    ),
    "turns on the CPU": (
        objectives,
        "torch.arange(len(x), device=x.device)",
        "torch.arange(len(x))",
        agrees("train.objectives cross-lipschitz"),
    ),
    "labels left on the CPU": (
        evaluation,
        "x.to(weight_of(model)), y.to(weight_of(model).device)",
        "x.to(weight_of(model)), y",
        training,
    ),
    "a checkpoint that goes where it came from": (
        checkpoint,
        'map_location="cpu"',
        "map_location=None",
        training_resumes,
    ),
    "a metric by way of numpy": (
        after_training,
        "float(values.double().mean())",
        "float(values.numpy().mean())",
        metrics_agree,
    ),
}


def plant(patch, module, old, new):
    """Run the functions of a module as they would be with other text in one place."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times {old!r}: adapt the bug"
    changed = types.ModuleType(module.__name__)
    changed.__package__ = module.__package__
    exec(compile(source.replace(old, new), module.__file__, "exec"), changed.__dict__)
    for name, function in vars(module).items():
        mine = inspect.unwrap(function) if callable(function) else None
        if inspect.isfunction(mine) and mine.__module__ == module.__name__:
            patch.setattr(mine, "__code__", inspect.unwrap(vars(changed)[name]).__code__)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug, tmp_path, monkeypatch):
    module, old, new, check = BUGS[bug]
    check(tmp_path / "sound")  # which the package as it is passes
    plant(monkeypatch, module, old, new)
    (tmp_path / "sick").mkdir()
    with pytest.raises((AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError)):
        check(tmp_path / "sick")
