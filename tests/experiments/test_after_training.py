"""A point that is a training run: against plain calls of the package, resumed, refused; grids; records as tables."""

import json
import math
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch

import advdim as ad
from advdim.experiments import after_training, epochs, exponents, grids, runner, runs, spec
from advdim.experiments.spec import AfterTraining, Images
from advdim.models import Network
from advdim.train import Recipe, loop

CPU = torch.device("cpu")
SMALL = AfterTraining(
    images=Images("digits", 8, "copy", 40),
    network=Network("conv_strided", width=6, depth=2, batch_norm=True, normalise="batch"),
    recipe=Recipe("augment-linf", 0.02, epochs=2, batch_size=16, seed=3),
    train=90,
    by_epoch=30,
    eps=0.004,
    experiment="4.1",
)


@pytest.fixture(scope="module")
def measured():
    return runner.measure(SMALL, CPU)


@pytest.fixture(scope="module")
def by_hand():
    """The same network, trained by the plain calls, and the test images."""
    x, y = ad.data.load("digits", "train", n=90)
    few, labels = ad.data.load("digits", "test", n=40)
    net = ad.models.build(**asdict(SMALL.network), image_shape=(1, 8, 8), seed=3)
    ad.models.calibrate_batch_norm(net, x[:16])
    result = ad.train.fit(net, x, y, SMALL.recipe, x_test=few, y_test=labels, eval_images=30)
    return net, few, labels, result


def test_the_history_is_that_of_the_training(measured, by_hand):
    *_, result = by_hand
    for name in ("loss", "test_accuracy", "train_l1", "test_l1", "test_l2"):
        assert measured["history"][name] == [row[name] for row in result.history], name
    assert measured["history"]["epoch"] == [0, 1]


def test_the_history_has_the_papers_attack(measured, by_hand):
    """Its last epoch, on the test images that every seed is measured on."""
    net, few, labels, _ = by_hand
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30]
    x, y = few[chosen], labels[chosen]
    attacked = ad.attacks.pgd(net, x, y, p=math.inf, eps=0.004)
    damage = ad.measure.damage(net, x, y, attacked).mean()
    assert measured["history"]["test_damage"][-1] == pytest.approx(float(damage), rel=1e-4)
    changed = ad.measure.vulnerability(net, x, attacked).double().mean()
    assert measured["history"]["test_vulnerability"][-1] == pytest.approx(float(changed), abs=1e-9)
    assert measured["history"]["train_damage"] != measured["history"]["test_damage"]


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_outcomes_are_those_of_plain_calls(measured, by_hand, p):
    net, x, y, _ = by_hand
    norm = "linf" if p == math.inf else "l2"
    eps = ad.norms.threshold(0.004, p, 64)
    right = ad.measure.outputs(net, x).argmax(1) == y
    assert measured["accuracy"] == pytest.approx(float(right.double().mean()))
    for name, attack in (("one-step", ad.attacks.one_step), ("pgd", ad.attacks.pgd)):
        attacked = attack(net, x, y, p=p, eps=eps)
        damage = float(ad.measure.damage(net, x, y, attacked).mean())
        assert measured[f"{name}-{norm}_damage"] == pytest.approx(damage, rel=1e-4)
        changed = ad.measure.vulnerability(net, x, attacked).double().mean()
        assert measured[f"{name}-{norm}_vulnerability"] == pytest.approx(float(changed))
        still = (ad.measure.outputs(net, attacked).argmax(1) == y).double().mean()
        assert measured[f"{name}-{norm}_accuracy"] == pytest.approx(float(still))
    moved = ad.attacks.deepfool(net, x, p=p)
    distance = ad.norms.norm(moved - x, p)
    changed = ad.measure.vulnerability(net, x, moved)
    assert measured[f"deepfool-{norm}_found"] == pytest.approx(float(changed.double().mean()))
    assert measured[f"deepfool-{norm}_distance"] == pytest.approx(float(distance[changed].mean()), rel=1e-4)
    near = changed & (distance <= eps)
    assert 0 < near.double().mean() < 1
    assert measured[f"deepfool-{norm}_vulnerability"] == pytest.approx(float(near.double().mean()))
    assert measured[f"deepfool-{norm}_accuracy"] == pytest.approx(float((right & ~near).double().mean()))


