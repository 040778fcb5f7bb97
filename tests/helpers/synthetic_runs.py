"""Records of training runs that nobody trained: the specs of a registered grid, with metrics that follow a formula."""

import math

from advdim.experiments import grids, spec

LOSSES = [2.2, 1.6, 1.0, 0.6, 0.4, 0.05]  # of training images, by epoch; the level .5 lies half way from .6 to .4


def power(one, exponent, at_base=100.0):
    """A power law in the input dimension, of given value at the smallest of the three sizes."""
    return at_base * (one.images.size / one.base_size) ** (2 * exponent)


def run(one, *, l1, train_l1=None, damage=None, vulnerability=0.5, by_loss=None, on=1.0, accuracy=0.3, **other):
    """A point with these numbers; ``by_loss`` gives the mean gradient norm of test images at a training loss.

    ``other``: pgd_damage, robust (PGD accuracy), train_accuracy (at the end), initial, epochs (counted from 1).
    """
    damage = 0.0008 * l1 if damage is None else damage
    sizes = range(len(one.eps))
    outcome = {"damage": [damage] * len(sizes), "vulnerability": [vulnerability] * len(sizes)}
    outcome["accuracy"] = [other.get("robust", accuracy)] * len(sizes)
    under_pgd = outcome | {"damage": [other.get("pgd_damage", damage)] * len(sizes)}
    test = {"images": 2000, "accuracy": accuracy, "l1": l1, "l2_square": 1.0, "on_l2_square": on}
    test |= {"one-step-linf": outcome, "pgd": {"images": 100, "one-step-linf": outcome, "pgd-linf": under_pgd}}
    curve = by_loss or (lambda loss: l1)
    values = [curve(loss) for loss in LOSSES]
    history = {
        "epoch": [e - 1 for e in other.get("epochs", (1, 4, 10, 20, 40, 60))],
        "train_loss": LOSSES,
        "train_accuracy": [0.1] * 5 + [other.get("train_accuracy", 1.0)],
        "test_l1": values,
        "train_l1": [value * (train_l1 or l1) / l1 for value in values],
    }
    metrics = {"test": test, "train": {"l1": train_l1 or l1}, "history": history}
    metrics["initial"] = {"l1": other.get("initial", l1)}
    return {"spec": spec.as_dict(one), "status": "done", "metrics": metrics}


def grid(experiment, data, make):
    """The registered grid of an experiment on a data set, each point with the numbers that ``make`` gives, or left out.

    ``make`` takes a spec and gives the arguments of :func:`run`, or None.
    """
    points = grids.GRIDS[experiment]("medium", data)
    return [run(one, **numbers) for one in points if (numbers := make(one)) is not None]


def spread(seed, size=0.01):
    """What seeds differ by: alternating, of mean 0 over an even number of them."""
    return size * math.copysign(1, seed % 2 - 0.5)
