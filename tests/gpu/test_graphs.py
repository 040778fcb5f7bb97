"""Steps repeated by a CUDA graph give what they give one by one; on the pretended GPU as far as that can tell."""

import copy
import math

import pytest
import torch
from helpers.on_device import CLASSES, assert_close, given, images, network, numbers

import advdim as ad
from advdim.models import fast

pytestmark = pytest.mark.gpu(noise=False)
pretended = pytest.mark.skipif(torch.cuda.is_available(), reason="counted on the pretended GPU")

N, STEPS = 4, 6  # images per step, and steps of an epoch; then one of fewer images


def trained(method, graphs, net=None, epochs=1, **options):
    net = network(width=4, depth=2, normalise="batch") if net is None else net
    strength = 0.0 if method == "none" else 0.02
    recipe = ad.train.Recipe(method, strength, epochs=epochs, batch_size=N, augment=True, weight_decay=0.01, lr=0.05)
    x = images(N * STEPS + 2, 3, 16, 16)
    with fast.cuda_graphs() if graphs else torch.enable_grad():
        result = ad.train.fit(net.cuda(), x, torch.arange(len(x)) % CLASSES, recipe, progress=False, **options)
    return torch.cat([numbers(net.state_dict()), numbers([row["loss"] for row in result.history])])


@pytest.mark.parametrize("method", ["none", "gradient-l1", "pgd-linf", "cross-lipschitz-random"])
def test_training_is_the_same(method, cuda_device):
    found = trained(method, graphs=True)
    if cuda_device is not None:  # two steps as usual, the last one of fewer images; signs are drawn in each step
        assert cuda_device.operators["graph"] == (0 if method == "cross-lipschitz-random" else STEPS - 2)
    assert_close(found, trained(method, graphs=False), 1e-9)


def test_a_run_with_graphs_resumes_without_and_the_reverse(tmp_path):
    expected = trained("none", graphs=False, epochs=2)
    for first in (False, True):
        path = tmp_path / f"{first}.pt"
        calls = iter(range(100))

        def interrupt(net, x, y, calls=calls):
            if next(calls) == 2:  # measured on two sets after each epoch
                raise KeyboardInterrupt
            return {"l1": 0.0, "l2": 0.0}

        options = {"checkpoint": path, "checkpoint_every": 2, "x_test": images(4, 3, 16, 16), "epochs": 2}
        options["y_test"] = torch.arange(4)
        with pytest.raises(KeyboardInterrupt):
            trained("none", first, metrics=interrupt, **options)
        assert_close(trained("none", not first, **options), expected, 1e-9)


@pytest.mark.parametrize(("p", "clip"), [(1, True), (2, False), (math.inf, True)])
def test_an_attack_is_the_same(p, clip, cuda_device):
    g = given("cuda", torch.float64)
    options = {"p": p, "eps": 0.5, "steps": 5, "clip": clip, "batch_size": 4}
    expected = ad.attacks.pgd(g.net, g.x, g.y, **options)
    with fast.cuda_graphs():
        found = ad.attacks.pgd(g.net, g.x, g.y, **options)
    if cuda_device is not None:  # of two batches
        assert cuda_device.operators["graph"] == 2 * 3
    assert_close(found.cpu(), expected.cpu(), 1e-9)


@pretended
@pytest.mark.parametrize(
    "why", ["off", "fast paths off", "a hook", "dropout", "someone's layer", "on the CPU", "train mode"]
)
def test_elsewhere_steps_are_taken_one_by_one(why, cuda_device):
    class Foreign(torch.nn.ReLU):
        pass

    more = {"dropout": torch.nn.Dropout(0.5), "someone's layer": Foreign()}
    net = torch.nn.Sequential(*network(width=4, depth=2), *([more[why]] if why in more else [])).eval()
    if why == "a hook":
        net[0].register_forward_hook(lambda *_: None)
    if why == "train mode":
        net.train()
    x = images(4, 3, 16, 16)
    if why != "on the CPU":
        net, x = net.cuda(), x.cuda()
    run = lambda x: net(x).detach()  # noqa: E731
    with torch.enable_grad() if why == "off" else fast.cuda_graphs(), torch.no_grad():
        if why == "fast paths off":
            with fast.disable():
                assert fast.repeated(run, net) is run
        else:
            assert fast.repeated(run, net) is run
    plain = copy.deepcopy(network(width=4, depth=2)).cuda().eval()
    with fast.cuda_graphs():
        assert fast.repeated(run, plain) is not run


@pretended
def test_a_replay_costs_one_launch_and_copies(cuda_device):
    g = given("cuda", torch.float64)
    counts = []
    for steps in (5, 8):
        before = cuda_device.operators.total()
        with fast.cuda_graphs():
            ad.attacks.pgd(g.net, g.x, g.y, p=math.inf, eps=0.1, steps=steps)
        counts.append(cuda_device.operators.total() - before)
    assert (counts[1] - counts[0]) / 3 <= 6
