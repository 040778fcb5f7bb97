"""Trained networks at several sizes of attack: against plain calls, stopping rules, samples of their own, grids."""

import functools
import hashlib
import math
from dataclasses import asdict, replace

import pytest
import torch

import advdim as ad
from advdim.analysis import records
from advdim.experiments import cost, epochs, grids, recorded, runner, runs, spec, store, trained_grids, trained_state
from advdim.experiments.spec import AfterTraining, Images
from advdim.models import Network
from advdim.models.fast import fold_batch_norm, trained_convolution
from advdim.train import Recipe

CPU = torch.device("cpu")
EPS = (0.004, 0.05)
SMALL = AfterTraining(
    images=Images("digits", 16, "bilinear", 40, seed=5),
    network=Network("conv_strided", width=6, depth=2, readout="fc", batch_norm=True, normalise="batch"),
    recipe=Recipe(epochs=3, batch_size=16, seed=3),
    train=90,
    by_epoch=30,
    eps=EPS,
    experiment="usual-training",
    train_seed=7,
    at_epochs=(2,),
    pgd_images=11,
    base_size=8,
)


@pytest.fixture(scope="module")
def measured():
    return runner.measure(SMALL, CPU)


@pytest.fixture(scope="module")
def by_hand():
    """The same network, trained by the plain calls; training and test images at 16 px."""
    x, y = ad.data.load("digits", "train", n=90, seed=7)
    few, labels = ad.data.load("digits", "test", n=40, seed=5)
    x, few = (ad.data.resize(t, 16, "bilinear") for t in (x, few))
    net = ad.models.build(**asdict(SMALL.network), image_shape=(1, 16, 16), seed=3)
    ad.models.calibrate_batch_norm(net, x[:64])
    ad.train.fit(net, x, y, SMALL.recipe)
    return net, {"train": (x[:40], y[:40]), "test": (few, labels)}


