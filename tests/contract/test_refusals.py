"""What every public function refuses, in one table: by the kind of argument, the value named in the message.

A function is called with good arguments, all but one. Which values of an argument are bad follows from its name.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from helpers.nets import batch, relu_net
from helpers.objectives import seeded
from torch import nn

import advdim as ad
from advdim.train import objectives

INF, NAN = math.inf, math.nan


def spoilt(value, example):
    x = batch()[0]
    x[example, 0, 0, 0] = value
    return x


X, Y = batch()
IMAGES = [
    (X.numpy(), TypeError, "ndarray"),
    ((255 * X).to(torch.uint8), TypeError, "uint8"),
    (X[0], ValueError, r"\(2, 6, 6\)"),
    (X[:0], ValueError, "empty"),
    (spoilt(NAN, 3), ValueError, "NaN.*example 3"),
    (spoilt(INF, 0), ValueError, "infinite.*example 0"),
]
VECTORS = [
    (X.numpy(), TypeError, "ndarray"),
    ((255 * X).to(torch.uint8), TypeError, "uint8"),
    (torch.tensor(1.0), ValueError, "first axis"),
]
EXPONENTS = [(p, ValueError, str(p)) for p in (0.5, 0, -2, -INF, NAN)]
NAMES = [("linf", (TypeError, ValueError), "linf")]
LEVELS = [(level, ValueError, f"confidence.*{level}") for level in (95, 0, 1, -0.1, NAN)]

#: Bad values by the name of the argument: the value, the exception, and what its message says.
BAD = {
    "x": IMAGES,
    "attacked": [*IMAGES, (X[:2], ValueError, r"\(2, 2, 6, 6\).*\(5, 2, 6, 6\)")],
    "y": [
        (Y.numpy(), TypeError, "ndarray"),
        (Y.double(), ValueError, "float64"),
        (Y.int(), ValueError, "int64"),
        (Y[:2], ValueError, r"\(2,\)"),
        (-Y - 1, ValueError, "-"),
        (torch.tensor([1, 2, 0, 4, 2]), ValueError, "below 4.*got 4 in example 3"),
    ],
    "p": EXPONENTS + NAMES,
    "q": EXPONENTS + NAMES,
    "eps": [
        (0, ValueError, "eps.*0"),
        (-0.1, ValueError, r"eps.*-0\.1"),
        (NAN, ValueError, "eps.*nan"),
        (INF, ValueError, "eps.*inf"),
        (torch.tensor([1, 1, 0, 1, 1.0]), ValueError, "eps.*0"),
        (torch.ones(3), ValueError, r"eps.*\(3,\)"),
    ],
    "step_size": [(0, ValueError, "step_size.*0"), (torch.ones(2), ValueError, r"step_size.*\(2,\)")],
    "steps": [(0, ValueError, "steps.*0"), (-1, ValueError, "steps.*-1")],
    "batch_size": [(0, ValueError, "batch_size.*0")],
    "loss": [
        (nn.functional.cross_entropy, ValueError, r"one value per example.*\(\)"),
        (lambda outputs, y: outputs, ValueError, r"one value per example.*\(5, 4\)"),
    ],
    "strength": [
        (s, ValueError, f"at least 0 and finite, got {s}; 0 trains on the plain loss") for s in (-0.1, NAN, INF)
    ],
    "confidence": LEVELS,
    "resamples": [(0, ValueError, "resample.*0")],
}


def net(classes=4):
    return relu_net() if classes == 4 else ad.models.build("mlp", (2, 6, 6), classes, depth=1).double()


def named(method):
    def run(*, model, x, y, strength):
        return objectives.objective(method)(model, x, y, strength, seeded())

    return run


IMAGES_OF_A_MODEL = {"model": net(), "x": X, "y": Y}
ATTACKED = {"model": net(), "x": X, "attacked": X + 0.1}
STEP = {**IMAGES_OF_A_MODEL, "p": 2, "eps": 0.1}
PAIRED = {"x": [1, 2, 3, 4], "y": [1.0, 2, 3, 4], "groups": list("abab")}

LAW = ad.analysis.exponent([1, 2, 3], [[1.0, 2], [2, 3], [3, 5]])

#: Public functions, and arguments that they take; the rest of BAD that concerns them follows from their signature.
FUNCTIONS = {
    "norms.dual": {"p": 2},
    "norms.norm": {"x": X, "q": 2},
    "norms.steepest": {"g": X, "p": 2},
    "norms.project": {"delta": X, "p": 2, "eps": 0.1},
    "norms.threshold": {"eps_inf": 0.1, "p": 2, "d": 3},
    "data.check": {"x": X, "y": Y},
    "data.resize": {"x": X, "size": 12},
    "models.calibrate_batch_norm": {"model": net(), "x": X},
    "theory.open_gate_shares": {"model": net(), "x": X},
    "theory.path_second_moment": {"model": net(), "x": X},
    "theory.predicted_norms": {"model": net(), "x": X},
    "measure.outputs": {"model": net(), "x": X},
    "measure.losses": IMAGES_OF_A_MODEL,
    "measure.input_gradients": IMAGES_OF_A_MODEL,
    "measure.gradient_norms": {**IMAGES_OF_A_MODEL, "q": (1, 2)},
    "measure.damage": {**ATTACKED, "y": Y},
    "measure.vulnerability": ATTACKED,
    "measure.evaluate": {**ATTACKED, "y": Y, "p": 2, "eps": 0.1},
    "attacks.one_step": STEP,
    "attacks.pgd": STEP,
    "attacks.deepfool": IMAGES_OF_A_MODEL,
    "attacks.auto_attack": STEP,
    "train.objectives.plain": IMAGES_OF_A_MODEL,
    "train.objectives.gradient_penalty": {**IMAGES_OF_A_MODEL, "strength": 0.1, "q": 1},
    "train.objectives.one_step_augmentation": {**IMAGES_OF_A_MODEL, "strength": 0.1, "p": 2},
    "train.objectives.pgd_training": {**IMAGES_OF_A_MODEL, "strength": 0.1, "generator": seeded()},
    "train.objectives.cross_lipschitz": {**IMAGES_OF_A_MODEL, "strength": 0.1},
    **{f"method {m}": {**IMAGES_OF_A_MODEL, "strength": 0.1} for m in objectives.METHODS if m != "none"},
    "analysis.exponent": {"d": [1, 2, 3], "values": [1.0, 2, 3]},
    "analysis.exponent_difference": {"first": LAW, "second": LAW},
    "analysis.mean_interval": {"values": [1.0, 2, 3]},
    "analysis.fit_single_curve": PAIRED,
    "analysis.geometric_mean_ratio": {"a": [1, 2, 3], "b": [1.0, 2, 4]},
}
#: What is not bad for a function, or bad in another way: by function and argument.
OTHERWISE = {
    ("norms.norm", "x"): VECTORS,
    ("norms.project", "p"): [(p, ValueError, str(p)) for p in (0.5, 3, NAN, "linf")],
    ("norms.project", "eps"): [
        (-0.25, ValueError, r"-0\.25"),
        (NAN, ValueError, "nan"),
        (torch.ones(3), ValueError, "3"),
        (torch.ones(4), ValueError, "4"),
    ],
    ("data.check", "y"): [(Y.double(), ValueError, "float64"), (-Y - 1, ValueError, "-")],  # knows no model
    ("data.resize", "x"): IMAGES[1:3],
    ("measure.evaluate", "eps"): [(-0.1, ValueError, r"eps.*-0\.1"), (NAN, ValueError, "eps.*nan")],
    ("measure.gradient_norms", "q"): [((1, q), e, m) for q, e, m in EXPONENTS + NAMES] + [(1, TypeError, "q.*1")],
    ("attacks.pgd", "p"): [(p, ValueError, f"p = {p}.*one_step") for p in (0.5, 1.5, 3, NAN, "linf")],
    ("attacks.deepfool", "p"): [(p, ValueError, f"p = {p}") for p in (0.5, 1, 3, NAN, "linf")],
    ("attacks.auto_attack", "p"): [(p, ValueError, f"p = {p}.*one_step") for p in (0.5, 1.5, 3, NAN, "linf")],
    ("attacks.auto_attack", "batch_size"): [],
    ("train.objectives.pgd_training", "p"): [(p, (TypeError, ValueError), f"{p}") for p in (0.5, 1.5, 3, NAN, "linf")],
    ("train.objectives.pgd_training", "step_size"): [],
    ("train.objectives.pgd_training", "steps"): [(0, ValueError, "steps.*0")],
    ("analysis.exponent", "resamples"): [],
    ("analysis.fit_single_curve", "x"): [
        ([1, NAN, 3, 4], ValueError, "got nan at 1"),
        ([1, 2, 3, INF], ValueError, "got inf at 3"),
        ([1, 2], ValueError, "shapes"),
    ],
    ("analysis.fit_single_curve", "y"): [([1, 0, 3, 4], ValueError, "got 0.0 at 1"), ([1] * 4, ValueError, "equal")],
}
#: Arguments that no other function has.
OWN = {
    "norms.steepest": [("g", *bad) for bad in VECTORS],
    "norms.project": [("delta", *bad) for bad in VECTORS],
    "norms.threshold": [
        *(("eps_inf", value, ValueError, f"eps_inf.*{value}") for value in (-0.5, NAN, INF)),
        *(("d", value, ValueError, f"d .*{value}") for value in (0, -3, 2.5, NAN)),
    ],
    "attacks.pgd": [
        ("restarts", 0, ValueError, "restarts.*0"),
        ("restarts", 3, ValueError, "restarts = 3.*random_start=True"),
        ("random_start", True, ValueError, r"generator=torch\.Generator"),
    ],
    "attacks.deepfool": [
        ("candidates", 1, ValueError, "candidates.*1"),
        ("overshoot", -0.1, ValueError, r"overshoot.*-0\.1"),
        ("model", net(1), ValueError, r"2 classes.*1"),
        ("y", Y[:2], ValueError, r"\(2,\)"),
    ],
    "attacks.auto_attack": [("model", net(3), ValueError, r"4 logits.*3")],
    "train.objectives.pgd_training": [("generator", None, ValueError, r"generator=torch\.Generator\(\)\.manual_seed")],
    "train.objectives.cross_lipschitz": [
        ("estimator", "hutchinson", ValueError, "must be 'exact' or 'random-sign', got 'hutchinson'"),
        ("estimator", "random-sign", ValueError, r"generator=torch\.Generator\(\)\.manual_seed"),
    ],
    "analysis.fit_single_curve": [
        ("groups", ["a"], ValueError, "one group per point"),
        ("groups", ["a"] * 4, ValueError, "at least two"),
    ],
    "analysis.geometric_mean_ratio": [
        ("a", [1.0, 2], ValueError, "shapes"),
        ("b", [1, NAN, 2], ValueError, "got nan at 1"),
    ],
    "analysis.exponent_difference": [
        ("second", ad.analysis.exponent([1, 2], [[1, 2], [2, 3]], confidence=0.9), ValueError, "levels.*differ"),
        ("second", ad.analysis.exponent([1, 2], [1, 2]), ValueError, "seeds in common.*2 and 1"),
    ],
    "analysis.mean_interval": [
        ("values", [], ValueError, "finite values"),
        ("values", [1, NAN], ValueError, "nan"),
        ("values", [1, INF], ValueError, "inf"),
    ],
    "analysis.exponent": [
        ("values", [1, INF, 2], ValueError, "inf"),
        ("values", [1, NAN, 2], ValueError, "nan"),
        ("d", [1, 1, 2], ValueError, "distinct"),
    ],
}
#: For objectives, x comes from the loop, which has checked it; a NaN in it goes on to the loss (see test_not_finite).
UNCHECKED = {"x"}


def function(name):
    if name.startswith("method "):
        return named(name.removeprefix("method "))
    found = ad
    for part in name.split("."):
        found = getattr(found, part)
    return found


def rows():
    for name, good in FUNCTIONS.items():
        for argument in inspect.signature(function(name)).parameters:
            of_objective = name.startswith(("train.objectives", "method"))
            if of_objective and argument in UNCHECKED:
                continue
            bad = OTHERWISE.get((name, argument), BAD.get(argument, []))
            if of_objective and argument == "y":
                bad = [(nn.functional.one_hot(Y, 4).double(), ValueError, r"\[5, 4\]|one value per example|int64")]
                for label in (4, -1, -100):  # torch would take -100 for no label, and its loss for 0
                    wrong = torch.tensor([1, 2, 0, label, 2])
                    bad.append((wrong, (IndexError, ValueError), f"(Target|got) {label}"))
            for i, (value, kind, match) in enumerate(bad):
                yield pytest.param(name, good, argument, value, kind, match, id=f"{name}-{argument}-{i}")
        for i, (argument, *rest) in enumerate(OWN.get(name, [])):
            yield pytest.param(name, good, argument, *rest, id=f"{name}-own {argument}-{i}")


@pytest.mark.parametrize(("name", "good", "argument", "value", "kind", "match"), list(rows()))
def test_a_bad_argument_is_refused_by_value(name, good, argument, value, kind, match):
    with pytest.raises(kind, match=match):
        function(name)(**{**good, argument: value})


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "attacks.auto_attack"])
def test_good_arguments_are_taken(name):
    """Or the table would say nothing; AutoAttack, which takes a while, has tests of its own."""
    function(name)(**FUNCTIONS[name])


@pytest.mark.parametrize("name", ["attacks.one_step", "attacks.pgd"])
def test_clipping_needs_images_in_range(name):
    outside = X.clone()
    outside[2, 0, 0, 0] = 1.5
    with pytest.raises(ValueError, match=r"clip.*1\.5"):
        function(name)(**{**STEP, "x": outside}, clip=True)
    function(name)(**{**STEP, "x": outside})  # without clipping any image will do


def test_autoattack_always_clips():
    with pytest.raises(ValueError, match=r"clip=True.*1\.5"):
        ad.attacks.auto_attack(**{**STEP, "x": X + 0.5 + (1 - X.max())})


def test_wrong_methods():
    with pytest.raises(ValueError, match=r"unknown method 'pgd': choose one of none, gradient-l1, .*cross-lipschitz"):
        objectives.objective("pgd")
    with pytest.raises(ValueError, match=r"'none' has no penalty, got strength 0.1; set it to 0, or choose a method"):
        objectives.objective("none")(net(), X, Y, 0.1, None)


def test_a_single_pair_has_no_interval():
    with pytest.raises(ValueError, match="two pairs"):
        ad.analysis.geometric_mean_ratio([1.0], [2.0])


#: Public, and refusing what is bad in tests of their own, or functions of outputs alone.
ELSEWHERE = {
    "data": {"MissingDataError", "Resize", "checksum", "classes", "load", "root", "sizes"},
    "models": {
        "PADDINGS",
        "POOLINGS",
        "READOUTS",
        "Net",
        "Network",
        "Normalise",
        "Residual",
        "build",
        "device",
        "initialise",
    },
    "theory": {"Assumption", "Assumptions", "check_assumptions", "norms"},
    "measure": {"Evaluation", "Loss", "cross_entropy", "logit", "predictions", "zero_one"},
    "attacks": set(),
    "analysis": {
        *("GeometricMeanRatio", "Interval", "PowerLaw", "Series", "SingleCurveFit", "Table"),
        *("claims", "epochs", "exponents", "figures", "interactive", "origin", "playgrounds", "recorded", "runs"),
        *("series", "table"),
    },
}


@pytest.mark.parametrize("package", ELSEWHERE)
def test_every_public_function_has_its_row(package):
    public = set(getattr(ad, package).__all__)
    tabled = {name.split(".")[1] for name in FUNCTIONS if name.startswith(f"{package}.")}
    assert public == tabled | ELSEWHERE[package]


def test_labels_of_the_zero_one_loss_are_below_the_number_of_classes():
    outputs = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"below 4.*got 4 in example 1"):
        ad.measure.zero_one(outputs, torch.tensor([0, 4, 1]))
    assert ad.measure.zero_one(outputs, torch.tensor([0, 3, 1])).tolist() == [0, 1, 1]


def test_numpy_numbers_are_numbers():
    for p in (np.float64(2), np.float32(2), np.int64(2)):
        assert ad.norms.dual(p) == 2