def test_bins_and_remainder(measured, by_hand):
    net, x, y, _ = by_hand
    first = 0.004 * ad.measure.gradient_norms(net, x, y)[1]
    assert measured["l1"] == pytest.approx(float(first.mean()) / 0.004, rel=1e-5)
    assert measured["bins"] == sorted(measured["bins"])
    assert measured["bins"][0] == pytest.approx(float(first.sort().values[:4].mean()), rel=1e-5)
    for name, attack in (("one-step-linf", ad.attacks.one_step), ("pgd-linf", ad.attacks.pgd)):
        damage = ad.measure.damage(net, x, y, attack(net, x, y, p=math.inf, eps=0.004))
        bins = measured[f"{name}_bins"]
        assert len(bins) == after_training.BINS
        assert sum(bins) / len(bins) == pytest.approx(measured[f"{name}_damage"], rel=1e-4)
        assert bins[-1] == pytest.approx(float(damage[first.argsort()[-4:]].mean()), rel=1e-4)
        remainder = float((damage - first).abs().mean() / first.mean())
        assert measured[f"{name}_remainder"] == pytest.approx(remainder, rel=1e-4)


def test_only_the_attacks_that_are_named(by_hand, measured):
    net, x, y, _ = by_hand
    found = after_training.attacked(net, x, y, 0.004, ("one-step-l2", "deepfool-l2"))
    assert {name.split("_")[0] for name in found} == {"l1", "l2", "loss", "bins", "accuracy", "flags"} | {
        "one-step-l2",
        "deepfool-l2",
    }
    assert all(found[name] == measured[name] for name in found if name != "flags")


def test_before_training(measured):
    few, labels = ad.data.load("digits", "test", n=30)
    net = ad.models.build(**asdict(SMALL.network), image_shape=(1, 8, 8), seed=3)
    ad.models.calibrate_batch_norm(net, ad.data.load("digits", "train", n=90)[0][:16])
    norms = ad.measure.gradient_norms(net, few, labels)
    assert measured["initial"]["l1"] == pytest.approx(float(norms[1].mean()), rel=1e-5)
    attacked = ad.attacks.pgd(net, few, labels, p=math.inf, eps=0.004)
    damage = ad.measure.damage(net, few, labels, attacked).mean()
    assert measured["initial"]["damage"] == pytest.approx(float(damage), rel=1e-4)
    assert set(measured["initial"]) == {"l1", "l2", "damage", "vulnerability"}  # these images are not copied up


def test_the_part_of_the_gradient_on_copied_images():
    """A first-order attack that has to copy its pixels, too, gains eps times on_l1."""
    x, y = ad.data.load("digits", "test", n=5)
    net = ad.models.build("conv_strided", (1, 16, 16), width=4, depth=2, seed=1).double()
    x = ad.data.resize(x.double(), 16, "copy")
    found = after_training.by_epoch(net, x, y, eps=0.01, blocks=2)
    g = ad.measure.input_gradients(net, x, y)
    sums = g.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))  # what a small change gains that all pixels of a block share
    assert found["on_l1"] == pytest.approx(float(sums.abs().sum()), rel=1e-12)
    mean = ad.data.resize(sums / 4, 16, "copy")  # the projection itself
    assert found["on_l2"] == pytest.approx(float(mean.flatten(1).norm(dim=1).sum()), rel=1e-12)
    assert found["on_l1"] == pytest.approx(float(mean.abs().sum()), rel=1e-12)
    assert found["on_l1"] < 0.9 * float(g.abs().sum())


def test_the_flags_are_shares(measured):
    assert set(measured["flags"]) == {"saturated", "no gradient", "not raised", "too large"}
    assert all(0 <= share <= 1 for share in measured["flags"].values())
    assert measured["flags"]["too large"] == 0