@pytest.mark.parametrize("split", ["train", "test"])
def test_gradients_are_those_of_plain_calls(measured, by_hand, split):
    net, images = by_hand
    x, y = images[split]
    found = measured[split]
    g = ad.measure.input_gradients(net, x, y)
    assert found["images"] == 40
    for q in (1, 2):
        assert found[f"l{q}"] == pytest.approx(float(ad.norms.norm(g, q).mean()), rel=1e-4)
    assert found["l1_sd"] == pytest.approx(float(ad.norms.norm(g, 1).std(correction=0)), rel=1e-4)
    assert found["l1_median"] == pytest.approx(float(ad.norms.norm(g, 1).median()), rel=1e-4)
    right = ad.measure.outputs(net, x).argmax(1) == y
    assert found["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-9)
    assert found["loss"] == pytest.approx(float(ad.measure.losses(net, x, y).mean()), rel=1e-4)
    assert 0 < found["on_l2_square"] < 0.95 * found["l2_square"]


@pytest.mark.parametrize(("norm", "p"), [("linf", math.inf), ("l2", 2)])
def test_attacks_are_those_of_plain_calls(measured, by_hand, norm, p):
    net, images = by_hand
    x, y = images["test"]
    for i, eps in enumerate(EPS):
        size = ad.norms.threshold(eps, p, 256)
        cases = [("one-step", ad.attacks.one_step, 40, measured["test"])]
        cases += [
            (a, f, 11, measured["test"]["pgd"]) for a, f in (("one-step", ad.attacks.one_step), ("pgd", ad.attacks.pgd))
        ]
        for name, attack, n, found in cases:
            attacked = attack(net, x[:n], y[:n], p=p, eps=size)
            own = found[f"{name}-{norm}"]
            assert found["images"] == n
            damage = float(ad.measure.damage(net, x[:n], y[:n], attacked).mean())
            assert own["damage"][i] == pytest.approx(damage, rel=2e-3)
            changed = ad.measure.vulnerability(net, x[:n], attacked).double().mean()
            assert own["vulnerability"][i] == pytest.approx(float(changed), abs=1e-9)
            still = (ad.measure.outputs(net, attacked).argmax(1) == y[:n]).double().mean()
            assert own["accuracy"][i] == pytest.approx(float(still), abs=1e-9)
    assert measured["test"]["pgd"]["pgd-linf"]["damage"][1] > measured["test"]["pgd"]["one-step-linf"]["damage"][1]
    assert "pgd" not in measured["train"]


def test_the_projection_averages_over_blocks():
    """It is orthogonal, keeps what is constant over blocks, and its norms are those of the images that it gives."""
    g = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = trained_state.gradients(g, 4)
    means = g.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    projection = ad.data.resize(means, 8, "copy")
    for q in (1, 2):
        torch.testing.assert_close(found[f"on_l{q}"], ad.norms.norm(projection, q), rtol=1e-12, atol=0)
    inner = (projection * (g - projection)).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    again = trained_state.gradients(projection, 4)
    torch.testing.assert_close(again["on_l1"], again["l1"], rtol=1e-12, atol=0)
    whole = trained_state.gradients(g, 1)
    torch.testing.assert_close(whole["on_l2"], whole["l2"], rtol=1e-12, atol=0)


def test_the_trajectory(measured, by_hand):
    """The chosen epochs and the last; its last row is of the final network, on the subsets measured by epoch."""
    net, images = by_hand
    history = measured["history"]
    assert history["epoch"] == [1, 2]
    for split, n in (("train", 90), ("test", 30)):
        x, y = images["test"] if split == "test" else ad.data.load("digits", "train", n=90, seed=7)
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:30]
        x = ad.data.resize(x, 16, "bilinear") if split == "train" else x[:30]
        y = y if split == "train" else y[:30]
        x, y = x[chosen], y[chosen]
        l1 = ad.measure.gradient_norms(net, x, y)[1].mean()
        assert history[f"{split}_l1"][-1] == pytest.approx(float(l1), rel=1e-4)
        assert history[f"{split}_loss"][-1] == pytest.approx(float(ad.measure.losses(net, x, y).mean()), rel=1e-4)
        right = (ad.measure.outputs(net, x).argmax(1) == y).double().mean()
        assert history[f"{split}_accuracy"][-1] == pytest.approx(float(right), abs=1e-9)
        assert history[f"{split}_on_l1"][-1] < history[f"{split}_l1"][-1]
    assert set(measured["initial"]) == {"l1", "l2", "on_l1", "on_l2", "loss"}


def test_many_images_are_measured_in_parts(by_hand, monkeypatch):
    net, images = by_hand
    x, y = images["test"]
    settings = {"eps": EPS, "blocks": 2, "pgd_images": 11}
    whole = trained_state.measure_split(net, x, y, **settings)
    monkeypatch.setattr(trained_state, "_CHUNK", 7)
    parts = trained_state.measure_split(net, x, y, **settings)
    assert whole["pgd"]["images"] == parts["pgd"]["images"] == 11
    assert parts["l1"] == pytest.approx(whole["l1"], rel=1e-5)
    for one, other in ((whole, parts), (whole["pgd"], parts["pgd"])):
        for outcome in ("damage", "vulnerability", "accuracy"):
            assert other["one-step-l2"][outcome] == pytest.approx(one["one-step-l2"][outcome], rel=1e-3, abs=1e-6)


# Stopping rules


def fitted(eval_images=20, **changes):
    x, y = ad.data.load("digits", "train", n=200)
    net = ad.models.build("mlp", (1, 8, 8), width=64)
    result = ad.train.fit(
        net, x, y, replace(Recipe(epochs=30, batch_size=16, lr=0.1), **changes), eval_images=eval_images
    )
    return net, result, float((ad.measure.outputs(net, x).argmax(1) == y).double().mean())


