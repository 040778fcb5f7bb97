"""What a grid costs: counted by hand for small networks, against whole runs, and how it grows."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from advdim import data
from advdim.experiments import after_training, cost, grids, recorded
from advdim.experiments.spec import AfterTraining, Images, as_dict
from advdim.models import Network
from advdim.models.fast import double_backpropagation, fold_batch_norm, trained_convolution
from advdim.train import PAPER, Recipe

MLP = Network("mlp", width=16)
CONV = Network("conv_strided", width=4, depth=3, init="he_unit", batch_norm=True, normalise="batch")
RUN = AfterTraining(
    images=Images("digits", 16, "copy", 12),
    network=CONV,
    recipe=Recipe("pgd-linf", 0.01, epochs=3, batch_size=8, validation=0.2),
    train=30,
    by_epoch=9,
    eps=0.01,
    experiment="x",
    attacks=("one-step-linf", "one-step-l2", "pgd-linf", "pgd-l2"),
    every=2,
)


def operations(network, size, what, channels=1):
    return cost.per_image(network, channels, size, what)[0]


def test_a_fully_connected_network_by_hand():
    """2 per weight: forward, back to the images, back to the weights; usual training does not go back to the images."""
    first, rest = 64 * 16, 16 * 16 + 16 * 10
    assert operations(MLP, 8, "forward") == 2 * (first + rest)
    assert operations(MLP, 8, "gradient") == 4 * (first + rest)
    assert operations(MLP, 8, "none") == 4 * first + 6 * rest
    assert operations(MLP, 8, "pgd-linf") == 7 * 4 * (first + rest) + 4 * first + 6 * rest
    assert operations(MLP, 8, "deepfool") == (2 * 2 + 9 * 2) * (first + rest)


def test_convolutions_by_hand():
    """9 products per weight and place: 16 x 16 places, then 8 x 8, then 4 x 4; batch-norm and averages are free."""
    first, rest = 9 * 3 * 4 * 16**2, 9 * 4 * 4 * (8**2 + 4**2) + 4 * 10
    assert operations(CONV, 16, "forward", 3) == 2 * (first + rest)
    assert operations(CONV, 16, "gradient", 3) == 4 * (first + rest)
    assert operations(CONV, 16, "none", 3) == 6 * (first + rest)  # the batch-norm of the images learns, too
    assert operations(replace(CONV, normalise=None), 16, "none", 3) == 4 * first + 6 * rest


def test_numbers_moved_by_hand():
    """Of a batch of 10: a layer reads images, weights and biases, and writes outputs; what lies between counts, too."""
    network = Network("mlp", depth=2, width=16)
    layers = [(64, 16), (16, 10)]
    count = cost.per_image(network, 1, 8, "forward", 10)
    weighted = sum(a + b + (a * b + b) / 10 for a, b in layers)
    assert count[1] == pytest.approx(weighted, rel=1e-12)
    assert count[2] == pytest.approx(weighted + 2 * 16, rel=1e-12)  # ReLU
    assert count[3] == pytest.approx(3 / 10, rel=1e-12)
    back = sum(b + a * b / 10 + a for a, b in layers)  # reads slopes and weights, and writes slopes
    assert cost.per_image(network, 1, 8, "gradient", 10)[1] == pytest.approx(weighted + back, rel=1e-12)


def test_networks_at_rest_are_counted_folded():
    """Padding, convolution and ReLU three times over, an average and a linear layer; each batch-norm is merged."""
    assert 10 * cost.per_image(CONV, 3, 16, "forward", 10)[3] == pytest.approx(3 * 3 + 2)


def test_maps_are_read_for_gradients_of_weights_alone():
    x, layer = torch.randn(2, 3, 8, 8, requires_grad=True), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    out = layer(x)
    slopes, weights, maps = out.numel(), layer.weight.numel(), x.numel()
    for of, moved in ((x, slopes + weights + maps), (layer.weight, slopes + maps + weights)):
        counter = cost.OperatorCounter()
        with counter:
            torch.autograd.grad(out, of, torch.ones_like(out), retain_graph=True)
        assert counter.count[1] == moved
    with cost.OperatorCounter() as counter:
        torch.autograd.grad(out, [x, layer.weight], torch.ones_like(out))
    assert counter.count[1] == slopes + 2 * maps + 2 * weights


def test_operations_are_those_of_the_counter_of_pytorch():
    x, layer = torch.randn(2, 3, 9, 9, requires_grad=True), nn.Conv2d(3, 5, 3, stride=2, dilation=2)
    with FlopCounterMode(display=False) as theirs, cost.OperatorCounter() as ours:
        F.relu(layer(x)).sum().backward()
    assert ours.count[0] == theirs.get_total_flops() > 0


@pytest.mark.parametrize("method", ["gradient-l2", "augment-linf", "cross-lipschitz", "cross-lipschitz-random"])
def test_of_whole_runs_no_operation_is_missed(method, monkeypatch):
    run = replace(RUN, recipe=replace(RUN.recipe, method=method, epochs=1, validation=0.0), attacks=("pgd-linf",))
    check_whole_run(run, monkeypatch)


@pytest.mark.parametrize(
    "run",
    [
        RUN,
        replace(RUN, every=None, images=replace(RUN.images, size=8, resize="bilinear")),
        replace(
            RUN,
            network=Network("conv_dilated", width=4, depth=2, base_size=8),
            recipe=replace(RUN.recipe, method="none", strength=0.0, epochs=2, validation=0, bf16=True),
            attacks=("one-step-l2",),
        ),
    ],
)
def test_whatever_is_trained_and_measured(run, monkeypatch):
    check_whole_run(run, monkeypatch)


def usual(_, function, types, args=(), kwargs=None):
    return function(*args, **(kwargs or {}))


def check_whole_run(run, monkeypatch):
    monkeypatch.setattr(
        fold_batch_norm, "_quick", lambda layer: layer
    )  # what is quick on a CPU may take more operations
    monkeypatch.setattr(double_backpropagation.DoubleBackward, "__torch_function__", usual)  # or fewer
    monkeypatch.setattr(trained_convolution, "_quicker", lambda model: model)
    with cost.OperatorCounter() as counter:
        after_training.run(run, torch.device("cpu"))
    assert counter.count[0] == pytest.approx(cost.table([run])["operations"][0], rel=1e-12)


def test_deepfool_takes_a_step_at_least(monkeypatch):
    monkeypatch.setattr(fold_batch_norm, "_quick", lambda layer: layer)
    monkeypatch.setattr(trained_convolution, "_quicker", lambda model: model)
    run = replace(RUN, recipe=replace(RUN.recipe, method="none", strength=0.0, epochs=1), attacks=("deepfool-l2",))
    with cost.OperatorCounter() as counter:
        after_training.run(run, torch.device("cpu"))
    without = cost.table([replace(run, attacks=())])["operations"][0]
    assert without < cost.table([run])["operations"][0] <= counter.count[0]


@pytest.mark.parametrize("what", ["forward", "gradient", "none", "gradient-l1", "pgd-linf"])
def test_operations_grow_with_the_area(what):
    """Exactly, but for the linear readout, which sees one place at every size."""
    network = replace(CONV, name="conv_dilated", depth=4, base_size=16)
    readout = {"forward": 2, "gradient": 4, "none": 6, "gradient-l1": 12, "pgd-linf": 7 * 4 + 6}[what] * 4 * 10
    areas = [(operations(network, size, what, 3) - readout) / size**2 for size in (32, 64, 128)]
    assert areas[0] == areas[1] == areas[2]


def test_costs_grow_with_epochs_and_images():
    def costs(**changes):
        recipe = replace(RUN.recipe, validation=0.0, **changes)
        return (
            cost.table([replace(RUN, every=None, recipe=recipe)]).iloc[0][["operations", "bytes", "least"]].to_numpy()
        )

    one, two, five = (costs(epochs=n) for n in (1, 2, 5))
    np.testing.assert_allclose((five - two).astype(float), 3 * (two - one).astype(float), rtol=1e-12)
    few, many = (cost.table([replace(RUN, by_epoch=1, train=n)])["operations"][0] for n in (20, 40))
    more = cost.table([replace(RUN, by_epoch=1, train=60)])["operations"][0]
    assert more - many == pytest.approx(many - few, rel=1e-12)


@pytest.mark.parametrize(("bf16", "precision", "width"), [(True, "bf16", 2), (False, "tf32", 4)])
def test_the_least_time_is_that_of_what_binds(bf16, precision, width):
    """Training in the recipe's arithmetic; attacks in TF32, measurements in float32, as many for one epoch as six."""
    network = replace(CONV, width=512)  # so many operations per byte that in float32 it is they that bind
    recipe = replace(RUN.recipe, bf16=bf16, validation=0.0)
    one, six = (
        cost.table([replace(RUN, network=network, recipe=replace(recipe, epochs=n), every=10)]).iloc[0] for n in (1, 6)
    )
    step = 5 * 30 * cost.per_image(network, 1, 16, "pgd-linf", 8)
    hours = step[0] / cost.OPERATIONS[precision] / 3600, width * step[1] / cost.BYTES / 3600
    assert six["by_operations"] - one["by_operations"] == pytest.approx(hours[0], rel=1e-9)
    assert six["by_bytes"] - one["by_bytes"] == pytest.approx(hours[1], rel=1e-9)
    assert six["least"] - one["least"] == pytest.approx(max(hours), rel=1e-9)
    assert hours[0] < hours[1]
    assert one["least"] > 1.01 * max(one["by_operations"], one["by_bytes"])  # measurements are bound by operations


