"""Verdicts on the registered claims: the rules on known intervals, and each run's on synthetic records of known answer.

The records have the specs of the registered grids, so that claims and grids cannot part unnoticed.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.synthetic_runs import LOSSES, grid, power, run, spread
from scipy import stats

from advdim.analysis import Interval, claims
from advdim.analysis.claims import cells, pgd_training, sample_size, verdicts
from advdim.experiments import grids


def of(found, claim, about="", statistic=""):
    """The one finding of a claim whose networks and statistic have these words."""
    chosen = [f for f in found if f.claim == claim and about in f.about and statistic in f.statistic]
    assert len(chosen) == 1, [str(f) for f in chosen]
    return chosen[0]


# The rules


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (verdicts.above(), 0.01, 0.5, "supported"),
        (verdicts.above(), -0.5, -0.01, "contradicted"),
        (verdicts.above(), -0.01, 0.5, "open"),
        (verdicts.below(0.1), -0.2, 0.09, "supported"),
        (verdicts.below(0.1), 0.11, 0.2, "contradicted"),
        (verdicts.below(0.1), 0.0, 0.2, "open"),
        (verdicts.is_half(), 0.4, 0.6, "supported"),
        (verdicts.is_half(), 0.41, 0.49, "supported"),  # both rules hold: the one that is registered first
        (verdicts.is_half(), 0.39, 0.59, "open"),
        (verdicts.is_half(), 0.2, 0.49, "contradicted"),
        (verdicts.not_zero(), 0.1, 0.2, "supported"),
        (verdicts.not_zero(), -0.2, -0.1, "supported"),
        (verdicts.not_zero(), -0.1, 0.1, "open"),
        (verdicts.is_zero(), 0.1, 0.2, "contradicted"),
        (verdicts.is_zero(), -0.1, 0.1, "open"),
    ],
)
def test_rules(rule, low, high, verdict):
    assert rule.judge(Interval((low + high) / 2, low, high, 0.95)) == verdict


def test_the_interval_is_students_at_bonferronis_level():
    values = {0: 0.1, 1: 0.3, 4: 0.5}
    found = verdicts.finding("1a", "", "", values, verdicts.above(), m=4, planned=8)
    half = stats.t.ppf(1 - 0.05 / 4 / 2, 2) * np.std([0.1, 0.3, 0.5], ddof=1) / math.sqrt(3)
    assert found.interval.mean == pytest.approx(0.3)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.3 - half, 0.3 + half))
    assert (found.verdict, found.seeds, found.planned) == ("open", 3, 8)


def test_fewer_than_three_seeds_decide_nothing():
    def verdict(values, rule=None, whole=None):
        rule = rule or verdicts.above()
        return verdicts.finding("1a", "", "", values, rule, m=1, planned=8, whole=whole).verdict

    assert verdict({0: 1.0, 1: 1.001, 2: 0.999}) == "supported"
    assert verdict({0: 1.0, 1: 1.001}) == "not decided"
    assert verdict({0: 1.0}) == "not decided"
    assert verdict({}) == "not run"
    assert verdict({}, whole=4) == "not decided", "four seeds, none of which has the statistic"
    assert verdict({0: 1.0}, verdicts.NO_RULE) == "reported"


# Statistics by seed


def test_the_crossing_is_exact_for_exponentials_and_takes_the_first():
    losses = [2.0, 1.2, 0.7, 0.3, 0.8, 0.2]
    values = [math.exp(3 - 0.7 * loss) for loss in losses]
    for level in (1.5, 1.0, 0.5):
        assert cells.crossing(losses, values, level) == pytest.approx(math.exp(3 - 0.7 * level), rel=1e-12)
    assert cells.crossing(losses, [*values[:4], 1e9, 1e9], 0.5) == pytest.approx(math.exp(3 - 0.35)), "the first"
    assert cells.crossing(losses, values, 2.0) == values[0]
    assert cells.crossing(losses, values, 0.7) == pytest.approx(values[2])
    assert cells.crossing(losses, values, 0.1) is None, "never reached"
    assert cells.crossing(losses, values, 2.5) is None, "passed before the first measurement"


def test_the_fourth_size_is_compared_with_the_fit():
    """A seed whose fourth size lies at twice its power law; one without that size has no such number."""

    def make(one):
        seed, fourth = one.recipe.seed, one.images.size > 128
        if seed > 1 or (seed and fourth):
            return None
        return {"l1": power(one, 0.3) * (2 if fourth else 1)}

    points = grid("usual-training", "imagenette-224", make)
    found = cells.beyond_fit(series_of(points, "dilated, natural"), cells.at_end("test", "l1"))
    assert found == pytest.approx({0: math.log(2)})


def series_of(points, name="dilated, copied"):
    return claims.usual_training.series(points)[name]


def test_slopes_are_the_exponents_of_power_laws_of_whole_seeds():
    exponents = {0: 0.5, 1: 0.2, 2: -0.1, 3: 0.0}
    missing = {(1, 64), (3, 32)}

    def make(one):
        seed = one.recipe.seed
        return None if seed > 3 or (seed, one.images.size) in missing else {"l1": power(one, exponents[seed])}

    points = grid("usual-training", "cifar10-jpeg", make)
    found = cells.slopes(series_of(points), cells.at_end("test", "l1"))
    assert found == pytest.approx({0: 0.5, 2: -0.1}), "a seed that lacks a size leaves the fit"
    finding = of(claims.findings({"usual-training": points}), "1a", "dilated, copied", "exponent")
    assert (finding.seeds, finding.whole, finding.verdict) == (2, 2, "not decided")


@pytest.mark.parametrize(("changed", "seeds"), [(19, 4), (20, 5)])
def test_few_changed_predictions_give_no_exponent(changed, seeds):
    """A cell with fewer than 20 of 2,000 leaves, with its seed; the others stay, and the reader is told."""

    def make(one):
        few = one.recipe.seed == 2 and one.images.size == 32
        return {"l1": 1.0, "vulnerability": changed / 2000 if few else 0.4} if one.recipe.seed < 5 else None

    found = of(claims.findings({"usual-training": grid("usual-training", "imagenette-224", make)}), "1d", "natural")
    assert (found.seeds, found.whole) == (seeds, 5)
    assert ("1 of 5 seeds lack it" in found.note) == (seeds == 4)


def test_equal_state_intervals_cover():
    """Exponents at a loss, interpolated between noisy measurements of curved trajectories: 95% means 95%."""
    rng = np.random.default_rng(0)
    sizes, truth, covered, rounds = np.array([1, 2, 4]), 0.3, 0, 400
    ends = 2 * math.log(sizes[-1] / sizes[0])  # of three equally spaced logarithms, least squares takes the outer two
    for _ in range(rounds):
        slopes = []
        for _ in range(5):
            logs = []
            for size in sizes:
                losses = np.sort(rng.uniform(0.02, 2.2, 9))[::-1]
                losses[[0, -1]] = 2.3, 0.01
                curve = 2 * truth * np.log(size) + 0.8 * (losses - 0.5) - 0.2 * (losses - 0.5) ** 2
                logs.append(math.log(cells.crossing(losses, np.exp(curve + rng.normal(0, 0.1, 9)), 0.5)))
            slopes.append((logs[-1] - logs[0]) / ends)
        found = verdicts.finding("", "", "", dict(enumerate(slopes)), verdicts.above(), m=1, planned=5)
        covered += found.interval.contains(truth)
    assert 0.92 <= covered / rounds <= 0.98


# Run 1


def usual(one, *, exponents, **other):
    """The gradient of every registered series, by how its images came to their size."""
    key = "strided" if one.network.name == "conv_strided" else one.images.resize
    return {"l1": power(one, exponents[key] + spread(one.recipe.seed)), **other}


@pytest.fixture(scope="module")
def usual_points():
    """Copies hide a part; interpolated and natural grow as the square root; strided networks shrink."""
    exponents = {"copy": 0.0, "bilinear": 0.5, "area": 0.5, "strided": -0.2}

    def make(one):
        return usual(
            one,
            exponents=exponents,
            train_l1=power(one, 0.1 + spread(one.recipe.seed)),
            by_loss=lambda loss: power(one, spread(one.recipe.seed) + (loss < 0.5) * 0.4),
            on=2 * (one.base_size / one.images.size) ** 2 * math.exp(spread(one.recipe.seed)),
            pgd_damage=1.1 * 0.0008 * usual(one, exponents=exponents)["l1"],
        )

    return [point for data in ("cifar10-jpeg", "imagenette-224") for point in grid("usual-training", data, make)]


def test_run_1(usual_points):
    found = claims.findings({"usual-training": usual_points})
    expected = {
        ("1b", "natural"): "supported",
        ("1b", "dilated, copied"): "contradicted",
        ("1g", "dilated"): "supported",
        ("1h", "natural"): "supported",
    }
    for (claim, about), verdict in expected.items():
        assert of(found, claim, about).verdict == verdict, (claim, about)
    verdicts_1a = {f.about: f.verdict for f in found if f.claim == "1a" and f.statistic == "exponent of E||g||_1"}
    assert verdicts_1a == {
        "dilated, copied": "open",
        "dilated, interpolated": "supported",
        "dilated, natural": "supported",
        "strided, copied": "contradicted",
    }
    beyond = [f for f in found if "fourth" in f.statistic]
    assert [f.about for f in beyond] == ["dilated, copied", "dilated, interpolated", "dilated, natural"]
    assert all(f.seeds == f.planned == 4 and f.verdict == "reported" for f in beyond)
    assert all(f.interval.mean == pytest.approx(0, abs=1e-9) for f in beyond), "a power law is on its fit"
    assert all(f.planned == f.seeds == 8 for f in found if f.claim[0] == "1" and "fourth" not in f.statistic)
    deciding = of(found, "1e", "natural", "loss 0.5")
    assert deciding.verdict == "supported"
    assert deciding.interval.mean == pytest.approx(0.2, abs=1e-9), "half way, in logarithms, from exponent 0 to 0.4"
    assert of(found, "1e", "natural", "loss 0.1").verdict == "reported"
    assert of(found, "1f", "natural", "test less").verdict == "contradicted"
    assert of(found, "1f", "natural", "test less").interval.mean == pytest.approx(0.4)
    assert of(found, "1h", "strided").interval.mean == pytest.approx(math.log(2))
    assert of(found, "1i", "strided", "one-step damage /").interval.mean == pytest.approx(1)
    assert of(found, "1i", "strided", "PGD").interval.mean == pytest.approx(1.1)
    halves = [f.verdict for f in found if f.claim == "1c" and f.about == "dilated, natural"]
    assert halves == ["supported", "supported"]
    assert of(found, "1b", "natural").interval.confidence == pytest.approx(1 - 0.05 / 4)
    assert of(found, "1g").interval.confidence == pytest.approx(0.95)


def test_seeds_registered_are_those_of_the_grids():
    """With every point there, each statistic has the planned number of whole seeds."""
    both, one_set = ("cifar10-jpeg", "imagenette-224"), {"readouts-and-cures": ("imagenette-224",)}
    one_set |= {"methods": both[:1], "precision": both[:1]}
    points = {
        name: [p for data in one_set.get(name, both) for p in grid(name, data, lambda one: {"l1": power(one, 0.3)})]
        for name in ("usual-training", "pgd-training", "sample-size", *one_set)
    }
    found = claims.findings(points)
    assert set(claims.CLAIMS) == {f.claim for f in found}
    for f in found:
        assert f.seeds == f.whole == f.planned or f.claim == "3c", str(f)
        assert f.verdict != "not run" or f.claim == "3c", "equal accuracies have no slope"


# Run 2


def pgd(one, *, exponents, reached=True, seeds=5, **other):
    """Growth by strength, at the end; training accuracy .99 or less; the runs of 200 epochs grow wildly."""
    if one.recipe.seed >= seeds or one.recipe.stop_accuracy is None:
        return {"l1": power(one, 3.0)} if one.recipe.seed < seeds else None
    e = exponents[one.recipe.strength] + spread(one.recipe.seed)
    return {"l1": power(one, e), "pgd_damage": power(one, e), "train_accuracy": 0.99 if reached else 0.98, **other}


GROWTH = {0.0: 0.5, 0.0005: 0.4, 0.001: 0.2, 0.004: 0.0}


def test_run_2():
    def make(one):
        level = -3.0 if one.recipe.strength else 0.0
        numbers = pgd(one, exponents=GROWTH)
        return numbers | {"l1": numbers["l1"] * math.exp(level)}

    found = claims.findings({"pgd-training": grid("pgd-training", "cifar10-jpeg", make)})
    assert of(found, "2a", "copied, PGD 0.0005").verdict == "supported"
    assert of(found, "2a", "copied, PGD 0.004").verdict == "open"
    assert of(found, "2a", "copied, PGD 0.004").note == ""
    assert of(found, "2b", "copied, PGD 0.001").interval.mean == pytest.approx(-0.3)
    assert of(found, "2b", "copied, PGD 0.001").verdict == "supported"
    lower = of(found, "2c", "copied, PGD 0.001")
    assert lower.verdict == "supported"
    assert lower.interval.mean == pytest.approx(-3 - 0.3 * 2 * math.log(2)), "mean over sizes of log 1, 2, 4"
    assert of(found, "2e", "copied, PGD 0.001").interval.mean == pytest.approx(0.2 + spread(0) / 5)
    assert of(found, "2a", "natural, PGD 0.001").verdict == "not run"
    assert of(found, "2a", "copied, PGD 0.001").interval.confidence == pytest.approx(1 - 0.05 / 6)


@pytest.mark.parametrize(("short", "at_the_end"), [(1, True), (2, False)])
def test_where_few_reach_the_accuracy_networks_are_compared_at_a_loss(short, at_the_end):
    """One of five seeds may miss it; with two, at one size, the exponent is that at training loss .5."""

    def make(one):
        missed = one.recipe.seed < short and one.images.size == 64
        by_loss = lambda loss: power(one, 0.7 + spread(one.recipe.seed))  # noqa: E731
        return pgd(one, exponents=GROWTH, reached=not missed, by_loss=by_loss)

    found = of(claims.findings({"pgd-training": grid("pgd-training", "cifar10-jpeg", make)}), "2a", "copied, PGD 0.001")
    assert found.interval.mean == pytest.approx((0.2 if at_the_end else 0.7) - 0.002)
    assert ("training loss 0.5" in found.note) != at_the_end


def test_the_budget_is_that_of_epoch_20_or_the_end_before_it():
    """Epochs 10 and 20 end before .6 and .4; a run that had stopped by then has its end for both."""

    def make(one, epochs=(1, 4, 10, 20, 40, 60)):
        by_loss = lambda loss: power(one, (0.3 if loss > 0.5 else 0.6) + loss * spread(one.recipe.seed))  # noqa: E731
        return pgd(one, exponents=GROWTH, by_loss=by_loss, epochs=epochs)

    points = grid("pgd-training", "cifar10-jpeg", make)
    early = grid("pgd-training", "cifar10-jpeg", lambda one: make(one, (1, 2, 4, 8, 12, 19)))
    found = of(claims.findings({"pgd-training": points}), "2d", "copied, PGD 0.001")
    assert LOSSES[3] == 0.6
    assert found.interval.mean == pytest.approx(0.3, abs=0.01)
    assert found.verdict == "supported"
    same = of(claims.findings({"pgd-training": early}), "2d", "copied, PGD 0.001")
    assert set(same.values.values()) == {0.0}
    assert same.verdict == "open"
    assert pgd_training.EARLY == 20


# Run 3


def falling(one, at=0.6, slope=-0.1):
    n = one.train or 9469
    e = at + slope * math.log10(n) + (one.network.width == 32) * 0.05 + spread(one.recipe.seed)
    return {"l1": power(one, e), "accuracy": 0.2 + 0.1 * math.log10(n), "by_loss": lambda loss: power(one, e + 0.1)}


def test_run_3():
    points = grid("sample-size", "cifar10-jpeg", falling) + grid("sample-size", "imagenette-224", falling)
    found = claims.findings({"sample-size": points})
    for name in ("copied", "interpolated", "natural"):
        slope = of(found, "3a", name)
        assert (slope.seeds, slope.verdict) == (5, "supported")
        assert slope.interval.mean == pytest.approx(-0.1)
        assert of(found, "3b", name).verdict == "supported"
        assert (of(found, "3b", name).seeds, of(found, "3b", name).planned) == (3, 3)
        assert of(found, "3d", name, "images or all").interval.mean == pytest.approx(
            0.1 + of(found, "3b", name).interval.mean
        )
        assert of(found, "3e", name).interval.mean == pytest.approx(0.05)
        assert of(found, "3e", name).verdict == "reported"
    rising = [replace_l1(p, one) for p, one in zip(points, specs_of(points), strict=True)]
    assert of(claims.findings({"sample-size": rising}), "3a", "natural").verdict == "contradicted"


def specs_of(points):
    known = {}
    for data in ("cifar10-jpeg", "imagenette-224"):
        known |= {str(run(one, l1=1.0)["spec"]): one for one in grids.GRIDS["sample-size"]("medium", data)}
    return [known[str(point["spec"])] for point in points]


def replace_l1(point, one):
    return run(one, **falling(one, slope=0.1))


def test_the_slope_in_accuracy_is_least_squares_with_an_intercept_per_series():
    rng = np.random.default_rng(0)
    noise = {}

    def make(one):
        cell = one.images.resize, one.train, one.recipe.seed
        shift, accuracy = noise.setdefault(cell, (rng.normal(0, 0.05), rng.uniform(0.2, 0.6)))
        return {"l1": power(one, shift + accuracy + (one.images.resize == "copy")), "accuracy": accuracy}

    points = grid("sample-size", "cifar10-jpeg", make)
    rows = sample_size.against_accuracy(points)
    assert len(rows) == 2 * (3 * 5 + 3), "no runs of another width"
    design = np.array([[a, s == "copied", s == "interpolated"] for s, _, _, a, _ in rows], float)
    y = np.array([row[-1] for row in rows])
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - 3
    covariance = np.sum((y - design @ beta) ** 2) / freedom * np.linalg.inv(design.T @ design)
    half = stats.t.ppf(1 - 0.05 / 3 / 2, freedom) * math.sqrt(covariance[0, 0])
    found = sample_size.accuracy_slope(points)
    assert (found.interval.mean, found.interval.low) == pytest.approx((beta[0], beta[0] - half))
    assert found.verdict == "supported"
    assert sample_size.accuracy_slope(points[:1]).verdict == "not run"


# Run 4


@pytest.mark.parametrize(("clean", "verdict"), [(0.295, "supported"), (0.27, "open")])
def test_run_4(clean, verdict, usual_points):
    """Averaging lowers the exponent; the projection stops the growth; robustness counts at equal clean accuracy."""

    def make(one):
        seed, size = spread(one.recipe.seed), one.images.size
        if one.network.name == "conv_strided":
            e = 0.4 if one.network.readout == "fc" else 0.0
            return {"l1": power(one, e + seed), "initial": power(one, e + 0.1)}
        e = 0.0 if one.network.project else 0.3 if one.network.blur else 0.1
        return {"l1": power(one, e + seed), "robust": 0.5 + seed + size / 1e9, "accuracy": clean}

    found = claims.findings(
        {"usual-training": usual_points, "readouts-and-cures": grid("readouts-and-cures", "imagenette-224", make)}
    )
    assert of(found, "4a", "strided", "before").verdict == "supported"
    assert of(found, "4a", "strided", "after").interval.mean == pytest.approx(0.4)
    assert of(found, "4b", "projection").verdict == "supported"
    assert of(found, "4b", "blur").verdict == "contradicted"
    assert of(found, "4b", "decay .005").verdict == "open"
    robust = of(found, "4c", "projection")
    assert robust.verdict == verdict
    assert f"clean accuracy {clean - 0.3:+.3f}" in robust.note
    assert ("not equal" in robust.note) == (verdict == "open")
    assert robust.interval.confidence == pytest.approx(1 - 0.05 / 4)


# Run 5, and precision


def method(one, seeds=2, **factors):
    """Damage on one curve over the gradient but for factors by method; GELU robust, softplus not."""
    recipe, activation = one.recipe, one.network.activation
    l1 = 100 / (1 + 50 * recipe.strength) * (1 + 0.01 * recipe.seed)
    robust = 0.2 + {None: 0.0, "gelu": 0.1, "softplus": -0.1}[activation]
    if recipe.method == "none":
        l1, robust = 200.0, 0.0
    damage = 0.001 * l1 * factors.get(recipe.method.replace("-", "_"), 1.0)
    return {"l1": l1, "pgd_damage": damage, "robust": robust, "accuracy": 0.5 - recipe.strength}


def three_seeds(points):
    """The registered two seeds, and the first once more as a third."""
    third = [{**p, "spec": {**p["spec"], "recipe": {**p["spec"]["recipe"], "seed": 2}}} for p in points]
    return points + [p for p, q in zip(third, points, strict=True) if q["spec"]["recipe"]["seed"] == 0]


def test_run_5():
    points = grid("methods", "cifar10-jpeg", lambda one: method(one, augment_l2=0.3))
    found = claims.methods.findings(points)
    assert all(f.verdict == "not decided" for f in found), "two seeds test nothing"
    found = claims.methods.findings(three_seeds(points))
    assert of(found, "5a", "gradient-l2").verdict != "contradicted"
    assert of(found, "5a", "augment-l2").verdict == "contradicted"
    assert of(found, "5b", "gelu", "equal strength").verdict == "supported"
    assert of(found, "5b", "gelu", "equal clean").verdict == "supported"
    assert of(found, "5b", "softplus", "equal strength").verdict == "contradicted"
    assert of(found, "5b", "gelu", "equal strength").interval.mean == pytest.approx(-0.1)
    same = claims.methods.findings(three_seeds(grid("methods", "cifar10-jpeg", method)))
    assert {f.verdict for f in same if f.claim == "5a"} == {"supported"}


def test_precision():
    def make(one):
        return {"l1": math.exp(0.2 * one.recipe.bf16 * (one.recipe.strength > 0) + spread(one.recipe.seed, 0.001))}

    found = claims.findings({"precision": grid("precision", "cifar10-jpeg", make)})
    assert of(found, "6a", "usual").verdict == "open"
    assert of(found, "6a", "PGD").verdict == "contradicted"
    assert of(found, "6a", "PGD").interval.mean == pytest.approx(0.2)


@pytest.mark.parametrize("experiment", claims.RUNS)
def test_labels_tell_the_series_apart(experiment):
    """Each label has one point per seed and size, and says what its series is."""
    data = "imagenette-224" if experiment == "readouts-and-cures" else "cifar10-jpeg"
    points = grid(experiment, data, lambda one: {"l1": 1.0})
    by_label = cells.by_label(points)
    assert sum(len(own) for own in by_label.values()) == len(points)
    if experiment == "usual-training":
        assert {name: len(own) for name, own in by_label.items()} == {
            name: len(own) for name, own in claims.usual_training.series(points).items() if own
        }
    if experiment == "readouts-and-cures":
        assert "dilated, natural, blur" in by_label
        assert "strided averaging, natural" in by_label


def test_two_points_in_one_cell_are_refused():
    one = grids.GRIDS["usual-training"]("medium", "imagenette-224")[0]
    points = [run(one, l1=1.0), run(replace(one, base_size=16), l1=1.0)]
    with pytest.raises(ValueError, match="two points of seed 0 at 32 px"):
        claims.findings({"usual-training": points})
