"""What a step launches and waits for, counted on the pretended GPU: small networks are launch-bound on a real one."""

import math
from collections import Counter

import pytest
import torch
from helpers.on_device import CLASSES, given, images

import advdim as ad
from advdim.attacks.projected_gradient import ascend, step_lengths
from advdim.models import fast

pytestmark = [
    pytest.mark.gpu(noise=False),
    pytest.mark.skipif(torch.cuda.is_available(), reason="counted on the pretended GPU"),
]

METHODS = tuple(ad.train.objectives.METHODS)
N, STEPS = 8, 3  # images per step, and steps

#: Operators launched per training step in bfloat16, of section 4.1's net but for two layers. Fewer is better: lower the
#: number then; more of them has to be worth what it costs, 10 to 20 microseconds each of a GPU's host.
OPERATORS = {
    "none": 62,
    "gradient-l1": 318,
    "gradient-l2": 331,
    "augment-linf": 135,
    "augment-l2": 157,
    "pgd-linf": 615,
    "cross-lipschitz": 982,
    "cross-lipschitz-random": 307,
}
#: The same of a step of PGD in float32, of the net of these tests; without clipping, and with.
PGD_OPERATORS = {1: (114, 124), 2: (120, 122), math.inf: (68, 70)}


@pytest.fixture
def count(cuda_device):
    """A function that runs another, and gives its operators and its waits."""

    def counted(run):
        before = Counter(cuda_device.operators), Counter(cuda_device.waits)
        run()
        return cuda_device.operators - before[0], cuda_device.waits - before[1]

    return counted


def training(method, steps, net=None, **options):
    net = (
        ad.models.build("conv_strided", (3, 16, 16), CLASSES, width=4, depth=2, batch_norm=True) if net is None else net
    )
    recipe = ad.train.Recipe(method, 0.0 if method == "none" else 0.02, epochs=1, batch_size=N, augment=True, bf16=True)
    x = (images(N * steps, 3, 16, 16) * 255).to(torch.uint8)
    ad.train.fit(net.cuda(), x, torch.arange(len(x)) % CLASSES, recipe, progress=False, eval_images=4, **options)


def per_step(count, method):
    """Operators and waits of a step: of the difference between training for more steps and for fewer."""
    few, many = (count(lambda steps=steps: training(method, steps)) for steps in (1, 1 + STEPS))
    return (many[0] - few[0]).total() / STEPS, many[1] - few[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_never_waits(count, method):
    operators, waits = per_step(count, method)
    assert not waits, f"the host waits: {dict(waits)}"
    assert operators <= OPERATORS[method]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_step_of_pgd_never_waits(count, p, clip):
    g = given("cuda", torch.float32)
    few, many = (
        count(lambda steps=steps: ad.attacks.pgd(g.net, g.x, g.y, p=p, eps=0.1, steps=steps, clip=clip))
        for steps in (2, 2 + STEPS)
    )
    assert not many[1] - few[1]
    assert (many[0] - few[0]).total() / STEPS <= PGD_OPERATORS[p][clip]


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_call_waits_for_its_checks_alone(count, restarts):
    g = given("cuda", torch.float32)
    generator = torch.Generator().manual_seed(0)
    options = {"p": math.inf, "eps": 0.1, "steps": 2, "random_start": True, "restarts": restarts}
    _, waits = count(lambda: ad.attacks.pgd(g.net, g.x, g.y, generator=generator, **options))
    assert waits.total() <= 8, dict(waits)
    assert not any("projected_gradient" in where for where in waits), dict(waits)


def test_weights_at_rest_are_cast_once(count):
    g = given("cuda", torch.float32)
    lengths = step_lengths(g.x.new_full((len(g.x), 1, 1, 1), 0.1), 2, 4)

    def attack(steps):
        with torch.autocast("cuda", torch.bfloat16), fast.at_rest(g.net) as net:
            ascend(net, g.x, g.y, torch.zeros_like(g.x), radius=lengths[0], lengths=lengths[:steps], p=2)

    few, many = (count(lambda steps=steps: attack(steps))[0] for steps in (1, 1 + STEPS))
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in g.net.modules())
    casts = (many - few)["aten._to_copy"] / STEPS
    # Of maps: into each weight layer from float32, where a batch-norm or the image is before it, and back.
    assert casts <= 2 * (convolutions + 1) + 4


def test_nothing_that_is_for_cpus_is_active(count):
    from torch.overrides import _get_current_function_mode_stack as modes

    seen = []
    net = ad.models.build("conv_strided", (3, 16, 16), CLASSES, width=4, depth=2, batch_norm=True)
    net.register_forward_pre_hook(lambda *_: seen.extend(type(mode).__name__ for mode in modes()))
    for method in ("none", "gradient-l1", "pgd-linf", "cross-lipschitz-random"):
        training(method, 1, net)
    assert seen == []
