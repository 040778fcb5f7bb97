"""The committed records: complete, of the grid they name, and saying what the chapters claim; re-measured when slow."""

import math
import re
import shlex
import time
from functools import cache
from pathlib import Path

import pytest
import torch

import advdim as ad
from advdim import experiments
from advdim.analysis import tables
from advdim.data import folders
from advdim.experiments import grids, runner, spec
from advdim.experiments.spec import AtInitialisation
from advdim.models import Network

FOLDER = Path(tables.__file__).parent / "recorded"
RECORDS = sorted(file.stem for file in FOLDER.glob("*.jsonl") if not file.stem.startswith("architectures-"))
INITIAL = [name for name in RECORDS if name.startswith("initialisation-")]
METRICS = {"l1", "l2", "linf", "support", "walk_l1", "walk_l2", "damage_0.0001", "damage_0.004"}


@cache
def recorded(name):
    return experiments.recorded(name)


@cache
def series(name):
    return experiments.series(recorded(name)[1])


def fits(s):
    """Exponents of the measured l_1 norm and of what path counting predicts of it."""
    return (ad.analysis.exponent(s.d, s.metrics[metric]) for metric in ("l1", "walk_l1"))


def chosen(choice, at_least):
    """(record, network) pairs to test, refusing a choice that silently finds none."""
    found = [(name, s) for name in INITIAL for s in series(name) if choice(s)]
    assert len(found) >= at_least * len(INITIAL), f"only {len(found)} networks"
    return [pytest.param(s, id=f"{name}: {s.resize}, {s.network}") for name, s in found]


def meets_h(s):
    """Theorem 4 and Corollary 6: no averages, no maxima, no batch-norm, no paths lost at the border."""
    n = s.network
    if n.batch_norm or n.init not in ("he", "ntk", "torch", "mup"):
        return False
    strided = n.name == "conv_strided" and n.readout == "fc" and n.pooling is None and n.padding in (None, "circular")
    return n.name == "mlp" or strided


def loses_paths(s):
    return s.network.padding == "zeros"


def averages_the_image(s):
    strided = s.network.name == "conv_strided" and s.network.readout is None
    return (strided or s.network.readout == "average") and not s.network.batch_norm


def ties(s):
    return s.network.name == "conv_dilated" and s.resize == "copy" and grids.has_maxima(s.network)


@cache
def grid(command):
    """The points that a command measures, by key."""
    advdim, run, experiment, *options = shlex.split(command)
    assert (advdim, run) == ("advdim", "run")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) == {"--data", "--scale"}
    return {spec.key(s): s for s in grids.GRIDS[experiment](given["--scale"], given["--data"])}


def grid_of(name):
    """The points of a record's grid, by key."""
    header, _ = recorded(name)
    data = name.removeprefix(f"{header['experiment']}-")
    assert header["command"] == f"advdim run {header['experiment']} --data {data} --scale {header['scale']}"
    return grid(header["command"])


def numbers(value):
    """All numbers in nested dictionaries and lists."""
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers(v)]
    return [value]


def test_there_are_records():
    assert INITIAL


@pytest.mark.parametrize("name", RECORDS)
def test_the_points_are_those_of_the_grid(name):
    header, points = recorded(name)
    assert shlex.split(header["command"])[:3] == ["advdim", "run", header["experiment"]]
    grid = {key: spec.as_dict(s) for key, s in grid_of(name).items()}
    found = {spec.key_of(p["spec"]): p["spec"] for p in points}
    assert len(points) == len(found)
    assert found == {key: s for key, s in grid.items() if key in found or "cut_short" not in header}
    if "cut_short" in header:  # as it says, and never the whole
        assert header["cut_short"] == f"{len(points)} of {len(grid)} points"
        assert len(points) < len(grid)


@pytest.mark.parametrize("name", RECORDS)
def test_the_numbers_are_complete_and_finite(name):
    points = recorded(name)[1]
    for p in points:
        assert p["status"] == "done"
        assert set(p["metrics"]) == set(points[0]["metrics"])
        assert all(math.isfinite(n) for n in numbers(p["metrics"])), p["spec"]


