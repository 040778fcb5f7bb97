"""Experiments: keys, grids, one point against a plain computation, records as series."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import TINY

import advdim as ad
from advdim.experiments import at_initialisation, grids, runner, series, spec
from advdim.experiments.spec import Images
from advdim.models import Network

CPU = torch.device("cpu")

# Keys


def test_keys_are_stable():
    """The runs and records of earlier versions are found by these names."""
    assert spec.key(TINY) == "f5687ba1ccd3"
    last = grids.initialisation("paper", "cifar10-jpeg")[-1]
    assert spec.key(last) == "dcb0d3f66cf4"


def test_a_key_is_that_of_the_json_without_what_is_none():
    assert "depth" not in spec.as_dict(TINY)["network"]
    assert spec.as_dict(replace(TINY, network=Network("mlp", depth=2)))["network"]["depth"] == 2
    assert spec.key(TINY) == spec.key_of(json.loads(json.dumps(spec.as_dict(TINY))))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("images", {"data": "cifar10"}),
        ("images", {"size": 16}),
        ("images", {"resize": "bilinear"}),
        ("images", {"n": 5}),
        ("images", {"split": "train"}),
        ("images", {"seed": 1}),
        ("network", {"name": "conv_strided"}),
        ("network", {"init": "ntk"}),
        ("network", {"width": 9}),
        ("network", {"depth": 3}),
        ("network", {"readout": "fc"}),
        ("network", {"pooling": "max"}),
        ("network", {"padding": "zeros"}),
        ("network", {"batch_norm": True}),
        ("network", {"normalise": "batch"}),
        ("network", {"base_size": 8}),
        (None, {"seeds": 3}),
        (None, {"eps": (1e-4,)}),
        (None, {"experiment": "other"}),
    ],
)
def test_every_field_changes_the_key(part, change):
    changed = replace(TINY, **(change if part is None else {part: replace(getattr(TINY, part), **change)}))
    assert spec.key(changed) != spec.key(TINY)


# Grids


def test_the_networks_are_many_and_different():
    assert len(set(grids.INITIAL_NETWORKS)) == len(grids.INITIAL_NETWORKS) >= 8
    assert {n.init for n in grids.INITIAL_NETWORKS} == set(ad.models.initialise.RULES)
    assert {n.name for n in grids.INITIAL_NETWORKS} == {"mlp", "conv_strided", "conv_dilated"}


@pytest.mark.parametrize(("data", "native"), [("digits", 8), ("cifar10", 32), ("imagenette-224", 224)])
def test_every_network_builds_at_every_size_of_its_grid(data, native):
    quick, paper = grids.initialisation("quick", data), grids.initialisation("paper", data)
    points = quick + paper
    assert len({spec.key(p) for p in points}) == len(points)
    assert {p.images.data for p in points} == {data}
    for p in points:  # the images can be brought to their size
        ad.data.resize(torch.zeros(1, 1, native, native), p.images.size, p.images.resize)
    channels = 1 if data == "digits" else 3
    for network, size in {(replace(p.network, width=1), p.images.size) for p in points}:
        shape = (channels, size, size)
        net = ad.models.build(**spec.as_dict(replace(TINY, network=network))["network"], image_shape=shape)
        assert net.to("meta")(torch.zeros(1, *shape, device="meta")).shape == (1, 10)  # shapes only: at no cost
    for scale, count, seeds in ((quick, 3, 4), (paper, 4, 8)):
        by_network = {}
        for p in scale:
            by_network.setdefault((p.network, p.images.resize), set()).add(p.images.size)
            assert p.seeds == seeds
        assert {len(sizes) for sizes in by_network.values()} == {count}
        assert len({network for network, _ in by_network}) == len(grids.INITIAL_NETWORKS)


def test_maxima_are_measured_on_interpolated_images_too():
    points = grids.initialisation("quick", "cifar10")
    resizings = {
        network: {p.images.resize for p in points if p.network == network} for network in {p.network for p in points}
    }
    for network, found in resizings.items():
        net = ad.models.build(**spec.as_dict(replace(TINY, network=network))["network"], image_shape=(3, 32, 32))
        maxima = any(isinstance(layer, torch.nn.MaxPool2d) for layer in net)
        assert found == ({"copy", "bilinear"} if maxima else {"copy"})


def test_an_unknown_data_set_has_no_grid():
    with pytest.raises(ValueError, match="'mnist'"):
        grids.initialisation("quick", "mnist")


# One point


@pytest.mark.parametrize(
    "network",
    [Network("mlp", width=8), Network("conv_strided", width=8, depth=2, readout="fc", pooling="max", init="ntk")],
)
def test_a_point_is_the_plain_computation(network):
    s = replace(TINY, network=network)
    metrics = runner.measure(s, CPU)
    assert set(metrics) == {
        "l1", "l2", "linf", "support", "walk_l1", "walk_l2", "damage_0.0001", "damage_0.004"
    }  # fmt: skip
    x, y = ad.data.load("digits", "test", n=4)
    options = spec.as_dict(s)["network"]
    for seed in range(2):
        net = ad.models.build(**options, image_shape=(1, 8, 8), seed=seed)
        norms = ad.measure.gradient_norms(net, x, y, q=(1, 2, math.inf))
        for name, q in (("l1", 1), ("l2", 2), ("linf", math.inf)):
            assert metrics[name][seed] == pytest.approx(float(norms[q].mean()), rel=1e-5)
        g = ad.measure.input_gradients(net, x, y)
        assert metrics["support"][seed] == pytest.approx(np.mean(g.numpy() != 0), rel=1e-12)
        for eps in (1e-4, 4e-3):
            damage = ad.measure.damage(net, x, y, x + eps * g.sign()).mean() / eps
            assert metrics[f"damage_{eps:g}"][seed] == pytest.approx(float(damage), rel=1e-3, abs=1e-5 / eps)
        logits = net(x).detach().requires_grad_()
        (outer,) = torch.autograd.grad(ad.measure.cross_entropy(logits, y).sum(), logits)
        length = math.sqrt(float(outer.square().sum()) / len(x))
        walk = ad.theory.predicted_norms(net, x=x)
        for q in (1, 2):
            assert metrics[f"walk_l{q}"][seed] == pytest.approx(walk[q] * length, rel=1e-5)
    assert metrics["l1"][0] != metrics["l1"][1]


@pytest.mark.parametrize("options", [{"batch_norm": True}, {"normalise": "batch"}])
def test_batch_norm_is_calibrated_on_training_images(options):
    network = Network("conv_strided", width=4, depth=2, **options)
    found = runner.measure(replace(TINY, network=network, seeds=1), CPU)["l2"][0]
    x, y = ad.data.load("digits", "test", n=4)
    counts = {"train": at_initialisation.CALIBRATION, "test": 4}
    others = {split: ad.data.load("digits", split, n=n)[0] for split, n in counts.items()}
    expected = {}
    for split, images in {**others, "none": None}.items():
        net = ad.models.build("conv_strided", (1, 8, 8), width=4, depth=2, **options)
        if images is not None:
            ad.models.calibrate_batch_norm(net, images)
        expected[split] = float(ad.measure.gradient_norms(net, x, y)[2].mean())
    assert found == pytest.approx(expected["train"], rel=1e-5)
    assert abs(expected["test"] / found - 1) > 1e-3
    assert abs(expected["none"] / found - 1) > 1e-3


def test_a_nan_is_refused_by_name(monkeypatch):
    build = ad.models.build

    def spoilt(*args, seed, **options):
        net = build(*args, seed=seed, **options)
        if seed == 1:
            with torch.no_grad():
                net[1].weight[0, 0] = math.nan
        return net

    monkeypatch.setattr(ad.models, "build", spoilt)
    with pytest.raises(ValueError, match="256 gradient entries are NaN or infinite at seed 1"):
        runner.measure(TINY, CPU)


# Series


def record(size, values, network=TINY.network, data="digits", resize="copy"):
    s = replace(TINY, images=Images(data, size, resize, 4), network=network)
    return {"spec": json.loads(json.dumps(spec.as_dict(s))), "metrics": {"l1": values, "l2": [0.0, 1.0]}}


def test_series_group_by_network_and_order_by_size():
    mlp, conv = TINY.network, Network("conv_strided", readout="fc")
    points = [
        record(16, [3.0, 4.0]),
        record(8, [1.0, 2.0]),
        record(32, [5.0, 6.0], conv, "cifar10"),
        record(16, [7.0, 8.0], conv),
        record(8, [9.0, 9.5], conv),
        record(8, [0.5, 0.5], resize="bilinear"),
    ]
    for given in (points, points[::-1], iter(points)):
        found = series(given)
        assert [(s.data, s.resize, s.network) for s in found] == [
            ("cifar10", "copy", conv),
            ("digits", "bilinear", mlp),
            ("digits", "copy", conv),
            ("digits", "copy", mlp),
        ]
        last = found[-1]
        assert last.sizes.tolist() == [8, 16]
        assert last.d.tolist() == [64, 256]
        assert last.metrics["l1"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert last.metrics["l2"].shape == (2, 2)
        assert found[0].d.tolist() == [3 * 32 * 32]


def test_two_points_of_one_network_at_one_size_are_refused():
    with pytest.raises(ValueError, match="two points"):
        series([record(8, [1.0, 2.0]), record(8, [1.0, 2.0])])