def test_an_interrupted_point_resumes_to_the_same_numbers(measured, tmp_path, monkeypatch):
    file = tmp_path / "checkpoint"
    end = loop._end_epoch

    def stop(run, *args):
        if run.state.epoch == 1:
            raise KeyboardInterrupt
        end(run, *args)

    monkeypatch.setattr(loop, "_end_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.measure(SMALL, CPU, checkpoint=file)
    assert file.is_file()
    monkeypatch.undo()
    again = runner.measure(SMALL, CPU, checkpoint=file)
    without = [m | {"history": {k: v for k, v in m["history"].items() if k != "seconds"}} for m in (again, measured)]
    assert without[0] == without[1]


@pytest.mark.parametrize(("resize", "size"), [("copy", 16), ("bilinear", 16)])
def test_training_and_measurement_are_on_images_of_one_size(resize, size, monkeypatch):
    seen = []
    forward = ad.models.Net.forward
    monkeypatch.setattr(ad.models.Net, "forward", lambda self, x: seen.append(x.detach()) or forward(self, x))
    changed = replace(SMALL, images=Images("digits", size, resize, 8), train=16, by_epoch=4)
    runner.measure(replace(changed, recipe=replace(SMALL.recipe, epochs=1)), CPU)
    assert {tuple(x.shape[1:]) for x in seen} == {(1, size, size)}
    tied = (seen[0][..., 0::2] == seen[0][..., 1::2]).all()
    assert bool(tied) == (resize == "copy")


def test_divergence_is_an_error_of_the_point():
    with pytest.raises(ad.train.DivergenceError, match="epoch 0"):
        runner.measure(replace(SMALL, recipe=replace(SMALL.recipe, lr=1e20)), CPU)


def test_a_metric_that_is_not_finite_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(ad.attacks, "deepfool", lambda model, x, p: x.clone())  # moves nothing: no distance
    with pytest.raises(ValueError, match="deepfool-linf_distance = nan"):
        runner.measure(replace(SMALL, recipe=replace(SMALL.recipe, epochs=1)), CPU)


# Keys and grids


def test_keys_of_training_points():
    """As those of other points: stable, and of every field."""
    assert spec.key(SMALL) == spec.key_of(json.loads(json.dumps(spec.as_dict(SMALL))))
    changes = [
        replace(SMALL, images=replace(SMALL.images, n=41)),
        replace(SMALL, network=replace(SMALL.network, width=7)),
        replace(SMALL, recipe=replace(SMALL.recipe, strength=0.03)),
        replace(SMALL, recipe=replace(SMALL.recipe, seed=4)),
        replace(SMALL, train=91),
        replace(SMALL, by_epoch=31),
        replace(SMALL, eps=0.06),
        replace(SMALL, experiment="4.2"),
        replace(SMALL, attacks=("pgd-linf",)),
        replace(SMALL, every=2),
    ]
    assert len({spec.key(s) for s in [SMALL, *changes]}) == len(changes) + 1


@pytest.mark.parametrize("data", ["cifar10", "digits"])
@pytest.mark.parametrize(
    ("scale", "strengths", "seeds"), [("quick", 3, 2), ("medium", 5, 2), ("short", 6, 3), ("paper", 6, 3)]
)
def test_the_grid_of_4_1(scale, strengths, seeds, data):
    points = grids.GRIDS["4.1"](scale, data)
    assert len({spec.key(p) for p in points}) == len(points) == (6 * strengths + 1) * seeds
    by_method = {}
    for p in points:
        assert p.experiment == "4.1"
        assert p.images.data == data
        by_method.setdefault(p.recipe.method, set()).add((p.recipe.strength, p.recipe.seed))
        ad.models.build(**asdict(p.network), image_shape=(1 if data == "digits" else 3, p.images.size, p.images.size))
    assert len(by_method.pop("none")) == seeds
    assert len(by_method) == 6
    assert {len(found) for found in by_method.values()} == {strengths * seeds}
    assert by_method["gradient-l1"] == by_method["augment-linf"] == by_method["pgd-linf"]
    if scale == "paper" and data == "cifar10":
        p = points[0]
        assert (p.train, p.images.n, p.network.width, p.network.batch_norm) == (None, None, 64, True)
        assert replace(p.recipe, method="none", strength=0, seed=0) == ad.train.PAPER
        assert "cross-lipschitz" in by_method


@pytest.mark.parametrize(("experiment", "data", "series"), [
    ("4.2", "cifar10", 3), ("4.2", "digits", 3), ("natural", "imagenette", 1), ("readouts", "cifar10", 3)
])  # fmt: skip
@pytest.mark.parametrize(("scale", "sizes", "first", "others"), [
    ("quick", 3, 1, 0), ("medium", 3, 3, 0), ("short", 3, 3, 3), ("paper", 4, 6, 6)
])  # fmt: skip
def test_the_grids_over_sizes(experiment, data, series, scale, sizes, first, others):
    if experiment == "readouts" and scale in ("quick", "medium"):  # no network is the paper's there
        first = others
    points = grids.GRIDS[experiment](scale, data)
    strengths = 1 + first + (series - 1) * (1 + others)
    assert len({spec.key(p) for p in points}) == len(points) == strengths * sizes * 3
    found = {}
    for p in points:
        assert p.experiment == experiment
        name = (p.network, p.images.resize, p.recipe.method, p.recipe.strength)
        found.setdefault(name, set()).add((p.images.size, p.recipe.seed))
    assert {len(pairs) for pairs in found.values()} == {sizes * 3}
    natives = {"digits": 8, "cifar10": 32, "imagenette": 224}
    channels = 1 if data == "digits" else 3
    for network, resize, size in {(replace(p.network, width=1), p.images.resize, p.images.size) for p in points}:
        ad.data.resize(torch.zeros(1, 1, natives[data], natives[data]), size, resize)
        net = ad.models.build(**asdict(network), image_shape=(channels, size, size)).to("meta")
        assert net(torch.zeros(1, channels, size, size, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("experiment", ["4.2", "natural", "readouts"])
def test_what_quick_has_measured_medium_has_too(experiment):
    data = "imagenette" if experiment == "natural" else "cifar10"
    quick, medium = ({spec.key(p) for p in grids.GRIDS[experiment](scale, data)} for scale in ("quick", "medium"))
    assert quick <= medium
    assert (quick == medium) == (experiment == "readouts")  # which has no PGD training below "short"


def test_4_2_measures_maxima_without_ties_and_a_network_without_maxima():
    found = {(grids.has_maxima(p.network), p.images.resize) for p in grids.section_4_2("paper", "cifar10")}
    assert found == {(True, "copy"), (True, "bilinear"), (False, "copy")}


def test_readouts_differ_in_what_they_are_there_for():
    nets = {p.network for p in grids.readouts("paper", "cifar10")}
    assert {(n.readout, n.project) for n in nets} == {(None, None), ("fc", None), ("fc", 32)}


@pytest.mark.parametrize(
    ("experiment", "data"),
    [("4.1", "imagenette"), ("4.2", "imagenette"), ("natural", "cifar10"), ("readouts", "imagenette")],
)
def test_another_data_set_has_no_grid(experiment, data):
    with pytest.raises(ValueError, match=data):
        grids.GRIDS[experiment]("quick", data)


# Tables


def record(s, metrics):
    return {"spec": json.loads(json.dumps(spec.as_dict(s))), "metrics": metrics}


def test_runs_and_epochs(measured):
    other = replace(SMALL, recipe=replace(SMALL.recipe, seed=1))
    table = runs([record(SMALL, measured), record(other, measured | {"accuracy": 0.25})])
    assert table["seed"].tolist() == [1, 3]
    assert table["accuracy"].tolist() == [0.25, measured["accuracy"]]
    first = table.iloc[0]
    assert (first["data"], first["size"], first["d"], first["method"]) == ("digits", 8, 64, "augment-linf")
    assert (first["strength"], first["epochs"], first["resize"]) == (0.02, 2, "copy")
    assert not {"history", "flags", "bins", "initial"} & set(table.columns)
    assert first["initial_l1"] == measured["initial"]["l1"]
    by_epoch = epochs([record(SMALL, measured)])
    assert by_epoch["epoch"].tolist() == [0, 1]
    assert by_epoch["test_l1"].tolist() == measured["history"]["test_l1"]
    assert set(by_epoch["method"]) == {"augment-linf"}


def test_exponents_by_series_are_those_of_scaling():
    rows = [
        {"d": d, "seed": seed, "net": net, "l1": d**power * (2 + (seed * 7 + d) % 3)}
        for net, power in (("b", 0.5), ("a", 0.1))
        for d in (1024, 64, 256)
        for seed in (2, 0, 1)
    ]
    table = pd.DataFrame(rows)
    fits = exponents(table, "l1", "net")
    assert list(fits) == ["b", "a"]
    for name, fit in fits.items():
        own = table[table["net"] == name].sort_values(["d", "seed"])
        assert fit == ad.analysis.exponent([64, 256, 1024], own["l1"].to_numpy().reshape(3, 3))
    with pytest.raises(ValueError, match="net = b: a seed is missing at some size"):
        exponents(table.drop(index=0), "l1", "net")