@pytest.mark.parametrize("name", INITIAL)
def test_at_initialisation_there_is_a_number_per_seed(name):
    header, points = recorded(name)
    assert header["scale"] == "paper"
    for p in points:
        assert set(p["metrics"]) == METRICS
        for metric, values in p["metrics"].items():
            assert len(values) == p["spec"]["seeds"]
            assert min(values) > 0, (metric, p["spec"])
        assert max(p["metrics"]["support"]) <= 1
        assert len(set(p["metrics"]["l1"])) == p["spec"]["seeds"]


@pytest.mark.parametrize("name", RECORDS)
def test_the_provenance_is_complete(name):
    for p in recorded(name)[1]:
        provenance = p["provenance"]
        assert set(provenance) == {"command", "date", "commit", "device", "torch", "python", "seconds"}
        assert spec.key_of(p["spec"]) in grid(provenance["command"])  # perhaps at a smaller scale, a part of this one
        assert time.strptime(provenance["date"], "%Y-%m-%d")
        assert re.fullmatch("[0-9a-f]{12}", provenance["commit"])  # and not one with changes
        assert all(provenance[key] for key in ("device", "torch", "python"))
        assert provenance["seconds"] > 0
        for archive, checksum in (pair.split("=") for pair in p["data"].split()):
            assert archive.startswith(p["spec"]["images"]["data"])
            assert folders.KNOWN[archive] == checksum


@pytest.mark.parametrize("name", INITIAL)
def test_holders_inequality_and_the_damage(name):
    """Norms of one gradient, and a one-step attack of eps = 1e-4 does the damage that the l_1 norm says.

    Less of it where maxima change their mind within eps, above all where their inputs tie.
    """
    for p in recorded(name)[1]:
        m, s = p["metrics"], p["spec"]["images"]
        d = (1 if s["data"] == "digits" else 3) * s["size"] ** 2
        for l1, l2, linf, damage in zip(m["l1"], m["l2"], m["linf"], m["damage_0.0001"], strict=True):
            assert l2 <= l1 * 1.00001 <= math.sqrt(d) * l2 * 1.00002
            assert linf <= l2 * 1.00001
            assert damage <= 1.05 * l1
            maxima = grids.has_maxima(Network(**p["spec"]["network"]))
            assert damage >= (0.95 if not maxima else 0 if s["resize"] == "copy" else 0.8) * l1


@pytest.mark.parametrize("s", chosen(meets_h, at_least=8))
def test_under_h_the_l_1_norm_grows_as_the_root_of_d(s):
    measured, counted = fits(s)
    assert abs(measured.slope - 0.5) <= 0.05
    assert measured.contains(counted.slope, slack=0.03)


@pytest.mark.parametrize("s", chosen(loses_paths, at_least=1))
def test_zero_padding_follows_its_path_counts(s):
    """Small images lose more of their paths over the border, so that the norm grows faster than the root of d."""
    measured, counted = fits(s)
    assert measured.contains(counted.slope, slack=0.03)
    assert 0.6 < measured.slope < 0.7


@pytest.mark.parametrize("s", chosen(averages_the_image, at_least=2))
def test_a_global_average_takes_the_growth_away(s):
    measured, _ = fits(s)
    assert abs(measured.slope) <= 0.06


@pytest.mark.parametrize("s", chosen(ties, at_least=0))
def test_maxima_tie_on_copied_pixels(s):
    """Equal inputs of a maximum share one path: the gradient lives on ever fewer pixels, and grows less."""
    measured, counted = fits(s)
    assert measured.slope < 0.4
    support = s.metrics["support"].mean(axis=1)
    assert (support[1:] < support[:-1]).all()
    assert not measured.contains(counted.slope, slack=0.03)  # independent gates do not know of ties


def test_ties_are_on_record():
    assert any(ties(s) for name in INITIAL for s in series(name))


# What chapter 7 says of trained networks


@cache
def section_4_1():
    (name,) = (name for name in RECORDS if name.startswith("4.1-"))
    return experiments.runs(recorded(name)[1])