def test_training_stops_at_the_first_epoch_of_enough_accuracy():
    """The run without a rule, cut off; an accuracy that is reached exactly is enough."""
    _, whole, _ = fitted(eval_images=200)
    accuracies = [row["train_accuracy"] for row in whole.history]
    epoch = next(i for i, accuracy in enumerate(accuracies) if i > 3 and accuracy > max(accuracies[:i]))
    _, result, accuracy = fitted(stop_accuracy=accuracies[epoch])
    assert [row["train_accuracy"] for row in result.history] == accuracies[: epoch + 1]
    assert result.stopped_early
    assert accuracy == pytest.approx(accuracies[epoch])


def test_without_enough_accuracy_training_goes_on_to_the_end():
    _, result, accuracy = fitted(stop_accuracy=1.0, epochs=2)
    assert len(result.history) == 2
    assert not result.stopped_early
    assert accuracy < 1


def test_a_stopped_run_resumes_to_a_stopped_run(tmp_path):
    x, y = ad.data.load("digits", "train", n=200)
    recipe = Recipe(epochs=30, batch_size=16, lr=0.1, stop_accuracy=0.97)
    results = []
    for _ in range(2):
        net = ad.models.build("mlp", (1, 8, 8), width=64)
        results.append(ad.train.fit(net, x, y, recipe, checkpoint=tmp_path / "c", eval_every=(1, 3)))
    assert results[0].history == results[1].history
    assert results[1].stopped_early
    assert [row["epoch"] for row in results[0].history if "train_l1" in row] == [0, 2, len(results[0].history) - 1]