def test_the_record_has_its_hours_and_the_costs_of_its_grid():
    _, points = recorded("4.1-cifar10-jpeg")
    table = cost.table(points)
    assert len(table) == len(points)
    seconds = sum(point["provenance"]["seconds"] for point in points)
    assert 3600 * table["hours"].sum() == pytest.approx(seconds)
    assert set(table["device"]) == {points[0]["provenance"]["device"]}
    grid = cost.table(grids.section_4_1("medium", "cifar10-jpeg"))
    assert "hours" not in grid
    merged = grid.merge(table, on=["method", "strength", "seed"], validate="1:1")
    assert len(merged) == len(points)
    assert (merged["operations_x"] == merged["operations_y"]).all()


def test_all_grids_can_be_counted():
    for name, data_set in (("4.1", "cifar10"), ("4.2", "cifar10"), ("natural", "imagenette"), ("readouts", "cifar10")):
        points = grids.GRIDS[name]("quick", data_set)
        assert (cost.table(points)[["operations", "bytes", "least"]] > 0).all(axis=None)
    with pytest.raises(ValueError, match="initialisation has none"):
        cost.table([{"spec": as_dict(grids.initialisation("quick", "digits")[0])}])


def test_the_papers_recipe_is_in_tf32_and_holds_a_tenth_out():
    spec = replace(RUN, train=None, images=Images("cifar10", 32, "copy"), recipe=PAPER)
    assert [precision for precision, _ in cost._counts(spec)] == ["tf32", "tf32", "fp32"]
    whole = cost.table([replace(spec, recipe=replace(PAPER, validation=0.0, schedule="one-cycle"))])
    held = cost.table([spec])
    assert held["bytes"][0] < 0.95 * whole["bytes"][0]


@pytest.mark.parametrize("name", ["digits", "cifar10-jpeg", "imagenette-224"])
def test_the_data_sets_are_as_large_as_stated(name):
    if name != "digits" and not (os.environ.get("ADVDIM_DATA") and (data.root() / name).is_dir()):
        pytest.skip(f"{name} is not there")
    channels, side, *counts = next(cost.IMAGES[kind] for kind in cost.IMAGES if name.startswith(kind))
    assert list(data.sizes(name).values()) == counts
    x, _ = data.load(name, "test", n=1)
    assert x.shape[1:] == (channels, side, side)