def test_damage_is_first_order():
    runs = section_4_1()
    for attack in ("one-step-linf", "pgd-linf"):
        ratio = runs[f"{attack}_damage"] / (runs["l1"] * grids.EPS)
        assert ratio.between(0.9, 1.1).all()
        assert abs(ratio.mean() - 1) < 0.04
        assert runs[f"{attack}_remainder"].max() < 0.15  # of single images, on which it is less exact


def test_all_methods_lie_on_one_curve():
    runs = section_4_1()
    damage = ad.analysis.fit_single_curve(runs["l1"], runs["pgd-linf_damage"], list(runs["method"]))
    assert damage.factor < 1.05
    for attack, factor in (("pgd-linf", 1.4), ("deepfool-linf", 1.25), ("deepfool-l2", 1.2)):
        found = ad.analysis.fit_single_curve(runs["l1"], runs[f"{attack}_vulnerability"], list(runs["method"]))
        assert found.high < factor
        assert found.r2 > 0.5


def test_attacks_rank_networks_alike_and_deepfool_changes_more_predictions():
    runs = section_4_1()
    attacks = ["one-step-linf", "pgd-linf", "deepfool-linf", "one-step-l2", "pgd-l2", "deepfool-l2"]
    ranks = runs[[f"{attack}_vulnerability" for attack in attacks]].corr("spearman")
    assert ranks.min().min() > 0.8
    assert (runs["deepfool-linf_vulnerability"] > runs["pgd-linf_vulnerability"]).all()
    # Of the images that were right, they change as many.
    assert (runs["pgd-linf_accuracy"] - runs["deepfool-linf_accuracy"]).between(-0.01, 0.04).all()


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ("gradient-l1", "augment-linf", 0.9, 1.1),  # Proposition 3
        ("gradient-l2", "augment-l2", 0.75, 1.15),
        ("gradient-l2", "gradient-l1", 0.8, 0.96),  # the l_2 norm, calibrated, is the larger
    ],
)
def test_penalty_and_augmentation_reach_the_same_gradients(a, b, low, high):
    runs = section_4_1()
    norms = [runs[runs["method"] == m].set_index(["strength", "seed"])["l1"].sort_index() for m in (a, b)]
    assert norms[0].index.equals(norms[1].index)
    found = ad.analysis.geometric_mean_ratio(*norms)
    assert found.pairs == 10
    assert low < found.low < found.high < high


def kind(s):
    """What the re-measured points of a record differ in."""
    return s.network.name if isinstance(s, AtInitialisation) else (s.network, s.recipe.method, s.images.size)


@pytest.mark.slow
@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("name", RECORDS)
def test_a_recorded_point_is_measured_again(name, choice):
    """The cheapest points of three kinds, or of as many as there are and the cheapest beside them, in float32.

    At initialisation the norms agree to 1e-3 on every machine. A training run repeats bit for bit only on the same
    processor and versions; elsewhere rounding grows to another of the networks that it might as well have ended at:
    accuracies agree within 0.05, and mean norms of gradients within 20 per cent.
    """
    specs, cheapest, rest = grid_of(name), {}, []
    for p in sorted(recorded(name)[1], key=lambda p: p["provenance"]["seconds"]):
        first = cheapest.setdefault(kind(specs[spec.key_of(p["spec"])]), p)
        rest += [] if first is p else [p]
    p = [*cheapest.values(), *rest][choice]
    s = specs[spec.key_of(p["spec"])]
    try:
        checksum = ad.data.checksum(s.images.data)
    except folders.MissingDataError as error:
        pytest.skip(str(error))
    assert checksum == p["data"]
    found = runner.measure(s, torch.device("cpu"))
    trained = not isinstance(s, AtInitialisation)
    for metric in ("l1", "l2"):
        assert found[metric] == pytest.approx(p["metrics"][metric], rel=0.2 if trained else 1e-3), metric
    for metric in [name for name in found if trained and name.endswith("accuracy")]:
        assert found[metric] == pytest.approx(p["metrics"][metric], abs=0.05), metric