@pytest.mark.parametrize("share", [0.0, 1.01, -1.0, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"stop_accuracy must be in .*, got {share}"):
        Recipe(stop_accuracy=share)


# Samples, keys, grids


def test_a_seed_of_its_own_draws_the_training_images(monkeypatch):
    drawn = []
    load = ad.data.load
    monkeypatch.setattr(ad.data, "load", lambda *a, **k: drawn.append((a[1], k["n"], k["seed"])) or load(*a, **k))
    runner.measure(replace(SMALL, recipe=replace(SMALL.recipe, epochs=1)), CPU)
    assert drawn == [("train", 90, 7), ("test", 40, 5)]


def test_old_records_keep_their_keys():
    """New options are left out of the specs of points that do not have them."""
    for name in ("4.1-cifar10-jpeg", "4.2-cifar10-jpeg", "natural-imagenette-224", "readouts-cifar10-jpeg"):
        header, points = recorded(name)
        grid = grids.GRIDS[header["experiment"]](header["scale"], points[0]["spec"]["images"]["data"])
        assert {spec.key_of(p["spec"]) for p in points} == {spec.key(p) for p in grid}, name


def test_keys_of_the_new_options():
    changes = [
        replace(SMALL, train_seed=8),
        replace(SMALL, at_epochs=(1, 2)),
        replace(SMALL, pgd_images=12),
        replace(SMALL, base_size=16),
        replace(SMALL, eps=(0.004,)),
        replace(SMALL, recipe=replace(SMALL.recipe, stop_accuracy=0.9)),
    ]
    assert len({spec.key(s) for s in [SMALL, *changes]}) == len(changes) + 1


NEW = ("usual-training", "pgd-training", "sample-size", "readouts-and-cures")


@pytest.mark.parametrize("data", ["digits", "cifar10-jpeg", "imagenette-224"])
@pytest.mark.parametrize("scale", grids.SCALES)
@pytest.mark.parametrize("experiment", NEW)
def test_the_grids(experiment, scale, data):
    points = grids.GRIDS[experiment](scale, data)
    assert len({spec.key(p) for p in points}) == len(points)
    cells = {}
    for p in points:
        assert p.experiment == experiment
        assert p.recipe.seed == p.images.seed == p.train_seed, "a seed draws weights, order and both samples"
        assert p.eps == trained_grids.BUDGETS
        assert max(p.at_epochs) == p.recipe.epochs
        assert p.images.size % p.base_size == 0
        most, tests = next(counts for kind, counts in trained_grids.IMAGES.items() if data.startswith(kind))
        assert p.train is None or p.train < most
        assert p.images.n == min(trained_grids.BY_SCALE[scale].test, tests)
        assert p.recipe.bf16 == (scale in ("short", "paper"))
        recipe = replace(p.recipe, seed=0)
        cells.setdefault((p.network, p.images.resize, recipe, p.train, p.images.size), []).append(p.recipe.seed)
    for seeds in cells.values():
        assert seeds == list(range(len(seeds)))
        assert len(seeds) >= 2
    channels = 1 if data == "digits" else 3
    native = {"digits": 8, "cifar10-jpeg": 32, "imagenette-224": 224}[data]
    for network, resize, _, _, size in cells:
        ad.data.resize(torch.zeros(1, 1, native, native), size, resize)
        assert outputs(replace(network, width=4), channels, size) == (1, 10)


@functools.cache
def outputs(network, channels, size):
    """Shape of what a network gives for one image; it is built once for all scales."""
    net = ad.models.build(**asdict(network), image_shape=(channels, size, size)).to("meta")
    return net(torch.zeros(1, channels, size, size, device="meta")).shape


@pytest.mark.parametrize("experiment", NEW)
def test_a_grid_cut_short_holds_whole_seeds(experiment):
    """Of the smallest sample, or strength by strength: the first points are one seed's at every size."""
    points = grids.GRIDS[experiment]("medium", "cifar10-jpeg")
    assert [p.images.size for p in points[:3]] == [32, 64, 128]
    seeds = [p.recipe.seed for p in points]
    first = seeds.index(1)
    assert {p.images.size for p in points[:first]} == {32, 64, 128}
    assert first <= len(points) / 5


def test_the_grid_of_methods_is_what_is_registered():
    """20,000 images, 32 channels, 15 epochs, six methods at three strengths, 2 seeds; smooth nets under one penalty."""
    points = grids.GRIDS["methods"]("medium", "cifar10-jpeg")
    assert {(p.train, p.network.width, p.recipe.epochs, p.recipe.bf16) for p in points} == {(20_000, 32, 15, False)}
    assert {p.recipe.seed for p in points} == {0, 1}
    assert min(points[0].eps) == 0.001
    assert max(points[0].eps) == 0.03
    runs = [(p.network.activation, p.recipe.method, p.recipe.strength) for p in points if p.recipe.seed == 0]
    assert len(set(runs)) == len(runs) == 1 + 6 * 3 + 2 * 4
    assert {activation for activation, method, _ in runs if method != "none" and activation} == {"gelu", "softplus"}
    assert {method for activation, method, _ in runs if activation} == {"none", "gradient-l1"}
    assert [p.recipe.seed for p in points] == [0] * 27 + [1] * 27, "seed by seed"


def test_the_check_of_precision_differs_in_precision_alone():
    points = grids.GRIDS["precision"]("medium", "cifar10-jpeg")
    halves, fulls = ([p for p in points if p.recipe.bf16 == bf16] for bf16 in (True, False))
    assert [replace(p, recipe=replace(p.recipe, bf16=False)) for p in halves] == fulls
    assert {p.recipe.strength for p in points} == {0.0, min(trained_grids.STRENGTHS)}
    own = {replace(p, experiment="pgd-training") for p in fulls}
    assert own <= set(grids.GRIDS["pgd-training"]("medium", "cifar10-jpeg")), "the runs of run 2"


@pytest.mark.parametrize("experiment", ["methods", "precision"])
@pytest.mark.parametrize("scale", grids.SCALES)
def test_grids_of_methods_and_precision(experiment, scale):
    for data in ("digits", "cifar10-jpeg"):
        points = grids.GRIDS[experiment](scale, data)
        assert len({spec.key(p) for p in points}) == len(points)
        assert all(p.recipe.seed == p.images.seed == p.train_seed for p in points)
        assert all(p.experiment == experiment for p in points)
    with pytest.raises(ValueError, match="imagenette-224"):
        grids.GRIDS[experiment](scale, "imagenette-224")


def test_registered_hashes():
    """The points that are being computed keep their names, whatever joins the grids."""
    registered = {
        ("usual-training", "cifar10-jpeg"): "9768ef93b773",
        ("usual-training", "imagenette-224"): "a097403943f2",
        ("pgd-training", "cifar10-jpeg"): "f7c7e2727ffc",
        ("pgd-training", "imagenette-224"): "8e5b4424df7e",
        ("sample-size", "cifar10-jpeg"): "04200741029f",
        ("sample-size", "imagenette-224"): "5e5448314469",
    }
    for (experiment, data), name in registered.items():
        keys = " ".join(spec.key(p) for p in grids.GRIDS[experiment]("medium", data))
        assert hashlib.sha256(keys.encode()).hexdigest()[:12] == name, (experiment, data)


def test_another_data_set_has_no_grid():
    for experiment in NEW:
        with pytest.raises(ValueError, match="mnist"):
            grids.GRIDS[experiment]("quick", "mnist")


@pytest.mark.parametrize("experiment", [*NEW, "methods", "precision"])
def test_a_point_of_every_grid_runs(experiment):
    """On digits, with few images: each grid's own settings go through."""
    one = grids.GRIDS[experiment]("quick", "digits")[-1]
    images = replace(one.images, n=20, size=8, resize="copy")
    one = replace(one, images=images, train=40, by_epoch=10, pgd_images=3, recipe=replace(one.recipe, epochs=2))
    metrics = runner.measure(one, CPU)
    assert metrics["test"]["images"] == 20
    assert len(metrics["history"]["test_l1"]) == 2


def test_the_tables(measured):
    record = {"spec": spec.as_dict(SMALL), "metrics": measured}
    table = runs([record])
    for split in ("train", "test"):
        assert table[f"{split}_l1"].tolist() == [measured[split]["l1"]]
    assert table["images"].tolist() == [90]
    assert epochs([record])["test_on_l1"].tolist() == measured["history"]["test_on_l1"]


# Costs


@pytest.mark.parametrize("stop", [None, 1.0])
def test_costs_are_those_of_a_whole_run(stop, monkeypatch):

    monkeypatch.setattr(fold_batch_norm, "_quick", lambda layer: layer)
    monkeypatch.setattr(trained_convolution, "_quicker", lambda model: model)
    run = replace(SMALL, recipe=replace(SMALL.recipe, stop_accuracy=stop))
    with cost.OperatorCounter() as counter:
        runner.measure(run, CPU)
    assert counter.count[0] == pytest.approx(cost.table([run])["operations"][0], rel=1e-12)


def test_core_hours_grow_with_the_work():
    hours = cost.core_hours(
        [
            SMALL,
            replace(SMALL, recipe=replace(SMALL.recipe, epochs=6)),
            replace(SMALL, images=replace(SMALL.images, size=32)),
        ]
    )
    assert 0 < hours[0] < hours[1] < 2 * hours[0]
    assert 2 * hours[0] < hours[2] < 5 * hours[0]


# Grids cut short


def test_a_record_brings_the_points_back(measured, tmp_path):
    """What is committed is enough to go on from, on another machine: to six digits."""
    where = dict.fromkeys(("command", "date", "commit", "device", "torch", "python"), "x") | {"seconds": 1.0}
    done = {"spec": spec.as_dict(SMALL), "status": "done", "metrics": measured, "data": "d", "provenance": where}
    other = done | {"spec": spec.as_dict(replace(SMALL, base_size=16))}
    records.write_record(tmp_path / "r.jsonl", {"cut_short": "2 of 3 points"}, [done, other])
    header, points = records.read_record((tmp_path / "r.jsonl").read_text())
    assert header["cut_short"] == "2 of 3 points"
    store.save(tmp_path / "runs", spec.key(SMALL), done)
    assert store.restore(tmp_path / "runs", points) == 1
    assert store.load(tmp_path / "runs", spec.key(SMALL)) == done, "what is there is not overwritten"
    back = store.load(tmp_path / "runs", spec.key_of(other["spec"]))
    assert back["metrics"]["test"]["l1"] == pytest.approx(measured["test"]["l1"], rel=1e-5)
    assert back["spec"] == other["spec"]
